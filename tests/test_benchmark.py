"""`m2m100 benchmark`: that it does the work it says and computes what it prints; never how fast."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from m2m100_onnx import InvalidInputError, Translation, Translator, benchmark, benchmark_report, cli
from m2m100_onnx.benchmark_plan import Grid, prepare, synthetic_text
from m2m100_onnx.benchmark_worker import memory, timed_calls
from m2m100_onnx.bundle import FUSED_FILES, FUSED_SOURCE_FILE, GRAPH_FILES
from m2m100_onnx.decoding import SearchOptions, search
from m2m100_onnx.ranking import Float32Array, Int64Array, LogitsState
from m2m100_onnx_export import export

SOURCE, TARGET, REPETITIONS = 6, 7, 2
QUICK = ("--warmup", "0", "--loads", "1", "--threads", "1")


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


def test_lengths_are_exact_and_may_fill_the_positions(tiny_bundle: Path) -> None:
    translator = Translator(tiny_bundle, intra_op_num_threads=1)
    grid = Grid((tiny_bundle,), batch_sizes=(2,), source_lengths=(3, 64), target_lengths=(1, 62))
    jobs = prepare(grid)
    assert len(jobs) == 8
    for job in jobs:
        languages, (texts,) = job.request["languages"], job.request["batches"]
        lengths = {len(translator.encode(text, languages["source_lang"])) for text in texts}
        assert lengths == {job.configuration.source_length}
        for options, length in (("whole", job.configuration.target_length), ("first_token", 1)):
            found = translator.translate_batch(texts, **languages, **job.request[options])
            # The start and the language token are not generated.
            assert [len(each.tokens) - 2 for each in found] == [length] * 2


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_lengths_are_exact_though_the_model_would_end(
    tiny_bundle: Path, beam_size: int, length: int
) -> None:
    class Ending:
        """A model that wants to end at every step."""

        def __init__(self) -> None:
            self.rows = 1

        def logits(self) -> Float32Array:
            return np.tile(np.array([0, 1, 9, 2, 3, 4], np.float32), (self.rows, 1))

        def step(self, _: Int64Array) -> Float32Array:
            return self.logits()

        def select(self, rows: Int64Array) -> None:
            self.rows = len(rows)

    (job,) = prepare(Grid((tiny_bundle,), beam_sizes=(beam_size,), target_lengths=(length,)))
    asked = {name: v for name, v in job.request["whole"].items() if name != "max_batch_tokens"}
    state, prompt = Ending(), np.array([[2, 5]])
    options = SearchOptions(**asked)
    ((best,),) = search(LogitsState(state, state.logits()), prompt, eos_id=2, options=options)
    assert len(best.tokens) == 2 + length
    assert 2 not in best.tokens[2:]


@pytest.mark.parametrize("length", [3, 4, 32, 200])
def test_synthetic_texts_are_words_of_the_vocabulary(translator: Translator, length: int) -> None:
    tokenizer = translator.tokenizer
    texts = [synthetic_text(tokenizer, "en", length, random.Random(seed)) for seed in (1, 1, 2)]
    for text in texts:
        ids = tokenizer.encode(text, "en")
        assert len(ids) == length
        assert tokenizer.unk_id not in ids
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_calls_run_at_once_and_all_are_counted() -> None:
    both = threading.Barrier(2, timeout=20)
    seen: list[list[str]] = []

    def translate(batch: list[str]) -> list[Translation]:
        # Never passes unless a second thread is here too.
        both.wait()
        seen.append(batch)
        # As many tokens as the text says, beside start and language token; none for empty text.
        return [Translation("", 0.0, (0,) * (int(n) + 2 if n else 0), ()) for n in batch]

    calls = timed_calls(translate, [["3", "4"], ["5", ""]], passes=3, concurrency=2)
    assert sorted(seen) == [["3", "4"]] * 6 + [["5", ""]] * 6
    assert [call.tokens for call in calls] == [7, 5] * 6
    assert all(call.began <= call.ended for call in calls)


def test_each_thread_has_its_share_however_fast_calls_are() -> None:
    threads: list[int] = []

    def translate(_: list[str]) -> list[Translation]:
        threads.append(threading.get_ident())
        return []

    timed_calls(translate, [["text"]], passes=2, concurrency=8)
    assert sorted(map(threads.count, set(threads))) == [2] * 8


# In a process of its own: what a whole test run holds may go back to the system at any time.
_GROWTH = """
import json, sys
import numpy as np
from m2m100_onnx.benchmark_worker import memory

path, size = sys.argv[1], int(sys.argv[2])
found = [memory()]
private = np.ones(size, np.uint8)
found.append(memory())
shared = np.memmap(path, np.uint8, "r")
assert shared.sum() == 0
found.append(memory())
print(json.dumps([*found, private.nbytes]))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_tells_private_from_shared(tmp_path: Path) -> None:
    size = 64 << 20
    (tmp_path / "pages").write_bytes(bytes(size))
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, str(tmp_path / "pages"), str(size)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        check=True,
    )
    before, with_private, with_shared, nbytes = json.loads(done.stdout)
    slack = 8 << 20

    def grown(old: dict[str, int | None], new: dict[str, int | None], name: str) -> int:
        return (new[name] or 0) - (old[name] or 0)

    assert grown(before, with_private, "private") == pytest.approx(nbytes, abs=slack)
    assert grown(before, with_private, "shared") == pytest.approx(0, abs=slack)
    assert grown(with_private, with_shared, "private") == pytest.approx(0, abs=slack)
    assert grown(with_private, with_shared, "shared") == pytest.approx(size, abs=slack)
    resident = (with_shared["private"] or 0) + (with_shared["shared"] or 0)
    assert (with_shared["peak"] or 0) >= resident - slack


def test_memory_is_unknown_where_proc_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert memory() == {"private": None, "shared": None, "peak": None}


def test_real_text_ends_by_itself(
    tiny_bundle: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    lines = ["Open the file.", "Delete", "Save a copy before you close the window."]
    (tmp_path / "text").write_text("\n".join(lines) + "\n", encoding="utf-8")
    argv = ["--text", str(tmp_path / "text"), "--source-lang", "en", "--target-lang", "fr"]
    argv += ["--batch-size", "2", "--beam-size", "3", "--repetitions", "2", "--output", "json"]
    assert cli.main(["benchmark", str(tiny_bundle), *argv, *QUICK]) == 0
    (row,) = json.loads(capfdbinary.readouterr().out)["results"]
    translator = Translator(tiny_bundle, intra_op_num_threads=1)
    expected = translator.translate_batch(lines, source_lang="en", target_lang="fr", beam_size=3)
    assert row["generated_tokens"] == 2 * sum(len(each.tokens) - 2 for each in expected)
    assert row["sentences"] == 2 * len(lines)
    # Two batches, of two lines and of one.
    assert row["latency_seconds"]["count"] == 4
    assert row["source_length"] is row["target_length"] is None
    assert (row["source_lang"], row["target_lang"]) == ("en", "fr")


def test_what_the_translator_takes_reaches_it(tiny_bundle: Path) -> None:
    entries = {"session.intra_op.allow_spinning": "0"}
    jobs = prepare(Grid((tiny_bundle,), threads=(None, 2), session_options=entries))
    assert [job.request["translator"]["intra_op_num_threads"] for job in jobs] == [None] * 2 + [
        2
    ] * 2
    assert all(job.request["translator"]["session_options"] == entries for job in jobs)


def test_bundles_of_one_name_are_told_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / tiny_bundle.name).symlink_to(tiny_bundle)
    other = tmp_path / "other" / tiny_bundle.name
    shutil.copytree(tiny_bundle, other)
    jobs = prepare(Grid((tiny_bundle, other), beam_sizes=(1,)))
    assert [job.configuration.bundle for job in jobs] == [str(tiny_bundle), str(other)]
    # The same one twice is a way to see the noise.
    jobs = prepare(Grid((tiny_bundle, tmp_path / tiny_bundle.name), beam_sizes=(1,)))
    assert [job.configuration.bundle for job in jobs] == [tiny_bundle.name] * 2


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


# What goes wrong


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--source-length", "2"), "source length: expected 3 to 64 tokens"),
        (("--source-length", "9,65"), "found 65"),
        (("--target-length", "63"), "target length: expected 1 to 62 tokens"),
        (("--source-lang", "EN"), "did you mean 'en'"),
        (("--device", "abacus"), "abacus"),
        (("--json", "absent/a.json"), "cannot write absent/a.json: No such file"),
        (("--plot", "absent/a.html"), "cannot write absent/a.html: No such file"),
        (("--json", "same", "--plot", "./same"), "expected two files, found one"),
        (("--text", "lines"), "expected --source-lang and --target-lang"),
        (("--text", "lines", "--source-length", "9"), "found both"),
        (("--text", "absent", "--source-lang", "en", "--target-lang", "fr"), "cannot read absent"),
        (("--text", "gap", "--source-lang", "en", "--target-lang", "fr"), "gap: line 2: expected"),
        (("--text", "latin", "--source-lang", "en", "--target-lang", "fr"), "expected UTF-8"),
        (("--text", "long", "--source-lang", "en", "--target-lang", "fr"), "line 2: the text has"),
        (
            ("--text", "lines", "--source-lang", "en", "--target-lang", "fr", "--batch-size", "4"),
            "a batch of 4 lines, found 2",
        ),
    ],
)
def test_wrong_requests_are_told_before_anything_is_measured(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"lines": b"one\ntwo\n", "gap": b"one\n \ntwo\n", "latin": b"\xff\n"}
    for name, text in {**texts, "long": b"one\n" + b"file " * 80 + b"\n"}.items():
        (tmp_path / name).write_bytes(text)
    monkeypatch.setattr(benchmark, "measure", lambda _: pytest.fail("measured"))
    before = set(tmp_path.iterdir())
    assert cli.main(["benchmark", str(tiny_bundle), *more]) == 2
    output, errors = capsys.readouterr()
    message = errors.splitlines()[-1]
    assert (output, message.startswith("m2m100: error: ")) == ("", True)
    assert expected in message
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "more",
    [
        ("--batch-size", "0"),
        ("--beam-size", "1,,2"),
        ("--repetitions", "0"),
        ("--repetitions", "many"),
        ("--warmup", "-1"),
        ("--loads", "0"),
        ("--threads", "1.5"),
        ("--output", "pdf"),
        ("--session-option", "spin"),
    ],
)
def test_usage_errors_exit_with_2(
    more: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["benchmark", "absent", f"{more[0]}={more[1]}"])
    assert caught.value.code == 2
    assert f"argument {more[0]}" in capsys.readouterr().err


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["benchmark", str(tmp_path / "absent")]) == 2
    assert "absent: expected the folder of an exported bundle" in capsys.readouterr().err


def test_a_vocabulary_without_words_is_told(translator: Translator) -> None:
    class Characters:
        vocab_size = 3

        def ids_to_pieces(self, _: range) -> list[str]:
            return ["<s>", "你", "好"]

        def encode(self, text: str, _: str) -> list[int]:
            return translator.encode(text, "zh")

    with pytest.raises(InvalidInputError, match=r"expected 9 tokens .* found 2"):
        synthetic_text(Characters(), "zh", 9, random.Random(0))  # type: ignore[arg-type]


def test_a_damaged_graph_is_named(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "damaged"
    shutil.copytree(tiny_bundle, bundle)
    graph = bundle / FUSED_SOURCE_FILE
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    target = tmp_path / "a.json"
    assert cli.main(["benchmark", str(bundle), *QUICK, "--json", str(target)]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert str(graph) in errors.splitlines()[-1]
    assert not target.exists()


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("echo out of luck >&2; exit 3", "ended with status 3: out of luck"),
        ("kill -9 $$", "killed by signal 9"),
    ],
)
def test_a_process_that_dies_is_told(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, expected: str
) -> None:
    dying = tmp_path / "dying"
    dying.write_text(f"#!/bin/sh\n{end}\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    job = prepare(Grid((tiny_bundle,)))[0]
    with pytest.raises(benchmark.InferenceError, match=expected):
        benchmark.measure(job)


@pytest.mark.parametrize(
    ("problem", "status"), [(KeyboardInterrupt(), 130), (benchmark.InferenceError("no memory"), 2)]
)
def test_what_was_measured_so_far_is_not_lost(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    problem: BaseException,
    status: int,
) -> None:
    def measure(job: Any) -> benchmark.Result:
        if job.configuration.beam_size == 2:
            raise problem
        sizes = {"private": 1, "shared": 2, "peak": 3}
        return benchmark.Result(job.configuration, (0.5,), (0.1,), (0.2,), 0.2, 1, 48, sizes)

    monkeypatch.setattr(benchmark, "measure", measure)
    target = tmp_path / "a.json"
    argv = ["benchmark", str(tiny_bundle), "--json", str(target), "--beam-size"]
    assert cli.main([*argv, "1,2,3"]) == status
    output, errors = capsys.readouterr()
    assert tiny_bundle.name in output
    assert "incomplete: " in output
    assert ("no memory" in errors) == (status == 2)
    kept = json.loads(target.read_bytes())
    assert kept["complete"] is False
    assert [row["beam_size"] for row in kept["results"]] == [1]
    assert kept["results"][0]["tokens_per_second"] == 240
    # With nothing measured, what was kept before stays as it is.
    assert cli.main([*argv, "2"]) == status
    assert capsys.readouterr().out == ""
    assert json.loads(target.read_bytes()) == kept


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_an_interrupt_ends_the_measured_process_too(tiny_bundle: Path) -> None:
    argv = ["benchmark", str(tiny_bundle), *QUICK, "--repetitions", "1000000", "--beam-size", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "m2m100_onnx", *argv],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever runs the tests in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        worker = _wait_for(lambda: _worker_of(process.pid))
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, b"")
    assert b"Traceback" not in errors
    assert not Path(f"/proc/{worker}").exists()


def _worker_of(pid: int) -> str:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"benchmark_worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    return ""


def _wait_for(value: Callable[[], str]) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if found := value():
            return found
        time.sleep(0.02)
    raise TimeoutError


@pytest.mark.parametrize(("load", "warned"), [(0.1, False), (50.0, True)])
def test_a_busy_machine_is_told(
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    load: float,
    warned: bool,
) -> None:
    def interrupt(_: object) -> benchmark.Result:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(benchmark, "measure", interrupt)
    assert cli.main(["benchmark", str(tiny_bundle)]) == 130
    assert ("the load average is 50.00" in capsys.readouterr().err) == warned
