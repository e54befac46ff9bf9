"""PyTorch against ONNX: each graph's numbers, then whole translations token by token.

The reference is transformers' model on the same checkpoint; the other side is the bundle as a user
would run it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import M2M100ForConditionalGeneration

from m2m100_onnx.bundle import (
    DECODER_FILE,
    DECODER_WITH_PAST_FILE,
    ENCODER_FILE,
    FUSED_RANK_FILE,
    FUSED_SOURCE_FILE,
    FUSED_STEP_FILE,
    Precision,
)
from m2m100_onnx.errors import ExportError, InvalidInputError
from m2m100_onnx.fused import FusedCache
from m2m100_onnx.ranking import Ranking
from m2m100_onnx.translator import Translator
from m2m100_onnx_export.checkpoint import Checkpoint

__all__ = ["Report", "TranslationCheck", "verify"]

# Largest difference of a graph's output, relative to the largest number in PyTorch's output.
_TOLERANCE: dict[Precision, float] = {
    "fp32": 1e-4,
    "fp16": 2e-2,
    "int8": 0.2,
    "int4": 0.6,
    "int4-int8": 0.6,
}
# Two hypotheses whose scores are closer than this are a tie, which rounding may decide. Quantized
# weights decide more than ties: there translations are counted and not judged.
_TIE: dict[Precision, float] = {"fp32": 1e-4, "fp16": 3e-2}
_MAX_LENGTH = 48
_SAMPLES = {
    "en": "Open the file and save a copy before you close the window.",
    "de": "Die Datei wurde nicht gefunden.",
    "fr": "Voulez-vous supprimer ce dossier ?",
    "es": "El archivo ya existe.",
    "ru": "Введите имя пользователя и пароль.",
    "zh": "请选择要打开的文件。",
}


@dataclass(frozen=True)
class TranslationCheck:
    """How many whole translations of one search method equal transformers'.

    Attributes:
        method: `greedy` or `beam N`.
        total: translations compared.
        identical: those with the same tokens.
        ties: those with other tokens and the same score, within rounding.
    """

    method: str
    total: int
    identical: int
    ties: int


@dataclass(frozen=True)
class Report:
    """What verification measured.

    Attributes:
        differences: largest absolute difference from PyTorch, by graph.
        tolerances: the largest that is accepted, by graph.
        translations: one entry a search method.
    """

    differences: dict[str, float]
    tolerances: dict[str, float]
    translations: tuple[TranslationCheck, ...]

    def raise_if_failed(self) -> None:
        """Raises.

        Raises:
            ExportError: a graph or a translation differs from PyTorch's by more than rounding.
        """
        failed = [
            f"{graph}: largest difference {self.differences[graph]:.3g}, accepted {limit:.3g}"
            for graph, limit in self.tolerances.items()
            if not self.differences[graph] <= limit
        ] + [
            f"{check.method}: {check.identical} of {check.total} translations are transformers'"
            for check in self.translations
            if check.identical + check.ties < check.total
        ]
        if failed:
            raise ExportError("verification against PyTorch failed: " + "; ".join(failed))

    def lines(self) -> list[str]:
        """The report for people, a line each."""
        return [
            f"{graph}: largest difference from PyTorch {difference:.2e}"
            for graph, difference in self.differences.items()
        ] + [
            f"{check.method}: {check.identical} of {check.total} translations equal transformers'"
            + (f", {check.ties} tied in score" if check.ties else "")
            for check in self.translations
        ]


def verify(checkpoint: Checkpoint, bundle: Path, precision: Precision) -> Report:
    """Compares a bundle with PyTorch on the checkpoint it was made from; judges nothing."""
    transformers.utils.logging.disable_progress_bar()
    model = M2M100ForConditionalGeneration.from_pretrained(
        checkpoint.directory, dtype=torch.float32
    )
    if precision == "fp16":
        # The weights' rounding is what was asked for; what is checked is the arithmetic after it.
        model = model.half()
    model = model.float().eval()
    translator = Translator(bundle)
    differences, tolerances = _compare_graphs(model, translator, _TOLERANCE[precision])
    if any(not differences[name] <= limit for name, limit in tolerances.items()):
        # What such graphs translate says nothing more, and a search refuses what is not finite.
        return Report(differences, tolerances, ())
    checks = tuple(
        _compare_translations(model, translator, beam_size, _TIE.get(precision, math.inf))
        for beam_size in sorted({1, max(2, translator.defaults.beam_size)})
    )
    return Report(differences, tolerances, checks)


def _samples(translator: Translator) -> dict[str, str]:
    found = {code: text for code, text in _SAMPLES.items() if code in translator.languages}
    # A checkpoint of other languages is still checked: what the text says does not matter.
    return found or {translator.languages[0]: _SAMPLES["en"]}


def _compare_graphs(
    model: M2M100ForConditionalGeneration, translator: Translator, tolerance: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Runs the graphs on a padded batch, with more than one token at a time and with two beams."""
    sources = [translator.tokenizer.encode(t, c) for c, t in _samples(translator).items()]
    config = translator.bundle.config
    length = max(map(len, sources))
    ids = np.array([s + [config.pad_token_id] * (length - len(s)) for s in sources], np.int64)
    mask = np.array([[1] * len(s) + [0] * (length - len(s)) for s in sources], np.int64)
    start, size = 4, 7
    target = np.random.default_rng(0).integers(4, len(translator.tokenizer), (len(ids), size))
    target[:, 0] = config.decoder_start_token_id

    real = translator.model.real
    encoder = _run(translator, ENCODER_FILE, input_ids=ids, attention_mask=mask)
    hidden = encoder["last_hidden_state"]
    first = _run(
        translator,
        DECODER_FILE,
        encoder_attention_mask=mask,
        input_ids=target[:, :start],
        encoder_hidden_states=hidden.astype(real),
    )
    past = {k.replace("present", "past_key_values"): v for k, v in first.items() if k != "logits"}
    beams = {k: np.repeat(v, 2, axis=0) if ".decoder." in k else v for k, v in past.items()}
    then = _run(
        translator,
        DECODER_WITH_PAST_FILE,
        encoder_attention_mask=mask,
        input_ids=np.repeat(target[:, start:], 2, axis=0),
        **beams,
    )

    with torch.inference_mode():
        attention = torch.from_numpy(mask)
        encoded = model.model.encoder(torch.from_numpy(ids), attention).last_hidden_state
        decoded = model.model.decoder(
            torch.from_numpy(target),
            encoder_hidden_states=encoded,
            encoder_attention_mask=attention,
        ).last_hidden_state
        expected = model.lm_head(decoded).numpy()
        keys = [
            layer.encoder_attn.k_proj(encoded).unflatten(-1, (config.decoder_attention_heads, -1))
            for layer in model.model.decoder.layers
        ]
    # What the encoder puts at padding is never read, and differs with the kernel.
    pairs = {
        ENCODER_FILE: (hidden * mask[..., None], encoded.numpy() * mask[..., None]),
        DECODER_FILE: (first["logits"], expected[:, :start]),
        DECODER_WITH_PAST_FILE: (then["logits"], np.repeat(expected[:, start:], 2, axis=0)),
    }
    if translator.model.fused:
        file, places = FUSED_SOURCE_FILE, mask[:, None, :, None]
        found = _run(translator, file, input_ids=ids, attention_mask=mask)
        ours = np.stack([found[f"present.{i}.encoder.key"] for i in range(len(keys))]) * places
        pairs[file] = ours, torch.stack(keys).transpose(2, 3).numpy() * places
        log_probs = torch.from_numpy(expected).log_softmax(-1).numpy()[:, start - 1 :]
        hidden_states, found_probs = _fused_steps(translator, ids, mask, target, start)
        pairs[FUSED_STEP_FILE] = hidden_states, decoded.numpy()[:, start - 1 :]
        pairs[FUSED_RANK_FILE] = found_probs, log_probs
    differences = {f: float(np.abs(a.astype(np.float32) - b).max()) for f, (a, b) in pairs.items()}
    tolerances = {f: tolerance * max(1.0, float(np.abs(b).max())) for f, (_, b) in pairs.items()}
    return differences, tolerances


def _fused_steps(
    translator: Translator,
    ids: npt.NDArray[np.int64],
    mask: npt.NDArray[np.int64],
    target: npt.NDArray[np.int64],
    start: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Of a beam that changes its row at every step, what follows token `start` and the later ones.

    Returns:
        `(B, T, D)` outputs of the last layer and `(B, T, V)` log-probabilities.
    """
    state = translator.model.begin(ids, mask, target[:, :start])
    assert isinstance(state, FusedCache)
    sentences = np.arange(len(ids))
    hidden_states, found = [], []
    for position in range(start, target.shape[1] + 1):
        try:
            ranked = state.best(Ranking(count=state.vocab_size))
        except InvalidInputError:  # not a number; no difference is as large
            nothing = np.full((len(ids), target.shape[1] + 1 - start, 1), np.nan, np.float32)
            return nothing, nothing
        scores = np.empty_like(ranked.scores)
        np.put_along_axis(scores, ranked.tokens, ranked.scores, axis=1)
        rows_a_sentence = len(scores) // len(ids)
        found.append(scores[::rows_a_sentence])
        hidden_states.append(state.hidden_states[::rows_a_sentence].copy())
        if position < target.shape[1]:
            swapped = [1, 0] if position > start else [0, 0]
            beams = 2 if position > start else 1
            state.select((sentences[:, None] * beams + swapped).reshape(-1))
            state.step(np.repeat(target[:, position : position + 1], 2, axis=0))
    return np.stack(hidden_states, axis=1), np.stack(found, axis=1)


def _run(
    translator: Translator, file: str, **inputs: npt.NDArray[np.generic]
) -> dict[str, npt.NDArray[np.float32]]:
    session = translator.model.session(file)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def _compare_translations(
    model: M2M100ForConditionalGeneration, translator: Translator, beam_size: int, tie: float
) -> TranslationCheck:
    samples = _samples(translator)
    codes = list(samples)
    targets = codes[1:] + codes[:1]
    defaults = translator.defaults
    max_length = min(_MAX_LENGTH, defaults.max_length)
    found = translator.translate_batch(
        list(samples.values()),
        source_lang=codes,
        target_lang=targets,
        beam_size=beam_size,
        num_hypotheses=1,
        max_length=max_length,
    )
    identical = ties = 0
    for code, target, ours in zip(codes, targets, found, strict=True):
        ids = torch.tensor([translator.tokenizer.encode(samples[code], code)])
        with torch.inference_mode():
            reference = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                forced_bos_token_id=translator.tokenizer.language_id(target),
                num_beams=beam_size,
                do_sample=False,
                max_length=max_length,
                min_length=defaults.min_length,
                length_penalty=defaults.length_penalty,
                early_stopping=defaults.early_stopping if beam_size > 1 else False,
                no_repeat_ngram_size=defaults.no_repeat_ngram_size,
                repetition_penalty=defaults.repetition_penalty,
                return_dict_in_generate=True,
                output_scores=True,
            )
        if tuple(reference.sequences[0].tolist()) == ours.tokens:
            identical += 1
            continue
        score = _score(model, reference, beam_size, defaults.length_penalty)
        ties += abs(score - ours.score) <= tie
    method = "greedy" if beam_size == 1 else f"beam {beam_size}"
    return TranslationCheck(method, len(codes), identical, ties)


def _score(
    model: M2M100ForConditionalGeneration, output: object, beam_size: int, length_penalty: float
) -> float:
    if beam_size > 1:
        return float(output.sequences_scores[0])  # type: ignore[attr-defined]
    steps = model.compute_transition_scores(
        output.sequences,  # type: ignore[attr-defined]
        output.scores,  # type: ignore[attr-defined]
        normalize_logits=True,
    )[0]
    return float(steps.sum() / len(steps) ** length_penalty)
