"""Translates with the installed packages and compares with transformers' translations.

    python tests/versions_check.py BUNDLES

Needs neither torch nor pytest: `scripts/test-versions` runs it where only the runtime is installed.
Knows how close each precision comes to transformers. Knows nothing of the versions it runs with.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from difflib import SequenceMatcher
from importlib import metadata
from pathlib import Path
from statistics import mean
from typing import Any

import golden
from m2m100_onnx import Bundle, Translation, Translator

PACKAGES = ("onnxruntime", "numpy", "sentencepiece")
# How alike the tokens must be to those of transformers in fp32, where 1 is equal. Kernels round
# differently from version to version, so rounded weights get a margin.
ALIKE = {"fp32": 1.0, "int8": 0.88, "int4": 0.7, "int4-int8": 0.7}
REQUIRED = {"fp32", "int8", "int4"}
EVERY = 30


def cases() -> Iterator[tuple[golden.Case, list[int]]]:
    """Yields greedy and beam search in every direction, with the places of the texts to use."""
    for case in golden.whole_cases():
        if case.options["beam_size"] in (1, 5):
            texts = case.texts()
            # SentencePiece splits rows of dots differently since 0.2.2.
            yield case, [i for i in range(0, len(texts), EVERY) if ".." not in texts[i]]


def translate(translator: Translator, case: golden.Case, places: list[int]) -> list[Translation]:
    """Returns the translations of a case's texts at some places."""
    source, target = case.direction.split("-")
    texts = case.texts()
    options: dict[str, Any] = {"max_length": 200, **case.options}
    return translator.translate_batch(
        [texts[i] for i in places], source_lang=source, target_lang=target, **options
    )


def likeness(translator: Translator, expected: dict[str, Any]) -> float:
    """Returns how alike the tokens are to those of transformers, from 0 to 1."""
    ratios = []
    for case, places in cases():
        for i, found in zip(places, translate(translator, case, places), strict=True):
            wanted = expected[case.key][i][0][0]
            ratios.append(SequenceMatcher(None, found.tokens, wanted, autojunk=False).ratio())
    return mean(ratios)


def link(bundle: Path, folder: Path) -> Path:
    """Lays a bundle out as the Hugging Face hub's cache does: links to files named by hash."""
    snapshot = folder / "snapshots" / "revision"
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    for file in bundle.iterdir():
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        (folder / "blobs" / digest).write_bytes(data)
        (snapshot / file.name).symlink_to(Path("../../blobs") / digest)
    return snapshot


def check(bundle: Path, precision: str, expected: dict[str, Any]) -> None:
    """Fails if a bundle translates worse than its precision, or the cache or links change it."""
    for fused in (None, False):
        translator = Translator(bundle, fused=fused, cache_dir=False)
        found = likeness(translator, expected)
        print(f"{precision}, {'portable' if fused is False else 'default'} graphs: {found:.4f}")
        if found < ALIKE[precision]:
            sys.exit(f"{bundle}: expected a likeness of {ALIKE[precision]} or more, found {found}")
        case, places = next(cases())
        plain = translate(translator, case, places)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            # The second one opens what the first one stored.
            for place in (bundle, bundle, link(bundle, folder / "hub")):
                opened = Translator(place, fused=fused, cache_dir=folder / "cache")
                if translate(opened, case, places) != plain:
                    sys.exit(f"{place}: expected the translations of {bundle} without a cache")
                del opened


def main() -> None:
    """Checks every bundle in a folder."""
    folder = Path(sys.argv[1])
    print(f"Python {sys.version.split()[0]}", *(f"{p} {metadata.version(p)}" for p in PACKAGES))
    bundles = {
        Bundle.open(path.parent).precision: path.parent for path in folder.glob("*/manifest.json")
    }
    if missing := REQUIRED - set(bundles):
        sys.exit(f"{folder}: expected bundles of {sorted(REQUIRED)}, found no {sorted(missing)}")
    expected = golden.load_golden()
    for precision in sorted(bundles):
        check(bundles[precision], precision, expected)


if __name__ == "__main__":
    main()
