"""The manual and the README say what is true: their blocks run, their outputs are what is printed.

    pytest tests/docs --update-examples      writes what the Python blocks print into them

A Python block's output stands behind `#>`. A console block's output stands below its `$` line, and
`...` stands for anything. The blocks of a page run in order and share their names and their folder,
in which `demo` and `bundles/demo` are as in the repository. A block whose title begins with "not
run" is only compiled; the title says why. A block that includes a file of docs/examples does not
run here: test_services.py runs the file.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pytest_examples import CodeExample, EvalExample, find_examples

from m2m100_onnx import errors
from m2m100_onnx.options import OPTIONS
from services import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
NOT_RUN = "not run"
INCLUDE = "--8<--"
_CONSOLE = re.compile(r"^```(?:console|bash)(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
_ANY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Console:
    """A block of commands and what they print."""

    path: Path
    start_line: int
    title: str
    commands: list[tuple[str, str]]


def consoles(page: Path) -> Iterator[Console]:
    """Yields the console blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for block in _CONSOLE.finditer(text):
        commands = [
            part.partition("\n") for part in re.split(r"^\$ ", block[2], flags=re.M) if part
        ]
        line = text[: block.start()].count("\n")
        pairs = [(command, expected) for command, _, expected in commands]
        yield Console(page, line, block[1].strip(), pairs)


def blocks(page: Path) -> list[CodeExample | Console]:
    """Returns the blocks of a page, in order."""
    return sorted([*find_examples(page), *consoles(page)], key=lambda block: block.start_line)


def at_port(block: CodeExample | Console, port: int) -> CodeExample | Console:
    """A block of the page about the server, at a port that is free."""

    def changed(text: str) -> str:
        text = text.replace("127.0.0.1:5000", f"127.0.0.1:{port}")
        return text.replace("m2m100 serve ", f"m2m100 serve --port {port} ")

    if isinstance(block, Console):
        commands = [(changed(command), changed(expected)) for command, expected in block.commands]
        return replace(block, commands=commands)
    return replace(block, source=changed(block.source))


def is_include(block: CodeExample | Console) -> bool:
    return isinstance(block, CodeExample) and block.source.startswith(INCLUDE)


def is_run(block: CodeExample | Console) -> bool:
    prefix = block.title if isinstance(block, Console) else block.prefix
    return f'title="{NOT_RUN}' not in prefix and not is_include(block)


def with_blocks() -> list[Path]:
    return [page for page in PAGES if any(map(is_run, blocks(page)))]


@pytest.fixture
def desk(
    tmp_path: Path, repository: Path, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder in which blocks run; a home of its own, and the command on the path."""
    folder = tmp_path / "desk"
    (folder / "bundles").mkdir(parents=True)
    (folder / "demo").symlink_to(repository / "demo")
    (folder / "bundles" / "demo").symlink_to(demo_bundle)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("M2M100_ONNX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = tmp_path / "bin" / "m2m100"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m m2m100_onnx "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    # Blocks run as `__main__`, and a process that is spawned later would run them again.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    yield folder
    # A page that fails leaves its server behind.
    if (folder / "server.pid").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((folder / "server.pid").read_text()), signal.SIGTERM)


def shell(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, encoding="utf-8", check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("page", with_blocks(), ids=lambda page: page.stem)
def test_blocks_run(page: Path, desk: Path, eval_example: EvalExample) -> None:
    eval_example.set_config(line_length=240)  # An output stays on one line.
    names: dict[str, object] = {}
    port = free_port()
    for written in filter(is_run, blocks(page)):
        block = written if eval_example.update_examples else at_port(written, port)
        if isinstance(block, Console):
            for command, expected in block.commands:
                found = shell(command, desk)
                assert doctest.OutputChecker().check_output(expected, found, _ANY), (
                    f"{page.name}:{block.start_line + 1}: {command}\n"
                    f"expected:\n{expected}\nfound:\n{found}"
                )
        elif eval_example.update_examples:
            names |= eval_example.run_print_update(block, module_globals=names)
        else:
            names |= eval_example.run_print_check(block, module_globals=names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_that_are_not_run_compile_and_say_why(page: Path) -> None:
    for block in blocks(page):
        if isinstance(block, CodeExample):
            ast.parse(block.source, f"{page.name}:{block.start_line}")
        if not is_run(block) and not is_include(block):
            prefix = block.title if isinstance(block, Console) else block.prefix
            assert re.search(rf'title="{NOT_RUN}: [^"]+"', prefix), prefix


def test_few_blocks_are_not_run() -> None:
    every = [block for page in PAGES for block in blocks(page)]
    assert sum(map(is_run, every)) > 0.8 * sum(not is_include(block) for block in every)


def test_every_option_has_a_section_with_an_example() -> None:
    page = DOCS / "options.md"
    parts = re.split(r"^## `(\w+)`.*$", page.read_text(encoding="utf-8"), flags=re.M)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(sections) == list(OPTIONS)
    for name, text in sections.items():
        assert f"<!-- option: {name} -->" in text
        assert re.search(rf"```python\n(?:(?!```)[\s\S])*\b{name}=", text), name


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The manual's own module, which makes its tables."""
    spec = importlib.util.spec_from_file_location("manual_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_of_options_has_every_name(hooks: ModuleType) -> None:
    table = hooks.fill("<!-- options -->")
    for row in OPTIONS.values():
        assert f"`{row.name}`" in table
        assert row.transformers is None or f"`{row.transformers}`" in table
        assert row.ctranslate2 is None or f"`{row.ctranslate2}`" in table


def test_table_of_errors_has_every_class(hooks: ModuleType) -> None:
    table = hooks.fill("<!-- errors -->")
    assert {name for name in errors.__all__ if f"`{name}`" not in table} == set()


def test_markers_that_name_nothing_are_refused(hooks: ModuleType) -> None:
    with pytest.raises(KeyError, match="no_such_option"):
        hooks.fill("<!-- option: no_such_option -->")
    with pytest.raises(subprocess.CalledProcessError):
        hooks.fill("<!-- help: no-such-command -->")


def test_every_command_is_in_the_manual(hooks: ModuleType) -> None:
    overview = hooks.fill("<!-- help: -->")
    commands = re.findall(r"^    ([a-z]+)(?: |$)", overview, flags=re.M)
    assert "translate" in commands
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert [name for name in commands if f"<!-- help: {name} -->" not in page] == []


def test_readme_links_to_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert [
        link for link in links if link and "://" not in link and not (ROOT / link).exists()
    ] == []


def test_readme_is_a_door() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_precision_table_says_what_was_measured() -> None:
    """Rows of "which precision?" against the results that the benchmarks' tables are made from."""
    results = ROOT / "benchmarks" / "results"

    def rows(name: str, key: str = "rows") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((results / f"{name}.json").read_text())[key]
        return found

    memory = {row["engine"]: row["used"] for row in rows("memory")}
    lost = {row["engine"]: row["lost"] for row in rows("quality", "summary")}
    size = {row["precision"]: row["bundle"] for row in rows("export")}
    seconds = {
        (row["engine"], row["batch_size"]): statistics.median(row["samples"])
        for row in [*rows("speed"), *rows("speed_fp32")]
        if (row["beam_size"], row["source_length"]) == (5, 32)
    }
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `([\w-]+)` \|(.*)\|$", text, flags=re.M))
    assert list(table) == ["fp32", "int8", "int4-int8", "int4", "fp16"]
    for precision, cells in table.items():
        used = memory[f"ours {precision}"]
        private, mapped = (used[kind] / 2**20 for kind in ("private", "mapped"))
        assert f"| {private:,.0f} + {mapped:,.0f} MiB |" in cells, precision
        assert f" {size[precision] / 1e6:,.0f} MB |" in cells, precision
        for batch_size in (1, 8):
            if time := seconds.get((f"ours {precision}", batch_size)):
                assert f"| {time:.2f} s |" in cells, precision
        if f"ours {precision}" in lost:
            # int8 gained a hundredth, which nobody would call a gain.
            assert f"| {max(0.0, lost[f'ours {precision}']):.2f} " in cells


def test_manual_builds_strictly(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "beam_size" in (tmp_path / "options" / "index.html").read_text(encoding="utf-8")
