#!/usr/bin/env python3
"""Measures a causal XLM on a held-out set, as a Markdown table.

    xlm_evaluate.py demo/xlm --set test

A perplexity is that of all pieces after `<s>`, `</s>` included. "Wrong language" tells the model
the other language. "Shuffled" has each sentence's words in random order. A share is that of the
sentences whose probability is higher as they are than with the change.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import NamedTuple

import torch
from checkpoint import SHIPPED_HELD_OUT, read_lines
from transformers import XLMTokenizer, XLMWithLMHeadModel
from transformers.utils import logging
from xlm_text import LANG_IDS, PAD, UNK, encode, pad_batch
from xlm_train import token_losses

BATCH_SIZE = 50


class Scores(NamedTuple):
    """Losses of the sentences of a set, in nats.

    Attributes:
        sums: `(sentences,)`
        tokens: number of tokens of all of them.
    """

    sums: torch.Tensor
    tokens: int

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return float((self.sums.sum() / self.tokens).exp())

    def share_below(self, other: Scores) -> float:
        """Returns the share of sentences that are more probable than the other's."""
        return float((self.sums < other.sums).float().mean())


def score(model: XLMWithLMHeadModel, texts: list[list[int]], lang: str) -> Scores:
    """Scores texts, given as pieces, in a language."""
    sums = []
    tokens = 0
    for start in range(0, len(texts), BATCH_SIZE):
        part = texts[start : start + BATCH_SIZE]
        batch = pad_batch(part, [LANG_IDS[lang]] * len(part))
        with torch.no_grad():
            losses = token_losses(model, batch)
        lengths = (batch.ids[:, 1:] != PAD).sum(1).tolist()
        sums += [sentence.sum() for sentence in losses.split(lengths)]
        tokens += len(losses)
    return Scores(torch.stack(sums), tokens)


def shuffled(text: str, random_numbers: random.Random) -> str:
    """Returns a text with its words in random order."""
    words = text.split()
    random_numbers.shuffle(words)
    return " ".join(words)


def table(model: XLMWithLMHeadModel, tokenizer: XLMTokenizer, heldout: Path, name: str) -> str:
    """Returns the measures of both languages."""
    random_numbers = random.Random(1)
    rows = [
        "| language | perplexity | wrong language | share | shuffled | share | unknown pieces |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for lang in LANG_IDS:
        lines = read_lines(heldout / f"{name}.{lang}")
        other = next(code for code in LANG_IDS if code != lang)
        texts = [encode(tokenizer, line, lang) for line in lines]
        mixed = [encode(tokenizer, shuffled(line, random_numbers), lang) for line in lines]
        right, wrong = score(model, texts, lang), score(model, texts, other)
        disordered = score(model, mixed, lang)
        pieces = [piece for text in texts for piece in text]
        values = [f"{right.perplexity:.1f}"]
        for changed in (wrong, disordered):
            values += [f"{changed.perplexity:.1f}", f"{right.share_below(changed):.1%}"]
        values.append(f"{pieces.count(UNK)} of {len(pieces)}")
        rows.append(" | ".join([f"| {lang}", *values]) + " |")
    return "\n".join(rows)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--heldout", type=Path, default=SHIPPED_HELD_OUT)
    parser.add_argument("--set", choices=("dev", "test"), default="test")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    tokenizer = XLMTokenizer.from_pretrained(str(args.model))
    model = XLMWithLMHeadModel.from_pretrained(str(args.model), dtype=torch.float32).eval()
    print(table(model, tokenizer, args.heldout, args.set))


if __name__ == "__main__":
    main()
