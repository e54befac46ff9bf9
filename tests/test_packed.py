"""The packed cache: what is mapped, what is noticed, and that a load never fails for it."""

from __future__ import annotations

import binascii
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from m2m100_onnx import InvalidInputError, Translator, packed, packed_files, sessions
from m2m100_onnx.bundle import FUSED_FILES, FUSED_SOURCE_FILE
from m2m100_onnx.packed import GRAPH, WEIGHTS, PackedCache, cache_directory
from packing import TEXTS, entries, overwrite, tokens

# What a process of its own does: it prints the tokens of its arguments' translations.
CHILD = """
import json, resource, sys
from m2m100_onnx import Translator
bundle, cache, limit, *texts = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
translator = Translator(bundle, cache_dir=cache, intra_op_num_threads=1)
found = translator.translate_batch(texts, source_lang="en", target_lang="de", beam_size=2)
print(json.dumps([result.tokens for result in found]))
"""


@pytest.fixture(scope="module")
def bundle(packed_bundle: Path) -> Path:
    return packed_bundle


@pytest.fixture(scope="module")
def filled(filled_cache: Path) -> Path:
    return filled_cache


@pytest.fixture
def cache(packed_cache: Path) -> Path:
    return packed_cache


@pytest.fixture(scope="module")
def expected(bundle: Path) -> list[tuple[int, ...]]:
    """What the bundle translates without a cache."""
    found = tokens(bundle, False)
    assert all(len(row) > 3 for row in found)
    return found


def written(cache: Path) -> dict[str, tuple[int, int]]:
    """Identity and time of change of every file but the records, which each use touches."""
    files = [path for path in cache.rglob("*") if path.is_file() and path.name != "entry.json"]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records every graph that onnxruntime is given from now on."""
    paths: list[str] = []
    real = sessions.ort.InferenceSession

    def spy(model: str | bytes, *rest: object, **named: object) -> object:
        paths.append(model if isinstance(model, str) else "bytes")
        return real(model, *rest, **named)

    monkeypatch.setattr(sessions.ort, "InferenceSession", spy)
    return paths


def test_packed_graphs_translate_alike(
    bundle: Path, filled: Path, expected: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, paths = written(filled), opened(monkeypatch)
    assert tokens(bundle, filled) == expected
    assert written(filled) == before
    assert len(paths) == len(FUSED_FILES)
    mapped = [path for path in paths if path.startswith(str(filled))]
    assert len(mapped) == len(entries(filled)) >= 2
    assert set(entries(filled)) == set(FUSED_FILES)


def test_weights_are_packed_and_mapped(bundle: Path, filled: Path) -> None:
    entry = entries(filled)[FUSED_SOURCE_FILE].directory
    # onnxruntime's own mark of a weight that is stored packed.
    assert (entry / GRAPH).read_bytes().count(b"prepacked_0") >= 3
    translator = Translator(bundle, cache_dir=filled, intra_op_num_threads=1)
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
    expected: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    damaged = entries(cache)[FUSED_SOURCE_FILE].directory / name
    whole = damaged.read_bytes()
    overwrite(damaged, b"\x5a" * 64, len(whole) // 2, stealthy=stealthy)
    assert tokens(bundle, cache) == expected
    assert "packed again" in caplog.text
    assert str(damaged) in caplog.text
    assert entries(cache)[FUSED_SOURCE_FILE].verify()
    assert len(damaged.read_bytes()) == len(whole)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "entry.json"])
@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_missing_parts_are_mended(
    name: str, how: str, bundle: Path, cache: Path, expected: list[tuple[int, ...]]
) -> None:
    path = entries(cache)[FUSED_SOURCE_FILE].directory / name
    if how == "missing":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size // 2)
    assert tokens(bundle, cache) == expected
    assert path.is_file()
    assert all(entry.verify() for entry in entries(cache).values())


def test_an_entry_of_something_else_is_not_run(
    bundle: Path, cache: Path, expected: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    found = entries(cache)
    names = [entry.directory for entry in found.values()][:2]
    aside = cache / "aside"
    names[0].rename(aside)
    names[1].rename(names[0])
    aside.rename(names[1])
    assert tokens(bundle, cache) == expected
    assert caplog.text.count("was made from something else") == 2
    assert all(entry.verify() for entry in entries(cache).values())


def test_a_graph_that_cannot_be_opened_is_dropped(
    bundle: Path, cache: Path, expected: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    """An entry whose record fits but whose graph is none: what no check could have foreseen."""
    entry = entries(cache)[FUSED_SOURCE_FILE].directory
    (entry / GRAPH).write_bytes(b"no graph")
    record = json.loads((entry / "entry.json").read_text())
    record["files"][GRAPH] = packed_files.rewrite(entry / GRAPH)
    (entry / "entry.json").write_text(json.dumps(record))
    assert tokens(bundle, cache) == expected
    assert "cannot be opened" in caplog.text
    assert not entry.exists()


@pytest.mark.parametrize("other", ["version", "build", "processor", "options"])
def test_other_circumstances_have_other_entries(
    other: str, bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, names = written(cache), set(cache.iterdir())
    if other == "version":
        monkeypatch.setattr(sessions.ort, "__version__", "1.99.0")
    elif other == "build":
        monkeypatch.setattr(sessions.ort, "get_build_info", lambda: "another compiler")
    elif other == "processor":
        monkeypatch.setattr(packed, "_processor", lambda: "another kind")
    options = {"session.disable_quant_qdq": "1"} if other == "options" else {}
    Translator(bundle, cache_dir=cache, session_options=options, intra_op_num_threads=1)
    assert len(set(cache.iterdir()) - names) == len(names)
    assert before.items() <= written(cache).items()


def test_threads_do_not_matter(bundle: Path, cache: Path) -> None:
    before = written(cache)
    options = {"session.intra_op.allow_spinning": "0", "session.dynamic_block_base": "4"}
    Translator(bundle, cache_dir=cache, session_options=options, intra_op_num_threads=2)
    assert written(cache) == before


def test_a_changed_bundle_replaces_its_entries(bundle: Path, tmp_path: Path) -> None:
    mine, cache = Path(shutil.copytree(bundle, tmp_path / "mine")), tmp_path / "cache"
    tokens(mine, cache)
    old = set(cache.iterdir())
    os.utime(mine / "model.onnx_data")
    assert all(entry.stale for entry in entries(cache).values())
    tokens(mine, cache)
    assert len(set(cache.iterdir())) == len(old)
    assert not old & set(cache.iterdir())
    assert not any(entry.stale for entry in entries(cache).values())


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
        bundle, cache_dir=cache, session_options={"session.disable_quant_qdq": "1"}, lazy=True
    ).model.session(FUSED_SOURCE_FILE)
    assert not old.directory.exists()
    assert not killed.exists()
    assert all(entry.directory.exists() for entry in recent)
    assert at_work.exists()
    assert keep.exists()


def start(bundle: Path, cache: Path, repository: Path, limit: int = 0) -> subprocess.Popen[bytes]:
    environment = dict(os.environ, PYTHONPATH=str(repository / "runtime"))
    arguments = [sys.executable, "-c", CHILD, str(bundle), str(cache), str(limit), *TEXTS]
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_two_processes_at_once(
    bundle: Path, tmp_path: Path, expected: list[tuple[int, ...]], repository: Path
) -> None:
    cache = tmp_path / "cache"
    for process in [start(bundle, cache, repository) for _ in range(3)]:
        output, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        assert [tuple(row) for row in json.loads(output)] == expected
        assert errors == b""
    assert all(entry.verify() for entry in entries(cache).values())
    assert {path.name for path in cache.iterdir()} == {
        entry.directory.name for entry in entries(cache).values()
    }
    assert len(entries(cache)) >= 2


def test_the_slower_writer_takes_what_is_there(bundle: Path, tmp_path: Path) -> None:
    """While one writes, another process puts its entry in place."""
    source, facts = bundle / FUSED_SOURCE_FILE, {"onnxruntime": "1"}
    cache, faster = PackedCache(tmp_path / "cache"), PackedCache(tmp_path / "cache")

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


def test_full_disk(
    bundle: Path, tmp_path: Path, expected: list[tuple[int, ...]], repository: Path
) -> None:
    """Files may grow to 100 kB in that process, which fails as a full disk does: in the middle."""
    cache = tmp_path / "cache"
    process = start(bundle, cache, repository, limit=100_000)
    output, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert [tuple(row) for row in json.loads(output)] == expected
    assert errors.count(b"packed cache") == 1, errors.decode()
    assert list(cache.iterdir()) == []


def test_disk_nearly_full(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    expected: list[tuple[int, ...]],
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert tokens(bundle, tmp_path / "cache") == expected
    assert "found 1,000" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


def test_folder_that_cannot_be_made(
    bundle: Path, tmp_path: Path, expected: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert tokens(bundle, tmp_path / "file" / "cache") == expected
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "packed cache" in warnings[0].message


def test_read_only_folder(
    bundle: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is there is used; what is missing is not written, and damage is not run."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    # Modes do not stop root, whom tests may run as.
    for module, name in (
        (packed.tempfile, "mkdtemp"),
        (packed.os, "utime"),
        (Path, "mkdir"),
        (Path, "rename"),
    ):
        monkeypatch.setattr(module, name, refuse)
    paths = opened(monkeypatch)
    assert tokens(bundle, cache) == expected
    assert sum(path.startswith(str(cache)) for path in paths) == len(entries(cache))
    assert caplog.text == ""

    damaged = entries(cache)[FUSED_SOURCE_FILE].directory
    overwrite(damaged / WEIGHTS, b"damage", 0, stealthy=False)
    paths.clear()
    assert tokens(bundle, cache) == expected
    assert not any(path.startswith(str(damaged)) for path in paths)
    assert "Read-only" in caplog.text


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes are POSIX's")
@pytest.mark.parametrize("which", ["cache", "entry"])
@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_what_others_may_write_is_not_run(
    which: str,
    mode: int,
    bundle: Path,
    cache: Path,
    expected: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    entry = entries(cache)[FUSED_SOURCE_FILE].directory
    before = written(entry)
    (cache if which == "cache" else entry).chmod(mode)
    paths = opened(monkeypatch)
    assert tokens(bundle, cache) == expected
    assert "chmod go-w" in caplog.text
    if which == "cache":
        assert not any(path.startswith(str(cache)) for path in paths)
    else:  # The entry is made anew, in a folder of our own.
        assert entry.stat().st_mode & 0o777 == 0o700
        assert not written(entry).items() & before.items()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes are POSIX's")
def test_what_belongs_to_others_is_not_run(
    bundle: Path,
    cache: Path,
    expected: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner = cache.stat().st_uid
    # Root's folders are believed, so the folder must not look like root's either.
    if owner == 0:
        os.chown(cache, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    paths = opened(monkeypatch)
    assert tokens(bundle, cache) == expected
    assert "belongs to user" in caplog.text
    assert not any(path.startswith(str(cache)) for path in paths)


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
    monkeypatch.setenv("M2M100_ONNX_CACHE", "off")
    assert cache_directory(None, "int8") is None
    assert cache_directory(tmp_path, "int8") == tmp_path
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
    Translator(bundle, cache_dir=tmp_path / "cache", session_options=unpacked)
    others = [name for name in sessions.ort.get_available_providers() if "CPU" not in name]
    for name in others[:1]:
        Translator(bundle, cache_dir=tmp_path / "cache", providers=[name, "CPUExecutionProvider"])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("size", [1, 1 << 20, (9 << 20) + 5])
def test_what_is_rewritten_stays_what_it_was(tmp_path: Path, size: int) -> None:
    path, data = tmp_path / WEIGHTS, os.urandom(size)
    path.write_bytes(data)
    record = packed_files.rewrite(path)
    assert path.read_bytes() == data
    assert [entry.name for entry in tmp_path.iterdir()] == [WEIGHTS]
    pieces = [data[start : start + (1 << 18)] for start in range(0, size, 1 << 18)]
    assert record["pieces"] == [binascii.crc32(piece) for piece in pieces]
    assert packed_files.damage(path, record, sample=True) is None
    overwrite(path, bytes([data[-1] ^ 1]), size - 1, stealthy=True)
    assert "damaged at byte" in str(packed_files.damage(path, record, sample=True))


def test_large_weights_are_compared_in_part(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First and last piece at each load, another choice of the rest each time, all by `verify`."""
    monkeypatch.setattr(packed_files, "_PIECE", 64)
    writes = []

    def write(graph: Path, weights: str) -> None:
        writes.append(graph)
        graph.write_bytes(b"graph")
        graph.with_name(weights).write_bytes(os.urandom(64 * 99 + 5))

    def load() -> Path:
        found = PackedCache(tmp_path).graph(bundle / FUSED_SOURCE_FILE, {"onnxruntime": "1"}, write)
        assert found is not None
        return found.with_name(WEIGHTS)

    weights = load()
    for offset in (0, 64 * 99 + 4):
        before = len(writes)
        overwrite(weights, bytes([weights.read_bytes()[offset] ^ 1]), offset, stealthy=True)
        load()
        assert len(writes) == before + 1
    before = len(writes)
    # Whoever does not hide it is found out at once, wherever it is.
    overwrite(weights, bytes([weights.read_bytes()[3000] ^ 1]), 3000, stealthy=False)
    load()
    assert len(writes) == before + 1
    before = len(writes)
    overwrite(weights, bytes([weights.read_bytes()[3000] ^ 1]), 3000, stealthy=True)
    assert not entries(tmp_path)[FUSED_SOURCE_FILE].verify()
    # A load misses it with a probability of 6 in 7.
    assert any(load() and len(writes) > before for _ in range(300))
    assert entries(tmp_path)[FUSED_SOURCE_FILE].verify()
