"""Who may ask, and how often: API keys and requests a minute.

Knows clients by their key's name or their address, and no texts.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.requests import Request

from m2m100_onnx.server.keys import Keys
from m2m100_onnx.server.refusals import Refused

__all__ = ["Admission", "Rate", "SharedRate"]

_MOST_CLIENTS = 10_000
_PLACES = 1 << 16
_BUCKET = struct.Struct("dd")  # What a client has used up, and when that was so.
_SCHEMES = ("bearer", "deepl-auth-key")


class Rate:
    """Requests a minute, for each client: a bucket that fills evenly and holds a minute's worth."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Takes the rate, and a clock in seconds."""
        self._size, self._clock = float(per_minute), clock
        # What is left, and when that was so; the longest unseen client comes first.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, cost: int = 1) -> float:
        """Takes a client's request; returns 0, or the seconds to wait where there are too many.

        A cost above a minute's worth takes a whole minute's worth.
        """
        now, cost_ = self._clock(), min(float(cost), self._size)
        left, since = self._left.pop(client, (self._size, now))
        left = min(self._size, left + (now - since) * self._size / 60)
        wait = max(0.0, cost_ - left) * 60 / self._size
        self._left[client] = (left if wait else left - cost_, now)
        if len(self._left) > _MOST_CLIENTS:
            self._left.popitem(last=False)
        return wait


class SharedRate:
    """As `Rate`, for all processes that are forked from the one that makes it.

    A client's place in a table of 65,536 is a hash with a secret key, so that nobody can choose to
    meet another there. Two clients that do share a bucket.
    """

    def __init__(self, per_minute: int) -> None:
        """Takes the rate.

        Raises:
            OSError: there is no memory, or no file, for the table.
        """
        self._size, self._key = float(per_minute), os.urandom(16)
        length = _PLACES * _BUCKET.size
        if hasattr(os, "memfd_create"):
            self._file = os.fdopen(os.memfd_create("m2m100-rates"), "r+b")
        else:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the rate
        self._file.truncate(length)
        self._table = mmap.mmap(self._file.fileno(), length)

    def take(self, client: str, cost: int = 1) -> float:
        """Takes a client's request; returns 0, or the seconds to wait where there are too many.

        A cost above a minute's worth takes a whole minute's worth.
        """
        digest = hashlib.blake2b(client.encode(), digest_size=2, key=self._key).digest()
        place = int.from_bytes(digest, "little") * _BUCKET.size
        cost_ = min(float(cost), self._size)
        # The system takes the lock of a process that dies.
        fcntl.lockf(self._file, fcntl.LOCK_EX, _BUCKET.size, place)
        try:
            used, since = _BUCKET.unpack_from(self._table, place)
            now = time.monotonic()
            used = max(0.0, used - (now - since) * self._size / 60)
            wait: float = max(0.0, used + cost_ - self._size) * 60 / self._size
            _BUCKET.pack_into(self._table, place, used if wait else used + cost_, now)
            return wait
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, _BUCKET.size, place)


class Admission:
    """Lets a request in, or refuses it."""

    def __init__(self, keys: Keys | None, rate: Rate | SharedRate | None) -> None:
        """Takes the API keys, None to let everyone in, and the rate, None for no limit."""
        self._keys, self._rate = keys, rate

    @property
    def needs_key(self) -> bool:
        """Whether a request must have an API key."""
        return self._keys is not None

    def check(self, request: Request, key: str | None = None, cost: int = 1) -> None:
        """Lets a request in.

        Args:
            request: it, with a key in its headers perhaps.
            key: the key that its body or query has.
            cost: how many requests it counts as.

        Raises:
            Refused: it has no key or a wrong one, or the client has asked too often.
        """
        host = request.client.host if request.client else ""
        client = f"address {host}"
        if self._keys is not None:
            given = key or _key_in_headers(request)
            if not given:
                raise Refused("missing_key", "Please get an API key from the server's operator")
            name = self._keys.name_of(given)
            if name is None:
                # A guess costs as a request does.
                self._count(client, cost)
                raise Refused("wrong_key", "Invalid API key")
            client = f"key {name}"
        self._count(client, cost)

    def _count(self, client: str, cost: int) -> None:
        if self._rate is not None and (wait := self._rate.take(client, cost)):
            raise Refused("rate", "Slowdown: too many requests a minute", wait)


def _key_in_headers(request: Request) -> str | None:
    if given := request.headers.get("x-api-key"):
        return given
    scheme, _, rest = request.headers.get("authorization", "").partition(" ")
    return rest.strip() if scheme.lower() in _SCHEMES else None
