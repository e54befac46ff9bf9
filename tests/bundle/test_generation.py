"""What a generation config says beyond the table of options, against transformers' `generate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, M2M100ForConditionalGeneration

from m2m100_onnx import Bundle, BundleError, Translator
from m2m100_onnx.bundle.generation import _WITHOUT_EFFECT
from m2m100_onnx_export import export
from translations import EN_DE

TEXTS = ("Open the file.", "Quit", "Select a folder.")
IDS = {"bos_token_id": 0, "decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}


def edited(bundle: Path, folder: Path, **contents: Any) -> Path:
    """A copy without a manifest, with another generation config."""
    shutil.copytree(bundle, folder)
    (folder / "manifest.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps(contents))
    return folder


def generated(checkpoint: Path, bundle: Path, ids: list[int], target: int) -> list[int]:
    """What `generate` gives with the bundle's generation config and nothing asked for."""
    model = M2M100ForConditionalGeneration.from_pretrained(checkpoint).eval()
    model.generation_config = GenerationConfig.from_pretrained(bundle)
    found: list[int] = model.generate(torch.tensor([ids]), forced_bos_token_id=target)[0].tolist()
    return found


def first_tokens(bundle: Path) -> list[int]:
    """Tokens that the plain translations hold in their middle."""
    found = Translator(bundle, lazy=True).translate_batch(list(TEXTS), **EN_DE, max_length=12)
    return [translation.tokens[3] for translation in found]


@pytest.mark.parametrize(
    "contents",
    [
        {"eos_token_id": ["first"]},
        {"eos_token_id": "first"},
        {"decoder_start_token_id": 9},
        {"decoder_start_token_id": None, "bos_token_id": 7},
        {"pad_token_id": 5},
        {"forced_bos_token_id": 10_525},
        {"max_length": None},
        {"max_length": None, "max_new_tokens": 5},
        {"max_length": None, "max_new_tokens": 9, "min_new_tokens": 9},
    ],
    ids=repr,
)
@pytest.mark.parametrize("beams", [1, 3])
def test_what_the_file_names_counts_as_in_transformers(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, contents: dict[str, Any], beams: int
) -> None:
    end = first_tokens(tiny_bundle)[0]
    contents = {
        name: end if value == "first" else [end] if value == ["first"] else value
        for name, value in contents.items()
    }
    plain = {**IDS, "max_length": 12, "num_beams": beams, "early_stopping": beams > 1}
    bundle = edited(tiny_bundle, tmp_path / "bundle", **{**plain, **contents})
    translator = Translator(bundle)
    german = translator.tokenizer.language_id("de")
    changed = []
    for text in TEXTS:
        expected = generated(tiny_checkpoint, bundle, translator.encode(text, "en"), german)
        (found,) = translator.translate_batch([text], **EN_DE)
        assert list(found.tokens) == expected
        changed.append(expected)
    if not {"pad_token_id", "forced_bos_token_id"} & contents.keys():
        other = Translator(edited(tiny_bundle, tmp_path / "other", **plain))
        assert changed != [list(t.tokens) for t in other.translate_batch(list(TEXTS), **EN_DE)]


REFUSED = {
    "begin_suppress_tokens": [5],
    "constraints": [{}],
    "dola_layers": "low",
    "encoder_no_repeat_ngram_size": 2,
    "encoder_repetition_penalty": 1.5,
    "exponential_decay_length_penalty": [5, 1.1],
    "force_words_ids": [[5]],
    "forced_decoder_ids": [[2, 5]],
    "forced_eos_token_id": 2,
    "guidance_scale": 2.0,
    "max_time": 0.5,
    "penalty_alpha": 0.6,
    "renormalize_logits": True,
    "sequence_bias": [[[5], 1.0]],
    "token_healing": True,
    "watermarking_config": {"bias": 2.0},
    "eos_token_id": [2, 5],
    "decoder_start_token_id": [2, 2],
    "bos_token_id": "0",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_search_lacks_is_refused_by_name(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    bundle = edited(tiny_bundle, tmp_path / "bundle", **{name: REFUSED[name]})
    message = rf"^{bundle / 'generation_config.json'}: .*{name} .*found "
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle)
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    shutil.copy(bundle / "generation_config.json", checkpoint)
    with pytest.raises(BundleError, match=rf"^{checkpoint / 'generation_config.json'}: .*{name} "):
        export(checkpoint, tmp_path / "new", progress=lambda stage: pytest.fail(stage))
    assert not (tmp_path / "new").exists()


def test_every_refused_setting_is_tested() -> None:
    assert _WITHOUT_EFFECT.keys() <= REFUSED.keys()


def test_old_configs_are_read_alike(tiny_bundle: Path, tmp_path: Path) -> None:
    """config.json holds these settings in checkpoints without a generation_config.json."""
    bundle = edited(tiny_bundle, tmp_path / "bundle")
    (bundle / "generation_config.json").unlink()
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps({**config, "guidance_scale": 4}))
    with pytest.raises(BundleError, match=r"config\.json: guidance_scale .*found 4"):
        Bundle.open(bundle)


def test_groups_and_stops_of_a_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    named = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "stop_strings": "."}
    bundle = edited(tiny_bundle, tmp_path / "bundle", **named)
    translator = Translator(bundle, lazy=True)
    defaults = translator.defaults
    assert (defaults.num_beam_groups, defaults.diversity_penalty) == (2, 0.5)
    assert defaults.stop_sequences == (".",)
    # What a call asks for goes before what it does not.
    for beams in (1, 3):
        translator.translate("Quit", source_lang="en", target_lang="de", beam_size=beams)


def test_what_transformers_writes_out_changes_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    """The defaults of transformers, each named, as older versions saved them."""
    neutral = {name: values[0] for name, values in _WITHOUT_EFFECT.items() if values}
    everything = GenerationConfig._get_default_generation_params()
    silent = Translator(edited(tiny_bundle, tmp_path / "silent"), lazy=True)
    named = {**neutral, **everything, "max_length": 21, "assistant": "x"}
    loud = Translator(edited(tiny_bundle, tmp_path / "loud", **named), lazy=True)
    assert loud.defaults == silent.defaults


def test_a_bundle_that_samples(tiny_bundle: Path, tmp_path: Path) -> None:
    beams = edited(tiny_bundle, tmp_path / "beams", do_sample=True, num_beams=5)
    with pytest.raises(BundleError, match=r"generation_config\.json: do_sample: .*beam_size = 1"):
        Translator(beams, lazy=True)
    alone = edited(tiny_bundle, tmp_path / "alone", do_sample=True, num_beams=1, top_k=3)
    defaults = Translator(alone, lazy=True).defaults
    assert (defaults.do_sample, defaults.top_k) == (True, 3)
    # Beams that a call asks for are a search's.
    search: dict[str, Any] = {"source_lang": "en", "target_lang": "de", "beam_size": 2}
    translated = Translator(alone).translate("Quit", **search)
    plain = Translator(edited(tiny_bundle, tmp_path / "plain"))
    assert translated == plain.translate("Quit", **search)


def test_what_sampling_alone_heeds_may_be_anything(tiny_bundle: Path, tmp_path: Path) -> None:
    """Transformers warns of it; with sampling it is an error."""
    odd = edited(tiny_bundle, tmp_path / "odd", temperature=0.0, top_p=5)
    assert Translator(odd, lazy=True).defaults.temperature == 1.0
    drawn = edited(tiny_bundle, tmp_path / "drawn", temperature=0.0, do_sample=True, num_beams=1)
    with pytest.raises(BundleError, match=r"temperature: expected .* found 0\.0"):
        Translator(drawn, lazy=True)
