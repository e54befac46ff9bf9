"""`m2m100 translate --on-error`: lines that cannot be translated, by number."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from m2m100_onnx import Translator
from shell import Shell, arguments, expected, run

LONG = "word " * 400
STDIN = f"Open the file.\n{LONG}\n\nnot \udcff UTF-8\nDelete\n".encode(errors="surrogateescape")
GOOD = {0: "Open the file.", 2: "", 4: "Delete"}


@pytest.fixture(scope="module")
def translations(translator: Translator) -> dict[int, str]:
    found = expected(translator, list(GOOD.values()))
    return {number: one.text for number, one in zip(GOOD, found, strict=True)}


@pytest.mark.parametrize("ahead", ["1", "2", "100"])
def test_a_skipped_line_is_empty_and_named(
    demo_bundle: Path, shell: Shell, translations: dict[int, str], ahead: str
) -> None:
    argv = arguments(demo_bundle, "--on-error", "skip", "--read-ahead", ahead)
    status, output, errors = shell(*argv, stdin=STDIN)
    assert status == 0
    # Line by line beside the source, as tools that align files count on.
    assert output.decode().split("\n") == [*(translations.get(n, "") for n in range(5)), ""]
    long, wrong, count = errors.splitlines()
    assert long.startswith("m2m100: warning: line 2: the text has 402 tokens")
    assert wrong.startswith("m2m100: warning: line 4: expected UTF-8, found 'utf-8' codec")
    assert count == "m2m100: warning: 2 of 5 lines could not be translated"


def test_json_of_a_skipped_line_is_that_of_an_empty_one(demo_bundle: Path, shell: Shell) -> None:
    argv = arguments(demo_bundle, "--on-error", "skip", "--json")
    records = [json.loads(line) for line in shell(*argv, stdin=STDIN)[1].splitlines()]
    assert len(records) == 5
    assert [record["source"] for record in records][3] == "not \\xff UTF-8"
    for number in (1, 3):
        assert {**records[number], "source": ""} == records[2]


def test_a_returned_error_stands_in_its_place(
    demo_bundle: Path, shell: Shell, translations: dict[int, str]
) -> None:
    argv = arguments(demo_bundle, "--on-error", "return", "--json")
    status, output, errors = shell(*argv, stdin=STDIN)
    records = [json.loads(line) for line in output.splitlines()]
    assert (status, len(records), errors.count("warning: line")) == (0, 5, 2)
    assert {n: record["text"] for n, record in enumerate(records) if n in GOOD} == translations
    names = ["source", "source_lang", "target_lang", "error"]
    assert [list(records[number]) for number in (1, 3)] == [names, names]
    long, wrong = (records[number]["error"] for number in (1, 3))
    assert long["type"] == "InputTooLongError"
    assert long["message"].startswith("the text has 402 tokens")
    assert wrong["type"] == "InvalidInputError"
    assert wrong["message"].startswith("expected UTF-8, found ")


def test_plain_text_has_no_place_for_an_error(demo_bundle: Path, shell: Shell) -> None:
    status, output, errors = shell(*arguments(demo_bundle, "--on-error", "return"), stdin=STDIN)
    assert (status, output) == (2, b"")
    assert errors == "m2m100: error: --on-error: expected --json with return, found none\n"


def test_by_default_the_first_ends_the_command(
    demo_bundle: Path, shell: Shell, translations: dict[int, str]
) -> None:
    for more in ((), ("--on-error", "raise")):
        status, output, errors = shell(*arguments(demo_bundle, *more), stdin=STDIN)
        assert (status, output.decode()) == (2, f"{translations[0]}\n")
        assert errors.startswith("m2m100: error: line 2: the text has 402 tokens")


def test_arguments_are_named_by_number(
    command: list[str], environment: dict[str, str], answer: str
) -> None:
    argv = [*command, "--on-error", "return", "--json", os.fsdecode(b"\xff"), "Open the file."]
    done = run(argv, environment)
    assert done.returncode == 0
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["source"], first["error"]["type"]) == ("\udcff", "InvalidInputError")
    assert second["text"] == answer
    assert done.stderr.decode().splitlines()[-1].endswith("1 of 2 texts could not be translated")


def test_all_lines_may_be_bad(demo_bundle: Path, shell: Shell) -> None:
    argv = arguments(demo_bundle, "--on-error", "skip")
    assert shell(*argv, stdin=b"\xff\n\xfe")[:2] == (0, b"\n\n")


def test_what_is_no_line_of_text_still_ends_the_command(demo_bundle: Path, shell: Shell) -> None:
    """A language, an option or a bundle is not the matter of one line."""
    argv = arguments(demo_bundle, "--on-error", "skip", "--target-lang", "xx")
    status, output, errors = shell(*argv, stdin=STDIN)
    assert (status, output) == (2, b"")
    assert errors.startswith("m2m100: error: unknown language 'xx'")
