"""SIGINT, SIGTERM and SIGHUP: what is unfinished is removed, and the exit status says which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from background import usual
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx.cli import main as command
from m2m100_onnx.cli import signals
from shell import arguments

SIGNALS = pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["INT", "TERM", "HUP"],
)


@contextmanager
def running(
    argv: list[str], folder: Path, prepare: Callable[[], None] = usual
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the command with everything on its path; kills it at the end if need be."""
    with subprocess.Popen(
        [sys.executable, "-m", "m2m100_onnx", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=prepare,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def wait_until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(process: str) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # Nobody may have asked yet how it ended.


@SIGNALS
def test_translate_leaves_the_output_as_it_was(
    demo_bundle: Path, tmp_path: Path, number: int, status: int
) -> None:
    target = tmp_path / "out"
    target.write_text("precious")
    argv = arguments(demo_bundle, "--read-ahead", "1", "--output", "out")
    with running(argv, tmp_path) as process:
        assert process.stdin
        process.stdin.write(b"Open the file.\n")
        process.stdin.flush()
        wait_until(lambda: [p for p in hidden(tmp_path) if p.stat().st_size])
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (status, b"", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert target.read_text() == "precious"


@SIGNALS
def test_an_error_in_the_place_of_a_signals(number: int, status: int) -> None:
    """As safetensors raises one: the signal is the reason all the same."""
    code = f"""
import os, sys, time
from argparse import Namespace
from types import SimpleNamespace
from m2m100_onnx.cli import main

def run(_):
    try:
        os.kill(os.getpid(), {int(number)})
        time.sleep(60)
    except KeyboardInterrupt:
        raise ValueError("another") from None

main.make_parser = lambda: SimpleNamespace(parse_args=lambda _: Namespace(run=run))
sys.exit(main.main([]))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, preexec_fn=usual, capture_output=True
    )
    assert (done.returncode, done.stderr) == (status, b"")


@SIGNALS
def test_export_leaves_nothing(
    demo_checkpoint: Path, tmp_path: Path, number: int, status: int
) -> None:
    with running(["export", str(demo_checkpoint), "bundle"], tmp_path) as process:
        wait_until(lambda: list(tmp_path.glob(f".*/**/{WEIGHTS_FILE}")))
        process.send_signal(number)
        process.communicate(timeout=120)
    assert process.returncode == status
    assert list(tmp_path.iterdir()) == []


@SIGNALS
def test_benchmark_leaves_nothing_and_no_worker(
    tiny_bundle: Path, tmp_path: Path, number: int, status: int
) -> None:
    argv = ["benchmark", str(tiny_bundle), "--json", "out.json", "--repetitions", "1000000"]
    with running(argv, tmp_path) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_until(lambda: hidden(tmp_path) and children.read_text())
        workers = children.read_text().split()
        process.send_signal(number)
        process.communicate(timeout=120)
    assert process.returncode == status
    assert list(tmp_path.iterdir()) == []
    assert workers
    # One that had no request yet ends by itself, as nobody can send it any.
    wait_until(lambda: not any(is_alive(worker) for worker in workers))


def test_signals_that_follow_do_not_interrupt_the_cleaning(
    demo_bundle: Path, tmp_path: Path
) -> None:
    """A lost terminal sends SIGHUP from the kernel and from the shell."""
    argv = arguments(demo_bundle, "--output", "out")
    with running(argv, tmp_path) as process:
        wait_until(lambda: hidden(tmp_path))
        for _ in range(50):
            for number in (signal.SIGHUP, signal.SIGTERM):
                if process.poll() is None:
                    process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode in (129, 143)
    assert list(tmp_path.iterdir()) == []


def test_nohup_is_heeded(demo_bundle: Path, tmp_path: Path) -> None:
    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with running(arguments(demo_bundle, "--output", "out"), tmp_path, prepare) as process:
        wait_until(lambda: hidden(tmp_path))
        process.send_signal(signal.SIGHUP)
        process.communicate(b"Open the file.\n", timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "out").read_text().count("\n") == 1


def test_what_a_killed_process_left_is_removed_by_the_next(
    demo_bundle: Path, tmp_path: Path
) -> None:
    argv = arguments(demo_bundle, "--output", "out")
    with running(argv, tmp_path) as alive:
        wait_until(lambda: hidden(tmp_path))
        (kept,) = hidden(tmp_path)
        with running(argv, tmp_path) as killed:
            wait_until(lambda: len(hidden(tmp_path)) == 2)
            killed.kill()
            killed.wait(60)
        for path in hidden(tmp_path):  # So much later.
            os.utime(path, (1e9, 1e9))
        with running(argv, tmp_path) as process:
            process.communicate(b"Quit\n", timeout=60)
        assert process.returncode == 0
        # That of the one at work stays, however old it is.
        assert hidden(tmp_path) == [kept]
        alive.communicate(b"Open the file.\nQuit\n", timeout=60)
    assert alive.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text().count("\n") == 2


def test_a_programs_own_handler_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command may be called in a process that has one."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)

    def own(*_: object) -> None:
        raise AssertionError

    seen: list[object] = []
    monkeypatch.setattr(
        command, "_run", lambda _: seen.append(signal.getsignal(signal.SIGTERM)) or 0
    )
    signal.signal(signal.SIGTERM, own)
    try:
        assert command.main([]) == 0
        assert signal.getsignal(signal.SIGTERM) is own
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert command.main([]) == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before[0])
    assert seen[0] is own
    assert seen[1] not in (own, signal.SIG_DFL)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before


def test_whatever_fails_on_the_way_out_the_signal_is_the_reason(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a report that is written to a terminal that is lost."""

    def run(_: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(10)
        except signals.Terminated:
            return 1
        return 0

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        monkeypatch.setattr(command, "_run", run)
        assert command.main([]) == 129
    finally:
        signal.signal(signal.SIGHUP, before)
    assert capfd.readouterr() == ("", "")
