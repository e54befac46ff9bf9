"""The exported graphs: their files against onnx and Optimum, their numbers against PyTorch."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file
from transformers import M2M100ForConditionalGeneration

from checkpoints import SAFETENSORS, weights_of
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx.bundle.graphs import GRAPH_FILES, Precision
from m2m100_onnx_export import export

ENCODER, DECODER, WITH_PAST = GRAPH_FILES


# --- The graphs as files -------------------------------------------------------------------------


def graphs(bundle: Path) -> dict[str, onnx.ModelProto]:
    return {name: onnx.load(bundle / name, load_external_data=False) for name in GRAPH_FILES}


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
    """Returns offset and length of a tensor in the weights file."""
    facts = {entry.key: entry.value for entry in tensor.external_data}
    assert facts.keys() == {"location", "offset", "length"}
    assert facts["location"] == WEIGHTS_FILE
    return int(facts["offset"]), int(facts["length"])


def places(bundle: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Returns the place of each parameter of each graph."""
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
    "positions": {"pad_token_id": 3},
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path]) -> Path:
    """Makes a random checkpoint of another shape."""
    return make_checkpoint(**VARIANTS[request.param])


Arrays = dict[str, npt.NDArray[Any]]


def run(bundle: Path, name: str, inputs: Arrays) -> Arrays:
    """Runs a graph with plain onnxruntime."""
    session = ort.InferenceSession(bundle / name, providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, inputs), strict=True))


def past_of(outputs: Arrays, kept: Arrays | None = None) -> Arrays:
    grown = {k.replace("present", "past_key_values"): v for k, v in outputs.items()}
    del grown["logits"]
    return {**(kept or {}), **grown}


@torch.inference_mode()
def pytorch_outputs(
    model: M2M100ForConditionalGeneration,
    ids: npt.NDArray[np.int64],
    mask: npt.NDArray[np.int64],
    fed: tuple[npt.NDArray[np.int64], ...],
) -> tuple[npt.NDArray[np.float32], list[npt.NDArray[np.float32]]]:
    """Returns the encoder's output, and the logits of each part of the target that is fed."""
    encoder, decoder = model.model.encoder, model.model.decoder
    t_mask = torch.from_numpy(mask)
    encoded = t_hidden = encoder(torch.from_numpy(ids), t_mask).last_hidden_state
    cache = None
    logits = []
    for tokens in fed:
        if len(tokens) != len(t_mask):
            assert cache is not None
            beams = len(tokens) // len(t_mask)
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
        logits.append(model.lm_head(output.last_hidden_state).numpy())
    return encoded.numpy(), logits


def assert_graphs_compute(
    bundle: Path, model: M2M100ForConditionalGeneration, real: type, tolerance: float
) -> None:
    """Compares with PyTorch and its cache: a prefix, then beams by several tokens and by one."""
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

    encoded, expected = pytorch_outputs(model, ids, mask, (prefix, further, last))
    found = run(bundle, ENCODER, {"input_ids": ids, "attention_mask": mask})
    hidden = found["last_hidden_state"]
    assert hidden.dtype == real
    # What an encoder leaves at padding is never read.
    assert_close(hidden[mask == 1], encoded[mask == 1], tolerance)

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
