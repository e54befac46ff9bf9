"""`m2m100 benchmark`: that it does the work it says and computes what it prints; never how fast."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2m100_onnx.bundle.graphs import (
    CROSS_ATTENTION_FILE,
    FUSED_FILES,
    GRAPH_FILES,
    NATIVE_FILES,
    NATIVE_FP16_STEP_FILE,
)
from m2m100_onnx.cli.benchmark import command, plots, report
from m2m100_onnx.cli.benchmark.measure import summarize
from m2m100_onnx_export import export
from shell import QUICK

SOURCE, TARGET, REPETITIONS = 6, 7, 2


@pytest.fixture(scope="module")
def tiny_int8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("bundles") / "tiny-int8"
    export(tiny_checkpoint, bundle, precision="int8", verify_outputs=False)
    return bundle


@pytest.fixture(scope="module")
def measured(
    tiny_bundle: Path, tiny_int8: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str, str]:
    """A run of two bundles and two batch sizes: its JSON, its plots, and what it printed."""
    folder = tmp_path_factory.mktemp("benchmark")
    argv = [
        *("benchmark", str(tiny_bundle), str(tiny_int8), "--batch-size", "1,3"),
        *("--beam-size", "2", "--source-length", str(SOURCE), "--target-length", str(TARGET)),
        *("--concurrency", "2", "--repetitions", str(REPETITIONS), *QUICK[:2], *QUICK[4:]),
        *("--loads", "2", "--json", str(folder / "a.json"), "--plot", str(folder / "a.svg")),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "m2m100_onnx", *argv],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        check=True,
    )
    found = json.loads((folder / "a.json").read_bytes())
    return found, (folder / "a.svg").read_text(encoding="utf-8"), done.stdout.decode()


@pytest.fixture
def found(measured: tuple[dict[str, Any], str, str]) -> dict[str, Any]:
    """The run's document, to be changed at will."""
    copy: dict[str, Any] = json.loads(json.dumps(measured[0]))
    return copy


# Numbers


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 101, 1000])
def test_summaries_are_numpys(count: int) -> None:
    samples = np.random.default_rng(count).lognormal(size=count)
    summary = summarize(samples.tolist())
    expected = np.percentile(samples, [0, 50, 90, 99, 100])
    assert [summary.min, summary.p50, summary.p90, summary.p99, summary.max] == pytest.approx(
        expected
    )
    assert (summary.count, summary.mean) == (count, pytest.approx(samples.mean()))
    assert summary.stddev == (None if count == 1 else pytest.approx(samples.std(ddof=1)))


def test_rows_summarize_their_raw_samples(found: dict[str, Any]) -> None:
    for row in found["results"]:
        for name, samples in row["samples"].items():
            assert len(samples) == row[name]["count"]
            assert min(samples) > 0
            for share, key in ((50, "p50"), (90, "p90"), (99, "p99")):
                assert row[name][key] == pytest.approx(np.percentile(samples, share))
        # Two Python threads: together they waited at most twice the time that passed.
        assert sum(row["samples"]["latency_seconds"]) <= 2 * row["wall_seconds"]
        assert max(row["samples"]["latency_seconds"]) <= row["wall_seconds"]
        for name, count in (("tokens", "generated_tokens"), ("sentences", "sentences")):
            speed = row[f"{name}_per_second"]
            assert speed * row["wall_seconds"] == pytest.approx(row[count])


def test_every_row_does_the_work_that_was_asked_for(
    found: dict[str, Any], tiny_bundle: Path, tiny_int8: Path
) -> None:
    rows = found["results"]
    # Bundles take turns.
    assert [(row["precision"], row["batch_size"]) for row in rows] == [
        ("fp32", 1),
        ("int8", 1),
        ("fp32", 3),
        ("int8", 3),
    ]
    assert [row["bundle"] for row in rows] == [tiny_bundle.name, tiny_int8.name] * 2
    for row in rows:
        calls = REPETITIONS * row["concurrency"]
        assert row["sentences"] == calls * row["batch_size"]
        assert row["generated_tokens"] == calls * row["batch_size"] * TARGET
        for name in ("latency_seconds", "first_token_seconds"):
            assert len(row["samples"][name]) == calls
        assert len(row["samples"]["load_seconds"]) == 2
        folder = {"fp32": tiny_bundle, "int8": tiny_int8}[row["precision"]]
        native = (*NATIVE_FILES, NATIVE_FP16_STEP_FILE) if row["precision"] == "int8" else ()
        files = ("model.onnx_data", *GRAPH_FILES, CROSS_ATTENTION_FILE, *FUSED_FILES, *native)
        assert row["weights_size"] == sum((folder / name).stat().st_size for name in files)
        assert row["beam_size"] == row["concurrency"] == 2
        assert (row["source_length"], row["target_length"]) == (SOURCE, TARGET)


# Forms


def test_the_document_says_where_it_was_taken(found: dict[str, Any]) -> None:
    for name in ("onnxruntime", "numpy", "sentencepiece"):
        assert found["versions"][name] == metadata.version(name)
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["processor"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["complete"] is True
    assert found["settings"]["repetitions"] == REPETITIONS
    for row in found["results"]:
        assert all(value is None or value > 1 << 20 for value in row["memory"].values())


def test_a_kept_document_can_be_shown_again(
    measured: tuple[dict[str, Any], str, str], found: dict[str, Any]
) -> None:
    assert report.FORMATS["table"](found) == measured[2]
    assert json.loads(report.FORMATS["json"](found)) == found
    (again, titles) = (drawn(found), [title for title, _ in plots.bars(found["results"])])
    for title in titles:
        assert title in measured[1]
        assert title in again


def test_csv_holds_every_number(found: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(report.FORMATS["csv"](found))))
    assert len(rows) == len(found["results"])
    for line, row in zip(rows, found["results"], strict=True):
        assert line["precision"] == row["precision"]
        assert float(line["latency_seconds_p99"]) == row["latency_seconds"]["p99"]
        assert float(line["tokens_per_second"]) == row["tokens_per_second"]
        assert line["memory_private"] == str(row["memory"]["private"] or "")
        assert line["version_onnxruntime"] == found["versions"]["onnxruntime"]
        assert None not in line
        assert None not in line.values()


def cells(table: str, mark: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith(mark)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_markdown_shows_what_differs_and_says_the_rest_once(found: dict[str, Any]) -> None:
    text = report.FORMATS["md"](found)
    heading, rule, *rows = cells(text, "|")
    assert {len(row) for row in (heading, rule, *rows)} == {len(heading)}
    assert heading[:4] == ["bundle", "precision", "weights MB", "batch"]
    assert "beam" not in heading
    assert text.startswith(f"beam 2, source {SOURCE}, target {TARGET}, threads 1, conc 2, from en")
    for shown, row in zip(rows, found["results"], strict=True):
        latency = row["latency_seconds"]
        by_name = dict(zip(heading, shown, strict=True))
        assert by_name["batch"] == str(row["batch_size"])
        for name in ("p50", "p90", "p99"):
            seconds = float(by_name[f"{name} ms"].replace(",", "")) / 1000
            assert seconds == pytest.approx(latency[name], rel=0.01)
        mean, deviation = by_name["mean ± sd ms"].replace(",", "").split(" ± ")
        assert float(mean) / 1000 == pytest.approx(latency["mean"], rel=0.01)
        assert float(deviation) / 1000 == pytest.approx(latency["stddev"], rel=0.01, abs=1e-6)


def test_a_terminal_shows_the_same_cells(
    found: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    pytest.importorskip("rich")
    found["results"][0]["bundle"] = "[b]odd[/b]"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    command._print(found, "table")
    shown = capfdbinary.readouterr().out.decode()
    heading, rows, common = report.table(found)
    words = [word for title in heading for word in title.split()]
    for part in (common, *words, *(cell for row in rows for cell in row), *report.notes(found)):
        assert part in shown
    # What is not a table for people stays as it is.
    command._print(found, "csv")
    assert capfdbinary.readouterr().out.decode() == report.FORMATS["csv"](found)


def test_the_table_stands_in_columns(found: dict[str, Any]) -> None:
    lines = report.FORMATS["table"](found).splitlines()
    rule = next(number for number, line in enumerate(lines) if line.startswith("---"))
    rows = lines[rule - 2 : rule + 6]
    blanks = [index for index, mark in enumerate(rows[2]) if mark == " "]
    assert rows[-1].strip() == ""
    for row in (*rows[:2], *rows[3:-1]):
        assert all(row.ljust(len(rows[2]))[index] == " " for index in blanks)


def drawn(found: dict[str, Any], name: str = "a.svg") -> str:
    file = io.BytesIO()
    plots.save(found, name, file)
    return file.getvalue().decode("utf-8", "replace")


def test_bars_are_the_measures_of_each_configuration(found: dict[str, Any]) -> None:
    rows = found["results"]
    bars = dict(plots.bars(rows))
    speed = next(row for title, row in bars.items() if "tokens a second" in title)
    assert [bar.length for bar in speed if bar] == [row["tokens_per_second"] for row in rows]
    latency = next(row for title, row in bars.items() if "Latency" in title)
    for bar, row in zip(latency, rows, strict=True):
        assert bar
        latencies = [row["latency_seconds"][p] * 1000 for p in ("p50", "p99")]
        assert [bar.length, bar.end] == pytest.approx(latencies)
        assert float(bar.label.split()[0].replace(",", "")) == pytest.approx(bar.length, rel=0.01)


def test_plots_name_every_configuration(measured: tuple[dict[str, Any], str, str]) -> None:
    found, svg, _ = measured
    for row in found["results"]:
        assert f"{row['bundle']} ({row['precision']}), batch {row['batch_size']}" in svg


@pytest.mark.parametrize(("name", "start"), [("a.png", "\ufffdPNG"), ("a.PDF", "%PDF")])
def test_the_name_of_a_plot_says_its_format(found: dict[str, Any], name: str, start: str) -> None:
    plots.check(name)
    assert drawn(found, name).startswith(start)


def test_what_is_not_known_is_shown_as_such(found: dict[str, Any]) -> None:
    for row in found["results"]:
        row["memory"] = {"private": None, "shared": None, "peak": None}
        row["threads"] = None
    found["load_average"], found["complete"] = None, False
    for form in ("table", "md"):
        text = report.FORMATS[form](found)
        assert "threads default" in text
        assert "load average unknown" in text
        assert "incomplete: " in text
    (_, _, *rows) = cells(report.FORMATS["md"](found), "|")
    assert all(row[-3:] == ["-"] * 3 for row in rows)
    line = next(csv.DictReader(io.StringIO(report.FORMATS["csv"](found))))
    assert (line["memory_private"], line["load_average"]) == ("", "")
    assert "Memory" not in drawn(found)
    found["results"][0]["memory"]["peak"] = 1 << 20
    assert "not known here" in drawn(found)


def test_odd_names_break_no_form(found: dict[str, Any]) -> None:
    odd = 'a|b<c>&"d"$e$'
    for row in found["results"]:
        row["bundle"] = odd
    assert f"{escape(odd, quote=False)} (int8)" in drawn(found)
    assert r"a\|b<c>" in report.FORMATS["md"](found)
    line = next(csv.DictReader(io.StringIO(report.FORMATS["csv"](found))))
    assert line["bundle"] == odd
