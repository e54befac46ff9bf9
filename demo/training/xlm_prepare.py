#!/usr/bin/env python3
"""Turns the corpus's German and English into a vocabulary and token arrays for xlm_train.py.

    xlm_prepare.py --corpus demo/build/corpus/train.jsonl.xz

Writes:
    WORK/xlm/tokenizer/: the files of transformers' XLMTokenizer
    WORK/xlm/train.npz: for each language L, `flat_L`, all ids in the corpus's order, and `len_L`,
        the number of ids of each text
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from checkpoint import SHIPPED_HELD_OUT
from heldout import Row, without_held_out
from prepare import WORD_LISTS, read_held_out, read_rows, say
from sources import DEFAULT_WORK
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import XLMTokenizer
from xlm_text import END_OF_WORD, LANG_IDS, SPECIAL, UNK, encode, words

MIN_WORDS = 3
"""Rows with shorter English are labels, not sentences."""
MIN_CHARACTER_COUNT = 100
"""Rarer characters are unknown, except those of ASCII."""
Merge = tuple[str, str]


def is_useful(row: Row) -> bool:
    """Returns whether a row has a German and an English text of a few words."""
    return "de" in row and row["_src"] not in WORD_LISTS and len(row["en"].split()) >= MIN_WORDS


def learn_merges(texts: Iterable[str], alphabet: Sequence[str], size: int) -> list[Merge]:
    """Learns byte-pair merges from texts whose words are separated by spaces."""
    learner = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        end_of_word_suffix=END_OF_WORD,
        initial_alphabet=list(alphabet),
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]


def make_vocabulary(
    alphabet: Sequence[str], merges: Sequence[Merge], size: int
) -> tuple[dict[str, int], list[Merge]]:
    """Returns a vocabulary of `size` entries, and the merges that it has room for.

    Every character is there inside a word and at its end, so that no word of known characters has
    an unknown piece.
    """
    characters = [c + suffix for suffix in ("", END_OF_WORD) for c in alphabet]
    entries = dict.fromkeys([*SPECIAL, *characters])
    kept = []
    for merge in merges:
        merged = "".join(merge)
        if merged not in entries and len(entries) == size:
            break
        entries[merged] = None
        kept.append(merge)
    return {entry: number for number, entry in enumerate(entries)}, kept


def make_tokenizer(vocabulary: dict[str, int], merges: Sequence[Merge]) -> XLMTokenizer:
    """Returns transformers' tokenizer over a vocabulary and its merges."""
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab_file.write_text(json.dumps(vocabulary), encoding="utf-8")
        lines = [" ".join(merge) + "\n" for merge in merges]
        merges_file.write_text("".join(lines), encoding="utf-8")
        return XLMTokenizer(
            str(vocab_file),
            str(merges_file),
            lang2id=LANG_IDS,
            id2lang={str(number): lang for lang, number in LANG_IDS.items()},
            do_lowercase_and_remove_accent=True,
        )


def write_tokenizer(tokenizer: XLMTokenizer, folder: Path) -> None:
    """Writes the tokenizer's files in the form that transformers 4 and 5 read."""
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers 5 writes the list under a key that transformers 4 rejects, and no token map.
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    tokens = {key: value for key, value in config.items() if key.endswith(("_token", "_tokens"))}
    for name, value in ((path.name, config), ("special_tokens_map.json", tokens)):
        text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def learn_tokenizer(texts: dict[str, list[str]], size: int) -> XLMTokenizer:
    """Learns a tokenizer on both languages' texts."""
    # Without merges the pieces are characters, which spell the words.
    speller = make_tokenizer({entry: number for number, entry in enumerate(SPECIAL)}, [])
    counts: Counter[str] = Counter()
    spelled = []
    for lang, ours in texts.items():
        for text in ours:
            found = words(speller, text, lang)
            spelled.append(" ".join(found))
            counts.update("".join(found))
        say(lang, len(ours), "texts split")
    ascii_characters = [c for c in map(chr, range(33, 127)) if not c.isupper()]
    frequent = [
        c for c, count in counts.items() if count >= MIN_CHARACTER_COUNT and c.isprintable()
    ]
    alphabet = sorted({*ascii_characters, *frequent})
    say(len(alphabet), "of", len(counts), "characters:", "".join(alphabet))
    vocabulary, merges = make_vocabulary(alphabet, learn_merges(spelled, alphabet, size), size)
    say("vocab.json:", len(vocabulary), "entries;", len(merges), "merges")
    return make_tokenizer(vocabulary, merges)


def main() -> None:
    """Makes the tokenizer and the arrays."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--corpus", type=Path, help="default: WORK/corpus/train.jsonl.xz")
    parser.add_argument("--vocab-size", type=int, default=6000)
    parser.add_argument(
        "--heldout", type=Path, default=SHIPPED_HELD_OUT, help="sets that --corpus must not contain"
    )
    args = parser.parse_args()
    corpus = args.corpus or args.work / "corpus/train.jsonl.xz"
    rows = [row for row in read_rows(corpus) if is_useful(row)]
    train = without_held_out(rows, read_held_out(args.heldout))
    say(len(train), "rows,", len(rows) - len(train), "held out or too near")
    texts = {lang: [row[lang] for row in train] for lang in LANG_IDS}
    tokenizer = learn_tokenizer(texts, args.vocab_size)
    folder = args.work / "xlm"
    write_tokenizer(tokenizer, folder / "tokenizer")
    arrays = {}
    for lang, ours in texts.items():
        encoded = [encode(tokenizer, text, lang) for text in ours]
        flat = np.array([piece for pieces in encoded for piece in pieces], np.int16)
        arrays[f"flat_{lang}"] = flat
        arrays[f"len_{lang}"] = np.array([len(pieces) for pieces in encoded], np.int32)
        say(f"{lang}: {len(flat)} tokens, {float((flat == UNK).mean()):.4%} unknown")
    np.savez(folder / "train.npz", **arrays)
    say("done")


if __name__ == "__main__":
    main()
