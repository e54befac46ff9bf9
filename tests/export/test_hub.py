"""Checkpoints of the hub: what is downloaded, what the hub's cache has, and what is neither."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import M2M100ForConditionalGeneration

from checkpoints import PICKLE, SAFETENSORS, as_pickle, copied, tree, weights_of
from hub_server import Hub, connect, contents, go_offline, serving
from m2m100_onnx import BundleError, Manifest
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx_export import export
from m2m100_onnx_export.checkpoint import Checkpoint
from m2m100_onnx_export.tensors import Source

NAME = "acme/tiny"


@pytest.fixture
def hub(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one checkpoint, and a new cache."""
    with serving() as server:
        server.add(NAME, contents(tiny_checkpoint))
        connect(server.url, tmp_path / "hub", monkeypatch)
        yield server


def exported(source: str, folder: Path, **options: Any) -> bytes:
    """Exports a checkpoint of the hub, and returns the weights of the bundle."""
    return weights_of(source, folder, **options)  # type: ignore[arg-type]


def test_hub_id(hub: Hub, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    unwanted = ("pytorch_model.bin", "tf_model.h5", "rust_model.ot", "onnx/config.json", "a.txt")
    commit = hub.repositories[NAME].commit(
        contents(tiny_checkpoint) | dict.fromkeys(unwanted, b"unwanted"), "v1"
    )
    found = exported(NAME, tmp_path / "bundle", revision="v1")
    assert found == (tiny_bundle / WEIGHTS_FILE).read_bytes()
    assert hub.take()[0] == {path.name for path in tiny_checkpoint.iterdir()}
    manifest = Manifest.read(tmp_path / "bundle")
    assert (manifest.source, manifest.revision) == (NAME, commit)
    # The exporter cannot know that the cache lacks nothing, so it asks even for a commit.
    Checkpoint(Source.find(NAME, commit))
    assert hub.take() == (set(), 1)


def test_hub_id_with_pickles_alone(hub: Hub, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "pickled")
    as_pickle(folder, load_file(folder / SAFETENSORS))
    (folder / SAFETENSORS).unlink()
    hub.add("acme/pickles", contents(folder) | {"tf_model.h5": b"unwanted"})
    export("acme/pickles", tmp_path / "bundle", verify_outputs=False)
    assert PICKLE in hub.take()[0]


def test_language_models(hub: Hub, causal_xlm: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, bundle = causal_xlm
    hub.add("acme/xlm", contents(checkpoint))
    found = exported("acme/xlm", tmp_path / "bundle", causal=True)
    assert found == (bundle / WEIGHTS_FILE).read_bytes()


def test_hub_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect("http://127.0.0.1:9", tmp_path / "hub", monkeypatch)
    with pytest.raises(BundleError, match=r"someone/model.*'v1'"):
        export("someone/model", tmp_path / "bundle", revision="v1")
    assert tree(tmp_path) == {}


def test_a_bundle_is_no_checkpoint(hub: Hub, tiny_bundle: Path, tmp_path: Path) -> None:
    hub.add("acme/bundle", contents(tiny_bundle))
    with pytest.raises(BundleError, match=r"acme/bundle: expected a checkpoint, found a bundle"):
        export("acme/bundle", tmp_path / "bundle")
    hub.add("acme/data", {"data.parquet": b"", "README.md": b""})
    with pytest.raises(BundleError, match=r"acme/data: .* found README\.md, data\.parquet"):
        export("acme/data", tmp_path / "bundle")
    assert not hub.sent


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
    hub: Hub, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, write: Any
) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "source")
    unwanted = write(folder)
    hub.add("acme/shards", contents(folder))
    found = exported("acme/shards", tmp_path / "bundle")
    assert found == (tiny_bundle / WEIGHTS_FILE).read_bytes()
    assert hub.take()[0] == {path.name for path in folder.iterdir()} - unwanted


def test_quantized_weights_are_not_downloaded(
    hub: Hub, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    files = contents(tiny_checkpoint)
    config = json.loads(files["config.json"]) | {"quantization_config": {"quant_method": "gptq"}}
    hub.add("acme/gptq", files | {"config.json": json.dumps(config).encode()})
    with pytest.raises(BundleError, match=r"config\.json: .*not quantized.*'gptq'"):
        export("acme/gptq", tmp_path / "bundle")
    assert SAFETENSORS not in hub.take()[0]


# --- The hub's cache -----------------------------------------------------------------------------


@pytest.fixture(params=["offline", "no server", "broken server"])
def away(hub: Hub, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts the hub out of reach, when it is called."""

    def leave() -> None:
        if request.param == "offline":
            go_offline(monkeypatch)
        elif request.param == "no server":
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        else:
            hub.status = 503

    return leave


def test_a_cached_checkpoint_serves_where_the_hub_is_out_of_reach(
    hub: Hub, away: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    commit = hub.repositories[NAME].names["main"]
    Checkpoint(Source.find(NAME, None))
    away()
    for number, revision in enumerate((None, "main", commit)):
        bundle = tmp_path / str(number)
        assert (
            exported(NAME, bundle, revision=revision) == (tiny_bundle / WEIGHTS_FILE).read_bytes()
        )
        manifest = Manifest.read(bundle)
        assert (manifest.source, manifest.revision) == (NAME, commit)
    for source, revision in (("acme/other", None), (NAME, "v2")):
        with pytest.raises(BundleError, match=f"{source}: .*could not download it from the hub"):
            Source.find(source, revision)


def test_a_shard_that_the_cache_lacks(
    hub: Hub, away: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "source")
    as_shards(folder)
    hub.add("acme/shards", contents(folder))
    found = Source.find("acme/shards", None).directory
    next(found.glob("model-00002*")).unlink()
    away()
    with pytest.raises(BundleError, match=r"acme/shards: .*could not download it from the hub"):
        Source.find("acme/shards", None)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_the_hub_refuses_does_not_come_from_the_cache(hub: Hub, status: int) -> None:
    """A checkpoint that was withdrawn, or is not this user's any more."""
    Source.find(NAME, None)
    hub.status = status
    with pytest.raises(BundleError, match=r"acme/tiny: .*could not download it from the hub"):
        Source.find(NAME, None)
