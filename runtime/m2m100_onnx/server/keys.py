"""API keys: a file of hashes, read again when it changes, compared in constant time.

A line of the file is a name, a colon, and the SHA-256 of the key in hexadecimal digits. Keys are
long and random, so a fast hash is as good as a slow one: nobody can try 2^128 of them.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from pathlib import Path

from m2m100_onnx.errors import InvalidInputError

__all__ = ["Keys"]

_LOGGER = logging.getLogger("m2m100_onnx.server")
_LINE = re.compile(r"([\w.-]{1,64}):([0-9a-f]{64})")


class Keys:
    """The API keys that let a client in."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            InvalidInputError: a line is something else, or there is none.
            OSError: the file cannot be read.
        """
        self._path = path
        self._seen = self._stamp()
        self._hashes = self._read()

    def name_of(self, key: str) -> str | None:
        """Returns the name of a key, None for a wrong one; takes as long for any wrong key."""
        self._refresh()
        given = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        found = None
        for name, expected in self._hashes:
            if hmac.compare_digest(given, expected):
                found = name
        return found

    def _stamp(self) -> tuple[int, int, int]:
        facts = self._path.stat()
        return facts.st_mtime_ns, facts.st_size, facts.st_ino

    def _refresh(self) -> None:
        """Reads a file that has changed; an unusable one leaves the keys as they are."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return
            self._seen = stamp
            self._hashes = self._read()
        except (OSError, InvalidInputError) as error:
            _LOGGER.error("the API keys stay as they were: %s", error)

    def _read(self) -> list[tuple[str, str]]:
        found = []
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                # The line may be a key, which does not belong in an error.
                raise InvalidInputError(
                    f"{self._path}: expected NAME:SHA256 on line {number}, found something else"
                )
            found.append((match[1], match[2]))
        if not found:
            raise InvalidInputError(f"{self._path}: expected a line NAME:SHA256, found none")
        return found
