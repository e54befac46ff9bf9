"""Translated files, until they are fetched or have become old.

Knows names and files; knows no formats. A name is a random number and what is left of the name that
a client gave, so that it can be neither guessed nor lead out of the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import unicodedata
import uuid
from pathlib import Path, PurePosixPath

from m2m100_onnx.server.refusals import Refused

__all__ = ["Results"]

_NAME = re.compile(r"[0-9a-f]{32}\.([A-Za-z0-9_-]{1,100}\.[a-z]{1,8})")
_MOST_FILES = 1000


class Results:
    """The files of a folder."""

    def __init__(self, folder: Path, seconds: float) -> None:
        """Takes a folder, which may have other processes' files too, and how long a file stays."""
        self._folder, self._seconds = folder, seconds

    def keep(self, name: str, language: str, ending: str, content: bytes) -> str:
        """Keeps a file; returns the name by which it is found.

        Args:
            name: the file's name as a client has it.
            language: the language of the translation.
            ending: of the new name, with its dot.
            content: the file.

        Raises:
            OSError: there is no space.
            Refused: there are too many files.
        """
        if self.remove_old() >= _MOST_FILES:
            raise Refused("busy", "too many files wait to be fetched; try again", 60.0)
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
        self.remove_old()
        if not path.is_file():
            raise Refused("not_found", "there is no such file, or not any more")
        return path, match[1]

    def remove_old(self) -> int:
        """Removes the files that have become too old; returns the number of the others."""
        left, oldest = 0, time.time() - self._seconds
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # Another process may remove it too.
                if path.stat().st_mtime < oldest:
                    path.unlink()
                else:
                    left += 1
        return left

    async def remove_for_ever(self) -> None:
        """Removes files as they become too old."""
        while True:
            await asyncio.sleep(min(60.0, self._seconds))
            await asyncio.to_thread(self.remove_old)
