"""A bundle that lies in a store is fetched once a node, whole, or not at all."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from running import FLAGS, check, expected, make_rows, read_output, run, write_jsonl

from m2m100_onnx import BundleError, Translator
from m2m100_onnx.jobs.bundles import bundle_folder, on_this_node
from m2m100_onnx.jobs.columns import share_of_memory
from m2m100_onnx.process import cores, memory_limit


@pytest.fixture
def asked() -> Counter[str]:
    """How often the web server was asked for each file."""
    return Counter()


@pytest.fixture
def uri(bundle: Path, asked: Counter[str]) -> Iterator[str]:
    """The bundle's address at a web server."""

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path.rpartition("/")[2]] += 1
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(bundle.parent)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{bundle.name}"
    server.shutdown()
    thread.join()
    server.server_close()


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_processes_of_a_node_fetch_once(
    uri: str, asked: Counter[str], bundle: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from m2m100_onnx.jobs.bundles import on_this_node\n"
        "print(on_this_node(sys.argv[1], Path(sys.argv[2])))"
    )
    argv = [sys.executable, "-c", code, uri, str(tmp_path)]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, encoding="utf-8") for _ in range(3)]
    found = {process.communicate()[0].strip() for process in running}
    assert all(process.returncode == 0 for process in running)
    (folder,) = found
    ours = files_of(bundle)
    assert {**ours, **files_of(Path(folder))} == ours  # What the manifest does not list stays away.
    assert asked["manifest.json"] == 3
    assert {name: n for name, n in asked.items() if n != 1} == {"manifest.json": 3}
    assert [path.name for path in tmp_path.iterdir()] == [Path(folder).name]


@pytest.fixture
def store(bundle: Path) -> Any:
    """A store in this process's memory that has the bundle."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    for name, data in files_of(bundle).items():
        system.pipe_file(f"/bundle/{name}", data)
    return system


def test_another_bundle_at_the_same_uri(store: Any, tmp_path: Path) -> None:
    first = on_this_node("memory://bundle", tmp_path)
    assert on_this_node("memory://bundle", tmp_path) == first
    manifest = store.cat_file("/bundle/manifest.json")
    store.pipe_file("/bundle/manifest.json", manifest + b"\n")
    assert on_this_node("memory://bundle/", tmp_path) != first


@pytest.mark.parametrize("damage", ["missing", "short", "changed", "no manifest", "odd manifest"])
def test_a_damaged_bundle_leaves_nothing(store: Any, tmp_path: Path, damage: str) -> None:
    name = "/bundle/vocab.json"
    data = store.cat_file(name)
    if damage == "missing":
        store.rm(name)
    elif damage == "short":
        store.pipe_file(name, data[:-1])
    elif damage == "changed":
        store.pipe_file(name, data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "no manifest":
        store.rm("/bundle/manifest.json")
    else:
        store.pipe_file("/bundle/manifest.json", b"{}")
    wrong = "manifest.json" if "manifest" in damage else "vocab.json"
    with pytest.raises(BundleError, match=wrong):
        on_this_node("memory://bundle", tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_full_disk_is_no_fault_of_the_bundle(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "get_file", full)
    with pytest.raises(OSError, match="No space left"):
        on_this_node("memory://bundle", tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_folders_and_names_pass_as_they_are(tmp_path: Path) -> None:
    assert on_this_node("org/name", tmp_path) == "org/name"
    assert on_this_node(str(tmp_path), tmp_path) == str(tmp_path)


def test_the_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert bundle_folder() == Path("/somewhere/m2m100-onnx-bundles")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert bundle_folder() == Path("~/.cache/m2m100-onnx-bundles").expanduser()


def test_workers_of_a_machine_share_its_memory() -> None:
    memory = memory_limit()
    assert memory is not None
    together = sum(share_of_memory(1) or 0 for _ in range(cores()))
    assert memory // 4 - cores() <= together <= memory // 4
    assert share_of_memory(10 * cores()) == memory // 4


@pytest.mark.long
def test_a_job_with_a_bundle_of_a_store(
    cluster: Any,
    uri: str,
    asked: Counter[str],
    translator: Translator,
    sentences: list[str],
    tmp_path: Path,
) -> None:
    rows = make_rows(sentences[:20], 100)
    path, out = write_jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out"
    argv = ("--input", path, "--output", out, "--format", "jsonl", "-m", uri, *FLAGS)
    argv += ("--source-lang-column", "lang", "--target-lang", "de", "--shard-rows", 20)
    done = run(*argv, "--address", cluster.address)
    assert done.returncode == 0, done.stderr
    check(rows, read_output(out), expected(translator, rows))
    # Both nodes are this machine, and share its cache.
    assert {n for name, n in asked.items() if name != "manifest.json"} == {1}
