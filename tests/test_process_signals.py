"""Signals and the end of the program: what a handler raises passes through, and nothing aborts."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from interrupting import interrupted_at
from m2m100_onnx.process import raised_by_signal_handler, side_by_side, tolerate

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has few signals")

# A service with a daemon thread for each request, and Ctrl-C when one is at work.
SERVER = """
import signal, sys, threading, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from m2m100_onnx import Translator

# A job in the background of a script inherits a SIGINT that is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
translator = Translator(sys.argv[1], cache_dir=False)
at_work = threading.Event()

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        while True:
            translator.translate(["Open the file."] * 4, source_lang="en", target_lang="de")
            at_work.set()

    def log_message(self, *_):
        pass

def interrupt():
    at_work.wait(60)
    signal.raise_signal(signal.SIGINT)

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
for _ in range(3):
    address = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=urllib.request.urlopen, args=(address,), daemon=True).start()
threading.Thread(target=interrupt, daemon=True).start()
try:
    server.serve_forever()
except KeyboardInterrupt:
    print("stopped", flush=True)
"""

# What the end of the program waits for, and what it refuses; "native" stands for onnxruntime.
ENDING = """
import atexit, threading, time
from m2m100_onnx import process

process._PATIENCE = {patience}
begun = threading.Event()

def last():
    # Registered first, so it comes after the hook: the ending thread itself may still run.
    with process.native_call():
        print(process.side_by_side(lambda: 1, lambda: 2), flush=True)

atexit.register(last)
process.finish_at_exit()

def work():
    with process.native_call():
        begun.set()
        time.sleep({duration})
        print("done", flush=True)
    with process.native_call():
        print("begun anew", flush=True)

threading.Thread(target=work, daemon=True).start()
begun.wait()
"""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def plain(number: int, _: FrameType | None) -> None:
    raise OSError(f"late by {number}")


def anything(*_: object) -> None:
    raise OSError("late")


# Of futures too, which would tell of the interrupt in their own way.
FILES = ("process.py", "_base.py")


class Service:
    def method(self, number: int, _: FrameType | None) -> None:
        self.raise_it(number)

    def raise_it(self, number: int) -> None:
        raise OSError(f"late by {number}")

    def __call__(self, *_: object, **__: object) -> None:
        self.raise_it(0)


@pytest.mark.parametrize(
    "handler",
    [plain, anything, Service().method, Service(), functools.partial(Service.method, Service())],
    ids=["plain", "anything", "method", "object", "partial"],
)
def test_what_a_handler_raises_is_known(handler: Callable[..., Any]) -> None:
    signal.signal(signal.SIGUSR1, handler)
    with pytest.raises(OSError, match="late") as caught:
        signal.raise_signal(signal.SIGUSR1)
    assert raised_by_signal_handler(caught.value)
    with pytest.raises(OSError, match="late"), tolerate(OSError):
        signal.raise_signal(signal.SIGUSR1)


def test_what_a_line_raises_is_tolerated() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Path("no such file").read_bytes()
    assert not raised_by_signal_handler(caught.value)
    assert not raised_by_signal_handler(OSError())
    with tolerate(OSError, ValueError):
        Path("no such file").read_bytes()
    with pytest.raises(KeyError), tolerate(OSError):
        {}["no such key"]


def test_ctrl_c_is_a_keyboard_interrupt_wherever_it_comes() -> None:
    """Between a result and its being stored, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    running, moment = threading.active_count(), 0

    def three() -> list[int]:
        return side_by_side(lambda: 1, lambda: 2, lambda: 3)

    while True:
        try:
            if not interrupted_at(moment, three, FILES, signal.SIGINT):
                break
        except KeyboardInterrupt:
            moment += 1
    assert moment > 20
    deadline = time.monotonic() + 60
    while threading.active_count() > running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == running


def outcome(code: str, environment: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_daemon_threads_at_work_do_not_abort_the_end(
    tiny_bundle: Path, environment: dict[str, str]
) -> None:
    """`http.server.ThreadingHTTPServer` answers in daemon threads."""
    for _ in range(5):
        status, output, errors = outcome(SERVER, environment, str(tiny_bundle))
        assert (status, output) == (0, "stopped\n"), errors
        assert "terminate called" not in errors


def test_the_end_waits_for_what_is_at_work_and_refuses_more(environment: dict[str, str]) -> None:
    code = ENDING.format(patience=60, duration=0.5)
    status, output, errors = outcome(code, environment)
    assert (status, errors) == (0, "")
    assert output == "done\n[1, 2]\n"


def test_the_end_does_not_wait_for_ever(environment: dict[str, str]) -> None:
    start = time.monotonic()
    status, output, errors = outcome(ENDING.format(patience=0.2, duration=60), environment)
    assert (status, output, errors) == (0, "[1, 2]\n", "")
    assert time.monotonic() - start < 30


def test_a_process_that_forks_ends_as_any(environment: dict[str, str]) -> None:
    """A child has none of the parent's threads, so it waits for none."""
    code = (
        ENDING.format(patience=60, duration=0.2)
        + """
import os
if os.fork() == 0:
    threading.Timer(30, lambda: os._exit(3))
    raise SystemExit
os.wait()
"""
    )
    start = time.monotonic()
    status, output, errors = outcome(code, environment)
    assert (status, errors) == (0, "")
    assert output.count("[1, 2]") == 2
    assert time.monotonic() - start < 30
