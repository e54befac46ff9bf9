"""Families that frame a sentence otherwise, and extended vocabularies, against transformers.

transformers' model is the reference for the search, its tokenizer of M2M100 for the ids of pieces.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import M2M100ForConditionalGeneration, M2M100Tokenizer

import families
import nllb
from m2m100_onnx import BundleError, InvalidInputError, Translator, UnknownLanguageError
from m2m100_onnx_export import export
from shell import Shell

TEXTS = ["Open the file and save a copy.", "Close it.", "Do you want to delete this folder?"]


@pytest.fixture(scope="module")
def small100_checkpoint(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A random SMaLL-100 checkpoint that names its tokenizer; tests must not change it."""
    folder = tmp_path_factory.mktemp("small100") / "checkpoint"
    shutil.copytree(make_checkpoint(encoder_layers=2), folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "tokenizer_class": "SMALL100Tokenizer"}), "utf-8")
    return folder


@pytest.fixture(scope="module")
def small100(small100_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("small100") / "bundle"
    export(small100_checkpoint, bundle)
    return bundle


def generate(
    checkpoint: Path, ids: list[list[int]], forced: int | None, beam_size: int
) -> list[tuple[list[int], float]]:
    return families.generate(checkpoint, ids, forced, beam_size, max_length=16)


def assert_parity(
    translator: Translator, wanted: list[tuple[list[int], float]], **arguments: Any
) -> None:
    found = translator.translate_batch(
        TEXTS,
        max_length=16,
        length_penalty=1.0,
        early_stopping=arguments["beam_size"] > 1,
        **arguments,
    )
    assert [list(t.tokens) for t in found] == [tokens for tokens, _ in wanted]
    assert [t.score for t in found] == pytest.approx([score for _, score in wanted], abs=1e-4)


def framed(checkpoint: Path, first: str) -> list[list[int]]:
    """`[first] X </s>` of each text."""
    reference = M2M100Tokenizer.from_pretrained(checkpoint)
    (index,) = reference.convert_tokens_to_ids([first])
    pieces = [reference(text, add_special_tokens=False).input_ids for text in TEXTS]
    return [[index, *row, 2] for row in pieces]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("beam_size", [1, 4])
def test_small100(small100_checkpoint: Path, small100: Path, beam_size: int, fused: bool) -> None:
    ids = framed(small100_checkpoint, "__de__")
    wanted = generate(small100_checkpoint, ids, None, beam_size)
    # The first token is free: the decoder does not start with the language.
    assert all(tokens[1] != 10519 for tokens, _ in wanted)
    translator = Translator(small100, fused=fused)
    assert [translator.encode(text, "en", "de") for text in TEXTS] == ids
    assert_parity(translator, wanted, source_lang="en", target_lang="de", beam_size=beam_size)


def test_small100_needs_a_target_language(small100: Path) -> None:
    translator = Translator(small100, lazy=True)
    with pytest.raises(InvalidInputError, match=r"target_lang: expected .* small100 .* None"):
        translator.encode("Open.", "en")
    with pytest.raises(UnknownLanguageError):
        translator.encode("Open.", "tlh", "de")
    with pytest.raises(UnknownLanguageError):
        translator.translate("Open.", source_lang="en", target_lang="tlh")
    assert translator.translate(["", " "], source_lang="en", target_lang="de") == ["", ""]
    long = translator.encode("word " * 200, "en", "de", truncate=True)
    assert (len(long), long[0], long[-1]) == (64, translator.tokenizer.language_id("de"), 2)


def test_small100_without_a_mark_of_its_own(
    make_checkpoint: Callable[..., Path], small100: Path, tmp_path: Path, shell: Shell
) -> None:
    """`--family` tells what the files do not; a runtime reads it from the manifest."""
    checkpoint = make_checkpoint(encoder_layers=2)
    target = tmp_path / "bundle"
    status, _, error = shell("export", str(checkpoint), str(target), "--family", "small100")
    assert status == 0, error
    ids = Translator(target, lazy=True).encode("Open.", "en", "de")
    assert ids == Translator(small100, lazy=True).encode("Open.", "en", "de")
    with pytest.raises(BundleError, match="expected the files of family wmt21"):
        export(checkpoint, tmp_path / "other", family="wmt21")
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def extended_checkpoint(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint that transformers extended by two tokens of text and a language."""
    folder = tmp_path_factory.mktemp("extended") / "checkpoint"
    start = make_checkpoint(decoder_layers=1)
    tokenizer = M2M100Tokenizer.from_pretrained(start)
    # transformers counts its own ids, and would give these the ids of languages.
    config = json.loads((start / "tokenizer_config.json").read_text("utf-8"))
    more = {"<br>": False, "{name}": False, "__tyv__": True}
    decoder = {
        str(10609 + n): {"content": token, "special": special, "normalized": not special}
        for n, (token, special) in enumerate(more.items())
    }
    config["added_tokens_decoder"] |= decoder
    model = M2M100ForConditionalGeneration.from_pretrained(start)
    torch.manual_seed(0)
    model.resize_token_embeddings(10612, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[10609:].normal_(std=0.3)
        for side in (model.model.encoder, model.model.decoder):
            side.embed_tokens.weight.copy_(model.model.shared.weight)
    model.save_pretrained(folder)
    tokenizer.save_vocabulary(str(folder))
    shutil.copy(start / "generation_config.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize(("source", "target"), [("en", "tyv"), ("tyv", "de")])
def test_a_new_language(
    extended_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    source: str,
    target: str,
    beam_size: int,
) -> None:
    bundle = tmp_path_factory.getbasetemp() / "extended-bundle"
    if not bundle.exists():
        export(extended_checkpoint, bundle)
    reference = M2M100Tokenizer.from_pretrained(extended_checkpoint)
    (forced,) = reference.convert_tokens_to_ids([f"__{target}__"])
    wanted = generate(
        extended_checkpoint, framed(extended_checkpoint, f"__{source}__"), forced, beam_size
    )
    translator = Translator(bundle)
    assert_parity(translator, wanted, source_lang=source, target_lang=target, beam_size=beam_size)
    text = "Hello {name}<br>Open the __tyv__"
    assert {10609, 10610} < set(translator.encode(text, "en"))
    assert 10611 not in translator.encode(text, "en")


@pytest.mark.parametrize("legacy", [False, True])
def test_nllb(tmp_path: Path, shell: Shell, legacy: bool) -> None:
    checkpoint = nllb.make_checkpoint(tmp_path / "checkpoint", legacy_behaviour=legacy)
    bundle = tmp_path / "bundle"
    export(checkpoint, bundle)
    reference = families.NllbReference.from_pretrained(checkpoint, src_lang="eng_Latn")
    forced = reference.convert_tokens_to_ids("deu_Latn")
    for beam_size in (1, 4):
        wanted = generate(checkpoint, reference(TEXTS).input_ids, forced, beam_size)
        for fused in (True, False):
            assert_parity(
                Translator(bundle, fused=fused),
                wanted,
                source_lang="eng_Latn",
                target_lang="deu_Latn",
                beam_size=beam_size,
            )
    argv = ("translate", "--model", str(bundle), "-s", "eng_Latn", "-t", "deu_Latn")
    # What transformers wrote to standard error comes too.
    status, output, error = shell(*argv, "--beam-size", "4", "--max-length", "16", TEXTS[0])
    assert status == 0, error
    theirs = reference.decode(wanted[0][0], skip_special_tokens=True)
    assert output.decode() == f"{theirs}\n"


@pytest.mark.parametrize("precision", ["int8", "int4", "fp16"])
def test_nllb_in_other_precisions(tmp_path: Path, precision: Any) -> None:
    """Random weights round to other translations, so these only have to run."""
    checkpoint = nllb.make_checkpoint(tmp_path / "checkpoint")
    export(checkpoint, tmp_path / "bundle", precision=precision, verify_outputs=False)
    translator = Translator(tmp_path / "bundle")
    found = translator.translate_batch(
        TEXTS, source_lang="eng_Latn", target_lang="fra_Latn", beam_size=4
    )
    assert all(np.isfinite(translation.score) for translation in found)
    assert all(len(translation.tokens) > 3 for translation in found)
