"""What the command shows on terminals: progress, tables, answers to typed lines."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from m2m100_onnx.bundle.families import FAMILIES
from m2m100_onnx.text.languages import names_of
from shell import Shell, run
from terminals import on_terminal

# progress


def test_progress_shows_on_a_terminal_and_not_in_a_pipe(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("rich")
    lines = tmp_path / "lines"
    lines.write_bytes(b"Delete\n" * 4)
    argv = [*command, "--input", str(lines), "--read-ahead", "2"]
    output, shown = on_terminal(argv, environment)
    in_pipe = run(argv, environment)
    assert (in_pipe.returncode, in_pipe.stderr) == (0, b"")
    assert output == in_pipe.stdout
    assert "0 lines" in shown
    last = shown.rstrip().splitlines()[-1]
    assert "100%" in last
    assert re.search(r"4 lines, [\d,.]+ lines/s +0:00:00", last)
    # The size of a pipe is unknown, so nothing is said of an end.
    piped = ["sh", "-c", 'cat "$0" | "$@"', str(lines), *argv[: argv.index("--input")]]
    shown = on_terminal(piped, environment)[1]
    assert "4 lines, " in shown
    assert "%" not in shown


def test_without_rich_there_is_no_progress(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    (tmp_path / "lines").write_bytes(b"Delete\n")
    argv = [*command, "--input", str(tmp_path / "lines")]
    output, shown = on_terminal(argv, {**environment, "PYTHONPATH": path})
    assert (output.count(b"\n"), shown) == (1, "")


def test_each_line_typed_is_answered_at_once(
    answer: str, command: list[str], environment: dict[str, str]
) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, env=environment, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        os.close(theirs)
        assert process.stdout
        assert process.stderr
        for line, expected in ((b"Open the file.\n", f"{answer}\n".encode()), (b"\n", b"\n")):
            os.write(ours, line)
            assert process.stdout.readline() == expected
        os.write(ours, b"\x04")
        assert process.stdout.read() == b""
        assert process.stderr.read() == b""
    os.close(ours)
    assert process.returncode == 0


# tables


def pretend_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes standard output pass for a terminal that is 70 columns wide."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "70")


def test_a_terminal_shows_the_facts_of_a_bundle_in_tables(
    demo_bundle: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")
    pretend_terminal(monkeypatch)
    shown = shell("info", str(demo_bundle))[1].decode()
    facts = json.loads(shell("info", str(demo_bundle), "--json")[1])
    assert "─" in shown
    for section in ("manifest", "model", "generation", "files", "graphs"):
        assert all(name in shown for name in facts[section])
    for graph in facts["graphs"].values():
        # The widest rows are wider than the terminal, and are not cut.
        for spec in (*graph["inputs"], *graph["outputs"]):
            assert spec["name"] in shown
            assert ", ".join(map(str, spec["shape"])) in shown
    assert f"{facts['files']['model.onnx_data']['size']:,}" in shown


def test_a_terminal_shows_languages_in_columns(
    demo_bundle: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")
    pretend_terminal(monkeypatch)
    lines = shell("languages", "--model", str(demo_bundle), "--all")[1].decode().splitlines()
    assert max(map(len, lines)) <= 70
    words = " ".join(" ".join(lines).split())
    codes = FAMILIES["m2m100"].languages
    trained = ("en", "de", "fr", "es", "ru", "zh")
    for code, name in names_of(codes).items():
        assert (f"{code} {name} (untrained)" in words) == (code not in trained)
        assert f"{code} {name}" in words


def test_without_rich_a_terminal_shows_plain_lines(
    demo_bundle: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_terminal(monkeypatch)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert shell("languages", "--model", str(demo_bundle))[1].split() == [
        *(b"en", b"de", b"fr", b"es", b"ru", b"zh")
    ]
    assert b"\n  d_model                   256\n" in shell("info", str(demo_bundle))[1]
