"""A command whose standard error is a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any


def on_terminal(
    command: Sequence[Any], environment: Mapping[str, str], *, timeout: float = 60
) -> tuple[bytes, str]:
    """Runs a command, which must succeed; returns its output, and what the terminal showed.

    The terminal is read while the command runs: it holds 4 KiB, and who writes more waits.
    """
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        # A closed terminal ends in an error on Linux.
        with contextlib.suppress(OSError):
            while chunk := os.read(ours, 1 << 16):
                shown.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = subprocess.run(
            command,
            env={**environment, "TERM": "xterm", "COLUMNS": "100"},
            stdout=subprocess.PIPE,
            stderr=theirs,
            check=True,
            timeout=timeout,
        )
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    return done.stdout, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
