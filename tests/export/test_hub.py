"""Checkpoints of the hub: what is downloaded, what the hub's cache has, and what is neither."""

from __future__ import annotations

import http.server
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import load_file
from transformers import M2M100ForConditionalGeneration

from checkpoints import PICKLE, SAFETENSORS, as_pickle, copied, tree, weights_of
from m2m100_onnx import BundleError, Manifest
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx_export import export
from m2m100_onnx_export.checkpoint import Checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replaces the hub by one checkpoint; returns a record of the requests."""
    folder = copied(tiny_checkpoint, tmp_path / "snapshot")
    asked: dict[str, Any] = {"folder": folder, "patterns": []}

    class Api:
        def model_info(self, repo: str, *, revision: str | None) -> SimpleNamespace:
            asked["info"] = (repo, revision)
            files = [SimpleNamespace(rfilename=path.name) for path in folder.iterdir()]
            return SimpleNamespace(sha=COMMIT, siblings=files)

    def snapshot_download(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked["download"] = (repo, revision)
        asked["patterns"] += allow_patterns
        return str(folder)

    def hf_hub_download(repo: str, name: str, *, revision: str | None) -> str:
        asked["remembered"] = (repo, revision)
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def allowed(asked: dict[str, Any]) -> set[str]:
    names = [path.name for path in asked["folder"].iterdir()]
    return set(huggingface_hub.utils.filter_repo_objects(names, allow_patterns=asked["patterns"]))


def test_hub_id(hub: dict[str, Any], tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "tf_model.h5", "rust_model.ot", "README.md"):
        (hub["folder"] / name).write_bytes(b"unwanted")
    found = weights_of("someone/model", tmp_path / "bundle", revision="v1")  # type: ignore[arg-type]
    assert found == (tiny_bundle / WEIGHTS_FILE).read_bytes()
    assert hub["info"] == ("someone/model", "v1")
    # The branch may move between the two calls; the commit does not.
    assert hub["download"] == ("someone/model", COMMIT)
    # Where the hub is away, the cache has to know what "v1" is.
    assert hub["remembered"] == ("someone/model", "v1")
    unwanted = {"pytorch_model.bin", "tf_model.h5", "rust_model.ot"}
    assert allowed(hub) == {p.name for p in hub["folder"].iterdir()} - unwanted
    manifest = Manifest.read(tmp_path / "bundle")
    assert (manifest.source, manifest.revision) == ("someone/model", COMMIT)


def test_hub_id_with_pickles_alone(hub: dict[str, Any], tmp_path: Path) -> None:
    folder = hub["folder"]
    as_pickle(folder, load_file(folder / SAFETENSORS))
    (folder / SAFETENSORS).unlink()
    (folder / "tf_model.h5").write_bytes(b"unwanted")
    export("someone/model", tmp_path / "bundle", verify_outputs=False)
    assert hub["info"] == ("someone/model", None)
    assert PICKLE in allowed(hub)
    assert "tf_model.h5" not in allowed(hub)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no route"),
        huggingface_hub.errors.LocalEntryNotFoundError("not in the cache"),
        huggingface_hub.errors.OfflineModeIsEnabled("offline"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_hub_fails(
    hub: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    assert hub
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    before = tree(tmp_path)
    with pytest.raises(BundleError, match=r"someone/model.*'v1'") as caught:
        export("someone/model", tmp_path / "bundle", revision="v1")
    assert str(error) in str(caught.value)
    assert tree(tmp_path) == before


def test_hub_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses the real client with a port where no server listens."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BundleError, match=r"someone/model.*'v1'"):
        export("someone/model", tmp_path / "bundle", revision="v1")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", ["someone/mo del", "./missing", "/missing/folder", "missing"])
def test_neither_folder_nor_hub_id(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=name):
        export(name, tmp_path / "bundle")
    assert tree(tmp_path) == {}


def as_single_file_and_shards(folder: Path) -> set[str]:
    """Has what `save_pretrained` wrote twice, and returns what is not needed."""
    stale = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    for name in stale:
        (folder / name).write_bytes(b"stale")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    return stale


def as_shards(folder: Path) -> set[str]:
    model = M2M100ForConditionalGeneration.from_pretrained(folder)
    (folder / SAFETENSORS).unlink()
    model.save_pretrained(folder, max_shard_size="500KB")
    assert len([*folder.glob("model-*.safetensors")]) > 1
    (folder / "adapter_model.safetensors").write_bytes(b"of something else")
    return {"adapter_model.safetensors"}


@pytest.mark.parametrize("write", [as_single_file_and_shards, as_shards])
def test_only_the_weights_that_count_are_downloaded(
    hub: dict[str, Any], tiny_bundle: Path, tmp_path: Path, write: Any
) -> None:
    unwanted = write(hub["folder"])
    found = weights_of("someone/model", tmp_path / "bundle")  # type: ignore[arg-type]
    assert found == (tiny_bundle / WEIGHTS_FILE).read_bytes()
    assert allowed(hub) == {path.name for path in hub["folder"].iterdir()} - unwanted


def test_quantized_weights_are_not_downloaded(hub: dict[str, Any], tmp_path: Path) -> None:
    path = hub["folder"] / "config.json"
    config = {**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq"}}
    path.write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r"config\.json: .*not quantized.*'gptq'"):
        export("someone/model", tmp_path / "bundle")
    assert SAFETENSORS not in allowed(hub)


# --- The hub's cache -----------------------------------------------------------------------------


@pytest.fixture
def cache(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds acme/tiny at one commit, as a download leaves it: links to blobs."""
    repo = tmp_path / "hub" / "models--acme--tiny"
    snapshot = repo / "snapshots" / COMMIT
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(tiny_checkpoint.iterdir()):
        shutil.copy(path, repo / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    for name in ("main", "v1"):
        (repo / "refs" / name).write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A hub on the loopback interface that answers everything with one status."""
    state = SimpleNamespace(status=503, asked=0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked += 1
            self.send_response(state.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{listening.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        yield state
        listening.shutdown()
        thread.join()


@pytest.fixture(params=["offline", "no server", "broken server"])
def away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A way in which the hub is out of reach."""
    kind: str = request.param
    if kind == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif kind == "no server":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    else:
        request.getfixturevalue("server")
    return kind


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_cached_checkpoint_serves_where_the_hub_is_out_of_reach(
    cache: Path,
    away: str,
    tiny_bundle: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    revision: str | None,
) -> None:
    with caplog.at_level(logging.WARNING, "m2m100_onnx"):
        found = weights_of("acme/tiny", tmp_path / "bundle", revision=revision)  # type: ignore[arg-type]
    assert found == (tiny_bundle / WEIGHTS_FILE).read_bytes()
    manifest = Manifest.read(tmp_path / "bundle")
    assert (manifest.source, manifest.revision) == ("acme/tiny", COMMIT)
    warned = [record.getMessage() for record in caplog.records if record.name == "m2m100_onnx"]
    # Who asks for no network needs no warning.
    assert [str(cache) in message for message in warned] == ([] if away == "offline" else [True])


@pytest.mark.parametrize("lacking", ["repository", "revision", "weights"])
def test_what_the_cache_lacks_is_an_error(
    cache: Path, away: str, tmp_path: Path, lacking: str
) -> None:
    assert away
    source, revision = ("acme/other", None) if lacking == "repository" else ("acme/tiny", "v1")
    if lacking == "weights":
        (cache / SAFETENSORS).unlink()
    if lacking == "revision":
        revision = "v2"
    with pytest.raises(BundleError, match=f"{source}: .*could not download it from the hub"):
        export(source, tmp_path / "bundle", revision=revision)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_the_hub_refuses_does_not_come_from_the_cache(
    cache: Path, server: SimpleNamespace, status: int
) -> None:
    """A checkpoint that was withdrawn, or is not this user's any more."""
    assert cache.is_dir()
    server.status = status
    with pytest.raises(BundleError, match=r"acme/tiny: .*could not download it from the hub"):
        Checkpoint("acme/tiny")
    assert server.asked
