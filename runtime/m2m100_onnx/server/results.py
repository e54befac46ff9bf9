"""Translated files, until they are fetched or have become old.

Knows names and files; knows no formats. A name is a random number and what is left of the name that
a client gave, so that it can be neither guessed nor lead out of the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
import unicodedata
import uuid
from pathlib import Path, PurePosixPath

from m2m100_onnx.server.refusals import Refused

__all__ = ["Results"]

_NAME = re.compile(r"[0-9a-f]{32}\.([A-Za-z0-9_-]{1,100}\.[a-z]{1,8})")
_BLOCK = 4096
"""Bytes of which a disk gives whole ones."""
_PATIENCE = 1.0
"""Seconds for which the size of the folder is not asked for again."""
_REST = 100
"""How many times as long as it took at least: a folder of thousands of files takes milliseconds."""


class Results:
    """The files of a folder."""

    def __init__(self, folder: Path, seconds: float, most_bytes: int) -> None:
        """Takes a folder, which may have other processes' files too.

        Args:
            folder: it.
            seconds: how long a file stays.
            most_bytes: what all files may take on the disk; further ones are refused.
        """
        self._folder, self._seconds, self._most = folder, seconds, most_bytes
        self._bytes, self._look_at = 0, -math.inf

    def keep(self, name: str, language: str, ending: str, content: bytes) -> str:
        """Keeps a file; returns the name by which it is found.

        Args:
            name: the file's name as a client has it.
            language: the language of the translation.
            ending: of the new name, with its dot.
            content: the file.

        Raises:
            OSError: there is no space.
            Refused: the files of all clients take too much.
        """
        if time.monotonic() >= self._look_at:
            self.remove_old()
        if self._bytes + _on_disk(len(content)) > self._most:
            raise Refused("busy", "too many files wait to be fetched; try again", 60.0)
        self._bytes += _on_disk(len(content))
        stem = PurePosixPath(name.replace("\\", "/")).stem
        plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
        safe = re.sub(r"[^A-Za-z0-9_-]+", "_", f"{plain[:60]}_{language}")
        found = f"{uuid.uuid4().hex}.{safe[:100]}{ending}"
        assert _NAME.fullmatch(found), found
        path = self._folder / found
        try:
            path.write_bytes(content)
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        return found

    def find(self, name: str) -> tuple[Path, str]:
        """Returns a file and the name that it is to have, by the name that `keep` returned.

        Raises:
            Refused: there was never such a name, or the file has become too old.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise Refused("bad_request", "Invalid filename")
        path = self._folder / name
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime >= time.time() - self._seconds:
                return path, match[1]
            path.unlink()
        raise Refused("not_found", "there is no such file, or not any more")

    def remove_old(self) -> None:
        """Removes the files that have become too old, and adds up the others."""
        began = time.monotonic()
        left, oldest = 0, time.time() - self._seconds
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # Another process may remove it too.
                facts = path.stat()
                if facts.st_mtime < oldest:
                    path.unlink()
                else:
                    left += _on_disk(facts.st_size)
        now = time.monotonic()
        self._bytes, self._look_at = left, now + max(_PATIENCE, _REST * (now - began))

    async def remove_for_ever(self) -> None:
        """Removes files as they become too old."""
        while True:
            await asyncio.sleep(min(60.0, self._seconds))
            await asyncio.to_thread(self.remove_old)


def _on_disk(size: int) -> int:
    return max(1, -(-size // _BLOCK)) * _BLOCK
