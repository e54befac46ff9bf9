"""Log lines as JSON objects, with the id of the request that they are about.

No line has a text or a translation unless the server is told to log them: an unexpected error is
logged by its type and its frames, since its message may quote a text.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime, timezone

__all__ = ["REQUEST_ID", "TRACE", "JsonFormatter", "configure", "frames"]

REQUEST_ID: ContextVar[str | None] = ContextVar("m2m100_request_id", default=None)
"""The id of the request that a task answers."""
TRACE: ContextVar[Mapping[str, str] | None] = ContextVar("m2m100_trace", default=None)
"""The ids of its trace and span, where traces are on."""


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON; `extra={"facts": {...}}` adds to it."""

    def __init__(self, worker: int | None = None) -> None:
        """Takes the number of the worker that writes; None where there is one process."""
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if self._worker is not None:
            line["worker"] = self._worker
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line.update(TRACE.get() or {})
        line.update(getattr(record, "facts", {}))
        if record.exc_info and record.exc_info[1] is not None:
            line.update(frames(record.exc_info[1]))
        return json.dumps(line, default=str)


def frames(error: BaseException) -> dict[str, object]:
    """Returns an error's type and where it was raised, without its message."""
    places = traceback.extract_tb(error.__traceback__)
    return {
        "error": type(error).__name__,
        "frames": [f"{place.filename}:{place.lineno} {place.name}" for place in places],
    }


def configure(worker: int | None = None) -> None:
    """Sends the lines of this package, of uvicorn and of OpenTelemetry to standard error, as JSON.

    Args:
        worker: the number of this process among several that answer.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(worker))
    for name in ("m2m100_onnx", "uvicorn", "uvicorn.error", "opentelemetry"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], name == "uvicorn.error"
        if name != "uvicorn.error":
            logger.addHandler(handler)
        logger.setLevel(logging.INFO)
