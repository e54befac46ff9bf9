"""Verification: compares a bundle with PyTorch, graph by graph and by whole translations.

The reference is transformers' model on the same checkpoint. The other side is the bundle as a user
runs it. Refuses to know how graphs are built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import M2M100ForConditionalGeneration

from m2m100_onnx.bundle.graphs import (
    CROSS_ATTENTION_FILE,
    DECODER_FILE,
    DECODER_WITH_PAST_FILE,
    ENCODER_FILE,
    FUSED_FILES,
    FUSED_RANK_FILE,
    FUSED_SOURCE_FILE,
    FUSED_STEP_FILE,
    NATIVE_FILES,
    NATIVE_FP16_STEP_FILE,
    Precision,
)
from m2m100_onnx.errors import ExportError, InvalidInputError
from m2m100_onnx.model.fused import FusedState
from m2m100_onnx.search.state import DecoderState, Float32Array, Ranking
from m2m100_onnx.translator import Translator
from m2m100_onnx_export.checkpoint import Checkpoint
from m2m100_onnx_export.reference import load_reference
from m2m100_onnx_export.verify_tokens import reference_tokenizer
from m2m100_onnx_export.verify_translations import TranslationCheck, compare_translations

__all__ = ["TOLERANCE", "Report", "TranslationCheck", "all_log_probs", "verify"]

# Largest difference of a graph's output, relative to the largest number in PyTorch's output.
TOLERANCE: dict[Precision, float] = {
    "fp32": 1e-4,
    "fp16": 2e-2,
    "int8": 0.2,
    "int4": 0.6,
    "int4-int8": 0.6,
}
_ATTENTION_TOLERANCE = 1e-3
"""Least accepted mean total variation of weights of attention, which is at most 1."""
# Target tokens that a decoder takes at once, and tokens in all.
_PREFILL, _TARGET_LENGTH = 4, 7
_SAMPLES = {
    "en": "Open the file and save a copy before you close the window.",
    "de": "Die Datei wurde nicht gefunden.",
    "fr": "Voulez-vous supprimer ce dossier ?",
    "es": "El archivo ya existe.",
    "ru": "Введите имя пользователя и пароль.",
    "zh": "请选择要打开的文件。",
}
# The codes that NLLB has for the languages of the samples.
_FLORES = dict(
    zip(
        _SAMPLES,
        ("eng_Latn", "deu_Latn", "fra_Latn", "spa_Latn", "rus_Cyrl", "zho_Hans"),
        strict=True,
    )
)


@dataclass(frozen=True)
class Report:
    """The measurements of a verification.

    Attributes:
        differences: the largest absolute difference from PyTorch, by graph; of weights of attention
            the mean total variation.
        tolerances: the largest accepted difference, by graph.
        translations: one check for each search method.
        tokens: what the tokenizer does otherwise than transformers', in words.
        merged_by: who merged the adapter into PyTorch's model; empty without an adapter.
    """

    differences: dict[str, float]
    tolerances: dict[str, float]
    translations: tuple[TranslationCheck, ...]
    tokens: tuple[str, ...] = ()
    merged_by: str = ""

    def raise_if_failed(self) -> None:
        """Raises an error if the bundle differs from PyTorch by more than rounding.

        Raises:
            ExportError: tokens differ, or a graph or a translation differs too much; the message
                names all of them.
        """
        failed = list(self.tokens)
        failed += [
            f"{graph}: largest difference {self.differences[graph]:.3g}, accepted up to {limit:.3g}"
            for graph, limit in self.tolerances.items()
            if not self.differences[graph] <= limit
        ]
        failed += [
            f"{check.method}: expected {check.total} translations to equal transformers', "
            f"found {check.identical}"
            for check in self.translations
            if check.identical + check.ties < check.total
        ]
        if failed:
            raise ExportError("verification against PyTorch failed: " + "; ".join(failed))

    def lines(self) -> list[str]:
        """Returns the report as text, one line for each measurement."""
        lines = [
            f"{graph}: largest difference from PyTorch {difference:.2e}"
            for graph, difference in self.differences.items()
        ]
        lines += [
            f"{check.method}: {check.identical} of {check.total} translations equal transformers'"
            + (f", {check.ties} tied in score" if check.ties else "")
            for check in self.translations
        ]
        if self.merged_by:
            lines.append(f"PyTorch's model had the adapter merged by {self.merged_by}")
        return lines


_Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Batch:
    """The input of the graph comparison: `(B, S)` padded sources, their mask, `(B, T)` targets."""

    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]


def verify(checkpoint: Checkpoint, bundle: Path, precision: Precision) -> Report:
    """Measures the differences between a bundle and PyTorch on the bundle's checkpoint.

    The report says whether they are acceptable; see `Report.raise_if_failed`.
    """
    model, merged_by = load_reference(checkpoint)
    if precision == "fp16":
        # The reference has rounded weights too, so the comparison is of the arithmetic alone.
        model = model.half()
    model = model.float()
    # Without sampling, which is random, and without entries of a folder that is gone soon.
    given: dict[str, Any] = {"sp_model_kwargs": {}, "cache_dir": False}
    translator = Translator(bundle, kernels=False, **given)
    reference = reference_tokenizer(checkpoint.directory, translator.tokenizer.family)
    samples = _samples(translator)
    if tokens := tuple(reference.differences(translator.tokenizer, samples)):
        return Report({}, {}, (), tokens, merged_by)
    # Native graphs run where the package of operators is installed.
    opened = [translator]
    if translator.bundle.has_native_graphs:
        native = Translator(bundle, lazy=True, **given)
        if native.model.native:
            opened += [native, Translator(bundle, lazy=True, kv_cache_dtype="float16", **given)]
    differences, tolerances = _compare_graphs(model, opened, TOLERANCE[precision])
    if any(not differences[name] <= limit for name, limit in tolerances.items()):
        # Translations of wrong graphs tell no more, and a search refuses NaN.
        return Report(differences, tolerances, (), merged_by=merged_by)
    checks = compare_translations(model, reference, translator, samples, precision)
    return Report(differences, tolerances, checks, merged_by=merged_by)


def _samples(translator: Translator) -> dict[str, str]:
    names = list(_SAMPLES.items())
    names += [(_FLORES[code], text) for code, text in names]
    found = {code: text for code, text in names if code in translator.languages}
    # For other languages any text will do: both sides read the same tokens.
    return found or {translator.languages[0]: _SAMPLES["en"]}


def _compare_graphs(
    model: M2M100ForConditionalGeneration, opened: Sequence[Translator], tolerance: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns each graph's largest difference from PyTorch, and the largest accepted one."""
    batch = _make_batch(opened[0])
    expected = _run_pytorch(model, batch)
    found = _run_portable(opened[0], batch)
    for translator in opened:
        if translator.model.fused:
            found |= _run_fused(translator, batch)
    expected |= {
        native: expected[fused] for native, fused in zip(NATIVE_FILES, FUSED_FILES, strict=True)
    }
    expected[NATIVE_FP16_STEP_FILE] = expected[FUSED_STEP_FILE]
    differences = {file: _difference(file, ours, expected[file]) for file, ours in found.items()}
    tolerances = {file: tolerance * max(1.0, float(np.abs(expected[file]).max())) for file in found}
    # A softmax makes more of a difference than there is in what it is taken of.
    tolerances[CROSS_ATTENTION_FILE] = max(tolerance / 2, _ATTENTION_TOLERANCE)
    return differences, tolerances


def _difference(file: str, ours: npt.NDArray[Any], expected: npt.NDArray[np.float32]) -> float:
    """Returns the largest difference; of attention the mean total variation, which is at most 1.

    Of two words that weigh nearly the same, rounding takes one: the largest difference is near 1
    with four bits, whatever the graph computes.
    """
    lost = np.abs(ours.astype(np.float32) - expected)
    return float(lost.sum(-1).mean() / 2 if file == CROSS_ATTENTION_FILE else lost.max())


def _make_batch(translator: Translator) -> _Batch:
    """Makes a batch with padded sources; the targets are random tokens."""
    tokenizer, config = translator.tokenizer, translator.bundle.config
    sources = [tokenizer.encode(text, code, code) for code, text in _samples(translator).items()]
    length = max(map(len, sources))
    ids = np.array([s + [config.pad_token_id] * (length - len(s)) for s in sources], np.int64)
    mask = np.array([[1] * len(s) + [0] * (length - len(s)) for s in sources], np.int64)
    shape = (len(ids), _TARGET_LENGTH)
    target = np.random.default_rng(0).integers(4, config.vocab_size, shape)
    target[:, 0] = config.decoder_start_token_id
    return _Batch(ids, mask, target)


def _run_pytorch(model: M2M100ForConditionalGeneration, batch: _Batch) -> dict[str, _Floats]:
    """Returns what each graph should compute, with 0 at padding, which no graph reads."""
    heads = model.config.decoder_attention_heads
    with torch.inference_mode():
        attention = torch.from_numpy(batch.mask)
        encoded = model.model.encoder(torch.from_numpy(batch.ids), attention).last_hidden_state
        output = model.model.decoder(
            torch.from_numpy(batch.target),
            encoder_hidden_states=encoded,
            encoder_attention_mask=attention,
            output_attentions=True,
        )
        decoded = output.last_hidden_state
        logits = model.lm_head(decoded)
        log_probs = logits.log_softmax(-1).numpy()
        source = torch.stack(
            [
                projection(encoded).unflatten(-1, (heads, -1)).transpose(1, 2)
                for layer in model.model.decoder.layers
                for projection in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj)
            ]
        )
    return {
        ENCODER_FILE: encoded.numpy() * batch.mask[..., None],
        DECODER_FILE: logits.numpy()[:, :_PREFILL],
        DECODER_WITH_PAST_FILE: np.repeat(logits.numpy()[:, _PREFILL:], 2, axis=0),
        CROSS_ATTENTION_FILE: torch.stack(output.cross_attentions).numpy(),
        FUSED_SOURCE_FILE: source.numpy() * batch.mask[:, None, :, None],
        FUSED_STEP_FILE: decoded.numpy()[:, _PREFILL - 1 :],
        FUSED_RANK_FILE: log_probs[:, _PREFILL - 1 :],
    }


def _run_portable(translator: Translator, batch: _Batch) -> dict[str, _Floats]:
    """Runs the portable graphs: a prefix, then the other tokens at once with two beams."""
    encoded = _run(translator, ENCODER_FILE, input_ids=batch.ids, attention_mask=batch.mask)
    hidden = encoded["last_hidden_state"]
    first = _run(
        translator,
        DECODER_FILE,
        encoder_attention_mask=batch.mask,
        input_ids=batch.target[:, :_PREFILL],
        encoder_hidden_states=hidden,
    )
    past = {k.replace("present", "past_key_values"): v for k, v in first.items() if k != "logits"}
    then = _run(
        translator,
        DECODER_WITH_PAST_FILE,
        encoder_attention_mask=batch.mask,
        input_ids=np.repeat(batch.target[:, _PREFILL:], 2, axis=0),
        **{k: np.repeat(v, 2, axis=0) if ".decoder." in k else v for k, v in past.items()},
    )
    weights = _run(
        translator,
        CROSS_ATTENTION_FILE,
        encoder_attention_mask=batch.mask,
        input_ids=batch.target,
        encoder_hidden_states=hidden,
    )
    return {
        CROSS_ATTENTION_FILE: np.stack(list(weights.values())),
        ENCODER_FILE: hidden * batch.mask[..., None],
        DECODER_FILE: first["logits"],
        DECODER_WITH_PAST_FILE: then["logits"],
    }


def _run_fused(translator: Translator, batch: _Batch) -> dict[str, _Floats]:
    """Runs the fused or the native graphs: a prefix, then one token at a time."""
    files = translator.model.files
    found = _run(translator, files[0], input_ids=batch.ids, attention_mask=batch.mask)
    source = np.stack(list(found.values())) * batch.mask[:, None, :, None]
    return dict(zip(files, (source, *_fused_steps(translator, batch)), strict=True))


def _fused_steps(translator: Translator, batch: _Batch) -> tuple[_Floats, _Floats]:
    """Feeds the targets to two beams, which change places at every step.

    Returns:
        `(B, T, D)` outputs of the last layer and `(B, T, V)` log-probabilities, both after the
        prefix and after each later token.
    """
    target, sentences = batch.target, np.arange(len(batch.ids))
    state = translator.model.begin(batch.ids, batch.mask, target[:, :_PREFILL])
    assert isinstance(state, FusedState)
    hidden_states, log_probs = [], []
    for position in range(_PREFILL, _TARGET_LENGTH + 1):
        scores = all_log_probs(state, state.rows)
        beams = len(scores) // len(sentences)
        log_probs.append(scores[::beams])
        hidden_states.append(state.hidden_states[::beams].copy())
        if position < _TARGET_LENGTH:
            parents = [1, 0] if beams == 2 else [0, 0]
            state.select((sentences[:, None] * beams + parents).reshape(-1))
            state.step(np.repeat(target[:, position : position + 1], 2, axis=0))
    return np.stack(hidden_states, axis=1), np.stack(log_probs, axis=1)


def all_log_probs(state: DecoderState, rows: int) -> Float32Array:
    """Returns the `(R, V)` log-probabilities of the next token.

    All are NaN, which no tolerance accepts, where one of them is.
    """
    try:
        ranked = state.best(Ranking(count=state.vocab_size))
    except InvalidInputError:
        return np.full((rows, state.vocab_size), np.nan, np.float32)
    scores = np.empty_like(ranked.scores)
    np.put_along_axis(scores, ranked.tokens, ranked.scores, axis=1)
    return scores


def _run(
    translator: Translator, file: str, **inputs: npt.NDArray[np.generic]
) -> dict[str, npt.NDArray[np.float32]]:
    session = translator.model.sessions.get(file)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
