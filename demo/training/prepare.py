#!/usr/bin/env python3
"""Turns text into what train.py reads: held-out sets, corpus, vocabulary and token arrays.

It has two modes:

* `prepare.py` builds everything from WORK/rows.jsonl, for a training from scratch.
* `prepare.py --corpus train.jsonl.xz --tokenizer demo/model` encodes an existing corpus with an
  existing tokenizer, to continue a training.

Writes:
    WORK/heldout/{test,dev}.{en,…}: line i has the same meaning in every file (from rows only)
    WORK/corpus/train.jsonl.xz: one row per English string (from rows only)
    WORK/tok/{sentencepiece.bpe.model,vocab.json}
    WORK/tok/train.npz: the token arrays
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece as spm
from checkpoint import SHIPPED_HELD_OUT, read_lines
from heldout import Row, hold_out, without_held_out
from numpy.typing import NDArray
from sources import DEFAULT_WORK, is_excluded
from vocabulary import LANGS, SPM_FILE, UNK, VOCAB_FILE, Vocabulary, piece_vocabulary

MAX_PIECES = 80
"""The arrays leave out longer texts."""
SAMPLED_TEXTS = 70_000
"""Number of texts per language that the SentencePiece model is trained on."""
WORD_LISTS = ("trans-de-en", "deb:iso-codes")
"""Lists of single words and names, which would skew the vocabulary."""

# Only typographic variants are normalized, so that full-width Chinese punctuation stays as it is.
NORMALIZATION = {
    **dict.fromkeys("“”„", '"'),
    **dict.fromkeys("‘’", "'"),
    "…": "...",
    **dict.fromkeys("\u00a0\u202f\u2009\t\n\r\u3000", " "),
    **dict.fromkeys("\u00ad\u200b\u200e\u200f\ufeff", ""),
    "\u2011": "-",
    **{chr(0xFF10 + n): chr(ord("0") + n) for n in range(10)},
    **{chr(0xFF21 + n): chr(ord("A") + n) for n in range(26)},
    **{chr(0xFF41 + n): chr(ord("a") + n) for n in range(26)},
}
REQUIRED_CHARACTERS = (
    "".join(map(chr, range(33, 127)))
    + "".join(map(chr, range(0x410, 0x450)))
    + "Ёё"
    + "àâäæçéèêëîïôöœùûüÿñáíóúßÀÂÄÆÇÉÈÊËÎÏÔÖŒÙÛÜŸÑÁÍÓÚ"
    + "¡¿«»‹›‚–—·×−→←↑↓©®°№•‐±²³ºª€£§"
    + "。，、；：？！（）《》「」【】·～"
)

_START = time.monotonic()


def say(*words: object) -> None:
    """Prints a line of progress."""
    print(f"[{time.monotonic() - _START:5.0f}s]", *words, flush=True)


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a .jsonl or .jsonl.xz file, except those of excluded sources."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        yield from (row for row in rows if not is_excluded(row["_src"]))


def is_useful(row: Row) -> bool:
    """Returns whether to keep a row: no long rows, and one in three short dictionary entries.

    Uses the global random number generator.
    """
    if len(row["en"]) > 240 or not any(lang in row for lang in LANGS[1:]):
        return False
    if row["_src"] != "trans-de-en" or len(row["en"].split()) >= 3:
        return True
    return random.random() < 0.33


def write_held_out(folder: Path, name: str, rows: list[Row]) -> None:
    """Writes one aligned text file per language, and the sources of the lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for column, suffix in [*((lang, lang) for lang in LANGS), ("_src", "src")]:
        text = "".join(row[column] + "\n" for row in rows)
        (folder / f"{name}.{suffix}").write_text(text, encoding="utf-8")


def write_corpus(path: Path, rows: list[Row]) -> None:
    """Writes the training rows, with the languages in a fixed order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt", preset=6, encoding="utf-8") as out:
        for row in rows:
            ordered = {key: row[key] for key in (*LANGS, "_src") if key in row}
            out.write(json.dumps(ordered, ensure_ascii=False) + "\n")


def train_sentencepiece(rows: list[Row], folder: Path, size: int) -> None:
    """Trains the SentencePiece model on the rows, and writes it with its vocab.json."""
    folder.mkdir(parents=True, exist_ok=True)
    sample = folder / "spm.txt"
    with sample.open("w", encoding="utf-8") as out:
        for lang in LANGS:
            texts = [row[lang] for row in rows if lang in row and row["_src"] not in WORD_LISTS]
            for text in random.sample(texts, min(len(texts), SAMPLED_TEXTS)):
                out.write(text + "\n")
    rules = folder / "norm.tsv"
    with rules.open("w", encoding="utf-8") as out:
        for character, replacement in NORMALIZATION.items():
            codes = " ".join(f"{ord(c):X}" for c in replacement)
            out.write(f"{ord(character):X}\t{codes}\n")
    # Every Chinese character that occurs often enough gets a piece, even if the sample lacks it.
    chinese = Counter(c for row in rows for c in row.get("zh", "") if "\u3400" <= c <= "\u9fff")
    frequent = "".join(character for character, count in chinese.items() if count >= 4)
    required = "".join(dict.fromkeys(frequent + REQUIRED_CHARACTERS))
    say(len(chinese), "Chinese characters;", len(required), "required characters")
    spm.SentencePieceTrainer.train(
        input=str(sample),
        model_prefix=str(folder / SPM_FILE.removesuffix(".model")),
        model_type="unigram",
        vocab_size=size,
        character_coverage=0.99985,
        num_threads=1,
        required_chars=required,
        normalization_rule_tsv=str(rules),
        split_digits=True,
        max_sentence_length=2000,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=1,
    )
    vocab = piece_vocabulary(spm.SentencePieceProcessor(model_file=str(folder / SPM_FILE)))
    text = json.dumps(vocab, ensure_ascii=False, indent=0)
    (folder / VOCAB_FILE).write_text(text, encoding="utf-8")
    say("vocab.json:", len(vocab), "entries")


def token_arrays(rows: list[Row], vocabulary: Vocabulary) -> dict[str, NDArray]:
    """Encodes the rows.

    Returns:
        For each language L: `flat_L`, all its ids in sequence; `at_L` `(rows,)`, where a row's ids
        start; `len_L` `(rows,)`, how many ids the row has, 0 for none. Also `src` `(rows,)`,
        indices into `src_names`.
    """
    arrays: dict[str, NDArray] = {}
    for lang in LANGS:
        starts = np.zeros(len(rows), np.int64)
        lengths = np.zeros(len(rows), np.int16)
        encoded: list[NDArray[np.int32]] = []
        end = 0
        present = [index for index, row in enumerate(rows) if lang in row]
        for first in range(0, len(present), 20_000):
            chunk = present[first : first + 20_000]
            texts = [rows[index][lang] for index in chunk]
            for index, ids in zip(chunk, vocabulary.encode(texts), strict=True):
                if 0 < len(ids) <= MAX_PIECES:
                    starts[index], lengths[index] = end, len(ids)
                    end += len(ids)
                    encoded.append(ids)
        flat = np.concatenate(encoded) if encoded else np.zeros(0, np.int32)
        arrays[f"flat_{lang}"], arrays[f"at_{lang}"], arrays[f"len_{lang}"] = flat, starts, lengths
        unknown = float((flat == UNK).mean()) if end else 0.0
        say(f"{lang}: {len(encoded)} texts, {end} tokens, {unknown:.5%} unknown")
    names = sorted({row["_src"] for row in rows})
    number = {name: index for index, name in enumerate(names)}
    arrays["src"] = np.array([number[row["_src"]] for row in rows], np.int16)
    arrays["src_names"] = np.array(names)
    return arrays


def from_rows(work: Path, vocab_size: int) -> list[Row]:
    """Makes the held-out sets, the corpus and the vocabulary from WORK/rows.jsonl.

    Returns:
        The training rows.
    """
    random.seed(7)
    rows = [row for row in read_rows(work / "rows.jsonl") if is_useful(row)]
    say(len(rows), "useful rows")
    held_out = hold_out(rows)
    half = len(held_out) // 2 if len(held_out) < 1000 else 500
    test, dev = held_out[:half], held_out[half : 2 * half]
    write_held_out(work / "heldout", "test", test)
    write_held_out(work / "heldout", "dev", dev)
    say("held out:", len(test), "test and", len(dev), "dev lines")
    train = without_held_out(rows, held_out)
    say(len(train), "training rows,", len(rows) - len(train), "held out or too near")
    write_corpus(work / "corpus/train.jsonl.xz", train)
    train_sentencepiece(train, work / "tok", vocab_size)
    return train


def read_held_out(folder: Path) -> list[Row]:
    """Returns the rows of the held-out sets in a folder."""
    rows = []
    for name in ("test", "dev"):
        columns = [read_lines(folder / f"{name}.{lang}") for lang in LANGS]
        rows += [dict(zip(LANGS, texts, strict=True)) for texts in zip(*columns, strict=True)]
    return rows


def from_corpus(corpus: Path, tokenizer: Path, heldout: Path, work: Path) -> list[Row]:
    """Reads an existing corpus, and copies its tokenizer to WORK/tok.

    Returns:
        The training rows, without those too similar to the held-out sets. The checkpoint's own
        corpus has none of these, but another corpus may have some.
    """
    rows = list(read_rows(corpus))
    train = without_held_out(rows, read_held_out(heldout))
    say(len(train), "training rows,", len(rows) - len(train), "held out or too near")
    (work / "tok").mkdir(parents=True, exist_ok=True)
    for name in (SPM_FILE, VOCAB_FILE):
        shutil.copyfile(tokenizer / name, work / "tok" / name)
    return train


def main() -> None:
    """Prepares a training, from rows or from an existing corpus."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--vocab-size", type=int, default=10_500, help="pieces of a new model")
    parser.add_argument("--corpus", type=Path, help="encode these rows instead of WORK/rows.jsonl")
    parser.add_argument("--tokenizer", type=Path, help="checkpoint folder to encode --corpus with")
    parser.add_argument(
        "--heldout", type=Path, default=SHIPPED_HELD_OUT, help="sets that --corpus must not contain"
    )
    args = parser.parse_args()
    if (args.corpus is None) != (args.tokenizer is None):
        parser.error("--corpus and --tokenizer go together")
    if args.corpus:
        rows = from_corpus(args.corpus, args.tokenizer, args.heldout, args.work)
    else:
        rows = from_rows(args.work, args.vocab_size)
    np.savez(args.work / "tok/train.npz", **token_arrays(rows, Vocabulary(args.work / "tok")))
    say("done")


if __name__ == "__main__":
    main()
