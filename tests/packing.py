"""Shared code of the weights cache's tests: translates with a cache, and damages it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import Translator
from m2m100_onnx.model import support
from m2m100_onnx.model.weights_cache import Entry, WeightsCache

TEXTS = ["Open the file and save a copy.", "Delete"]

# The program of a child process: it translates its arguments and prints the tokens.
CHILD = """
import json, resource, sys
from m2m100_onnx import Translator
bundle, cache, limit, *texts = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
translator = Translator(bundle, cache_dir=cache, intra_op_num_threads=1, kernels=False)
found = translator.translate_batch(texts, source_lang="en", target_lang="de", beam_size=2)
print(json.dumps([result.tokens for result in found]))
"""


def tokens(bundle: Path, cache: Path | bool | None) -> list[tuple[int, ...]]:
    # Native graphs need no cache.
    options: Any = {"cache_dir": cache, "intra_op_num_threads": 1, "kernels": False}
    translator = Translator(bundle, **options)
    found = translator.translate_batch(TEXTS, source_lang="en", target_lang="de", beam_size=2)
    return [result.tokens for result in found]


def entries(cache: Path) -> dict[str, Entry]:
    """Returns the entries of a cache, by graph."""
    return {entry.graph: entry for entry in WeightsCache(cache).entries()}


def overwrite(path: Path, data: bytes, offset: int, *, stealthy: bool) -> None:
    """Changes bytes of a file. If `stealthy`, the file keeps its modification time."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    if stealthy:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def start(bundle: Path, cache: Path, repository: Path, limit: int = 0) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, PYTHONPATH=str(repository / "runtime"))
    arguments = [sys.executable, "-c", CHILD, str(bundle), str(cache), str(limit), *TEXTS]
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def written(cache: Path) -> dict[str, tuple[int, int]]:
    """Returns inode and modification time of every file but the records, which each use touches."""
    files = [path for path in cache.rglob("*") if path.is_file() and path.name != "entry.json"]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list that records every graph that onnxruntime opens from now on."""
    paths: list[str] = []
    real = support.ort.InferenceSession

    def spy(model: str | bytes, *rest: object, **named: object) -> object:
        paths.append(model if isinstance(model, str) else "bytes")
        return real(model, *rest, **named)

    monkeypatch.setattr(support.ort, "InferenceSession", spy)
    return paths
