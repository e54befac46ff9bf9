"""The rooms of the runtime: who may import whom, and how large a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "m2m100_onnx"
# From the foundation to the faces; a room imports from lower floors, and from itself.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("_typing", "errors", "translation"),
    ("process", "heap", "scores", "option", "inputs"),
    ("options",),
    ("bundle", "search", "rerank"),
    ("model", "text"),
    ("engine", "terminology"),
    ("targets", "aligning"),
    ("afterwards",),
    ("calls",),
    ("language_calls", "face", "reading", "streaming", "submitting", "alternatives"),
    ("translator", "language_model"),
    ("pipelines", "pool"),
    ("server",),
    ("jobs",),
    ("cli",),
    ("__main__",),
)
# Of two rooms on one floor, none imports the other. The floors would allow this.
STRANGERS = {("engine", "text")}
ORT_ROOM = "model"


def floor(room: str) -> int:
    (found,) = (number for number, rooms in enumerate(FLOORS) if room in rooms)
    return found


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top, in a function, or for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name their package"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def runtime_files(root: Path) -> list[Path]:
    return sorted((root / "runtime" / PACKAGE).rglob("*.py"))


def room_of(path: Path, root: Path) -> str:
    return path.relative_to(root / "runtime" / PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_a_floor(repository: Path) -> None:
    rooms = {room_of(path, repository) for path in runtime_files(repository)} - {"__init__"}
    assert rooms == {room for rooms in FLOORS for room in rooms}


def test_rooms_import_downward(repository: Path) -> None:
    wrong = []
    seen = set()
    for path in runtime_files(repository):
        room = room_of(path, repository)
        if room == "__init__":  # It names what is public, from every floor.
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != PACKAGE or len(parts) < 2 or parts[1] in ("__version__", room):
                continue
            seen.add((room, parts[1]))
            if floor(parts[1]) >= floor(room) or (room, parts[1]) in STRANGERS:
                wrong.append(f"{path.relative_to(repository)}: {name}")
    assert not wrong
    # The test sees what there is to see.
    assert {("calls", "engine"), ("model", "search"), ("cli", "translator")} <= seen


def test_one_room_knows_onnxruntime(repository: Path) -> None:
    knowing = {
        room_of(path, repository)
        for path in runtime_files(repository)
        if any(name.split(".")[0] == "onnxruntime" for name in imports(path))
    }
    assert knowing == {ORT_ROOM}


def test_engines_of_clusters_are_known_to_jobs_alone(repository: Path) -> None:
    clusters = {"ray", "pyspark", "fsspec", "pyarrow", "pandas"}
    knowing = {
        room_of(path, repository)
        for path in runtime_files(repository)
        if any(name.split(".")[0] in clusters for name in imports(path))
    }
    assert knowing == {"jobs"}
    # Bulk work does not need what a server needs.
    folder = repository / "runtime" / PACKAGE / "jobs"
    assert [
        path.name
        for path in folder.glob("*.py")
        if path.name != "ray_serve.py"
        and any(name.startswith(f"{PACKAGE}.server") for name in imports(path))
    ] == []


def test_the_search_knows_numpy_alone(repository: Path) -> None:
    outside = set()
    for path in (repository / "runtime" / PACKAGE / "search").glob("*.py"):
        outside |= {name.split(".")[0] for name in imports(path)}
    allowed = {
        PACKAGE,
        "numpy",
        "__future__",
        "dataclasses",
        "math",
        "typing",
        "collections",
        "itertools",
    }
    assert outside <= allowed


@pytest.mark.parametrize("folder", ["runtime", "export", "benchmarks", "tests"])
def test_no_file_is_longer_than_400_lines(repository: Path, folder: str) -> None:
    long = {
        str(path.relative_to(repository)): lines
        for path in (repository / folder).rglob("*.py")
        if (lines := path.read_text(encoding="utf-8").count("\n")) > 400
    }
    assert not long
