"""What the tests of the packed cache share: translating through it, and damaging it."""

from __future__ import annotations

import os
from pathlib import Path

from m2m100_onnx import Translator
from m2m100_onnx.packed import Entry, PackedCache

TEXTS = ["Open the file and save a copy.", "Delete"]


def tokens(bundle: Path, cache: Path | bool | None) -> list[tuple[int, ...]]:
    translator = Translator(bundle, cache_dir=cache, intra_op_num_threads=1)  # type: ignore[arg-type]
    found = translator.translate_batch(TEXTS, source_lang="en", target_lang="de", beam_size=2)
    return [result.tokens for result in found]


def entries(cache: Path) -> dict[str, Entry]:
    """The entries of a cache, by graph."""
    return {entry.graph: entry for entry in PackedCache(cache).entries()}


def overwrite(path: Path, data: bytes, offset: int, *, stealthy: bool) -> None:
    """Changes bytes of a file; if `stealthy`, its time of change stays as it was."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    if stealthy:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
