"""Measures what a language model's order of hypotheses does to chrF.

The targets are the languages of the demo XLM. The weight is chosen on the dev set and reported on
the test set. Run from the repository's root:

    python benchmarks/rerank.py --model bundles/demo --xlm bundles/xlm

It takes eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import sacrebleu

from m2m100_onnx import LanguageModel, Reranker, Translation, Translator

HELDOUT = Path(__file__).resolve().parent.parent / "demo" / "heldout"
DIRECTIONS = (("en", "de"), ("de", "en"), ("fr", "de"), ("fr", "en"))
WEIGHTS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
BEAMS = 5


def read(part: str, code: str) -> list[str]:
    """Returns the lines of a held-out set."""
    return (HELDOUT / f"{part}.{code}").read_text("utf-8").rstrip("\n").split("\n")


def chrf(translations: list[Translation], references: list[str]) -> float:
    """Returns the chrF of the best hypotheses."""
    return float(sacrebleu.corpus_chrf([t.text for t in translations], [references]).score)


def best_of(translations: list[Translation], references: list[str]) -> float:
    """Returns the chrF of a choice that knows the reference, which no order exceeds by much."""
    chosen = [
        max((h.text for h in t.hypotheses), key=lambda text: _sentence(text, reference))
        for t, reference in zip(translations, references, strict=True)
    ]
    return float(sacrebleu.corpus_chrf(chosen, [references]).score)


def _sentence(text: str, reference: str) -> float:
    return float(sacrebleu.sentence_chrf(text, [reference]).score)


def main() -> None:
    """Prints a line of JSON for each direction."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Bundle of the demo checkpoint.")
    parser.add_argument("--xlm", required=True, help="Bundle of the demo XLM.")
    given = parser.parse_args()
    translator, model = Translator(given.model), LanguageModel(given.xlm)
    for source, target in DIRECTIONS:
        row: dict[str, object] = {"direction": f"{source}-{target}"}
        for part in ("dev", "test"):
            references = read(part, target)
            plain = translator.translate_batch(
                read(part, source),
                source_lang=source,
                target_lang=target,
                beam_size=BEAMS,
                num_hypotheses=BEAMS,
            )
            found = {0.0: chrf(plain, references)}
            for weight in WEIGHTS:
                ordered = Reranker(model, weight).order(plain, [target] * len(plain))
                found[weight] = chrf(ordered, references)
            if part == "dev":
                row["weight"] = max(found, key=lambda weight: found[weight])
            row[part] = {str(weight): round(value, 2) for weight, value in found.items()}
            row[f"{part}_most"] = round(best_of(plain, references), 2)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
