"""Finds translations by vectors: bitext retrieval on the demo's held-out test set.

The nearest vector, by the cosine after the mean of its language is subtracted, is right where it is
that of the same line. Run from the repository's root:

    python benchmarks/retrieval.py --model bundles/demo
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2m100_onnx import Translator

HELDOUT = Path(__file__).resolve().parent.parent / "demo" / "heldout"
LANGUAGES = ("en", "de", "fr", "es", "ru", "zh")


def vectors(translator: Translator, code: str) -> npt.NDArray[np.float32]:
    """Returns a vector of length 1 for each line of a language, `(N, D)`."""
    lines = (HELDOUT / f"test.{code}").read_text("utf-8").rstrip("\n").split("\n")
    found = translator.embed(lines, source_lang=code)
    found -= found.mean(axis=0)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def main() -> None:
    """Prints the share of lines whose translation is nearest, for each pair of languages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Bundle of the demo checkpoint.")
    translator = Translator(parser.parse_args().model)
    every = {code: vectors(translator, code) for code in LANGUAGES}
    shares = {}
    for source, target in itertools.permutations(LANGUAGES, 2):
        nearest = (every[source] @ every[target].T).argmax(axis=1)
        right = nearest == np.arange(len(nearest))
        shares[f"{source}-{target}"] = round(100 * float(right.mean()), 1)
    print(json.dumps(shares))
    print(json.dumps({"mean": round(sum(shares.values()) / len(shares), 1)}))


if __name__ == "__main__":
    main()
