"""Measures the alignment error rate of each layer and head against links that were made by hand.

The links are those of `tests/data/alignments.tsv`. The error rate is that of "A Systematic
Comparison of Various Statistical Alignment Models", https://aclanthology.org/J03-1002:
`1 - (|A & S| + |A & P|) / (|A| + |S|)`, with sure links S and possible ones P, which include S.
Run from the repository's root:

    python benchmarks/alignments.py --model bundles/demo
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2m100_onnx import Translator
from m2m100_onnx.engine.text_batches import Pairs
from m2m100_onnx.search.alignment import between_words, mutual_pairs
from m2m100_onnx.search.state import Float32Array
from m2m100_onnx.text.words import words_of

ROOT = Path(__file__).resolve().parent.parent
Links = set[tuple[int, int]]


@dataclass(frozen=True)
class Gold:
    """A line of a held-out set in two languages, with its links."""

    source_lang: str
    target_lang: str
    source: str
    target: str
    sure: Links
    possible: Links


def read_gold() -> Iterator[Gold]:
    """Yields the lines that were linked by hand."""
    path = ROOT / "tests" / "data" / "alignments.tsv"
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        direction, number, links = line.split("\t")
        codes = direction.split("-")
        texts = [
            (ROOT / "demo" / "heldout" / f"test.{code}").read_text("utf-8").split("\n")[int(number)]
            for code in codes
        ]
        found = [(int(s), kind, int(t)) for s, kind, t in re.findall(r"(\d+)([-~])(\d+)", links)]
        sure = {(s, t) for s, kind, t in found if kind == "-"}
        yield Gold(codes[0], codes[1], texts[0], texts[1], sure, {(s, t) for s, _, t in found})


def error_rate(found: Iterable[Links], gold: Sequence[Gold]) -> float:
    """Returns the alignment error rate over all lines, in percent."""
    both = size = 0
    for links, line in zip(found, gold, strict=True):
        both += len(links & line.sure) + len(links & line.possible)
        size += len(links) + len(line.sure)
    return 100 * (1 - both / size)


def most_attended(matrix: Float32Array) -> list[tuple[int, int]]:
    """Returns a pair for each target word: the source word that it attends to most."""
    return [(int(source), target) for target, source in enumerate(matrix.argmax(axis=1))]


def matrices(
    translator: Translator, line: Gold, layer: int, *, shifted: bool
) -> list[Float32Array]:
    """Returns the word matrix of each head of a layer."""
    words, config = translator.tokenizer, translator.bundle.config
    ids = translator.encode(line.source, line.source_lang)
    prompt = words.build_prompt(line.target_lang, config.decoder_start_token_id)
    pieces = words.tokenize(line.target)
    fed = [*prompt, *words.pieces_to_ids(pieces)]
    batch = Pairs(*(np.array(rows, np.int64) for rows in ([0], [ids], [[1] * len(ids)], [fed])))
    inputs = batch.input_ids, batch.attention_mask, batch.target
    weights = translator.model.cross_attention(*inputs, [layer])[0, 0]
    first = len(prompt) if shifted else len(prompt) - 1
    rows = weights[:, first : first + len(pieces), words.pieces_within(ids)]
    spans = [
        [(word.start, word.end) for word in words_of(some)]
        for some in (words.tokenize(line.source), pieces)
    ]
    return [between_words(head, spans[0], spans[1]) for head in rows]


def main() -> None:
    """Prints a line of JSON for each layer, with the error rate of each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="Bundle of the demo checkpoint.")
    translator = Translator(parser.parse_args().model)
    gold = list(read_gold())
    ways: dict[str, Callable[[Float32Array], list[tuple[int, int]]]] = {
        "most attended": most_attended,
        "mutual": mutual_pairs,
    }
    config = translator.bundle.config
    for layer in range(config.decoder_layers):
        for shifted in (True, False):
            found = [matrices(translator, line, layer, shifted=shifted) for line in gold]
            row: dict[str, object] = {"layer": layer, "fed": shifted}
            for name, way in ways.items():
                mean = (set(way(np.mean(heads, axis=0))) for heads in found)
                row[name] = round(error_rate(mean, gold), 1)
                row[f"{name}, heads"] = [
                    round(error_rate((set(way(heads[head])) for heads in found), gold), 1)
                    for head in range(config.decoder_attention_heads)
                ]
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
