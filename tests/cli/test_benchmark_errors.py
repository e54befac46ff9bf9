"""What goes wrong with `m2m100 benchmark`: requests, bundles, processes, interrupts."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from background import usual
from m2m100_onnx import InferenceError, InvalidInputError, Translator
from m2m100_onnx.bundle.graphs import FUSED_SOURCE_FILE
from m2m100_onnx.cli.benchmark import measure as measuring
from m2m100_onnx.cli.benchmark.plan import Grid, prepare, synthetic_text
from m2m100_onnx.cli.main import main
from shell import QUICK

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
        (("--plot", "absent/a.svg"), "cannot write absent/a.svg: No such file"),
        (
            ("--plot", "a.html"),
            "--plot: expected a name that ends in .svg, .png, .pdf, found a.html",
        ),
        (("--json", "-"), "standard output has the report; see --output"),
        (("--plot", "-"), "standard output has the report; see --output"),
        (("--json", "same.svg", "--plot", "./same.svg"), "expected two files, found one"),
        (("--text", "lines"), "expected --source-lang and --target-lang"),
        (("--text", "lines", "--source-length", "9"), "found both"),
        (("--text", "absent", "--source-lang", "en", "--target-lang", "fr"), "cannot read absent"),
        (("--text", "gap", "--source-lang", "en", "--target-lang", "fr"), "gap: line 2: expected"),
        (
            ("--text", "blank", "--source-lang", "en", "--target-lang", "fr"),
            "line 2: expected text",
        ),
        (("--text", "latin", "--source-lang", "en", "--target-lang", "fr"), "expected UTF-8"),
        (("--text", "long", "--source-lang", "en", "--target-lang", "fr"), "line 2: the text has"),
        (
            ("--text", "lines", "--source-lang", "en", "--target-lang", "fr", "--batch-size", "4"),
            "--text: expected at least a batch of 4 lines, found 2",
        ),
        (("--beam-size", "1,5000"), "--beam-size: expected an int from 1 to 1,024, found 5000"),
        (("--threads", "1,5000"), "--threads: expected an int from 1 to 1,024, found 5000"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_measured(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"lines": b"one\ntwo\n", "gap": b"one\n \ntwo\n", "latin": b"\xff\n"}
    texts["blank"] = "one\n\u200b\n".encode()
    for name, text in {**texts, "long": b"one\n" + b"file " * 80 + b"\n"}.items():
        (tmp_path / name).write_bytes(text)
    monkeypatch.setattr(measuring, "measure", lambda _: pytest.fail("measured"))
    before = set(tmp_path.iterdir())
    assert main(["benchmark", str(tiny_bundle), *more]) == 2
    output, errors = capsys.readouterr()
    message = errors.splitlines()[-1]
    assert (output, message.startswith("m2m100: error: ")) == ("", True)
    assert expected in message
    assert set(tmp_path.iterdir()) == before


def test_plots_without_matplotlib_say_what_to_install_before_anything_is_measured(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(measuring, "measure", lambda _: pytest.fail("measured"))
    assert main(["benchmark", str(tiny_bundle), "--plot", "a.svg"]) == 2
    assert capsys.readouterr().err.endswith("run `pip install 'm2m100-onnx[cli]'`\n")


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
        main(["benchmark", "absent", f"{more[0]}={more[1]}"])
    assert caught.value.code == 2
    assert f"argument {more[0]}" in capsys.readouterr().err


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(tmp_path / "absent")]) == 2
    assert "absent: expected the folder of an exported bundle" in capsys.readouterr().err


def test_a_vocabulary_without_words_is_an_error(translator: Translator) -> None:
    class Characters:
        vocab_size = 3

        def ids_to_pieces(self, _: range) -> list[str]:
            return ["<s>", "你", "好"]

        def encode(self, text: str, *_: str) -> list[int]:
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
    assert main(["benchmark", str(bundle), *QUICK, "--json", str(target)]) == 2
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
def test_a_process_that_dies_is_an_error(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, expected: str
) -> None:
    dying = tmp_path / "dying"
    dying.write_text(f"#!/bin/sh\n{end}\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    job = prepare(Grid((tiny_bundle,)))[0]
    with pytest.raises(InferenceError, match=expected):
        measuring.measure(job)


@pytest.mark.parametrize(
    ("problem", "status"), [(KeyboardInterrupt(), 130), (InferenceError("no memory"), 2)]
)
def test_what_was_measured_so_far_is_not_lost(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    problem: BaseException,
    status: int,
) -> None:
    def measure(job: Any) -> measuring.Result:
        if job.configuration.beam_size == 2:
            raise problem
        sizes = {"private": 1, "shared": 2, "peak": 3}
        return measuring.Result(job.configuration, (0.5,), (0.1,), (0.2,), 0.2, 1, 48, sizes)

    monkeypatch.setattr(measuring, "measure", measure)
    target = tmp_path / "a.json"
    argv = ["benchmark", str(tiny_bundle), "--json", str(target), "--beam-size"]
    assert main([*argv, "1,2,3"]) == status
    output, errors = capsys.readouterr()
    assert tiny_bundle.name in output
    assert "incomplete: " in output
    assert ("no memory" in errors) == (status == 2)
    kept = json.loads(target.read_bytes())
    assert kept["complete"] is False
    assert [row["beam_size"] for row in kept["results"]] == [1]
    assert kept["results"][0]["tokens_per_second"] == 240
    # With nothing measured, what was kept before stays as it is.
    assert main([*argv, "2"]) == status
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
        preexec_fn=usual,
    ) as process:
        worker = _wait_for(lambda: _worker_of(process.pid))
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, b"")
    assert b"Traceback" not in errors
    # One that was interrupted before it could be killed ends when its input does.
    _wait_for(lambda: not Path(f"/proc/{worker}").exists())


def _worker_of(pid: int) -> str:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"benchmark.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
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
def test_a_busy_machine_gives_a_warning(
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    load: float,
    warned: bool,
) -> None:
    def interrupt(_: object) -> measuring.Result:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(measuring, "measure", interrupt)
    assert main(["benchmark", str(tiny_bundle)]) == 130
    assert ("the load average is 50.00" in capsys.readouterr().err) == warned
