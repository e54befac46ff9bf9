"""What the server's tests share: its process, and requests that show all of an answer."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services import free_port, process

FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """A server that runs."""

    port: int
    running: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Sends a request; what is no str or bytes is sent as JSON."""
        if not isinstance(body, (bytes, str, type(None))):
            body, kind = json.dumps(body), kind or "application/json"
        given = {**({"Content-Type": kind} if kind else {}), **(headers or {})}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            data = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
            connection.request(method, path, data, given)
            found = connection.getresponse()
            names = {name.lower(): value for name, value in found.getheaders()}
            return Answer(found.status, names, found.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, kind: str | None = None, **headers: str) -> Answer:
        return self.ask("POST", path, body, kind, headers)

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def lines(self) -> list[dict[str, Any]]:
        """The lines of the log; all of them are JSON."""
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").split("\n")[:-1]]

    def logged(self, request_id: str) -> dict[str, Any]:
        """The line about a request, which is written after its answer."""
        end = time.monotonic() + 10
        while True:
            for line in self.lines():
                if line.get("request_id") == request_id and line["message"] == "request":
                    return line
            assert time.monotonic() < end, request_id
            time.sleep(0.02)


@contextmanager
def serving(
    bundle: Path | list[Path], folder: Path, *flags: str, start: Sequence[str] = ()
) -> Iterator[Server]:
    """Runs `m2m100 serve`, in a surrounding that `start` makes, and ends it."""
    port = free_port()
    models = [bundle] if isinstance(bundle, Path) else bundle
    command = ["m2m100_onnx", "serve", "--port", str(port), "--threads", "1", "--no-cache"]
    command += [part for model in models for part in ("--model", str(model))] + [*flags]
    runtime = str(Path(__file__).resolve().parent.parent / "runtime")
    with process(command, folder, {**os.environ, "PYTHONPATH": runtime}, start) as running:
        server = Server(port, running, folder / "log")
        end = time.monotonic() + 60
        while True:
            assert running.poll() is None, server.log.read_text()
            try:
                if server.get("/health/ready").status == 200:
                    break
            except OSError:
                assert time.monotonic() < end, "nobody listens"
                time.sleep(0.05)
        yield server


def refused_start(folder: Path, *flags: str) -> tuple[int, str]:
    """Runs a server that must not start; returns its exit status and what it says."""
    runtime = str(Path(__file__).resolve().parent.parent / "runtime")
    done = subprocess.run(
        [sys.executable, "-m", "m2m100_onnx", "serve", "--port", str(free_port()), *flags],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": runtime},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr
