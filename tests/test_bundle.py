"""Opening a bundle: whatever is wrong with it is said before the first translation."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from m2m100_onnx import Bundle, BundleError, M2M100Error, Manifest, Translator
from m2m100_onnx.bundle import (
    FUSED_FILES,
    GRAPH_FILES,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    ModelConfig,
    graph_signature,
    read_json,
    sha256_of,
)
from m2m100_onnx_export import export

ENCODER, DECODER, WITH_PAST = GRAPH_FILES
SOURCE, STEP, RANK = FUSED_FILES


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def accept(bundle: Path) -> None:
    """Corrects the sizes in the manifest, so that only the content of a file is wrong."""

    def change(manifest: dict[str, Any]) -> None:
        for name, record in manifest["files"].items():
            record["size"] = (bundle / name).stat().st_size

    edit(bundle / MANIFEST_FILE, change)


def test_open(bundle: Path, tiny_checkpoint: Path) -> None:
    opened = Bundle.open(str(bundle))
    assert opened.directory == bundle
    assert opened.precision == "fp32"
    assert opened.manifest == Manifest.read(bundle)
    assert opened.config == ModelConfig.from_json(tiny_checkpoint / "config.json")
    assert opened.generation == {"num_beams": 2, "max_length": 8}
    opened.verify()


def test_signature_is_that_of_the_graphs(
    demo_bundle: Path, demo_bundle_fp16: Path, tiny_bundle: Path
) -> None:
    """The table, the manifest and the graphs say the same; Optimum's say is in test_export."""
    for folder in (demo_bundle, demo_bundle_fp16, tiny_bundle):
        opened = Bundle.open(folder)
        assert opened.manifest is not None
        for name in GRAPH_FILES:
            graph = onnx.load(folder / name, load_external_data=False).graph
            signature = opened.signature(name)
            for specs, values in (
                (signature.inputs, graph.input),
                (signature.outputs, graph.output),
            ):
                found = [
                    (
                        value.name,
                        TensorProto.DataType.Name(value.type.tensor_type.elem_type),
                        tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
                    )
                    for value in values
                ]
                types = {"float32": "FLOAT", "float16": "FLOAT16", "int64": "INT64"}
                assert found == [(spec.name, types[spec.dtype], spec.shape) for spec in specs]
            assert opened.manifest.graphs[name] == signature
            assert graph_signature(name, opened.config, opened.precision) == signature


def test_manifest_is_read_as_it_was_written(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_bundle)
    manifest.write(tmp_path)
    assert (tmp_path / MANIFEST_FILE).read_bytes() == (tiny_bundle / MANIFEST_FILE).read_bytes()
    assert Manifest.read(tmp_path) == manifest


def test_manifest_of_the_oldest_version_opens(bundle: Path) -> None:
    edit(bundle / MANIFEST_FILE, lambda m: m.update(format_version=1, something_new=True))
    assert Bundle.open(bundle).manifest is not None


# --- Files that are missing or damaged -----------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*GRAPH_FILES, WEIGHTS_FILE, "config.json", "vocab.json", "generation_config.json"]
)
def test_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=rf"{bundle / name} is missing"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", [*GRAPH_FILES, WEIGHTS_FILE, "sentencepiece.bpe.model"])
@pytest.mark.parametrize("change", [-1, +1, -(1 << 40)])
def test_file_of_another_size(bundle: Path, name: str, change: int) -> None:
    size = (bundle / name).stat().st_size
    found = max(0, size + change)
    os.truncate(bundle / name, found)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    message = str(caught.value)
    assert message.startswith(f"{bundle / name}: ")
    assert f"expected {size:,} bytes, found {found:,}" in message


@pytest.mark.parametrize("name", [*GRAPH_FILES, "vocab.json", "config.json"])
@pytest.mark.parametrize("lazy", [False, True])
def test_damage_without_a_manifest(bundle: Path, name: str, lazy: bool) -> None:
    """Nothing says how long the file should be, so opening it must."""
    (bundle / MANIFEST_FILE).unlink()
    os.truncate(bundle / name, (bundle / name).stat().st_size // 2)
    with pytest.raises(BundleError) as caught:
        Translator(bundle, lazy=lazy).translate("Open.", source_lang="en", target_lang="de")
    assert str(bundle / name) in str(caught.value)


@pytest.mark.parametrize("size", [None, 100_000])
def test_weights_damaged_without_a_manifest(bundle: Path, size: int | None) -> None:
    (bundle / MANIFEST_FILE).unlink()
    if size is None:
        (bundle / WEIGHTS_FILE).unlink()
    else:
        os.truncate(bundle / WEIGHTS_FILE, size)
    with pytest.raises(BundleError, match=rf"{ENCODER}.*cannot open"):
        Translator(bundle)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, DECODER, "vocab.json"])
def test_flipped_bit_is_found_by_verify(bundle: Path, name: str) -> None:
    expected = sha256_of(bundle / name)
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError) as caught:
        opened.verify()
    assert str(caught.value) == (
        f"{bundle / name}: expected SHA-256 {expected}, found {sha256_of(bundle / name)}"
    )


def test_verify_needs_a_manifest(bundle: Path) -> None:
    (bundle / MANIFEST_FILE).unlink()
    with pytest.raises(BundleError, match=r"manifest\.json.*no hash"):
        Bundle.open(bundle).verify()


def test_verify_of_a_file_that_went_away(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    (bundle / WEIGHTS_FILE).unlink()
    with pytest.raises(BundleError, match=rf"{bundle / WEIGHTS_FILE} is missing"):
        opened.verify()


# --- Folders that are no bundle ------------------------------------------------------------------


def test_no_folder(tmp_path: Path, tiny_bundle: Path) -> None:
    for path in (tmp_path / "none", tiny_bundle / "config.json"):
        with pytest.raises(BundleError, match=rf"{path}: expected the folder of an exported"):
            Translator(path)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=rf"{tmp_path} is no bundle.*manifest\.json") as caught:
        Bundle.open(tmp_path)
    assert "checkpoint" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_checkpoint_in_place_of_a_bundle(tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    with pytest.raises(BundleError, match=r"this is a checkpoint: run `m2m100 export`"):
        Translator(checkpoint)


def test_error_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no bundle"):
        Bundle.open(tmp_path)


# --- Manifests and configs that are wrong --------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1]", "found list"),
        (b"null", "found NoneType"),
        (b"\xff\xfe\x00", "decode"),
    ],
)
@pytest.mark.parametrize("name", [MANIFEST_FILE, "config.json", "generation_config.json"])
def test_broken_json(bundle: Path, name: str, text: bytes, found: str) -> None:
    (bundle / name).write_bytes(text)
    if name != MANIFEST_FILE:
        accept(bundle)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    assert str(caught.value).startswith(f"{bundle / name}: expected a JSON object, found ")
    assert found in str(caught.value)


def test_newer_format(bundle: Path) -> None:
    edit(bundle / MANIFEST_FILE, lambda m: m.update(format_version=2, precision="fp4"))
    with pytest.raises(BundleError, match=r"has format version 2.*up to 1; upgrade m2m100-onnx"):
        Translator(bundle)


@pytest.mark.parametrize("version", [None, "1", 0, -1, 1.5])
def test_format_version_of_another_kind(bundle: Path, version: object) -> None:
    edit(bundle / MANIFEST_FILE, lambda m: m.update(format_version=version))
    with pytest.raises(BundleError, match=rf"manifest\.json: .*format_version, found {version!r}"):
        Bundle.open(bundle)


@pytest.mark.parametrize("precision", ["int3", None, 16, ["fp32"]])
def test_unknown_precision(bundle: Path, precision: object) -> None:
    edit(bundle / MANIFEST_FILE, lambda m: m.update(precision=precision))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    assert f"{MANIFEST_FILE}: expected a precision of fp32, fp16, " in str(caught.value)
    assert str(caught.value).endswith(f"found {precision!r}")


@pytest.mark.parametrize(
    "key",
    [
        "format_version",
        "precision",
        "opset",
        "source",
        "revision",
        "languages",
        "exporter_version",
        "graphs",
        "files",
    ],
)
def test_manifest_without_a_key(bundle: Path, key: str) -> None:
    edit(bundle / MANIFEST_FILE, lambda m: m.pop(key))
    with pytest.raises(BundleError, match=rf"{MANIFEST_FILE}: .*{key}"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"opset": "new"},
        {"files": []},
        {"files": {"config.json": 7}},
        {"files": {"config.json": {"size": 7}}},
        {"graphs": {"encoder_model.onnx": {}}},
        {"graphs": 5},
        {"languages": 5},
        {"languages": "en"},
        {"languages": [5]},
        {"languages": []},
    ],
    ids=repr,
)
def test_manifest_entry_of_another_kind(bundle: Path, change: dict[str, Any]) -> None:
    edit(bundle / MANIFEST_FILE, lambda m: m.update(change))
    with pytest.raises(BundleError, match=MANIFEST_FILE):
        Bundle.open(bundle)


def test_manifest_with_a_language_the_tokenizer_lacks(bundle: Path) -> None:
    edit(bundle / MANIFEST_FILE, lambda m: m.update(languages=["en", "xx"]))
    with pytest.raises(M2M100Error, match=r"languages.*'xx'"):
        Translator(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bart"}, "'m2m_100', found 'bart'"),
        ({"d_model": "32"}, "d_model as int, found '32'"),
        ({"vocab_size": True}, "vocab_size as int, found True"),
        ({"scale_embedding": 1}, "scale_embedding as bool, found 1"),
        ({"decoder_layers": -2}, "decoder_layers as int, found -2"),
        ({"encoder_attention_heads": 3}, "found 32 and 3"),
        ({"encoder_attention_heads": 0}, "found 32 and 0"),
    ],
    ids=repr,
)
def test_config_of_another_kind(bundle: Path, change: dict[str, Any], message: str) -> None:
    edit(bundle / "config.json", lambda c: c.update(change))
    accept(bundle)
    with pytest.raises(BundleError, match=rf"config\.json: .*{message}"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"num_beams": "5"},
        {"num_beams": 0},
        {"max_length": "200"},
        {"max_length": 2},
        {"num_return_sequences": 6},
        {"early_stopping": "sometimes"},
    ],
    ids=repr,
)
def test_generation_config_of_another_kind(bundle: Path, change: dict[str, Any]) -> None:
    edit(bundle / "generation_config.json", lambda c: c.update(change))
    accept(bundle)
    with pytest.raises(BundleError, match=r"generation_config\.json"):
        Translator(bundle, lazy=True)


# --- Graphs that are not what they should be -----------------------------------------------------


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
    """Another type outside, the same inside."""

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
    """One sentence at a time, and no more."""
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
    """Four heads of 8 in place of two of 16: every weight fits, every translation is wrong."""
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


# --- Bundles without a manifest ------------------------------------------------------------------


def test_bundle_as_optimum_writes_it(demo_bundle: Path, tmp_path: Path) -> None:
    """No manifest: all languages are offered, and beams carry their own copy of the source."""
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    (bundle / MANIFEST_FILE).unlink()
    ours = Translator(demo_bundle, intra_op_num_threads=1)
    theirs = Translator(bundle, intra_op_num_threads=1)
    assert ours.model.beams_share_source
    assert not theirs.model.beams_share_source
    assert len(theirs.languages) == 100
    texts = ["Open the file.", "The package could not be installed on this system.", "Yes", "Quit"]
    for beam_size in (1, 3):
        expected, found = (
            each.translate_batch(
                texts,
                source_lang="en",
                target_lang=["de", "fr", "es", "ru"],
                beam_size=beam_size,
                num_hypotheses=beam_size,
            )
            for each in (ours, theirs)
        )
        for a, b in zip(expected, found, strict=True):
            assert [h.tokens for h in b.hypotheses] == [h.tokens for h in a.hypotheses]
            scores = [h.score for h in a.hypotheses]
            assert [h.score for h in b.hypotheses] == pytest.approx(scores, abs=1e-5)


def test_old_style_generation_defaults(bundle: Path) -> None:
    """Checkpoints of before generation_config.json kept them in config.json."""
    (bundle / MANIFEST_FILE).unlink()
    (bundle / "generation_config.json").unlink()
    old = {"num_beams": 3, "max_length": 50, "early_stopping": False, "length_penalty": 0.5}
    edit(bundle / "config.json", lambda c: c.update(old, min_length=None))
    assert Bundle.open(bundle).generation == old
    defaults = Translator(bundle).defaults
    assert (defaults.beam_size, defaults.max_length, defaults.length_penalty) == (3, 50, 0.5)
    assert defaults.early_stopping is False


def test_read_json_reads_an_object(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"ü": 1}', encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"ü": 1}
    with pytest.raises(BundleError, match=r"none\.json is missing"):
        read_json(tmp_path / "none.json")
