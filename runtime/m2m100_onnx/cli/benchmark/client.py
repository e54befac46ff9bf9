"""The client of a worker: starts its process, sends requests, and says why a process ended.

Knows the lines of the protocol that `worker.py` describes, and no engine.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn

from m2m100_onnx.errors import InferenceError

__all__ = ["Worker"]


class Worker:
    """A worker's process, killed at the end of a `with` block."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts the process.

        Args:
            name: what errors are about, such as the bundle's folder.
            command: runs `serve`.
            environment: the process's variables.
        """
        self._name = name
        # A file, since a pipe that nobody reads would stop a worker that warns a lot.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `__exit__`
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and returns its answer; errors are those of `receive`."""
        self.send(do, **arguments)
        return self.receive()

    def send(self, do: str, **arguments: Any) -> None:
        """Sends a request."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def receive(self) -> dict[str, Any]:
        """Returns the answer to the oldest request that has none.

        Raises:
            InferenceError: the engine refused the request, or the process has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._fail()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise InferenceError(f"{self._name}: {answer['error']}")
        return answer

    def _fail(self) -> NoReturn:
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        reason = f"its process ended with status {status}: {' '.join(said[-1:])}"
        if status < 0:
            reason = f"its process was killed by signal {-status}; out of memory?"
        raise InferenceError(f"{self._name}: {reason}")
