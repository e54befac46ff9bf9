"""`m2m100 benchmark`: that it does the work it says and computes what it prints; never how fast."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from m2m100_onnx import benchmark, benchmark_report
from m2m100_onnx.bundle import FUSED_FILES, GRAPH_FILES
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
    """A run of two bundles and two batch sizes: its JSON, its page, and what it printed."""
    folder = tmp_path_factory.mktemp("benchmark")
    argv = [
        *("benchmark", str(tiny_bundle), str(tiny_int8), "--batch-size", "1,3"),
        *("--beam-size", "2", "--source-length", str(SOURCE), "--target-length", str(TARGET)),
        *("--concurrency", "2", "--repetitions", str(REPETITIONS), *QUICK[:2], *QUICK[4:]),
        *("--loads", "2", "--json", str(folder / "a.json"), "--plot", str(folder / "a.html")),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "m2m100_onnx", *argv],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        check=True,
    )
    found = json.loads((folder / "a.json").read_bytes())
    return found, (folder / "a.html").read_text(encoding="utf-8"), done.stdout.decode()


@pytest.fixture
def found(measured: tuple[dict[str, Any], str, str]) -> dict[str, Any]:
    """The run's document, to be changed at will."""
    copy: dict[str, Any] = json.loads(json.dumps(measured[0]))
    return copy


# Numbers


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 101, 1000])
def test_summaries_are_numpys(count: int) -> None:
    samples = np.random.default_rng(count).lognormal(size=count)
    summary = benchmark.summarize(samples.tolist())
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
        files = ("model.onnx_data", *GRAPH_FILES, *FUSED_FILES)
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
    _, page, printed = measured
    assert benchmark_report.FORMATS["table"](found) == printed
    assert benchmark_report.as_html(found) == page
    assert json.loads(benchmark_report.FORMATS["json"](found)) == found


def test_csv_holds_every_number(found: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(benchmark_report.FORMATS["csv"](found))))
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
    text = benchmark_report.FORMATS["md"](found)
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


def test_the_table_stands_in_columns(found: dict[str, Any]) -> None:
    lines = benchmark_report.FORMATS["table"](found).splitlines()
    rule = next(number for number, line in enumerate(lines) if line.startswith("---"))
    rows = lines[rule - 2 : rule + 6]
    blanks = [index for index, mark in enumerate(rows[2]) if mark == " "]
    assert rows[-1].strip() == ""
    for row in (*rows[:2], *rows[3:-1]):
        assert all(row.ljust(len(rows[2]))[index] == " " for index in blanks)


def test_the_page_plots_each_configuration_to_scale(
    measured: tuple[dict[str, Any], str, str],
) -> None:
    found, page, _ = measured
    assert not [word for word in ("http:", "https:", "src=", "@import", "url(") if word in page]
    assert "prefers-color-scheme: dark" in page
    root = ElementTree.fromstring(page)
    headings = [heading.text or "" for heading in root.iter("h2")]
    plots = dict(zip(headings, root.iter("svg"), strict=False))
    speed = next(plot for title, plot in plots.items() if "tokens a second" in title)
    values = [row["tokens_per_second"] for row in found["results"]]
    widths = [float(bar.get("width") or 0) for bar in speed.iter("rect")]
    assert np.array(widths) / max(widths) == pytest.approx(np.array(values) / max(values), abs=0.01)
    latency = next(plot for title, plot in plots.items() if "Latency" in title)
    summaries = [row["latency_seconds"] for row in found["results"]]
    scale = 470 / max(summary["p99"] for summary in summaries)
    for summary, bar, line in zip(
        summaries, latency.iter("rect"), latency.iter("line"), strict=False
    ):
        start, end = (float(line.get(name) or 0) for name in ("x1", "x2"))
        assert float(bar.get("width") or 0) == pytest.approx(summary["p50"] * scale, abs=0.2)
        assert end - start == pytest.approx((summary["p99"] - summary["p50"]) * scale, abs=0.2)
    for plot in plots.values():
        labels = [label.text for label in plot.iter("text") if label.get("text-anchor") == "end"]
        assert labels == [
            f"{row['bundle']} ({row['precision']}), batch {row['batch_size']}"
            for row in found["results"]
        ]


def test_what_is_not_known_is_shown_as_such(found: dict[str, Any]) -> None:
    for row in found["results"]:
        row["memory"] = {"private": None, "shared": None, "peak": None}
        row["threads"] = None
    found["load_average"], found["complete"] = None, False
    for form in ("table", "md"):
        text = benchmark_report.FORMATS[form](found)
        assert "threads default" in text
        assert "load average unknown" in text
        assert "incomplete: " in text
    (_, _, *rows) = cells(benchmark_report.FORMATS["md"](found), "|")
    assert all(row[-3:] == ["-"] * 3 for row in rows)
    line = next(csv.DictReader(io.StringIO(benchmark_report.FORMATS["csv"](found))))
    assert (line["memory_private"], line["load_average"]) == ("", "")
    page = benchmark_report.as_html(found)
    assert "Memory" not in "".join(h.text or "" for h in ElementTree.fromstring(page).iter("h2"))


def test_odd_names_break_no_form(found: dict[str, Any]) -> None:
    odd = 'a|b<c>&"d"'
    for row in found["results"]:
        row["bundle"] = odd
    labels = [e.text or "" for e in ElementTree.fromstring(benchmark_report.as_html(found)).iter()]
    assert any(label.startswith(odd) for label in labels)
    assert r"a\|b<c>" in benchmark_report.FORMATS["md"](found)
    line = next(csv.DictReader(io.StringIO(benchmark_report.FORMATS["csv"](found))))
    assert line["bundle"] == odd
