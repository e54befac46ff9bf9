"""A generation config: the options and ids that it names, and the settings that are refused.

transformers' `generate` heeds every key of the file. A key that this project has no equal for is
refused by name where its value would change a translation. Refuses to know models and calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from m2m100_onnx.bundle.config import CONFIG_FILE, ModelConfig, read_json
from m2m100_onnx.errors import BundleError, InvalidInputError
from m2m100_onnx.options import OPTIONS, SearchOptions

__all__ = ["GENERATION_CONFIG_FILE", "options_from_config", "read_generation"]

GENERATION_CONFIG_FILE = "generation_config.json"

# Settings that change translations and that this search lacks, with the values that change nothing.
# `forced_bos_token_id` is no such setting: a call's target language overrides it, as an argument of
# `generate` does. Neither is `pad_token_id`, which fills what a result does not have.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "begin_suppress_tokens": ([],),
    "constraints": ([],),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": ([],),
    "forced_decoder_ids": ([],),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "max_time": (),
    "penalty_alpha": (0,),
    "renormalize_logits": (False,),
    "sequence_bias": ({}, []),
    "token_healing": (False,),
    "watermarking_config": ({},),
}


_OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def read_generation(root: Path, config: ModelConfig) -> tuple[Path, dict[str, Any], ModelConfig]:
    """Reads the generation config of a bundle or checkpoint.

    Args:
        root: the folder.
        config: the facts of its config.json.

    Returns:
        The file, which is config.json where there is no generation_config.json; its contents; and
        `config` with the ids that the file names.

    Raises:
        BundleError: the file is broken, or has a setting that the search cannot heed.
    """
    path = root / GENERATION_CONFIG_FILE
    if not path.exists():
        # Checkpoints older than generation_config.json have these settings in config.json.
        path = root / CONFIG_FILE
    raw = read_json(path)
    for name, values in _WITHOUT_EFFECT.items():
        if (value := raw.get(name)) is not None and value not in values:
            raise BundleError(
                f"{path}: {name} is not supported, found {value!r}; transformers' generate heeds "
                "it, so translations would differ; remove it to go without"
            )
    if path.name == CONFIG_FILE:
        return path, raw, config
    end = _one_id(path, raw, "eos_token_id", config)
    start = _one_id(path, raw, "decoder_start_token_id", config)
    if start is None:
        start = _one_id(path, raw, "bos_token_id", config)  # as transformers' generate does
    return (
        path,
        raw,
        replace(
            config,
            eos_token_id=config.eos_token_id if end is None else end,
            decoder_start_token_id=config.decoder_start_token_id if start is None else start,
        ),
    )


def _one_id(path: Path, raw: Mapping[str, Any], name: str, config: ModelConfig) -> int | None:
    """Returns the id that the file names, None where it names none."""
    value = raw.get(name)
    ids = value if isinstance(value, list) else [value]
    if value is None:
        return None
    if len(ids) != 1 or type(ids[0]) is not int or not 0 <= ids[0] < config.vocab_size:
        raise BundleError(
            f"{path}: expected {name} to be one id from 0 to {config.vocab_size - 1}, "
            f"found {value!r}"
        )
    return int(ids[0])


def options_from_config(
    config: Mapping[str, Any], *, is_generation_config: bool, positions: int
) -> SearchOptions:
    """Reads the options of a generation_config.json, or of an old checkpoint's config.json.

    A generation config that does not name an option stands for transformers' default. A
    config.json that does not name one stands for M2M100's.

    Args:
        config: the file's contents.
        is_generation_config: which of the two it is.
        positions: the model's positions, which `max_length` never exceeds.

    Raises:
        InvalidInputError: the file asks for something that cannot be.
    """
    rows = [row for row in OPTIONS.values() if row.transformers]
    silent = {row.name: row.silent if is_generation_config else row.default for row in rows}
    named = {row.name: config.get(row.transformers or "") for row in rows}
    values = {name: silent[name] if value is None else value for name, value in named.items()}
    if isinstance(values["stop_sequences"], str):
        values["stop_sequences"] = [text] if (text := values["stop_sequences"]) else []
    if values["do_sample"] is False:
        # transformers does not look at what sampling alone heeds.
        for name in _OF_SAMPLING:
            values[name] = _checked(name, values[name], silent[name])
    if is_generation_config and named["max_length"] is None:
        values["max_length"] += 1  # transformers' default alone does not count the start token
    for name in ("max_length", "min_length"):
        # transformers counts these from behind the start token, and lets them win.
        if (new := config.get(name.replace("length", "new_tokens"))) is not None:
            values[name] = OPTIONS[name].check(new) + 1
    length = min(OPTIONS["max_length"].check(values["max_length"]), positions)
    values["max_length"] = length
    if named["max_length"] is None:
        values["min_length"] = min(OPTIONS["min_length"].check(values["min_length"]), length)
    return SearchOptions(**values)


def _checked(name: str, value: Any, otherwise: Any) -> Any:
    """Returns a value that an option may have, and `otherwise` in place of any other."""
    try:
        return OPTIONS[name].check(value)
    except InvalidInputError:
        return otherwise
