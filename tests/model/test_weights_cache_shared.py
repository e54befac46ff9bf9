"""One cache for many: processes, containers, copies of a bundle, and images that were filled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx.bundle.graphs import FUSED_FILES, FUSED_SOURCE_FILE
from m2m100_onnx.bundle.manifest import MANIFEST_FILE
from m2m100_onnx.model import weights_cache, weights_cache_files, weights_cache_lock
from m2m100_onnx.model.weights_cache import DAY, GRAPH, WEIGHTS, WeightsCache
from m2m100_onnx.model.weights_cache_lock import file_lock
from packing import TEXTS, entries, opened, overwrite, tokens, written

# Prints the translations of its arguments, and on stderr what it packs and warns of.
WORKER = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from m2m100_onnx import Translator
bundle, cache, *texts = sys.argv[1:]
translator = Translator(bundle, cache_dir=cache, intra_op_num_threads=1, kernels=False)
found = translator.translate_batch(texts, source_lang="en", target_lang="de", beam_size=2)
print([result.tokens for result in found])
"""


def cut_times(folder: Path, unit: int) -> None:
    """Cuts the times of all files, as archives do."""
    for path in folder.rglob("*"):
        if path.is_file():
            time_ns = path.stat().st_mtime_ns
            os.utime(path, ns=(time_ns, time_ns - time_ns % unit))


def copy_without_times(source: Path, target: Path) -> Path:
    """As `cp -r` does."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for path in target.rglob("*"):
        if path.is_file():
            os.utime(path, (1_000_000_000, 1_000_000_000))
    return target


@pytest.mark.parametrize("how", ["moved", "copied", "without times", "touched"])
def test_every_copy_of_a_bundle_has_the_same_entries(
    how: str,
    packed_bundle: Path,
    packed_cache: Path,
    tmp_path: Path,
    unpacked_tokens: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / "elsewhere" / "bundle"
    if how == "without times":
        copy_without_times(packed_bundle, other)
    else:
        shutil.copytree(packed_bundle, other)
    if how == "moved":
        other = other.rename(tmp_path / "moved")
    if how == "touched":
        os.utime(other / WEIGHTS_FILE)
    before, paths = written(packed_cache), opened(monkeypatch)
    assert tokens(other, packed_cache) == unpacked_tokens
    assert written(packed_cache) == before
    assert sum(path.startswith(str(packed_cache)) for path in paths) == len(FUSED_FILES)
    assert not caplog.records


@pytest.mark.parametrize("unit", [10**9, 10**6, 1000, 100, 2 * 10**9])
def test_an_image_may_lose_nanoseconds(
    unit: int,
    packed_bundle: Path,
    packed_cache: Path,
    unpacked_tokens: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A tar archive of a layer has whole seconds; nothing is packed, and nothing compared whole."""
    cut_times(packed_cache, unit)
    before = written(packed_cache)
    assert tokens(packed_bundle, packed_cache) == unpacked_tokens
    assert written(packed_cache) == before
    assert not caplog.records


def test_a_copied_cache_is_compared_whole_once(
    packed_bundle: Path,
    filled_cache: Path,
    tmp_path: Path,
    unpacked_tokens: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = copy_without_times(filled_cache, tmp_path / "copy")
    cache.chmod(0o700)
    before = {path: identity for path, (identity, _) in written(cache).items()}
    assert tokens(packed_bundle, cache) == unpacked_tokens
    after = written(cache)
    assert {path: identity for path, (identity, _) in after.items()} == before
    # The next use finds the recorded times.
    records = [json.loads(path.read_text()) for path in cache.rglob("entry.json")]
    times = {file["mtime_ns"] for record in records for file in record["files"].values()}
    assert {mtime for _, mtime in after.values()} == times
    assert not caplog.records


@pytest.mark.parametrize("read_only", [False, True])
def test_damage_to_a_copy_is_found_wherever_it_is(
    read_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the recorded time, samples are not enough."""
    monkeypatch.setattr(weights_cache_files, "_PIECE", 64)
    if read_only:
        monkeypatch.setattr(os, "utime", _refuse)
    path = tmp_path / WEIGHTS
    path.write_bytes(os.urandom(64 * 99))
    record = weights_cache_files.rewrite(path)
    for offset in range(100, 64 * 99, 640):
        whole = path.read_bytes()
        overwrite_keeping(path, bytes([whole[offset] ^ 1]), offset)
        assert "damaged at byte" in str(weights_cache_files.damage(path, record, sample=True))
        path.write_bytes(whole)
        assert weights_cache_files.damage(path, record, sample=True) is None


def overwrite_keeping(path: Path, data: bytes, offset: int) -> None:
    """Changes bytes of a file, whose time becomes another."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _refuse(*_: object, **__: object) -> None:
    raise OSError(30, "Read-only file system")


@pytest.mark.parametrize("what", ["gone", "replaced"])
def test_nobody_removes_what_may_be_anothers(
    what: str, packed_bundle: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """Containers with one cache see other bundles, or none, at the same path."""
    mine, cache = Path(shutil.copytree(packed_bundle, tmp_path / "mine")), tmp_path / "cache"
    tokens(mine, cache)
    before = written(cache)
    shutil.rmtree(mine)
    if what == "replaced":
        shutil.copytree(tiny_bundle, mine)
    tokens(tiny_bundle, cache)
    assert len(entries(cache)) == len(FUSED_FILES)
    after = written(cache)
    assert before.items() < after.items()


def test_cold_workers_pack_once(
    packed_bundle: Path, tmp_path: Path, unpacked_tokens: list[tuple[int, ...]], repository: Path
) -> None:
    cache, environment = (
        tmp_path / "cache",
        dict(os.environ, PYTHONPATH=str(repository / "runtime")),
    )
    command = [sys.executable, "-c", WORKER, str(packed_bundle), str(cache), *TEXTS]
    pipe = subprocess.PIPE
    workers = [
        subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        for _ in range(4)
    ]
    logs = ""
    for worker in workers:
        output, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
        assert output.strip() == str(unpacked_tokens)
        logs += errors
    assert logs.count("INFO:m2m100_onnx:packing") == len(FUSED_FILES)
    assert "WARNING" not in logs
    assert len(list(cache.iterdir())) == len(entries(cache)) == len(FUSED_FILES)


Write = Callable[[Path, str], None]


def writer(seconds: float = 0.0) -> tuple[Write, list[Path]]:
    """A stand-in for onnxruntime, and what it has written."""
    calls: list[Path] = []

    def write(graph: Path, weights: str) -> None:
        calls.append(graph)
        time.sleep(seconds)
        graph.write_text("graph")
        graph.with_name(weights).write_text("weights")

    return write, calls


def test_others_wait_for_the_one_that_packs(packed_bundle: Path, tmp_path: Path) -> None:
    write, calls = writer(0.5)
    found: list[Path | None] = []

    def open_graph() -> None:
        cache = WeightsCache(tmp_path / "cache")
        found.append(cache.graph(packed_bundle / FUSED_SOURCE_FILE, {"onnxruntime": "1"}, write))

    threads = [threading.Thread(target=open_graph) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(set(found)) == 1
    assert found[0] is not None


def test_nobody_waits_for_ever(
    packed_bundle: Path,
    tmp_path: Path,
    unpacked_tokens: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such as for a process that was stopped in the middle; the warning names the cause."""
    monkeypatch.setattr(weights_cache, "_PATIENCE", 0.1)
    monkeypatch.setattr(weights_cache_lock, "_lock", _busy)
    cache = tmp_path / "cache"
    assert tokens(packed_bundle, cache) == unpacked_tokens
    (warning,) = (record.message for record in caplog.records)
    assert "another process has been packing" in warning
    assert not entries(cache)


def _busy(_: int) -> None:
    raise BlockingIOError


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    ready, parent = os.pipe()
    child = os.fork()
    if child == 0:
        with file_lock(path, 1):
            os.write(parent, b"held")
            time.sleep(60)
        os._exit(1)
    os.read(ready, 4)
    with file_lock(path, 0) as held:
        assert not held
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert path.exists()
    with file_lock(path, 60) as held:
        assert held
    assert not path.exists()


def test_a_failed_writer_leaves_the_way_free(packed_bundle: Path, tmp_path: Path) -> None:
    source, facts = packed_bundle / FUSED_SOURCE_FILE, {"onnxruntime": "1"}

    def fail(*_: object) -> None:
        raise weights_cache.PackingError("not today")

    assert WeightsCache(tmp_path).graph(source, facts, fail) is None
    assert not list(tmp_path.iterdir())
    write, calls = writer()
    assert WeightsCache(tmp_path).graph(source, facts, write) is not None
    assert len(calls) == 1


def test_locks_of_killed_writers_are_swept(packed_bundle: Path, tmp_path: Path) -> None:
    old, new = tmp_path / ".lock-packed-old", tmp_path / ".lock-packed-new"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 2 * DAY,) * 2)
    write, _ = writer()
    WeightsCache(tmp_path).graph(packed_bundle / FUSED_SOURCE_FILE, {"onnxruntime": "1"}, write)
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize("name", [WEIGHTS_FILE, FUSED_SOURCE_FILE])
def test_what_the_manifest_does_not_say_is_not_packed(
    name: str, packed_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a damaged copy of a bundle would be the sound ones' cache."""
    mine, cache = Path(shutil.copytree(packed_bundle, tmp_path / "mine")), tmp_path / "cache"
    data = (mine / name).read_bytes()
    # A letter of a node's name, or a bit of a weight: onnxruntime opens it all the same.
    place = data.find(b"MatMul") if name == FUSED_SOURCE_FILE else len(data) // 2
    overwrite(mine / name, bytes([data[place] ^ 1]), place, stealthy=True)
    cache_of_mine = WeightsCache(cache)
    hashes = {
        file: record["sha256"]
        for file, record in json.loads((mine / MANIFEST_FILE).read_text())["files"].items()
    }
    write, calls = writer()
    facts = {"onnxruntime": "1"}
    assert cache_of_mine.graph(mine / FUSED_SOURCE_FILE, facts, write, hashes) is None
    assert not calls
    assert not entries(cache)
    assert f"{mine / name}: expected SHA-256 {hashes[name]}" in caplog.text
    sound = WeightsCache(cache)
    assert sound.graph(packed_bundle / FUSED_SOURCE_FILE, facts, write, hashes) is not None


def test_a_bundle_that_changes_while_it_is_packed_is_not_cached(
    packed_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = Path(shutil.copytree(packed_bundle, tmp_path / "mine"))
    write, _ = writer()

    def change(graph: Path, weights: str) -> None:
        os.utime(mine / WEIGHTS_FILE)
        write(graph, weights)

    cache = WeightsCache(tmp_path / "cache")
    assert cache.graph(mine / FUSED_SOURCE_FILE, {"onnxruntime": "1"}, change) is None
    assert "was changed while it was packed" in caplog.text
    assert not entries(cache.directory)


def test_another_export_has_other_entries(packed_cache: Path, tiny_bundle: Path) -> None:
    before = written(packed_cache)
    plain = tokens(tiny_bundle, False)
    assert tokens(tiny_bundle, packed_cache) == plain
    assert len(list(packed_cache.iterdir())) == 2 * len(FUSED_FILES)
    assert before.items() < written(packed_cache).items()


def test_a_folder_without_hashes_is_known_by_path_and_times(
    packed_bundle: Path, tmp_path: Path
) -> None:
    """Such as one that Optimum exported."""
    mine, facts = Path(shutil.copytree(packed_bundle, tmp_path / "mine")), {"onnxruntime": "1"}
    write, calls = writer()

    def load() -> None:
        found = WeightsCache(tmp_path / "cache").graph(mine / FUSED_SOURCE_FILE, facts, write)
        assert found is not None
        assert found.name == GRAPH

    load()
    load()
    assert len(calls) == 1
    os.utime(mine / WEIGHTS_FILE)
    load()
    assert len(calls) == 2


def test_no_cache_writes_nothing(
    packed_bundle: Path,
    tmp_path: Path,
    unpacked_tokens: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a verification needs it, whatever the environment says."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for value in ("", "on", str(tmp_path / "named")):
        monkeypatch.setenv("M2M100_ONNX_CACHE", value)
        assert tokens(packed_bundle, False) == unpacked_tokens
    assert not list(tmp_path.iterdir())
