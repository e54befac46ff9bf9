"""Graphs that do not fit the bundle's config: the error names the graph and what was expected."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from m2m100_onnx import BundleError, Translator
from m2m100_onnx.bundle.graphs import FUSED_FILES, GRAPH_FILES
from m2m100_onnx.bundle.manifest import MANIFEST_FILE
from m2m100_onnx_export import export
from manifests import accept, edit

ENCODER, DECODER, WITH_PAST = GRAPH_FILES
SOURCE, STEP, RANK = FUSED_FILES


def rewrite(bundle: Path, name: str, change: Callable[[onnx.GraphProto], Any]) -> None:
    model = onnx.load(bundle / name, load_external_data=False)
    change(model.graph)
    onnx.save_model(model, bundle / name)
    accept(bundle)


def rename_input(old: str, new: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        for value in graph.input:
            value.name = new if value.name == old else value.name
        for node in graph.node:
            node.input[:] = [new if name == old else name for name in node.input]

    return change


def retype_input(name: str, kind: int) -> Callable[[onnx.GraphProto], None]:
    """Changes the type of the input; the nodes get the old type."""

    def change(graph: onnx.GraphProto) -> None:
        rename_input(name, "inside")(graph)
        (value,) = (value for value in graph.input if value.name == "inside")
        inside = value.type.tensor_type.elem_type
        value.name = name
        value.type.tensor_type.elem_type = kind
        graph.node.insert(0, helper.make_node("Cast", [name], ["inside"], to=inside))

    return change


def add_input(graph: onnx.GraphProto) -> None:
    graph.input.append(helper.make_tensor_value_info("cache_position", TensorProto.INT64, ["n"]))


def drop_output(graph: onnx.GraphProto) -> None:
    graph.output.pop()


def fix_batch(graph: onnx.GraphProto) -> None:
    """Fixes the batch to one sentence."""
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1


@pytest.mark.parametrize(
    ("name", "change", "details"),
    [
        (ENCODER, rename_input("input_ids", "tokens"), ["2 inputs", "input_ids", "tokens"]),
        (
            DECODER,
            rename_input("encoder_hidden_states", "hidden"),
            ["3 inputs", "missing encoder_hidden_states", "unexpected hidden"],
        ),
        (ENCODER, retype_input("attention_mask", TensorProto.INT32), ["attention_mask", "int32"]),
        (
            WITH_PAST,
            retype_input("past_key_values.1.encoder.value", TensorProto.FLOAT16),
            ["past_key_values.1.encoder.value", "tensor(float16)", "tensor(float)"],
        ),
        (WITH_PAST, add_input, ["10 inputs", "found 11", "unexpected cache_position"]),
        (DECODER, drop_output, ["9 outputs", "found 8", "missing present.1.encoder.value"]),
        (ENCODER, fix_batch, ["input_ids"]),
        (STEP, rename_input("beam_size", "beam_width"), ["missing beam_size"]),
        (STEP, retype_input("past_length", TensorProto.INT64), ["past_length", "tensor(int32)"]),
        (SOURCE, rename_input("input_ids", "tokens"), ["2 inputs", "missing input_ids"]),
        (RANK, rename_input("count", "best"), ["6 inputs", "missing count"]),
    ],
)
def test_graph_with_another_signature(
    bundle: Path, name: str, change: Callable[[onnx.GraphProto], None], details: list[str]
) -> None:
    rewrite(bundle, name, change)
    with pytest.raises(BundleError) as caught:
        Translator(bundle, fused=name in FUSED_FILES)
    message = str(caught.value)
    assert str(bundle / name) in message
    assert all(detail in message for detail in details), message


def test_graphs_of_another_model(
    bundle: Path, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """With four heads of 8 instead of two of 16 all weights fit and all translations are wrong."""
    other = make_checkpoint(decoder_attention_heads=4)
    export(other, tmp_path / "other", verify_outputs=False)
    for name in (DECODER, WITH_PAST, STEP):
        shutil.copyfile(tmp_path / "other" / name, bundle / name)
    accept(bundle)
    with pytest.raises(BundleError, match=rf"{DECODER}.*present\.0\.decoder\.key"):
        Translator(bundle, fused=False)
    with pytest.raises(BundleError, match=rf"{STEP}.*past_key_values\.0\.decoder\.key"):
        Translator(bundle)


def test_graphs_in_place_of_each_other(bundle: Path) -> None:
    shutil.copyfile(bundle / DECODER, bundle / WITH_PAST)
    accept(bundle)
    with pytest.raises(BundleError, match=rf"{WITH_PAST}: expected 10 inputs.*found 3"):
        Translator(bundle, fused=False)


def test_fp16_graphs_said_to_be_fp32(demo_bundle_fp16: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle_fp16, tmp_path / "bundle"))
    edit(bundle / MANIFEST_FILE, lambda m: m.update(precision="fp32"))
    with pytest.raises(BundleError, match=r"float16.*tensor\(float\)"):
        Translator(bundle)


@pytest.mark.parametrize("name", [ENCODER, SOURCE])
def test_graph_with_an_operator_onnxruntime_lacks(bundle: Path, name: str) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.node[0].op_type = "NoSuchOperator"

    rewrite(bundle, name, change)
    with pytest.raises(BundleError, match=rf"{name}: onnxruntime .*NoSuchOperator"):
        Translator(bundle, fused=name in FUSED_FILES)
