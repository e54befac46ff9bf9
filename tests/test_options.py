"""Options of a call: ranges, names, and defaults from the generation config."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, M2M100ForConditionalGeneration

from m2m100_onnx import (
    OPTIONS,
    Bundle,
    BundleError,
    InvalidInputError,
    SearchOptions,
    TranslateOptions,
    Translator,
)
from m2m100_onnx.options import CallOptions, Option
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
        ({"suppress_tokens": {5}}, "suppress_tokens.*list or tuple"),
        ({"suppress_tokens": "5"}, "suppress_tokens.*list or tuple"),
        ({"suppress_tokens": (10609,)}, "suppress"),
        ({"max_batch_tokens": 0}, "max_batch_tokens.*0"),
        ({"max_batch_tokens": "9"}, "max_batch_tokens.*'9'"),
        ({"max_batch_tokens": True}, "max_batch_tokens.*True"),
        ({"truncate": "no"}, "truncate.*'no'"),
        ({"beam_size": 2_000_000_000}, "beam_size: expected an int from 1 to 1,024"),
        ({"beam_size": 10**20}, "beam_size: expected an int from 1 to 1,024"),
        ({"beam_size": 10**5000}, "beam_size: expected .* found an int of 16610 bits"),
        ({"suppress_tokens": [-1] * 10**6}, r"suppress_tokens: .{0,300}\.\.\.$"),
        ({"suppress_tokens": [10609]}, "suppress_tokens: expected ids from 0 to 10608"),
        ({"no_repeat_ngram_size": 10**20}, "no_repeat_ngram_size.*1,048,576"),
        ({"repetition_penalty": 10**400}, r"repetition_penalty.*1e\+30"),
        ({"repetition_penalty": 1e-300}, r"repetition_penalty.*1e-30"),
        ({"max_batch_bytes": 0}, "max_batch_bytes.*0"),
        ({"timeout": -1}, "timeout.*-1"),
        ({"timeout": float("nan")}, "timeout.*nan"),
        ({"timeout": "1"}, "timeout.*'1'"),
        ({"do_sample": True, "beam_size": 2}, "do_sample: expected beam_size = 1.*found 2"),
        ({"temperature": 0}, "temperature.*found 0"),
        ({"temperature": -1.0}, "temperature.*-1.0"),
        ({"temperature": float("nan")}, "temperature.*nan"),
        ({"top_p": 0.0}, "top_p.*0.0"),
        ({"top_p": 1.01}, "top_p.*1.01"),
        ({"top_k": -1}, "top_k.*-1"),
        ({"min_p": 2.0}, "min_p.*2.0"),
        ({"seed": -5}, "seed.*-5"),
        ({"patience": 0.5}, "patience: expected a number from 1 to 100, found 0.5"),
        ({"patience": 2.0, "beam_size": 1}, "patience: expected early_stopping = True and beam_s"),
        ({"patience": 2.0, "early_stopping": "never"}, "patience: .*early_stopping = 'never'"),
        ({"suppress_sequences": [5]}, r"suppress_sequences: expected a list of str.*found \[5\]"),
        ({"suppress_sequences": ["\U0001f984"]}, "suppress_sequences: expected words that the voc"),
        ({"stop_sequences": [""]}, r"stop_sequences: .*none of them empty, found \[''\]"),
        ({"stop_sequences": "."}, "stop_sequences: expected a list of str.*found '.'"),
        ({"stop_sequences": [[5, 10609]]}, "stop_sequences: expected ids from 0 to 10608"),
        ({"num_beam_groups": 2, "diversity_penalty": 1.0}, "expected a divisor of beam_size = 5"),
        ({"num_beam_groups": 5}, r"diversity_penalty: expected a number above 0.*found 0\.0"),
        ({"diversity_penalty": 1.0}, r"diversity_penalty: .*found 1\.0 with num_beam_groups = 1"),
        ({"max_length_ratio": 0}, "max_length_ratio: expected a number from 0.001 to 1000"),
        ({"suppress_sequences": [[]]}, r"suppress_sequences: .*none of them empty, found \[\[\]\]"),
        ({"suppress_sequences": [[5, 10609]]}, "suppress_sequences: expected ids from 0 to 10608"),
        ({"max_new_tokens": 1}, "max_new_tokens: expected an int from 2.*found 1"),
        ({"max_new_tokens": 9, "max_length": 9}, "expected either it or max_length, found both"),
        (
            {"min_new_tokens": 9, "max_new_tokens": 8, "target_prefix": ["Das"]},
            "min_new_tokens: expected at most max_new_tokens = 8, found 9",
        ),
        ({"max_new_tokens": 0, "target_prefix": ["Das"]}, "max_new_tokens: expected an int from 1"),
    ],
    ids=lambda value: repr(value) if isinstance(value, str) else "+".join(value),
)
def test_option_out_of_range(translator: Translator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        translator.translate("Quit", **EN_DE, **options)
    with pytest.raises(InvalidInputError, match=message):
        # Streams say so too, and most of them before the first text is read.
        list(translator.translate_iterable(["Quit"], **EN_DE, **options))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("num_beams", "use beam_size"),
        ("num_return_sequences", "use num_hypotheses"),
        ("src_lang", "use source_lang"),
        ("tgt_lang", "use target_lang"),
        ("forced_bos_token_id", "use target_lang"),
        ("max_decoding_length", "use max_length"),
        ("sampling_topk", "use top_k"),
        ("max_time", "use timeout"),
        ("batch_size", "max_batch_tokens counts tokens"),
        ("coverage_penalty", "not supported"),
        ("beamsize", "did you mean beam_size"),
    ],
)
def test_names_of_other_tools_get_ours(translator: Translator, name: str, ours: str) -> None:
    wrong: dict[str, Any] = {name: 4}
    for call in (translator.translate, translator.translate_batch, translator.translate_iterable):
        with pytest.raises(TypeError, match=rf"unknown option: {name} \(.*{re.escape(ours)}"):
            call(["Quit"], **EN_DE, **wrong)


def test_all_unknown_options_are_named(translator: Translator) -> None:
    wrong: dict[str, Any] = {"num_beams": 4, "colour": 2}
    with pytest.raises(TypeError, match=r"unknown option: colour, num_beams \(use beam_size\)"):
        translator.translate("Quit", **EN_DE, **wrong)


def test_what_is_written_for_type_checkers_is_the_table() -> None:
    """A `TypedDict` cannot be made from a table, as checkers read the source."""
    written = {name: str(kind) for name, kind in get_type_hints(TranslateOptions).items()}
    both = {**get_type_hints(SearchOptions), **get_type_hints(CallOptions)}
    table = {name: str(kind) for name, kind in both.items()}
    # A list serves as well as a tuple, and becomes one.
    assert table["suppress_tokens"] == "tuple[int, ...]"
    table["suppress_tokens"] = "tuple[int, ...] | list[int]"
    for name in ("suppress_sequences", "stop_sequences"):
        assert table[name] == "tuple[str | tuple[int, ...], ...]"
        table[name] = str(Sequence[str | Sequence[int]])
    assert written == table
    assert list(written) == list(OPTIONS)


def test_the_table_names_generation_configs_options() -> None:
    """What the table takes for transformers' names and defaults is transformers' own."""
    config = GenerationConfig()
    filled = config._get_default_generation_params()
    for row in OPTIONS.values():
        if row.transformers is not None:
            assert hasattr(config, row.transformers)
            default = filled.get(row.transformers, getattr(config, row.transformers))
            nothing = {
                **dict.fromkeys(("suppress_tokens", "suppress_sequences", "stop_sequences"), ()),
                "min_p": 0.0,
                "diversity_penalty": 0.0,
                "num_beam_groups": 1,
            }
            assert row.silent == (nothing[row.name] if default is None else default), row.name


@pytest.mark.parametrize("row", OPTIONS.values(), ids=lambda row: row.name)
def test_every_option_is_described_and_bounded(row: Option) -> None:
    assert row.check(row.default) == row.default
    assert row.help.endswith(".")
    for bound in (row.low, row.high):
        if bound is not None:
            assert row.check(bound) == bound
    if row.high is not None:
        with pytest.raises(
            InvalidInputError, match=re.escape(f"{row.name}: expected {row.accepted}")
        ):
            row.check(type(row.high)(row.high * 2))


def test_numpy_numbers_and_lists_serve_alike(translator: Translator) -> None:
    plain = {"beam_size": 2, "max_length": 12, "length_penalty": 0.5, "suppress_tokens": (5, 6)}
    numpys: dict[str, Any] = {
        "beam_size": np.int64(2),
        "max_length": np.int32(12),
        "length_penalty": np.float32(0.5),
        "suppress_tokens": [np.int64(5), 6],
        "early_stopping": np.bool_(True),
    }
    assert SearchOptions(**numpys) == SearchOptions(**plain)
    assert all(
        type(value) is type(plain[name])
        for name, value in vars(SearchOptions(**numpys)).items()
        if name in plain
    )
    (found,) = translator.translate_batch(["Open the file."], **EN_DE, **numpys)
    (expected,) = translator.translate_batch(["Open the file."], **EN_DE, **plain)
    assert found == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("beam_size", value) for value in (0, -1, 2.0, True, "5", None)],
        *[("num_hypotheses", value) for value in (0, 6, 1.0, True)],
        *[("max_length", value) for value in (2, -1, 20.0, True, None)],
        *[("min_length", value) for value in (-1, 201, 1.5, False)],
        *[("length_penalty", value) for value in (math.inf, math.nan, 100.0, "1", None, True)],
        *[("early_stopping", value) for value in ("always", 1, 0, None)],
        *[("no_repeat_ngram_size", value) for value in (-1, 2.0, True, None)],
        *[("repetition_penalty", value) for value in (0, 0.0, -1.0, math.inf, math.nan, "1", True)],
        *[("suppress_tokens", value) for value in ({1}, (1.0,), (-1,), (True,), 3, None)],
    ],
)
def test_invalid_options(name: str, value: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        SearchOptions(**{name: value})  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(f"{name}: expected ")
    assert message.endswith(f"found {value!r}")


def test_valid_extremes() -> None:
    options = SearchOptions(beam_size=1, max_length=3, min_length=3, length_penalty=-2)
    assert options.length_penalty == -2
    several = SearchOptions(num_hypotheses=5, repetition_penalty=2, suppress_tokens=(0,))
    assert several.beam_size == 5


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
    with pytest.raises(InvalidInputError, match=r"num_hypotheses.*beam_size = 2, found 3"):
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


def test_a_silent_generation_config_is_transformers_defaults(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A greedy model's file: transformers leaves out what is its default."""
    translator = Translator(edited(tiny_bundle, tmp_path / "bundle", max_length=30))
    model = M2M100ForConditionalGeneration.from_pretrained(tiny_checkpoint).eval()
    model.generation_config = GenerationConfig(
        max_length=30, decoder_start_token_id=2, eos_token_id=2, pad_token_id=1, bos_token_id=0
    )
    for text in ("Open the file.", "Quit", "Select a folder."):
        ids = torch.tensor([translator.encode(text, "en")])
        german = translator.tokenizer.language_id("de")
        expected = model.generate(ids, forced_bos_token_id=german)[0].tolist()
        (found,) = translator.translate_batch([text], **EN_DE)
        assert list(found.tokens) == expected
    assert translator.defaults == SearchOptions(beam_size=1, max_length=30, early_stopping=False)


def test_where_there_is_no_generation_config(tiny_bundle: Path, tmp_path: Path) -> None:
    """What every published checkpoint of the family sets, within the 64 positions of this one."""
    bundle = edited(tiny_bundle, tmp_path / "bundle")
    (bundle.directory / "generation_config.json").unlink()
    assert Translator(bundle.directory).defaults == SearchOptions(
        beam_size=5, max_length=64, early_stopping=True
    )


def test_a_generation_config_that_cannot_be(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = edited(tiny_bundle, tmp_path / "bundle", num_beams=2_000_000_000)
    with pytest.raises(BundleError, match=r"generation_config.json: num_beams: .*1,024"):
        Translator(bundle)
