"""Shared code of the command's tests: runs the command in a new process, or in this one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from m2m100_onnx import Translation, Translator
from m2m100_onnx.cli.main import main

GREEDY = ("--beam-size", "1")
QUICK = ("--warmup", "0", "--loads", "1", "--threads", "1")
LINES = (
    "Open the file.",
    "",
    "The file already exists.",
    "   ",
    "one\u2028two\u0085three\x0bfour\x0cfive\u2029six",
    "Save a copy before you close the window.",
    "carriage\rreturn",
    "Delete",
)


def arguments(bundle: Path, *more: str) -> list[str]:
    languages = ("--source-lang", "en", "--target-lang", "fr")
    return ["translate", "--model", str(bundle), *languages, *GREEDY, *more]


def expected(translator: Translator, texts: Sequence[str], **options: object) -> list[Translation]:
    settings: dict[str, object] = {"beam_size": 1, **options}
    return translator.translate_batch(
        list(texts),
        source_lang="en",
        target_lang="fr",
        **settings,  # type: ignore[arg-type]
    )


def run(
    command: Sequence[str], environment: dict[str, str], stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    # Runs outside the repository, so that only PYTHONPATH decides what can be imported.
    return subprocess.run(
        command,
        input=stdin,
        env=environment,
        cwd=tempfile.gettempdir(),
        capture_output=True,
        timeout=60,
        check=False,
    )


class Shell:
    """Runs `main` in this process. A test may call it several times."""

    def __init__(self, capture: pytest.CaptureFixture[bytes], patch: pytest.MonkeyPatch) -> None:
        self._capture, self._patch = capture, patch

    def __call__(self, *argv: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        self._patch.setattr(sys, "stdin", TextIOWrapper(BytesIO(stdin)))
        status = main(argv)
        output, errors = self._capture.readouterr()
        return status, output, errors.decode()
