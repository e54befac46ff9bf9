"""Exports against PyTorch, onnx and Optimum; every way to fail leaves the disk as it was."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import M2M100ForConditionalGeneration

from conftest import LANGUAGES
from m2m100_onnx import (
    BundleError,
    ExportError,
    InvalidInputError,
    M2M100Error,
    Manifest,
    Translator,
    UnknownLanguageError,
)
from m2m100_onnx.bundle import GRAPH_FILES, WEIGHTS_FILE, FileRecord, Precision
from m2m100_onnx_export import export, exporter
from m2m100_onnx_export.weights import StoredTensor, WeightsFile

ENCODER, DECODER, WITH_PAST = GRAPH_FILES
SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder: relative path to hash; folders count too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def weights_of(checkpoint: Path, bundle: Path, **options: Any) -> bytes:
    export(checkpoint, bundle, verify_outputs=False, **options)
    return (bundle / WEIGHTS_FILE).read_bytes()


# --- The graphs as files -------------------------------------------------------------------------


def graphs(bundle: Path) -> dict[str, onnx.ModelProto]:
    return {name: onnx.load(bundle / name, load_external_data=False) for name in GRAPH_FILES}


@pytest.fixture(params=["fp32", "fp16"])
def precision(request: pytest.FixtureRequest) -> Precision:
    value: Precision = request.param
    return value


@pytest.fixture
def demo(precision: Precision, demo_bundle: Path, demo_bundle_fp16: Path) -> Path:
    """The demo bundle of the test's precision; eight bits have tests of their own."""
    return demo_bundle if precision == "fp32" else demo_bundle_fp16


def described(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    return {
        "name": value.name,
        "type": onnx.TensorProto.DataType.Name(tensor.elem_type),
        "axes": [axis.dim_param or axis.dim_value for axis in tensor.shape.dim],
    }


def test_inputs_and_outputs_are_optimums(
    repository: Path, demo: Path, precision: Precision
) -> None:
    path = repository / "tests" / "data" / "optimum_signature.json"
    expected = json.loads(path.read_text(encoding="utf-8"))
    # Optimum's third graph takes one token at a time, and names the axis after that; ours any.
    logits = expected[WITH_PAST]["outputs"][0]
    assert logits["axes"][1] == "1"
    logits["axes"][1] = "decoder_sequence_length"
    if precision == "fp16":
        for value in itertools.chain(*[v for graph in expected.values() for v in graph.values()]):
            value["type"] = value["type"].replace("FLOAT", "FLOAT16")
    found = {
        name: {
            "inputs": [described(value) for value in model.graph.input],
            "outputs": [described(value) for value in model.graph.output],
        }
        for name, model in graphs(demo).items()
    }
    assert found == expected


@pytest.mark.parametrize("name", GRAPH_FILES)
def test_only_standard_operators(demo: Path, name: str) -> None:
    model = graphs(demo)[name]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert model.ir_version <= 8
    assert not model.functions
    for node in model.graph.node:
        assert node.domain == ""
        schema = onnx.defs.get_schema(node.op_type, 18, "")
        assert not schema.deprecated
        assert not any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute)
    # Also infers every shape and type, and compares them with those declared.
    onnx.checker.check_model(demo / name, full_check=True)


def external(tensor: onnx.TensorProto) -> tuple[int, int]:
    """The offset and length of a tensor in the weights file."""
    facts = {entry.key: entry.value for entry in tensor.external_data}
    assert facts.keys() == {"location", "offset", "length"}
    assert facts["location"] == WEIGHTS_FILE
    return int(facts["offset"]), int(facts["length"])


def places(bundle: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Where each graph finds each of its parameters."""
    return {
        name: {
            tensor.name: external(tensor)
            for tensor in model.graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        }
        for name, model in graphs(bundle).items()
    }


def test_parameters_lie_in_the_weights_file(demo: Path, precision: Precision) -> None:
    size = (demo / WEIGHTS_FILE).stat().st_size
    width = 4 if precision == "fp32" else 2
    for model in graphs(demo).values():
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                # Constants of the architecture, such as a shape.
                assert math.prod(tensor.dims) <= 4, tensor.name
                continue
            offset, length = external(tensor)
            assert length == math.prod(tensor.dims) * width
            assert offset >= 0
            assert offset + length <= size
            assert offset % (4096 if length >= 4096 else width) == 0, tensor.name


def test_parameters_are_stored_once(demo: Path) -> None:
    found = places(demo)
    everything: dict[str, tuple[int, int]] = {}
    for graph in found.values():
        for name, place in graph.items():
            assert everything.setdefault(name, place) == place, name
    regions = sorted(everything.values())
    assert all(
        start + length <= after for (start, length), (after, _) in itertools.pairwise(regions)
    )
    # The decoder's graphs differ in what they compute, hardly in what they read.
    assert found[WITH_PAST].keys() < found[DECODER].keys()
    assert "shared.weight" in found[ENCODER].keys() & found[WITH_PAST].keys()


def test_weights_file_is_as_large_as_the_parameters(
    demo_checkpoint: Path, demo: Path, precision: Precision
) -> None:
    model = M2M100ForConditionalGeneration.from_pretrained(demo_checkpoint)
    unique = {id(p): p.numel() for p in model.parameters()}
    expected = sum(unique.values()) * (4 if precision == "fp32" else 2)
    size = (demo / WEIGHTS_FILE).stat().st_size
    assert expected < size <= 1.01 * expected
    # The graphs hold no weights of their own.
    assert sum((demo / name).stat().st_size for name in GRAPH_FILES) < 1_000_000


def test_tied_embedding_is_stored_once(demo_checkpoint: Path, demo: Path) -> None:
    data = (demo / WEIGHTS_FILE).read_bytes()
    embedding = load_file(demo_checkpoint / SAFETENSORS)["model.shared.weight"]
    row = embedding[500:510].numpy().astype(np.float16)
    wide = row.astype(np.float32)
    assert data.count(row.tobytes()) + data.count(wide.tobytes()) == 1


# --- Their numbers -------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd-width": {"d_model": 33, "encoder_attention_heads": 3, "decoder_attention_heads": 11},
    "deep": {"encoder_layers": 3, "decoder_layers": 1, "encoder_ffn_dim": 31},
    "unscaled": {"scale_embedding": False},
    "untied": {"tie_word_embeddings": False},
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Path:
    """A random checkpoint of another shape."""
    return make_checkpoint(**VARIANTS[request.param])


Arrays = dict[str, npt.NDArray[Any]]


def run(bundle: Path, name: str, inputs: Arrays) -> Arrays:
    """Runs a graph with plain onnxruntime, as anybody would."""
    session = ort.InferenceSession(bundle / name, providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, inputs), strict=True))


def past_of(outputs: Arrays, kept: Arrays | None = None) -> Arrays:
    grown = {k.replace("present", "past_key_values"): v for k, v in outputs.items()}
    del grown["logits"]
    return {**(kept or {}), **grown}


@torch.inference_mode()
def assert_graphs_compute(
    bundle: Path, model: M2M100ForConditionalGeneration, real: type, tolerance: float
) -> None:
    """Runs the graphs beside PyTorch's cache: a prefix, then beams by several tokens and by one."""
    rng = np.random.default_rng(1)
    sentences, beams = 3, 3
    lengths = np.array([9, 4, 7])
    mask = (np.arange(9) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask, rng.integers(4, 10000, mask.shape), 1)
    prefix = rng.integers(4, 10000, (sentences, 4))
    prefix[1, 2] = 1  # padding inside the decoder's input shifts the positions after it
    further = rng.integers(4, 10000, (sentences * beams, 3))
    further[2, 0] = further[4, 1] = 1
    last = rng.integers(4, 10000, (sentences * beams, 1))

    encoder, decoder = model.model.encoder, model.model.decoder
    t_mask = torch.from_numpy(mask)
    t_hidden = encoder(torch.from_numpy(ids), t_mask).last_hidden_state
    cache = None
    expected = []
    for tokens in (prefix, further, last):
        if len(tokens) != len(t_mask):
            assert cache is not None
            cache.batch_repeat_interleave(beams)
            t_hidden = t_hidden.repeat_interleave(beams, dim=0)
            t_mask = t_mask.repeat_interleave(beams, dim=0)
        output = decoder(
            torch.from_numpy(tokens),
            encoder_hidden_states=t_hidden,
            encoder_attention_mask=t_mask,
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        expected.append(model.lm_head(output.last_hidden_state).numpy())

    found = run(bundle, ENCODER, {"input_ids": ids, "attention_mask": mask})
    hidden = found["last_hidden_state"]
    assert hidden.dtype == real
    # What an encoder leaves at padding is never read.
    assert_close(hidden[mask == 1], t_hidden[::beams].numpy()[mask == 1], tolerance)

    fixed: Arrays = {"encoder_attention_mask": mask}
    inputs = {**fixed, "input_ids": prefix, "encoder_hidden_states": hidden}
    found = run(bundle, DECODER, inputs)
    assert_close(found["logits"], expected[0], tolerance)
    past = past_of(found)
    # The beams of a sentence share its source: those entries keep one row a sentence.
    past = {k: np.repeat(v, beams, axis=0) if ".decoder." in k else v for k, v in past.items()}

    found = run(bundle, WITH_PAST, {**fixed, "input_ids": further, **past})
    assert_close(found["logits"], expected[1], tolerance)
    past = past_of(found, past)

    # A source repeated for every beam is taken too, as Optimum's runtime gives it.
    past = {k: np.repeat(v, beams, axis=0) if ".encoder." in k else v for k, v in past.items()}
    fixed = {"encoder_attention_mask": np.repeat(mask, beams, axis=0)}
    found = run(bundle, WITH_PAST, {**fixed, "input_ids": last, **past})
    assert_close(found["logits"], expected[2], tolerance)


def assert_close(
    found: npt.NDArray[Any], expected: npt.NDArray[np.float32], tolerance: float
) -> None:
    assert found.shape == expected.shape
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=0, atol=tolerance * scale)


def test_numbers_are_pytorchs(variant: Path, tmp_path: Path) -> None:
    export(variant, tmp_path / "bundle", verify_outputs=False)
    model = M2M100ForConditionalGeneration.from_pretrained(variant, dtype=torch.float32).eval()
    assert_graphs_compute(tmp_path / "bundle", model, np.float32, 2e-5)


def test_numbers_are_pytorchs_in_fp16(variant: Path, tmp_path: Path) -> None:
    export(variant, tmp_path / "bundle", precision="fp16", verify_outputs=False)
    model = M2M100ForConditionalGeneration.from_pretrained(variant, dtype=torch.float16)
    assert_graphs_compute(tmp_path / "bundle", model.float().eval(), np.float16, 2e-2)


def test_numbers_of_the_demo(demo_checkpoint: Path, demo_bundle: Path) -> None:
    model = M2M100ForConditionalGeneration.from_pretrained(demo_checkpoint, dtype=torch.float32)
    assert_graphs_compute(demo_bundle, model.eval(), np.float32, 2e-5)


def test_untied_head_is_kept_and_tied_one_is_not(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    sizes = [
        len(weights_of(make_checkpoint(tie_word_embeddings=tied), tmp_path / str(tied)))
        for tied in (True, False)
    ]
    assert sizes[1] - sizes[0] == pytest.approx(10609 * 32 * 4, abs=4096)


def test_sides_with_embeddings_of_their_own_are_refused(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Without verification nobody would notice that the wrong embedding was taken."""
    checkpoint = make_checkpoint(tie_word_embeddings=False)
    state = load_file(checkpoint / SAFETENSORS)
    state["model.encoder.embed_tokens.weight"] *= 2
    save_file(state, checkpoint / SAFETENSORS, {"format": "pt"})
    with pytest.raises(BundleError, match=r"model\.encoder\.embed_tokens\.weight"):
        export(checkpoint, tmp_path / "bundle", verify_outputs=False)


# --- Checkpoint formats --------------------------------------------------------------------------


def shards(state: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    names = sorted(state)
    return [{n: state[n] for n in names[::2]}, {n: state[n] for n in names[1::2]}]


def write_sharded(folder: Path, single: str, state: dict[str, torch.Tensor], save: Any) -> None:
    stem, suffix = single.split(".")
    weight_map = {}
    for number, part in enumerate(shards(state), 1):
        name = f"{stem}-{number:05}-of-00002.{suffix}"
        save(part, folder / name)
        weight_map.update(dict.fromkeys(part, name))
    (folder / f"{single}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def as_sharded_safetensors(folder: Path, state: dict[str, torch.Tensor]) -> None:
    model = M2M100ForConditionalGeneration.from_pretrained(folder)
    (folder / SAFETENSORS).unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert len(state) > 2


def as_pickle(folder: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, folder / PICKLE)


def as_pickle_with_aliases(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """As transformers saved them before safetensors: each name of the shared embedding."""
    aliases = ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
    shared = {f"{name}.weight": state["model.shared.weight"] for name in aliases}
    torch.save({**state, **shared}, folder / PICKLE)


def as_pickle_of_old(folder: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, folder / PICKLE, _use_new_zipfile_serialization=False)


def as_sharded_pickle(folder: Path, state: dict[str, torch.Tensor]) -> None:
    write_sharded(folder, PICKLE, state, torch.save)


def as_other_name(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Only one of the aliases, as some converters leave it."""
    shared = state.pop("model.shared.weight")
    save_file({**state, "lm_head.weight": shared}, folder / SAFETENSORS, {"format": "pt"})


FORMATS = (
    as_sharded_safetensors,
    as_pickle,
    as_pickle_with_aliases,
    as_pickle_of_old,
    as_sharded_pickle,
    as_other_name,
)


def copied(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    return folder


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_weights(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    write: Callable[[Path, dict[str, torch.Tensor]], None],
) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    state = load_file(checkpoint / SAFETENSORS)
    if write is not as_sharded_safetensors:
        (checkpoint / SAFETENSORS).unlink()
    write(checkpoint, state)
    found = weights_of(checkpoint, tmp_path / "bundle")
    assert found == (tiny_bundle / WEIGHTS_FILE).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pickled", [False, True])
def test_half_precision_sources(
    tiny_checkpoint: Path, tmp_path: Path, dtype: torch.dtype, pickled: bool
) -> None:
    found = []
    for name, widened in (("half", False), ("wide", True)):
        checkpoint = copied(tiny_checkpoint, tmp_path / name)
        state = {k: v.to(dtype) for k, v in load_file(checkpoint / SAFETENSORS).items()}
        if widened:
            state = {k: v.float() for k, v in state.items()}
        (checkpoint / SAFETENSORS).unlink()
        if pickled and not widened:
            as_pickle(checkpoint, state)
        else:
            save_file(state, checkpoint / SAFETENSORS, {"format": "pt"})
        found.append(weights_of(checkpoint, tmp_path / f"{name}-bundle"))
    assert found[0] == found[1]


def test_safetensors_are_preferred(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    (checkpoint / PICKLE).write_bytes(b"never read")
    found = weights_of(checkpoint, tmp_path / "bundle")
    assert found == (tiny_bundle / WEIGHTS_FILE).read_bytes()


class _Trap:
    """A pickle of this touches a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_not_run(tiny_checkpoint: Path, tmp_path: Path, zipped: bool) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    (checkpoint / SAFETENSORS).unlink()
    marker = tmp_path / "the code ran"
    state = {"model.shared.weight": torch.zeros(2), "trap": _Trap(marker)}
    torch.save(state, checkpoint / PICKLE, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BundleError, match=PICKLE):
        export(checkpoint, tmp_path / "bundle")
    assert not marker.exists()
    assert not (tmp_path / "bundle").exists()


def test_the_trap_works(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    torch.save(_Trap(tmp_path / "ran"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "ran").is_dir()


def test_exports_are_the_same_byte_for_byte(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    export(tiny_checkpoint, tmp_path / "again", verify_outputs=False)
    assert tree(tmp_path / "again") == tree(tiny_bundle)
    assert len(tree(tiny_bundle)) == 12


def test_what_export_returns(tiny_checkpoint: Path, tmp_path: Path) -> None:
    said: list[str] = []
    done = export(
        str(tiny_checkpoint), tmp_path / "a" / "b", verify_outputs=False, progress=said.append
    )
    assert done.bundle == tmp_path / "a" / "b"
    assert done.weight_bytes == (done.bundle / WEIGHTS_FILE).stat().st_size
    assert done.seconds > 0
    assert done.report is None
    assert said == ["writing weights", "writing graphs"]


def test_manifest_says_what_was_exported(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "b", languages=["en", "de"], verify_outputs=False)
    manifest = Manifest.read(tmp_path / "b")
    assert (manifest.source, manifest.revision) == ("tiny", None)
    assert (manifest.precision, manifest.opset, manifest.languages) == ("fp32", 18, ("en", "de"))
    found = {p.name for p in (tmp_path / "b").iterdir()} - {"manifest.json"}
    assert manifest.files.keys() == found
    for name, record in manifest.files.items():
        data = (tmp_path / "b" / name).read_bytes()
        assert record == FileRecord(len(data), hashlib.sha256(data).hexdigest())


def test_generation_defaults_of_old_checkpoints(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Before generation_config.json they stood in config.json; the bundle has them in both."""
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    (checkpoint / "generation_config.json").unlink()
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_beams": 3}))
    export(checkpoint, tmp_path / "bundle", verify_outputs=False)
    generation = json.loads((tmp_path / "bundle" / "generation_config.json").read_text())
    assert generation["num_beams"] == 3
    assert generation["max_length"] == 200
    assert generation["early_stopping"] is True
    assert generation["decoder_start_token_id"] == 2
    defaults = Translator(tmp_path / "bundle").defaults
    # The model has 64 positions.
    assert (defaults.beam_size, defaults.max_length, defaults.early_stopping) == (3, 64, True)


# --- The hub -------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub that has one checkpoint, and a note of what was asked of it."""
    folder = copied(tiny_checkpoint, tmp_path / "snapshot")
    asked: dict[str, Any] = {"folder": folder}

    class Api:
        def model_info(self, repo: str, *, revision: str | None) -> SimpleNamespace:
            asked["info"] = (repo, revision)
            files = [SimpleNamespace(rfilename=path.name) for path in folder.iterdir()]
            return SimpleNamespace(sha=COMMIT, siblings=files)

    def snapshot_download(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked["download"] = (repo, revision)
        asked["patterns"] = allow_patterns
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
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
    unwanted = {"pytorch_model.bin", "tf_model.h5", "rust_model.ot", "README.md"}
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
    """The real client, at a port where nobody listens."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BundleError, match=r"someone/model.*'v1'"):
        export("someone/model", tmp_path / "bundle", revision="v1")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", ["someone/mo del", "./missing", "/missing/folder", "missing"])
def test_neither_folder_nor_hub_id(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=name):
        export(name, tmp_path / "bundle")
    assert tree(tmp_path) == {}


# --- Exports that fail ---------------------------------------------------------------------------


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_state(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / SAFETENSORS)
    change(state)
    save_file(state, folder / SAFETENSORS, {"format": "pt"})


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def poke(name: str, value: float) -> Callable[[Path], None]:
    return lambda folder: edit_state(folder, lambda state: state[name].view(-1)[3:4].fill_(value))


def dropped(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_state(folder, lambda state: state.pop(name))


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def written(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def as_cut_pickle(folder: Path) -> None:
    as_pickle(folder, load_file(folder / SAFETENSORS))
    (folder / SAFETENSORS).unlink()
    os.truncate(folder / PICKLE, 100_000)


def as_list_in_a_pickle(folder: Path) -> None:
    (folder / SAFETENSORS).unlink()
    torch.save([1, 2, 3], folder / PICKLE)


def without_a_shard(suffix: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        state = load_file(folder / SAFETENSORS)
        (folder / SAFETENSORS).unlink()
        single, save = (SAFETENSORS, save_file) if suffix == SAFETENSORS else (PICKLE, torch.save)
        write_sharded(folder, single, state, save)
        next(folder.glob("*-00002-of-*")).unlink()

    return write


def embedding_too_small(folder: Path) -> None:
    """A row less than pieces and languages."""

    def change(state: dict[str, torch.Tensor]) -> None:
        state["model.shared.weight"] = state["model.shared.weight"][:10600].clone()

    edit_state(folder, change)
    edit_json(folder / "config.json", vocab_size=10600)


NORM = "model.encoder.layer_norm.weight"
FC1 = "model.decoder.layers.1.fc1.weight"
BREAKAGES: dict[str, tuple[Callable[[Path], Any], type[M2M100Error], str]] = {
    "no-config": (removed("config.json"), BundleError, r"no checkpoint.*config\.json"),
    "broken-config": (written("config.json", "{"), BundleError, r"config\.json"),
    "bart": (config(model_type="bart"), BundleError, "config.json.*'m2m_100'.*'bart'"),
    "no-width": (config(d_model=None), BundleError, "config.json.*d_model.*None"),
    "negative": (config(encoder_layers=-1), BundleError, "encoder_layers.*-1"),
    "heads": (config(decoder_attention_heads=5), BundleError, "32 and 5"),
    "activation": (config(activation_function="gelu"), BundleError, r"config\.json.*gelu"),
    "width": (config(d_model=64), BundleError, r"shared.weight'.*\(10609, 64\).*\(10609, 32\)"),
    "ffn": (config(decoder_ffn_dim=65), BundleError, r"fc1.weight'.*\(65, 32\).*\(64, 32\)"),
    "more-layers": (config(decoder_layers=3), BundleError, r"model\.decoder\.layers\.2"),
    "more-words": (config(vocab_size=10700), BundleError, r"\(10700, 32\).*\(10609, 32\)"),
    "no-weights": (removed(SAFETENSORS), BundleError, r"model\.safetensors or pytorch_model\.bin"),
    "no-norm": (dropped(NORM), BundleError, NORM),
    "no-embedding": (dropped("model.shared.weight"), BundleError, r"model\.shared\.weight"),
    "cut": (cut(SAFETENSORS, 100_000), BundleError, r"model\.safetensors"),
    "cut-header": (cut(SAFETENSORS, 50), BundleError, r"model\.safetensors"),
    "empty": (cut(SAFETENSORS, 0), BundleError, r"model\.safetensors"),
    "cut-pickle": (as_cut_pickle, BundleError, r"pytorch_model\.bin"),
    "list": (as_list_in_a_pickle, BundleError, r"pytorch_model\.bin.*state dict.*list"),
    "no-shard": (without_a_shard(SAFETENSORS), BundleError, r"00002.*is missing"),
    "no-pickled-shard": (without_a_shard(PICKLE), BundleError, r"00002.*is missing"),
    "overflow": (poke(FC1, 70000.0), BundleError, r"decoder\.layers\.1\.fc1.*fp16"),
    "nan": (poke(NORM, math.nan), BundleError, r"encoder\.layer_norm.*not finite"),
    "infinity": (poke("model.shared.weight", math.inf), BundleError, "shared.*not finite"),
    "no-vocab": (removed("vocab.json"), BundleError, r"vocab\.json is missing"),
    "no-pieces": (removed("sentencepiece.bpe.model"), BundleError, r"sentencepiece\.bpe\.model"),
    "broken-vocab": (written("vocab.json", "[]"), BundleError, r"vocab\.json"),
    "larger-vocab": (embedding_too_small, BundleError, r"vocabulary.* 10600"),
    "broken-generation": (written("generation_config.json", "x"), BundleError, "generation_config"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_broken_checkpoint_leaves_nothing_behind(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    change, error, message = BREAKAGES[name]
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    change(checkpoint)
    place = tmp_path / "place"
    copied(tiny_bundle, place / "old")
    (place / "other.txt").write_text("untouched")
    before = tree(tmp_path)
    for target, overwrite in (("old", True), ("deep/er/new", False)):
        with pytest.raises(error, match=message):
            export(checkpoint, place / target, precision="fp16", overwrite=overwrite)
        assert tree(tmp_path) == before


def test_values_too_large_for_fp16_are_none_for_fp32(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    poke(FC1, 70000.0)(checkpoint)
    assert np.float32(70000).tobytes() in weights_of(checkpoint, tmp_path / "bundle")


def test_existing_folder_is_kept_without_overwrite(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    copied(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "note.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    for name in ("bundle", "empty", "file"):
        with pytest.raises(ExportError, match=rf"{name} exists.*overwrite"):
            export(tiny_checkpoint, tmp_path / name, verify_outputs=False)
    assert tree(tmp_path) == before


def test_overwrite_replaces_a_bundle(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    copied(tiny_bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "leftover.onnx").write_text("of an older version")
    os.truncate(tmp_path / "bundle" / WEIGHTS_FILE, 10)
    (tmp_path / "empty").mkdir()
    for name in ("bundle", "empty"):
        export(tiny_checkpoint, tmp_path / name, overwrite=True, verify_outputs=False)
        assert tree(tmp_path / name) == tree(tiny_bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "empty"]


def web_page(folder: Path) -> None:
    """Browser extensions and web apps have a manifest.json too."""
    (folder / "manifest.json").write_text('{"manifest_version": 3, "name": "my extension"}')
    (folder / "index.html").write_text("mine")


def notes(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


@pytest.mark.parametrize("fill", [web_page, notes])
def test_what_is_no_bundle_is_never_overwritten(
    tiny_checkpoint: Path, tmp_path: Path, fill: Callable[[Path], None]
) -> None:
    (tmp_path / "folder").mkdir()
    fill(tmp_path / "folder")
    before = tree(tmp_path)
    with pytest.raises(ExportError, match="folder is no bundle"):
        export(tiny_checkpoint, tmp_path / "folder", overwrite=True, verify_outputs=False)
    assert tree(tmp_path) == before


def test_files_and_checkpoints_are_never_overwritten(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    for target in (tmp_path / "file", checkpoint):
        with pytest.raises(ExportError, match="is no bundle"):
            export(checkpoint, target, overwrite=True, verify_outputs=False)
    assert tree(tmp_path) == before


def test_target_below_a_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(ExportError, match="could not write the bundle"):
        export(tiny_checkpoint, tmp_path / "file" / "bundle", verify_outputs=False)
    assert tree(tmp_path) == before


def test_folder_that_cannot_be_replaced(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current folder, like a mount point, cannot be renamed."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError):
        export(tiny_checkpoint, ".", overwrite=True, verify_outputs=False)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("error", [OSError("device gone"), KeyboardInterrupt()])
def test_old_bundle_comes_back_if_the_new_one_cannot_be_placed(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    copied(tiny_bundle, tmp_path / "bundle")
    before = tree(tmp_path)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        # The old bundle is already out of the way.
        if Path(target) == tmp_path / "bundle" and self.parent == tmp_path:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((ExportError, KeyboardInterrupt)):
        export(tiny_checkpoint, tmp_path / "bundle", overwrite=True, verify_outputs=False)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("stage", ["writing weights", "writing graphs", "verifying"])
def test_interrupt_leaves_nothing_behind(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, stage: str
) -> None:
    copied(tiny_bundle, tmp_path / "old")
    before = tree(tmp_path)

    def interrupt(message: str) -> None:
        if message.startswith(stage):
            assert tree(tmp_path) != before
            raise KeyboardInterrupt

    for name in ("new", "old"):
        with pytest.raises(KeyboardInterrupt):
            export(tiny_checkpoint, tmp_path / name, overwrite=True, progress=interrupt)
        assert tree(tmp_path) == before


FULL_DISK = """
import json, resource, sys
from m2m100_onnx import ExportError
from m2m100_onnx_export import export

for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for name in ("new", "old"):
        try:
            export(sys.argv[1], f"{sys.argv[2]}/{name}", overwrite=True, verify_outputs=False)
            print("exported", limit, name)
        except ExportError as error:
            print(type(error.__cause__).__name__, error)
"""


def test_full_disk(
    repository: Path, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A limit on the size of files is met in the middle of a write, as the end of a disk is."""
    copied(tiny_bundle, tmp_path / "old")
    before = tree(tmp_path)
    size = (tiny_bundle / WEIGHTS_FILE).stat().st_size
    # In vocab.json; in the middle of the weights; at their very last byte.
    limits = [1000, size // 2, size - 1]
    path = os.pathsep.join([str(repository / "runtime"), str(repository / "export")])
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tiny_checkpoint, tmp_path, *map(str, limits)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(limits)
    for line in lines:
        assert line.startswith("OSError"), done.stdout
        assert "could not write the bundle" in line
        assert "File too large" in line
    assert tree(tmp_path) == before


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, values: npt.NDArray[np.float32]) -> None:
    """Lets the exporter write other numbers for a parameter than the checkpoint has."""
    write = exporter.write_weights

    def write_wrongly(checkpoint: Any, path: Path, precision: Precision) -> WeightsFile:
        found = write(checkpoint, path, precision)
        stored: StoredTensor = found.tensors[name]
        data = bytearray(path.read_bytes())
        assert values.nbytes <= stored.length
        data[stored.offset : stored.offset + values.nbytes] = values.tobytes()
        path.write_bytes(data)
        return found

    monkeypatch.setattr(exporter, "write_weights", write_wrongly)


@pytest.mark.parametrize(
    ("parameter", "named", "unnamed"),
    [
        ("encoder.layers.0.fc1.bias", [ENCODER, DECODER, WITH_PAST], []),
        ("decoder.layers.1.fc2.bias", [DECODER, WITH_PAST], [ENCODER]),
    ],
)
@pytest.mark.parametrize("value", [3.0, math.nan])
def test_verification_fails_the_export(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parameter: str,
    named: list[str],
    unnamed: list[str],
    value: float,
) -> None:
    spoil(monkeypatch, parameter, np.full(20, value, np.float32))
    copied(tiny_bundle, tmp_path / "old")
    before = tree(tmp_path)
    with pytest.raises(ExportError, match="verification against PyTorch failed") as caught:
        export(tiny_checkpoint, tmp_path / "old", overwrite=True)
    assert all(f"{name}: largest difference" in str(caught.value) for name in named)
    assert not any(name in str(caught.value) for name in unnamed)
    assert tree(tmp_path) == before


def test_verification_sees_one_wrong_number(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 350,000 numbers, off by a tenth."""
    norm = load_file(tiny_checkpoint / SAFETENSORS)[NORM][:1].numpy() + np.float32(0.1)
    spoil(monkeypatch, "encoder.layer_norm.weight", norm)
    with pytest.raises(ExportError, match=rf"{ENCODER}: largest difference"):
        export(tiny_checkpoint, tmp_path / "bundle")


@pytest.mark.parametrize("options", [{"precision": "int3"}, {"precision": None}, {"languages": []}])
def test_wrong_arguments(tiny_checkpoint: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        export(tiny_checkpoint, tmp_path / "bundle", verify_outputs=False, **options)
    assert tree(tmp_path) == {}


def test_unknown_language(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownLanguageError, match=r"'engl'.*'en'"):
        export(tiny_checkpoint, tmp_path / "b", languages=["de", "engl"], verify_outputs=False)
    assert tree(tmp_path) == {}


# --- Verification --------------------------------------------------------------------------------


def test_verification_report_of_the_demo(
    demo_checkpoint: Path, tmp_path: Path, precision: Precision
) -> None:
    said: list[str] = []
    done = export(
        demo_checkpoint,
        tmp_path / "bundle",
        precision=precision,
        languages=LANGUAGES,
        progress=said.append,
    )
    assert "verifying against PyTorch" in said
    report = done.report
    assert report is not None
    assert [check.method for check in report.translations] == ["greedy", "beam 5"]
    for check in report.translations:
        assert (check.total, check.identical) == (len(LANGUAGES), len(LANGUAGES))
    assert report.differences.keys() == report.tolerances.keys() == set(GRAPH_FILES)
    largest = 1e-4 if precision == "fp32" else 5e-2
    # Exactly zero would mean that something was compared with itself.
    assert all(0 < difference < largest for difference in report.differences.values())
    lines = report.lines()
    assert len(lines) == 5
    assert all(name in line for name, line in zip(GRAPH_FILES, lines, strict=False))
    assert lines[3] == "greedy: 6 of 6 translations equal transformers'"


def test_verification_of_other_languages(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = export(tiny_checkpoint, tmp_path / "bundle", languages=["sw"])
    assert done.report is not None
    assert [(c.method, c.total) for c in done.report.translations] == [("greedy", 1), ("beam 2", 1)]


def test_verification_of_an_untied_checkpoint(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    done = export(make_checkpoint(tie_word_embeddings=False), tmp_path / "bundle")
    assert done.report is not None
    assert all(c.identical + c.ties == c.total for c in done.report.translations)


def lines_of(path: Path) -> Iterator[str]:
    yield from path.read_text(encoding="utf-8").splitlines()


def test_fp16_translates_as_fp32(
    repository: Path, demo_bundle: Path, demo_bundle_fp16: Path
) -> None:
    texts = list(itertools.islice(lines_of(repository / "demo" / "heldout" / "test.en"), 100))
    found = [
        Translator(bundle, intra_op_num_threads=1).translate_batch(
            texts, source_lang="en", target_lang="de", beam_size=1
        )
        for bundle in (demo_bundle, demo_bundle_fp16)
    ]
    same = sum(a.tokens == b.tokens for a, b in zip(*found, strict=True))
    assert same >= 95
