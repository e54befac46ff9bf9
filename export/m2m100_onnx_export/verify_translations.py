"""Verification of whole translations: greedy and beam search against transformers' `generate`.

Knows when another translation is a matter of rounding. Refuses to know graphs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import torch
from transformers import LogitsProcessor, LogitsProcessorList, M2M100ForConditionalGeneration

from m2m100_onnx.bundle.graphs import Precision
from m2m100_onnx.options import OPTIONS, SearchOptions
from m2m100_onnx.translator import Translator
from m2m100_onnx_export.verify_tokens import ReferenceTokenizer

__all__ = ["TranslationCheck", "compare_translations"]

# Two scores that are closer than this are a tie, and rounding may decide it. Quantized weights
# change more than ties, so their translations are counted and never fail.
_TIE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 3e-2}
_MAX_LENGTH = 48
# Searches with noise that are tried before a difference is no tie. A noise of the size of the gap
# between two beams turns them around in about one search of five.
_TRIALS = 24


@dataclass(frozen=True)
class TranslationCheck:
    """The number of translations of a search method that equal transformers'.

    Attributes:
        method: `greedy` or `beam N`.
        total: the translations compared.
        identical: the translations with the same tokens.
        ties: the translations with other tokens that rounding explains: the scores are the same, or
            transformers finds these tokens itself under noise of the size of rounding.
    """

    method: str
    total: int
    identical: int
    ties: int


class _Noise(LogitsProcessor):  # type: ignore[misc]
    """Adds uniform noise of a given size to every score, the same in every run of a trial."""

    def __init__(self, size: float, trial: int) -> None:
        self.size = size
        self.generator = torch.Generator().manual_seed(trial)

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + (torch.rand(scores.shape, generator=self.generator) * 2 - 1) * self.size


def compare_translations(
    model: M2M100ForConditionalGeneration,
    reference: ReferenceTokenizer,
    translator: Translator,
    samples: dict[str, str],
    precision: Precision,
) -> tuple[TranslationCheck, ...]:
    """Returns the check of a greedy search and of the bundle's beam search.

    Args:
        model: transformers' model on the bundle's checkpoint.
        reference: transformers' tokenizer.
        translator: the bundle.
        samples: a text for each language; each is translated to the language of the next.
        precision: the bundle's precision, which sets what counts as a tie.
    """
    # `_generate` gives lengths as tokens in all; these would win.
    model.generation_config.max_new_tokens = model.generation_config.min_new_tokens = None
    model.generation_config.forced_bos_token_id = None  # `_generate` forces what the family forces
    tie = _TIE.get(precision, math.inf)
    return tuple(
        _compare(model, reference, translator, samples, beam_size, tie)
        for beam_size in sorted({1, max(2, translator.defaults.beam_size)})
    )


def _compare(
    model: M2M100ForConditionalGeneration,
    reference: ReferenceTokenizer,
    translator: Translator,
    samples: dict[str, str],
    beam_size: int,
    tie: float,
) -> TranslationCheck:
    codes = list(samples)
    targets = codes[1:] + codes[:1]
    max_length = min(_MAX_LENGTH, translator.defaults.max_length)
    options = replace(
        translator.defaults,
        beam_size=beam_size,
        do_sample=False,
        num_hypotheses=1,
        max_length=max_length,
        min_length=min(translator.defaults.min_length, max_length),
        # transformers 5 has no groups; stops are no matter of graphs.
        num_beam_groups=1,
        diversity_penalty=0.0,
        stop_sequences=(),
    )
    found = translator.translate_batch(
        list(samples.values()), source_lang=codes, target_lang=targets, **asdict(options)
    )
    identical = ties = 0
    for code, target, ours in zip(codes, targets, found, strict=True):
        ids = torch.tensor([reference.encode(samples[code], code, target)])
        forced = reference.forced_id(target)
        tokens, score = _generate(model, ids, forced, options)
        if tokens == ours.tokens:
            identical += 1
        else:
            ties += abs(score - ours.score) <= tie or any(
                _generate(model, ids, forced, options, noise)[0] == ours.tokens
                for noise in (_Noise(tie, trial) for trial in range(_TRIALS))
            )
    method = "greedy" if beam_size == 1 else f"beam {beam_size}"
    return TranslationCheck(method, len(codes), identical, ties)


_LEFT_OUT = ("num_beam_groups", "diversity_penalty", "stop_sequences")
"""Options that are off in this comparison."""


def _generate(
    model: M2M100ForConditionalGeneration,
    ids: torch.Tensor,
    language: int | None,
    options: SearchOptions,
    noise: _Noise | None = None,
) -> tuple[tuple[int, ...], float]:
    """Returns the tokens and the score of transformers' translation."""
    named = {
        row.transformers: row.name
        for row in OPTIONS.values()
        if row.transformers and row.name not in _LEFT_OUT
    }
    settings = {theirs: getattr(options, ours) for theirs, ours in named.items()}
    # transformers takes a list here, and None where there is nothing to suppress.
    settings["suppress_tokens"] = list(options.suppress_tokens) or None
    settings["bad_words_ids"] = [list(ids) for ids in options.suppress_sequences] or None
    settings["min_p"] = options.min_p or None
    if options.beam_size == 1:
        settings["early_stopping"] = False  # transformers warns of it in a greedy search
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            forced_bos_token_id=language,
            return_dict_in_generate=True,
            output_scores=True,
            logits_processor=LogitsProcessorList([noise] if noise else []),
            **settings,
        )
    return tuple(output.sequences[0].tolist()), _score(model, output, options)


def _score(model: M2M100ForConditionalGeneration, output: object, options: SearchOptions) -> float:
    if options.beam_size > 1:
        return float(output.sequences_scores[0])  # type: ignore[attr-defined]
    steps = model.compute_transition_scores(
        output.sequences,  # type: ignore[attr-defined]
        output.scores,  # type: ignore[attr-defined]
        normalize_logits=True,
    )[0]
    return float(steps.sum() / len(steps) ** options.length_penalty)
