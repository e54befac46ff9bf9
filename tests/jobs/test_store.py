"""The output folder: a file is there whole or not at all, on a disk and in an object store."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import fsspec
import pytest

from m2m100_onnx.errors import DependencyError, InvalidInputError
from m2m100_onnx.jobs.store import RECORD, Store


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "new" / "out")
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return "memory://bucket/out"


def test_a_shard_is_finished_when_its_file_is_there(place: str) -> None:
    store = Store(place)
    assert store.names() == set()
    assert store.begin("part-1", "a") == []
    assert store.begin("part-1", "b") == ["a"]
    assert store.begin("part-1", "c") == ["a", "b"]
    assert "part-1" not in store.names()
    store.finish("part-1", b"rows", {"rows": 1})
    store.end("part-1", 2)
    assert store.begin("part-1", "d") == []
    assert store.names() == {"part-1", "_shards"}
    store.finish("part-2", b"rows", {"rows": 2})
    found = store.facts(["part-2", "part-1"])
    assert sorted(facts["rows"] for facts in found) == [1, 2]
    assert store.facts(["part-1"]) == [{"rows": 1}]
    assert store.facts([]) == []
    store.clean()
    assert store.begin("part-1", "e") == []


def test_a_record(place: str) -> None:
    store = Store(place)
    record = {"job": {}, "shards": [], "inputs": []}
    store.write(RECORD, json.dumps(record).encode())
    assert store.read_record() == record
    for wrong in (b"{", b"[]", b'{"job": 1}'):
        store.write(RECORD, wrong)
        with pytest.raises(InvalidInputError, match=r"_job\.json: expected"):
            store.read_record()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(str(tmp_path))
    store.write("part-1", b"before")
    monkeypatch.setattr(os, call, full)
    if call == "replace":
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        store.write("part-1", b"after")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"part-1": b"before"}


def test_clean_removes_what_was_killed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.finish("part-1", b"rows", {})
    (tmp_path / ".part-2.0.partial").touch()
    (tmp_path / "_shards" / ".part-2.json.0.partial").touch()
    (tmp_path / ".mine").touch()
    store.clean()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *(".mine", "_shards", "part-1", "part-1.json")
    ]


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InvalidInputError, match="expected a folder, found a file"):
        Store(str(tmp_path / "out")).names()


def test_a_folder_with_one_file_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "out").write_text("mine")
    assert Store(str(tmp_path / "out")).names() == {"out"}


def test_uris_that_nothing_knows() -> None:
    with pytest.raises(InvalidInputError, match="nowhere://x"):
        Store("nowhere://x")
    with pytest.raises(DependencyError, match="gs://bucket"):
        Store("gs://bucket/out")
