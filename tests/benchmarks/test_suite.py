"""Tests the benchmark suite on a tiny random model: every part, the tables and the plots."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PARTS = ("export", "speed", "busy", "bandwidth", "load", "memory", "workers", "curves")
OURS = "ours int8"
SVG = "{http://www.w3.org/2000/svg}"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def results(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the result files of a run of all parts with one engine."""
    work, found = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("results")
    shutil.copytree(make_checkpoint(), work / "checkpoint-tiny")
    settings: dict[str, Any] = {
        "--shape": "tiny",
        "--precisions": "int8",
        "--engines": OURS,
        "--cells": "1x1,2x3x16x8",
        "--repetitions": 2,
        "--results": found,
        # A curve ends when two points are enough to estimate the time of the next one.
        "--longest": 0,
    }
    flat = [word for pair in settings.items() for word in pair]
    done = run("run.py", work, *flat, "--curves", "batch=1,2,3", "threads=1,2")
    assert done.returncode == 0, done.stdout + done.stderr
    # The operators of the kernels' package need no cache.
    assert find_spec("m2m100_onnx_kernels") or [path.name for path in work.glob("cache/*")]
    return found


def rows(results: Path, part: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((results / f"{part}.json").read_text())["rows"]
    return found


def test_every_part_leaves_a_file_with_versions_and_processor(results: Path) -> None:
    assert {path.stem for path in results.glob("*.json")} == set(PARTS)
    for part in PARTS:
        data = json.loads((results / f"{part}.json").read_text())
        assert data["rows"]
        assert data["machine"]["processor"]
        assert min(data["machine"][f"load_average{which}"] for which in ("", "_of_run")) >= 0
        assert {"m2m100-onnx", "onnxruntime", "numpy"} <= set(data["versions"]["ours"])
        assert {row.get("engine", OURS) for row in data["rows"]} == {OURS}


def test_rows_say_what_was_measured_and_how_often(results: Path) -> None:
    fields = ("batch_size", "beam_size", "source_length", "target_length")
    cells = [tuple(row[field] for field in fields) for row in rows(results, "speed")]
    assert cells == [(1, 1, 32, 48), (2, 3, 16, 8)]
    for part, key in (("speed", "samples"), ("load", "samples"), ("busy", "busy")):
        assert {len(row[key]) for row in rows(results, part)} == {2}
    processes = [(row["processes"], "forked" in row) for row in rows(results, "workers")]
    assert processes == [(1, False), (4, False), (4, True)]
    curves = {(row["curve"], row["size"]): "samples" in row for row in rows(results, "curves")}
    assert curves == {
        ("batch", 1): True,
        ("batch", 2): True,
        ("batch", 3): False,
        ("threads", 1): True,
        ("threads", 2): True,
    }


def test_bandwidth_counts_the_weights_that_a_step_reads_whole(results: Path) -> None:
    width, ffn, layers, vocabulary = 32, 64, 2, 10609
    # Query, key, value and output of self-attention; query and output of cross-attention.
    matrices = layers * (6 * width**2 + 2 * width * ffn) + vocabulary * width
    (row,) = rows(results, "bandwidth")
    # Scales, biases and norms are a few numbers per column.
    columns = layers * (6 * width + ffn + width) + vocabulary
    assert matrices < row["bytes"] < matrices + 20 * columns


def test_report_has_a_table_a_part_and_plots_that_are_checked(results: Path) -> None:
    done = run("report.py", "--print", "--results", results)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n### ") + done.stdout.startswith("### ") == len(PARTS) + 1
    assert "Skipped" in done.stdout
    plot = results / "curve-threads.svg"
    assert "Speed by threads" in plot.read_text()
    assert OURS in plot.read_text()
    assert run("report.py", "--print", "--check", "--results", results).returncode == 0
    measured = (results / "curves.json").read_text()
    (results / "curves.json").write_text(measured.replace('"size": 2', '"size": 4'))
    done = run("report.py", "--print", "--check", "--results", results)
    (results / "curves.json").write_text(measured)
    assert done.returncode == 1
    assert "curve-" in done.stderr


def test_a_chart_has_a_line_an_engine_and_names_what_it_was_drawn_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import plots

    series = {"a": [(1, 2.0), (4, 8.0)], "b<c>$d$": [(1, 3.0), (8, 5.0)]}
    svg = plots.line_chart("title", "x", "y", series)
    root = ElementTree.fromstring(svg)
    shown = ["".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")]
    for label in ("title", "x", "y", "1", "4", "8", *series):
        assert label in shown
    # Each line has a marker at each of its points.
    marks = [len(list(group.iter(f"{SVG}use"))) for group in root.iter(f"{SVG}g")]
    assert 2 in marks
    assert plots.drawn_from(svg) == plots.drawn_from(plots.line_chart("title", "x", "y", series))
    other = plots.line_chart("title", "x", "y", {**series, "a": [(1, 2.0), (4, 8.1)]})
    assert "" != plots.drawn_from(svg) != plots.drawn_from(other)


def test_what_shapes_a_bundle_is_exporter_and_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import suite

    names = [path.name for folder in suite.SHAPING for path in folder.rglob("*.py")]
    assert {"bundle.py", "config.py", "graphs.py", "exporter.py", "fused.py"} <= set(names)
    assert not {"translator.py", "beam.py"} & set(names)
    first = suite.exporter_digest.__wrapped__()
    monkeypatch.setattr(suite, "SHAPING", suite.SHAPING[:1])
    assert suite.exporter_digest.__wrapped__() != first


def test_report_leaves_out_what_was_not_measured(results: Path, tmp_path: Path) -> None:
    shutil.copyfile(results / "load.json", tmp_path / "load.json")
    done = run("report.py", "--print", "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("### ")] == [
        "### Targets",
        "### From the start of a process to its first token",
    ]


def test_targets_are_reached_or_missed_by_paired_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import targets

    cell = {"batch_size": 8, "beam_size": 1, "source_length": 32, "target_length": 48}
    # The medians are 2 and 3, but the median of the pairs' ratios is 2.5.
    ours = {"engine": "ours int8", **cell, "samples": [1.0, 2.0, 4.0]}
    peer = {"engine": "ctranslate2 int8", **cell, "samples": [3.0, 5.0, 1.0]}
    load = {"engine": "ours int8", "samples": [0.4, 0.6, 0.7]}
    found = {
        target.name: target
        for target in targets.targets({"speed": {"rows": [ours, peer]}, "load": {"rows": [load]}})
    }
    assert found["B=8 beam 1: ours int8"].cells()[2:] == ["2.50 x", "reached"]
    first = found["a fresh process to its first token: ours int8"]
    assert first.cells()[2:] == ["0.60 s", "**missed**"]
    assert found["B=1 beam 5: ours int8"].cells()[2:] == ["not measured", ""]
