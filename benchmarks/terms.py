"""Measures what terminology does to chrF, and how many terms it brings.

Two glossaries on the demo's held-out texts from English to German: the words that references use,
of `tests/data/terms.en-de.tsv`, and words that they do not, which cost a model most. Run from the
repository's root:

    python benchmarks/terms.py --model bundles/demo
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import sacrebleu

from m2m100_onnx import Translator, read_terms
from m2m100_onnx.text.terms import Finder

ROOT = Path(__file__).resolve().parent.parent
UNUSUAL = {
    "file": ("Dokument", "Dokumente"),
    "game": ("Partie",),
    "page": ("Blatt",),
    "document": ("Schriftstück",),
    "list": ("Aufstellung",),
    "user": ("Nutzer",),
    "settings": ("Optionen",),
    "package": ("Bündel",),
    "server": ("Dienst",),
    "error": ("Problem",),
    "default": ("Vorgabe",),
    "number": ("Ziffer",),
}
BEAMS = (5, 8, 12)


def read(code: str) -> list[str]:
    """Returns the lines of the test set."""
    path = ROOT / "demo" / "heldout" / f"test.{code}"
    return path.read_text("utf-8").rstrip("\n").split("\n")


def present(
    sources: Sequence[str], texts: Sequence[str], terms: Mapping[str, Sequence[str]]
) -> float:
    """Returns the share of the terms of all sources whose targets are there, in percent."""
    there = wanted = 0
    in_source = Finder(terms)
    for source, text in zip(sources, texts, strict=True):
        found = list(in_source(source))
        for term in set(found):
            wanted += found.count(term)
            there += min(found.count(term), len(list(Finder(terms[term])(text))))
    return 100 * there / wanted


def main() -> None:
    """Prints a line of JSON for each glossary and number of beams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Bundle of the demo checkpoint.")
    translator = Translator(parser.parse_args().model)
    sources, references = read("en"), read("de")
    usual = read_terms(ROOT / "tests" / "data" / "terms.en-de.tsv", "en", "de")
    for name, terms in (("of the references", usual), ("unusual", UNUSUAL)):
        in_source = Finder(terms)
        bound = [n for n, source in enumerate(sources) if any(in_source(source))]
        some, refs = [sources[n] for n in bound], [[references[n] for n in bound]]
        for beams in BEAMS:
            row: dict[str, object] = {"terms": name, "beams": beams, "texts": len(bound)}
            for kind, given in (("without", None), ("with", terms)):
                texts = translator.translate(
                    some, source_lang="en", target_lang="de", beam_size=beams, terms=given
                )
                row[f"chrf {kind}"] = round(sacrebleu.corpus_chrf(texts, refs).score, 2)
                row[f"present {kind}"] = round(present(some, texts, terms), 1)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
