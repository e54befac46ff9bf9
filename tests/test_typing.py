"""Annotations: readable while a program runs, and true for the type checkers of users."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, get_type_hints

import pytest
from pydantic import TypeAdapter, ValidationError, validate_call

import m2m100_onnx
from m2m100_onnx import TranslateOptions, Translator

# Each `reveal` is followed by what both checkers must find; `wrong` marks the lines they refuse.
CODE = """
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from m2m100_onnx import Cancellation, M2M100Error, Stats, TranslateOptions, Translation, Translator


def users(
    translator: Translator,
    text: str,
    sequence: Sequence[str],
    either: str | list[str],
    texts: Iterable[str],
    on_error: Literal["raise", "skip", "return"],
) -> None:
    a: str = translator.translate(text, source_lang="en", target_lang="de")
    b: list[str] = translator.translate(sequence, source_lang="en", target_lang="de")
    c: list[str] = translator.translate([text], source_lang=sequence, target_lang=(text, text))
    d: str | list[str] = translator.translate(either, source_lang="en", target_lang="de")
    e: list[Translation] = translator.translate_batch(
        sequence, source_lang="en", target_lang=sequence, on_error="skip", beam_size=2
    )
    f: list[Translation | M2M100Error] = translator.translate_batch(
        ("Quit",), source_lang="en", target_lang="de", on_error="return", timeout=None
    )
    for found in translator.translate_batch(
        sequence, source_lang="en", target_lang="de", on_error=on_error
    ):
        print(found.text if isinstance(found, Translation) else found.position)
    g: Iterator[Translation] = translator.translate_iterable(
        texts, source_lang="en", target_lang=texts, read_ahead=4, progress=print, stats=Stats()
    )
    h: Iterator[Translation | M2M100Error] = translator.translate_iterable(
        texts, source_lang="en", target_lang="de", on_error="return", cancellation=Cancellation()
    )
    options: TranslateOptions = {"beam_size": 4, "suppress_tokens": [1, 2]}
    i: str = translator.translate(text, source_lang="en", target_lang="de", **options)
    with Translator("bundle", cache_dir=False) as opened:
        j: Translator = opened
    print(a, b, c, d, e, f, g, h, i, j)


def mistakes(translator: Translator, text: str) -> None:
    translator.translate(text, source_lang="en", target_lang="de", beam_sise=4)  # wrong
    translator.translate(text, source_lang="en", target_lang="de", beam_size="4")  # wrong
    translator.translate(5, source_lang="en", target_lang="de")  # wrong
    translator.translate(text, source_lang="en")  # wrong
    k: int = translator.translate(text, source_lang="en", target_lang="de")  # wrong
    translator.translate_batch([text], source_lang="en", target_lang="de", on_error="no")  # wrong
    m = translator.translate_batch([text], source_lang="en", target_lang="de", on_error="return")
    print(k, m[0].text)  # wrong
"""
WRONG = {number for number, line in enumerate(CODE.split("\n"), 1) if line.endswith("# wrong")}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project."""
    (tmp_path / "users.py").write_text(CODE)
    return tmp_path


def check(arguments: list[str], project: Path, repository: Path) -> str:
    environment = {**os.environ, "MYPYPATH": str(repository / "runtime"), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr  # There are mistakes.
    return done.stdout


def test_mypy_understands_users(project: Path, repository: Path) -> None:
    found = check(
        ["mypy", "--strict", "--python-version=3.10", "--follow-imports=silent", "users.py"],
        project,
        repository,
    )
    lines = {int(number) for number in re.findall(r"^users\.py:(\d+): error", found, flags=re.M)}
    assert lines == WRONG, found


def test_pyright_understands_users(project: Path, repository: Path) -> None:
    settings = {
        "include": ["users.py"],
        "extraPaths": [str(repository / "runtime")],
        "pythonVersion": "3.10",
        "typeCheckingMode": "strict",
    }
    (project / "pyrightconfig.json").write_text(json.dumps(settings))
    found = json.loads(check(["pyright", "--outputjson"], project, repository))
    errors = [one for one in found["generalDiagnostics"] if one["severity"] == "error"]
    lines = {one["range"]["start"]["line"] + 1 for one in errors}
    assert lines == WRONG, json.dumps(errors, indent=1)


def public() -> Iterator[Any]:
    """Every public class and each of its methods, inherited ones included."""
    for name in m2m100_onnx.__all__:
        one = getattr(m2m100_onnx, name)
        if inspect.isclass(one):
            yield pytest.param(one, id=name)
            for attribute in dir(one):
                value = inspect.getattr_static(one, attribute)
                function = getattr(value, "__func__", getattr(value, "fget", value))
                if isinstance(function, FunctionType) and function.__module__.startswith("m2m100"):
                    yield pytest.param(function, id=f"{name}.{attribute}")


@pytest.mark.parametrize("one", public())
def test_annotations_can_be_read_at_run_time(one: Any) -> None:
    """As FastAPI, pydantic and many command-line tools read them."""
    hints = get_type_hints(one)
    names = set(getattr(one, "__annotations__", {}))
    assert names <= set(hints)


HINTS = """
import sys, typing

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "typing_extensions":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
if sys.argv[1] == "old":  # What Python 3.10 has.
    sys.version_info = (3, 10, 0, "final", 0)
    del typing.Unpack

from m2m100_onnx import TranslateOptions, Translator
from m2m100_onnx.rerank import TranslateArguments

hints = typing.get_type_hints(Translator.translate)
print(hints["options"] is TranslateArguments, next(iter(typing.get_type_hints(TranslateOptions))))
assert "typing_extensions" not in sys.modules
"""


@pytest.mark.parametrize("python", ["old", "this"])
def test_typing_extensions_is_not_needed(environment: dict[str, str], python: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HINTS, python],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Without `Unpack` the options are the TypedDict itself.
    assert done.stdout.split() == [str(python == "old"), "beam_size"]


def test_pydantic_reads_the_options() -> None:
    adapter = TypeAdapter(TranslateOptions)
    assert adapter.validate_python({"beam_size": "4"}) == {"beam_size": 4}
    with pytest.raises(ValidationError, match="beam_size"):
        adapter.validate_python({"beam_size": "many"})


def test_pydantic_wraps_a_call(translator: Translator) -> None:
    call = validate_call(config={"arbitrary_types_allowed": True})(translator.translate)
    languages = {"source_lang": "en", "target_lang": "de"}
    expected = translator.translate("Quit", **languages, beam_size=1)
    assert call("Quit", **languages, beam_size="1") == expected
    with pytest.raises(ValidationError, match="target_lang"):
        call("Quit", source_lang="en", target_lang=5)
