"""What the tests of the manual's services share: a server's process, and requests."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"
TEXTS = ["Open the file.", "The file could not be found."]


@contextmanager
def process(
    arguments: list[str], folder: Path, surroundings: dict[str, str], start: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server, in a surrounding that `start` makes, and ends it."""
    log = folder / "log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            [*start, sys.executable, "-m", *arguments],
            cwd=folder,
            env=surroundings,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield running
        except BaseException:
            print(log.read_text(encoding="utf-8", errors="replace"))
            raise
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
                raise


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def post(url: str, job: Any) -> tuple[int, Any]:
    """Sends JSON as soon as somebody listens; returns the status and the answer."""
    request = urllib.request.Request(
        url, json.dumps(job).encode(), {"Content-Type": "application/json"}
    )
    wait_for(urllib.parse.urlsplit(url).port)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait_for(port: int | None) -> None:
    end = time.monotonic() + 30
    while True:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < end, "nobody listens"
        time.sleep(0.1)
