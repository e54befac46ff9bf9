"""Opening a bundle: any damage raises an error before the first translation."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from m2m100_onnx import Bundle, BundleError, InvalidInputError, M2M100Error, Manifest, Translator
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx.bundle.config import ModelConfig, read_json
from m2m100_onnx.bundle.graphs import FUSED_FILES, GRAPH_FILES, graph_signature
from m2m100_onnx.bundle.manifest import MANIFEST_FILE, sha256_of
from manifests import accept, edit

ENCODER, DECODER, WITH_PAST = GRAPH_FILES
SOURCE, STEP, RANK = FUSED_FILES


def test_open(bundle: Path, tiny_checkpoint: Path) -> None:
    opened = Bundle.open(str(bundle))
    assert opened.directory == bundle
    assert opened.precision == "fp32"
    assert opened.manifest == Manifest.read(bundle)
    assert opened.config == ModelConfig.from_json(tiny_checkpoint / "config.json")
    assert opened.generation_file == bundle / "generation_config.json"
    assert opened.generation == read_json(opened.generation_file)
    assert opened.has_generation_config
    opened.verify()


def test_signature_is_that_of_the_graphs(
    demo_bundle: Path, demo_bundle_fp16: Path, tiny_bundle: Path
) -> None:
    """Signature, manifest and graphs agree; test_built_graphs compares them with Optimum's."""
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
    """Without sizes in a manifest, only opening the file shows the damage."""
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


@pytest.mark.parametrize("given", [None, 5, b"bundle", ["bundle"]], ids=repr)
def test_what_is_no_path(given: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"bundle: .*path, found {type(given).__name__}"):
        Translator(given)


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
    edit(bundle / MANIFEST_FILE, lambda m: m.update(format_version=3, precision="fp4"))
    with pytest.raises(BundleError, match=r"has format version 3.*up to 2; upgrade m2m100-onnx"):
        Translator(bundle)


def test_older_format(bundle: Path) -> None:
    """Version 1 had no family."""

    def age(manifest: dict[str, Any]) -> None:
        manifest["format_version"] = 1
        del manifest["family"]

    edit(bundle / MANIFEST_FILE, age)
    assert Bundle.open(bundle).manifest.family is None
    assert Translator(bundle).tokenizer.family == "m2m100"


@pytest.mark.parametrize("family", ["m2m101", 1, ["m2m100"]])
def test_unknown_family(bundle: Path, family: object) -> None:
    edit(bundle / MANIFEST_FILE, lambda m: m.update(family=family))
    with pytest.raises(BundleError, match=r"manifest\.json: .*family"):
        Bundle.open(bundle)


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
        {"max_new_tokens": "5"},
        {"max_new_tokens": 1},
        {"suppress_tokens": 5},
        {"suppress_tokens": ["a"]},
    ],
    ids=repr,
)
def test_generation_config_of_another_kind(bundle: Path, change: dict[str, Any]) -> None:
    edit(bundle / "generation_config.json", lambda c: c.update(change))
    accept(bundle)
    with pytest.raises(BundleError, match=r"generation_config\.json"):
        Translator(bundle, lazy=True)


# --- Bundles without a manifest ------------------------------------------------------------------


def test_bundle_as_optimum_writes_it(demo_bundle: Path, tmp_path: Path) -> None:
    """Without a manifest all languages are accepted, and each beam has a copy of the source."""
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    (bundle / MANIFEST_FILE).unlink()
    ours = Translator(demo_bundle, intra_op_num_threads=1)
    theirs = Translator(bundle, intra_op_num_threads=1)
    portable = Translator(demo_bundle, fused=False, intra_op_num_threads=1)
    one_sentence_of_five_beams = (1, 5, 100, 3)
    shared, repeated = (
        each.model.cache_bytes(*one_sentence_of_five_beams) for each in (portable, theirs)
    )
    assert shared < repeated
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
    """Checkpoints older than generation_config.json have them in config.json."""
    (bundle / MANIFEST_FILE).unlink()
    (bundle / "generation_config.json").unlink()
    old = {"num_beams": 3, "max_length": 50, "early_stopping": False, "length_penalty": 0.5}
    edit(bundle / "config.json", lambda c: c.update(old, min_length=None))
    opened = Bundle.open(bundle)
    assert opened.generation_file == bundle / "config.json"
    assert old.items() <= opened.generation.items()
    assert not opened.has_generation_config
    defaults = Translator(bundle).defaults
    assert (defaults.beam_size, defaults.max_length, defaults.length_penalty) == (3, 50, 0.5)
    assert defaults.early_stopping is False


def test_read_json_reads_an_object(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"ü": 1}', encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"ü": 1}
    with pytest.raises(BundleError, match=r"none\.json is missing"):
        read_json(tmp_path / "none.json")
