"""Verification after an export: its report, and the errors that it finds."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.torch import load_file

from checkpoints import SAFETENSORS, copied, tree
from conftest import LANGUAGES
from m2m100_onnx import ExportError, Translator
from m2m100_onnx.bundle.graphs import CROSS_ATTENTION_FILE, FUSED_FILES, GRAPH_FILES, Precision
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx_export import export, translation
from m2m100_onnx_export.weights import StoredTensor, WeightsFile
from tokenization import rewrite

ENCODER, DECODER, WITH_PAST = GRAPH_FILES
NORM = "model.encoder.layer_norm.weight"


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, values: npt.NDArray[np.float32]) -> None:
    """Makes the exporter write wrong numbers for a parameter."""
    write = translation.write_weights

    def write_wrongly(
        parameters: Any, checkpoint: Any, path: Path, precision: Precision
    ) -> WeightsFile:
        found = write(parameters, checkpoint, path, precision)
        stored: StoredTensor = found.tensors[name]
        data = bytearray(path.read_bytes())
        assert values.nbytes <= stored.length
        data[stored.offset : stored.offset + values.nbytes] = values.tobytes()
        path.write_bytes(data)
        return found

    monkeypatch.setattr(translation, "write_weights", write_wrongly)


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
    """One of 350,000 numbers differs by a tenth."""
    norm = load_file(tiny_checkpoint / SAFETENSORS)[NORM][:1].numpy() + np.float32(0.1)
    spoil(monkeypatch, "encoder.layer_norm.weight", norm)
    with pytest.raises(ExportError, match=rf"{ENCODER}: largest difference"):
        export(tiny_checkpoint, tmp_path / "bundle")


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
    files = {*GRAPH_FILES, CROSS_ATTENTION_FILE, *(FUSED_FILES if precision == "fp32" else ())}
    assert report.differences.keys() == report.tolerances.keys() == files
    largest = 1e-4 if precision == "fp32" else 5e-2
    # Exactly zero would mean that something was compared with itself.
    assert all(0 < difference < largest for difference in report.differences.values())
    lines = report.lines()
    assert len(lines) == len(files) + 2
    assert all(any(name in line for line in lines) for name in files)
    assert lines[-2] == "greedy: 6 of 6 translations equal transformers'"


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


# --- Tokens --------------------------------------------------------------------------------------


def test_verification_reads_texts_with_transformers_tokenizer(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of our tokenizer shows, though both sides would translate the same wrong ids."""
    tokenize = Tokenizer.tokenize
    monkeypatch.setattr(Tokenizer, "tokenize", lambda *args: tokenize(*args)[:-1])
    with pytest.raises(ExportError, match=r"'Die Datei .*expected transformers' ids .*found \["):
        export(tiny_checkpoint, tmp_path / "bundle")
    assert tree(tmp_path) == {}


def test_verification_compares_languages_and_texts(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, language_id = Tokenizer.decode, Tokenizer.language_id
    monkeypatch.setattr(Tokenizer, "decode", lambda *args: decode(*args).upper())
    with pytest.raises(ExportError, match=r"expected transformers' text 'Die Datei .*found 'DIE "):
        export(tiny_checkpoint, tmp_path / "bundle")
    monkeypatch.undo()
    monkeypatch.setattr(Tokenizer, "language_id", lambda *args: language_id(*args) + 1)
    with pytest.raises(ExportError, match="language af: expected transformers' id 10501, found"):
        export(tiny_checkpoint, tmp_path / "bundle")


def test_verification_sees_an_added_token_that_is_lost(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the runtime ever miss an added token, its text tells."""
    checkpoint = copied(make_checkpoint(vocab_size=10_620), tmp_path / "checkpoint")
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "M2M100Tokenizer"}')
    (checkpoint / "added_tokens.json").write_text('{"<br>": 10609}')
    monkeypatch.setattr("m2m100_onnx.text.tokenizer.added_tokens", lambda *_: {})
    with pytest.raises(ExportError, match=r"<br>.*: expected transformers' ids .*10609"):
        export(checkpoint, tmp_path / "bundle")


def test_verification_of_a_tokenizer_that_samples(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Random pieces cannot be compared, so both sides take the best ones."""
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    kwargs = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    rewrite(checkpoint / "tokenizer_config.json", sp_model_kwargs=kwargs)
    done = export(checkpoint, tmp_path / "bundle")
    assert done.report is not None
    assert done.report.tokens == ()


@pytest.mark.parametrize(
    "contents",
    [
        {"max_new_tokens": 5, "num_beams": 2},
        {"max_new_tokens": 60, "min_new_tokens": 50},
        {"eos_token_id": [50], "decoder_start_token_id": 7, "max_length": 30},
        {},
    ],
    ids=repr,
)
def test_verification_heeds_the_generation_config(
    tiny_checkpoint: Path, tmp_path: Path, contents: dict[str, Any]
) -> None:
    checkpoint = copied(tiny_checkpoint, tmp_path / "checkpoint")
    ids = {"bos_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    text = json.dumps({**ids, **contents})
    (checkpoint / "generation_config.json").write_text(text)
    done = export(checkpoint, tmp_path / "bundle", languages=["en", "de"])
    assert done.report is not None
    assert all(c.identical + c.ties == c.total for c in done.report.translations)


def test_an_export_writes_nothing_into_the_weights_cache(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries of the folder that the export works in would serve nobody."""
    monkeypatch.setenv("M2M100_ONNX_CACHE", str(tmp_path / "cache"))
    checkpoint = make_checkpoint(d_model=64, encoder_ffn_dim=256, decoder_ffn_dim=256)
    export(checkpoint, tmp_path / "bundle", precision="int8", languages=["en", "de"])
    assert not (tmp_path / "cache").exists()
    # The same bundle fills the cache when it is opened.
    Translator(tmp_path / "bundle", kernels=False)
    assert any((tmp_path / "cache").iterdir())
