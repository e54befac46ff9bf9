"""Why the server refuses a request, before any API gives it a status and a shape."""

from __future__ import annotations

from typing import Literal

__all__ = ["Reason", "Refused"]

Reason = Literal[
    "bad_request",
    "not_found",
    "missing_key",
    "wrong_key",
    "switched_off",
    "body_too_large",
    "too_much",
    "slow",
    "two_lengths",
    "encoding",
    "content_type",
    "rate",
    "busy",
]


class Refused(Exception):  # noqa: N818 - it is the server's answer, not its failure
    """The server does not carry out a request.

    Attributes:
        reason: the kind, from which an API takes its status.
        message: for the client.
        retry_after: seconds after which it may try again, None where that does not help.
    """

    def __init__(self, reason: Reason, message: str, retry_after: float | None = None) -> None:
        super().__init__(reason, message, retry_after)
        self.reason, self.message, self.retry_after = reason, message, retry_after
