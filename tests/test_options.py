"""Options of a call: ranges, names, and defaults from the generation config."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from transformers import M2M100ForConditionalGeneration

from m2m100_onnx import (
    Bundle,
    InvalidInputError,
    SearchOptions,
    TranslateOptions,
    Translator,
)
from translations import EN_DE, GREEDY, LIMIT, assert_same

# --- Options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size"),
        ({"beam_size": -1}, "beam_size"),
        ({"beam_size": 2.0}, "beam_size"),
        ({"beam_size": "2"}, "beam_size"),
        ({"num_hypotheses": 0}, "num_hypotheses"),
        ({"num_hypotheses": 6}, "num_hypotheses.*beam_size = 5"),
        ({"beam_size": 2, "num_hypotheses": 3}, "num_hypotheses.*beam_size = 2"),
        ({"max_length": LIMIT + 1}, "max_length.*256.*257"),
        ({"max_length": 2}, "max_length"),
        ({"max_length": None}, "max_length"),
        ({"min_length": 201}, "min_length.*max_length = 200"),
        ({"length_penalty": float("nan")}, "length_penalty"),
        ({"early_stopping": "always"}, "early_stopping"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"suppress_tokens": [5]}, "suppress_tokens"),
        ({"suppress_tokens": (10609,)}, "suppress"),
        ({"max_batch_tokens": 0}, "max_batch_tokens.*0"),
        ({"max_batch_tokens": "9"}, "max_batch_tokens.*'9'"),
        ({"max_batch_tokens": True}, "max_batch_tokens.*True"),
        ({"truncate": "no"}, "truncate.*'no'"),
        ({"beam_size": 10**20}, r"beam_size.*at most 2\^31 - 1"),
        ({"no_repeat_ngram_size": 10**20}, r"no_repeat_ngram_size.*at most 2\^31 - 1"),
        ({"repetition_penalty": 10**400}, "repetition_penalty.*1e30"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty.*1e-30"),
    ],
    ids=repr,
)
def test_option_out_of_range(translator: Translator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        translator.translate("Quit", **EN_DE, **options)
    with pytest.raises(InvalidInputError, match=message):
        # Streams say so too, and most of them before the first text is read.
        list(translator.translate_iterable(["Quit"], **EN_DE, **options))


def test_unknown_option_is_named(translator: Translator) -> None:
    wrong: dict[str, Any] = {"num_beams": 4, "beams": 2}
    for call in (translator.translate, translator.translate_batch, translator.translate_iterable):
        with pytest.raises(TypeError, match=r"unknown option beams, num_beams"):
            call(["Quit"], **EN_DE, **wrong)


def test_options_are_those_of_the_search() -> None:
    names = set(get_type_hints(SearchOptions))
    assert set(TranslateOptions.__annotations__) == names | {"max_batch_tokens", "truncate"}


def test_longest_translation(translator: Translator) -> None:
    """As many tokens as the model has positions, the last of which is never fed."""
    (found,) = translator.translate_batch(["Quit"], **GREEDY, max_length=LIMIT, min_length=LIMIT)
    assert len(found.tokens) == LIMIT
    assert found.tokens[-1] != 2


def test_defaults_come_from_the_generation_config(
    translator: Translator, demo_checkpoint: Path
) -> None:
    config = json.loads((demo_checkpoint / "generation_config.json").read_text())
    assert translator.defaults == SearchOptions(
        beam_size=config["num_beams"],
        max_length=config["max_length"],
        early_stopping=config["early_stopping"],
    )
    assert (translator.defaults.beam_size, translator.defaults.max_length) == (5, 200)
    explicit = {"beam_size": 5, "max_length": 200, "early_stopping": True, "num_hypotheses": 1}
    assert_same(
        translator.translate_batch(["Open the file."], **EN_DE),
        translator.translate_batch(["Open the file."], **EN_DE, **explicit),
    )


def edited(bundle: Path, folder: Path, **changes: Any) -> Bundle:
    """A copy without a manifest, with other generation defaults."""
    shutil.copytree(bundle, folder)
    (folder / "manifest.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps(changes))
    return Bundle.open(folder)


def test_every_default_can_be_set(tiny_bundle: Path, tmp_path: Path) -> None:
    named_alike: dict[str, Any] = {
        "max_length": 20,
        "min_length": 4,
        "length_penalty": 0.5,
        "early_stopping": "never",
        "no_repeat_ngram_size": 2,
        "repetition_penalty": 1.5,
    }
    renamed = {"num_beams": 3, "num_return_sequences": 2}
    others = {"transformers_version": "4", "forced_bos_token_id": None}
    bundle = edited(tiny_bundle, tmp_path / "bundle", **named_alike, **renamed, **others)
    assert Translator(bundle).defaults == SearchOptions(
        beam_size=3, num_hypotheses=2, **named_alike
    )


def test_defaults_give_way_to_what_is_asked_for(tiny_bundle: Path, tmp_path: Path) -> None:
    asked = {"num_beams": 6, "num_return_sequences": 4, "min_length": 30, "max_length": 40}
    translator = Translator(edited(tiny_bundle, tmp_path / "bundle", **asked))

    def count(**options: Any) -> tuple[int, int]:
        (found,) = translator.translate_batch(["Quit"], **EN_DE, **options)
        return len(found.hypotheses), len(found.tokens)

    assert count()[0] == 4
    assert count(beam_size=1) == (1, count(beam_size=1)[1])
    assert count(beam_size=2, max_length=10) == (2, 10)
    with pytest.raises(InvalidInputError, match=r"num_hypotheses.*beam_size = 2; found 3"):
        count(beam_size=2, num_hypotheses=3)


@pytest.mark.parametrize(
    "asked",
    [
        {"max_new_tokens": 4},
        {"max_new_tokens": 9, "max_length": 5},
        {"max_length": 8, "suppress_tokens": "first"},
    ],
    ids=repr,
)
def test_defaults_against_transformers(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    """What a generation config may say in other words than ours, as `generate` understands it."""
    plain = Translator(edited(tiny_bundle, tmp_path / "plain", num_beams=2, max_length=8))
    if "suppress_tokens" in asked:
        (found,) = plain.translate_batch(["Open the file."], **EN_DE)
        asked = {**asked, "suppress_tokens": sorted(set(found.tokens[2:-1]))[:3]}
    translator = Translator(edited(tiny_bundle, tmp_path / "bundle", num_beams=2, **asked))
    model = M2M100ForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()
    ids = translator.encode("Open the file.", "en")
    german = translator.tokenizer.language_id("de")
    lengths = asked if "max_new_tokens" in asked else {**asked, "max_new_tokens": None}
    (expected,) = model.generate(
        torch.tensor([ids]), num_beams=2, early_stopping=True, forced_bos_token_id=german, **lengths
    ).tolist()
    (found,) = translator.translate_batch(["Open the file."], **EN_DE)
    assert list(found.tokens) == expected
    assert found.tokens != plain.translate_batch(["Open the file."], **EN_DE)[0].tokens


def test_where_nothing_is_set(tiny_bundle: Path, tmp_path: Path) -> None:
    """What every published checkpoint of the family sets, within the 64 positions of this one."""
    bundle = edited(tiny_bundle, tmp_path / "bundle", max_length=None)
    assert Translator(bundle).defaults == SearchOptions(
        beam_size=5, max_length=64, early_stopping=True
    )
