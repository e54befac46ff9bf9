"""The weights cache: what is mapped, what is noticed, and that a load never fails for it."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import InvalidInputError, Translator
from m2m100_onnx.bundle.graphs import FUSED_FILES, FUSED_SOURCE_FILE
from m2m100_onnx.model import support, weights_cache, weights_cache_files, weights_cache_lock
from m2m100_onnx.model.weights_cache import GRAPH, WEIGHTS, WeightsCache, cache_directory
from packing import entries, opened, overwrite, start, tokens, written


@pytest.fixture(scope="module")
def bundle(packed_bundle: Path) -> Path:
    return packed_bundle


@pytest.fixture(scope="module")
def filled(filled_cache: Path) -> Path:
    return filled_cache


@pytest.fixture
def cache(packed_cache: Path) -> Path:
    return packed_cache


def test_packed_graphs_translate_alike(
    bundle: Path,
    filled: Path,
    unpacked_tokens: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, paths = written(filled), opened(monkeypatch)
    assert tokens(bundle, filled) == unpacked_tokens
    assert written(filled) == before
    assert len(paths) == len(FUSED_FILES)
    mapped = [path for path in paths if path.startswith(str(filled))]
    assert len(mapped) == len(entries(filled)) >= 2
    assert set(entries(filled)) == set(FUSED_FILES)


def test_weights_are_packed_and_mapped(bundle: Path, filled: Path) -> None:
    entry = entries(filled)[FUSED_SOURCE_FILE].directory
    # onnxruntime's own mark of a weight that is stored packed.
    assert (entry / GRAPH).read_bytes().count(b"prepacked_0") >= 3
    translator = Translator(bundle, cache_dir=filled, kernels=False, intra_op_num_threads=1)
    if sys.platform == "linux":
        assert str(entry / WEIGHTS) in Path("/proc/self/maps").read_text()
    del translator


def test_entries_are_private(filled: Path) -> None:
    for directory in (filled, *(entry.directory for entry in entries(filled).values())):
        assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
@pytest.mark.parametrize("stealthy", [False, True])
def test_damage_is_mended(
    name: str,
    stealthy: bool,
    bundle: Path,
    cache: Path,
    unpacked_tokens: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    damaged = entries(cache)[FUSED_SOURCE_FILE].directory / name
    whole = damaged.read_bytes()
    overwrite(damaged, b"\x5a" * 64, len(whole) // 2, stealthy=stealthy)
    assert tokens(bundle, cache) == unpacked_tokens
    assert "again: " in caplog.text
    assert str(damaged) in caplog.text
    assert entries(cache)[FUSED_SOURCE_FILE].verify()
    assert len(damaged.read_bytes()) == len(whole)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "entry.json"])
@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_missing_parts_are_mended(
    name: str, how: str, bundle: Path, cache: Path, unpacked_tokens: list[tuple[int, ...]]
) -> None:
    path = entries(cache)[FUSED_SOURCE_FILE].directory / name
    if how == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)
    assert tokens(bundle, cache) == unpacked_tokens
    assert path.is_file()
    assert all(entry.verify() for entry in entries(cache).values())


def test_an_entry_of_something_else_is_not_run(
    bundle: Path,
    cache: Path,
    unpacked_tokens: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = entries(cache)
    names = [entry.directory for entry in found.values()][:2]
    aside = cache / "aside"
    names[0].rename(aside)
    names[1].rename(names[0])
    aside.rename(names[1])
    assert tokens(bundle, cache) == unpacked_tokens
    assert caplog.text.count("was made from something else") == 2
    assert all(entry.verify() for entry in entries(cache).values())


def test_a_graph_that_cannot_be_opened_is_dropped(
    bundle: Path,
    cache: Path,
    unpacked_tokens: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An entry whose record fits but whose graph is none: what no check could have foreseen."""
    entry = entries(cache)[FUSED_SOURCE_FILE].directory
    (entry / GRAPH).write_bytes(b"no graph")
    record = json.loads((entry / "entry.json").read_text())
    record["files"][GRAPH] = weights_cache_files.rewrite(entry / GRAPH)
    (entry / "entry.json").write_text(json.dumps(record))
    assert tokens(bundle, cache) == unpacked_tokens
    assert "cannot be opened" in caplog.text
    assert not entry.exists()


@pytest.mark.parametrize("other", ["version", "build", "processor", "options"])
def test_other_circumstances_have_other_entries(
    other: str, bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, names = written(cache), set(cache.iterdir())
    if other == "version":
        monkeypatch.setattr(support.ort, "__version__", "1.99.0")
    elif other == "build":
        monkeypatch.setattr(support.ort, "get_build_info", lambda: "another compiler")
    elif other == "processor":
        monkeypatch.setattr(weights_cache, "processor", lambda: "another kind")
    options = {"session.disable_quant_qdq": "1"} if other == "options" else {}
    Translator(
        bundle, cache_dir=cache, kernels=False, session_options=options, intra_op_num_threads=1
    )
    assert len(set(cache.iterdir()) - names) == len(names)
    assert before.items() <= written(cache).items()


def test_threads_do_not_matter(bundle: Path, cache: Path) -> None:
    before = written(cache)
    options = {"session.intra_op.allow_spinning": "0", "session.dynamic_block_base": "4"}
    Translator(
        bundle, cache_dir=cache, kernels=False, session_options=options, intra_op_num_threads=2
    )
    assert written(cache) == before


def test_entries_long_unused_go(bundle: Path, cache: Path) -> None:
    old, *recent = entries(cache).values()
    month_ago = old.created - 31 * 86400
    os.utime(old.directory / "entry.json", (month_ago, month_ago))
    killed, at_work = cache / ".packed-killed", cache / ".packed-at-work"
    for folder in (killed, at_work):
        folder.mkdir()
    os.utime(killed, (month_ago, month_ago))
    keep = cache / "somebody's notes"
    keep.write_text("not ours")
    Translator(
        bundle,
        cache_dir=cache,
        session_options={"session.disable_quant_qdq": "1"},
        kernels=False,
        lazy=True,
    ).model.sessions.get(FUSED_SOURCE_FILE)
    assert not old.directory.exists()
    assert not killed.exists()
    assert all(entry.directory.exists() for entry in recent)
    assert at_work.exists()
    assert keep.exists()


def test_two_processes_at_once(
    bundle: Path, tmp_path: Path, unpacked_tokens: list[tuple[int, ...]], repository: Path
) -> None:
    cache = tmp_path / "cache"
    for process in [start(bundle, cache, repository) for _ in range(3)]:
        output, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        assert [tuple(row) for row in json.loads(output)] == unpacked_tokens
        assert errors == b""
    assert all(entry.verify() for entry in entries(cache).values())
    assert {path.name for path in cache.iterdir()} == {
        entry.directory.name for entry in entries(cache).values()
    }
    assert len(entries(cache)) >= 2


def test_the_slower_writer_takes_what_is_there(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one writes, another process puts its entry in place: a disk need not have locks."""

    def refuse(_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(weights_cache_lock, "_lock", refuse)
    source, facts = bundle / FUSED_SOURCE_FILE, {"onnxruntime": "1"}
    cache, faster = WeightsCache(tmp_path / "cache"), WeightsCache(tmp_path / "cache")

    def write(graph: Path, weights: str) -> None:
        graph.write_text("first")
        graph.with_name(weights).write_text("first")

    def write_slowly(graph: Path, weights: str) -> None:
        assert faster.graph(source, facts, write)
        graph.write_text("second")
        graph.with_name(weights).write_text("second")

    found = cache.graph(source, facts, write_slowly)
    assert found is not None
    assert found.read_text() == found.with_name(WEIGHTS).read_text() == "first"
    assert list(cache.directory.iterdir()) == [found.parent]


def test_an_entry_that_came_a_moment_later_stays(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process puts it in place when this one has just not found it."""
    source, facts = bundle / FUSED_SOURCE_FILE, {"onnxruntime": "1"}
    cache, faster = WeightsCache(tmp_path / "cache"), WeightsCache(tmp_path / "cache")
    look = weights_cache.problem_of

    def write(graph: Path, weights: str) -> None:
        graph.write_text("first")
        graph.with_name(weights).write_text("first")

    def slow_look(entry: Path, wanted: Mapping[str, Any]) -> str | None:
        problem = look(entry, wanted)
        monkeypatch.setattr(weights_cache, "problem_of", look)
        assert problem is not None
        assert faster.graph(source, facts, write) == entry / GRAPH
        return problem

    monkeypatch.setattr(weights_cache, "problem_of", slow_look)
    found = cache.graph(source, facts, lambda *_: pytest.fail("written again"))
    assert found is not None
    assert found.read_text() == "first"
    assert not caplog.records


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("M2M100_ONNX_CACHE", "")
    assert cache_directory(None) == tmp_path / "xdg" / "m2m100-onnx"
    assert cache_directory(None, "int8") == tmp_path / "xdg" / "m2m100-onnx"
    assert cache_directory(None, "fp32") is None
    assert cache_directory(False, "int8") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory(None) == tmp_path / "home" / ".cache" / "m2m100-onnx"
    monkeypatch.setenv("M2M100_ONNX_CACHE", str(tmp_path / "named"))
    assert cache_directory(None, "fp32") == tmp_path / "named"
    assert cache_directory("~/mine", "fp32") == tmp_path / "home" / "mine"
    for word in ("off", "OFF", "0", "false", "False", "no", "NO", " off "):
        monkeypatch.setenv("M2M100_ONNX_CACHE", word)
        assert cache_directory(None, "int8") is None
        assert cache_directory(tmp_path, "int8") == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for word in ("on", "1", "True", "yes"):
        monkeypatch.setenv("M2M100_ONNX_CACHE", word)
        assert cache_directory(None, "int8") == tmp_path / "xdg" / "m2m100-onnx"
        assert cache_directory(None, "fp32") is None
    monkeypatch.setenv("M2M100_ONNX_CACHE", "./off")
    assert cache_directory(None, "int8") == Path("off").absolute()
    for wrong in (True, 3, "", b"bytes"):
        with pytest.raises(InvalidInputError, match="cache_dir"):
            cache_directory(wrong)  # type: ignore[arg-type]


def test_environment_switches_off(
    bundle: Path, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = opened(monkeypatch)
    monkeypatch.setenv("M2M100_ONNX_CACHE", str(filled))
    tokens(bundle, None)
    assert any(path.startswith(str(filled)) for path in paths)
    paths.clear()
    tokens(bundle, False)
    monkeypatch.setenv("M2M100_ONNX_CACHE", "off")
    tokens(bundle, None)
    assert paths
    assert not any(path.startswith(str(filled)) for path in paths)


def test_fp32_is_packed_where_a_folder_is_named(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tokens(tiny_bundle, False)
    assert tokens(tiny_bundle, tmp_path / "cache") == plain
    paths = opened(monkeypatch)
    assert tokens(tiny_bundle, tmp_path / "cache") == plain
    assert sum(path.startswith(str(tmp_path / "cache")) for path in paths) >= 2


def test_other_providers_and_unpacked_sessions_have_no_cache(bundle: Path, tmp_path: Path) -> None:
    unpacked = {"session.disable_prepacking": "1"}
    Translator(bundle, cache_dir=tmp_path / "cache", session_options=unpacked, kernels=False)
    others = [name for name in support.ort.get_available_providers() if "CPU" not in name]
    for name in others[:1]:
        Translator(bundle, cache_dir=tmp_path / "cache", providers=[name, "CPUExecutionProvider"])
    assert not (tmp_path / "cache").exists()
