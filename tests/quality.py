"""The quality loss of a precision: chrF lost against transformers in fp32, by direction."""

from __future__ import annotations

import sacrebleu

import golden
from m2m100_onnx import Translator


def chrf_lost(translator: Translator, every: int = 1) -> dict[str, float]:
    """Returns the loss in seven directions with beam 5, on every `every`-th test line."""
    expected = golden.load_golden()
    losses = {}
    for case in golden.whole_cases():
        if case.options["beam_size"] != 5:
            continue
        source, target = case.direction.split("-")
        decode = translator.tokenizer.decode
        fp32 = [decode(row[0][0]) for row in expected[case.key][::every]]
        ours = translator.translate(
            case.texts()[::every], source_lang=source, target_lang=target, **case.options
        )
        reference = [golden.Case(f"{target}-{source}", 1, {}).texts()[::every]]
        before, after = (sacrebleu.corpus_chrf(h, reference).score for h in (fp32, ours))
        losses[case.direction] = before - after
    return losses
