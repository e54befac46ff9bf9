"""The parity matrix: the translations that tests compare with transformers, and their making.

    python tests/golden.py          writes tests/data/golden.json.gz with transformers

Token sequences do not depend on the batch. So transformers translates each case once, in fast
batches, and the tests translate it in batches of the case's size.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "demo" / "model"
GOLDEN = ROOT / "tests" / "data" / "golden.json.gz"
DIRECTIONS = ("en-de", "fr-en", "en-es", "ru-en", "en-zh", "zh-de", "de-fr")
EARLY_STOPPING: tuple[bool | str, ...] = (False, True, "never")
LENGTH_PENALTY = (0.5, 1.0, 2.0)
BATCH_SIZES = (1, 3, 16)
BEAM_SIZES = (1, 2, 4, 5)
# Without early stopping a search continues to max_length. With 200 a run takes minutes.
SHORT = 64
# The option matrix takes every eleventh test sentence: 28 of them, of mixed lengths.
EVERY = 11


@dataclass(frozen=True)
class Case:
    """One run: a direction, our options (transformers has other names for two) and a batch size."""

    direction: str
    batch_size: int
    options: dict[str, Any]
    every: int = 1

    @property
    def key(self) -> str:
        """Returns the arguments for transformers as a string: everything except our batch size."""
        return json.dumps([self.direction, self.every, self.options], sort_keys=True)

    def texts(self, split: str = "test") -> list[str]:
        """Returns the sentences to translate."""
        language = self.direction.split("-")[0]
        path = ROOT / "demo" / "heldout" / f"{split}.{language}"
        return path.read_text(encoding="utf-8").rstrip("\n").split("\n")[:: self.every]


def whole_cases() -> Iterator[Case]:
    """Yields the whole test set in every direction and beam size; the other options take turns."""
    turn = itertools.cycle(itertools.product(EARLY_STOPPING, LENGTH_PENALTY, (16, 3, 16, 16)))
    for direction, beam_size in itertools.product(DIRECTIONS, BEAM_SIZES):
        stopping, penalty, batch_size = next(turn)
        # One of the seven directions has batches of one sentence.
        alone = direction == DIRECTIONS[0]
        options: dict[str, Any] = {"beam_size": beam_size, "length_penalty": penalty}
        options["early_stopping"] = stopping if beam_size > 1 else False
        if stopping is not True and beam_size > 1:
            options["max_length"] = SHORT
        yield Case(direction, 1 if alone else batch_size, options)


def matrix_cases() -> Iterator[Case]:
    """Yields every combination of the search options on a slice; the directions take turns."""
    turn = itertools.cycle(DIRECTIONS)
    grid = itertools.product(BEAM_SIZES[1:], EARLY_STOPPING, LENGTH_PENALTY)
    for beam_size, stopping, penalty in grid:
        options = {
            "beam_size": beam_size,
            "early_stopping": stopping,
            "length_penalty": penalty,
            "num_hypotheses": beam_size,
            "max_length": SHORT,
        }
        direction = next(turn)
        for batch_size in BATCH_SIZES:
            yield Case(direction, batch_size, options, EVERY)
    limits: list[dict[str, Any]] = [
        {"max_length": 6},
        {"max_length": 12},
        {"min_length": 12},
        {"min_length": 24, "max_length": 40},
        # Without repeats there is no `</s>` either, because it is the start token.
        {"no_repeat_ngram_size": 1, "max_length": 32},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 3, "min_length": 20},
        {"repetition_penalty": 1.3},
    ]
    for beam_size, limit in itertools.product(BEAM_SIZES, limits):
        options = {"beam_size": beam_size, "early_stopping": beam_size > 1, **limit}
        direction = next(turn)
        for batch_size in BATCH_SIZES:
            yield Case(direction, batch_size, options, EVERY)


def checkpoint_hash() -> str:
    """Returns the hash of the weights that the golden data belong to."""
    return hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()


class Reference:
    """transformers on the demo checkpoint, with our names of the options."""

    def __init__(self) -> None:
        import torch
        from transformers import M2M100ForConditionalGeneration, M2M100Tokenizer

        # With more threads than idle cores, the threads wait for each other.
        torch.set_num_threads(1)
        self.torch = torch
        self.model = M2M100ForConditionalGeneration.from_pretrained(
            CHECKPOINT, dtype=torch.float32
        ).eval()
        self.tokenizer = M2M100Tokenizer.from_pretrained(CHECKPOINT)

    def translate(
        self, texts: Sequence[str], direction: str, options: dict[str, Any], batch_size: int = 64
    ) -> list[list[tuple[list[int], float]]]:
        """Returns `num_hypotheses` token sequences without padding, with scores, for each text."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: list[list[tuple[list[int], float]]] = [[] for _ in texts]
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = self._generate([texts[i] for i in chosen], direction, options)
            for i, row in zip(chosen, rows, strict=True):
                found[i] = row
        return found

    def _generate(
        self, texts: list[str], direction: str, options: dict[str, Any]
    ) -> list[list[tuple[list[int], float]]]:
        source, target = direction.split("-")
        self.tokenizer.src_lang = source
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True)
        given = {"max_length": 200, "length_penalty": 1.0, "num_hypotheses": 1, **options}
        penalty, beam_size = given["length_penalty"], given.pop("beam_size")
        count = given.pop("num_hypotheses")
        with self.torch.inference_mode():
            output = self.model.generate(
                **inputs,
                forced_bos_token_id=self.tokenizer.get_lang_id(target),
                num_beams=beam_size,
                num_return_sequences=count,
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
                **given,
            )
        sequences = [self._unpadded(row) for row in output.sequences.tolist()]
        if beam_size > 1:
            scores = output.sequences_scores.tolist()
        else:
            scores = self._greedy_scores(output, len(sequences), penalty)
        pairs = list(zip(sequences, scores, strict=True))
        return [pairs[i : i + count] for i in range(0, len(pairs), count)]

    def _unpadded(self, row: list[int]) -> list[int]:
        pad = self.model.config.pad_token_id
        while row[-1] == pad:
            row = row[:-1]
        return row

    def _greedy_scores(self, output: Any, count: int, penalty: float) -> list[float]:
        """Returns the scores of beam search: transformers gives greedy search no scores."""
        steps = self.model.compute_transition_scores(
            output.sequences, output.scores, normalize_logits=True
        )
        # Steps after a sentence's end do not count. The step of the forced language token is 0.
        ended = output.sequences[:, 1:] == self.model.config.pad_token_id
        total = steps.masked_fill(ended, 0.0).sum(1)
        lengths = (~ended).sum(1)
        return [float(total[i]) / int(lengths[i]) ** penalty for i in range(count)]


def load_golden() -> dict[str, list[list[tuple[list[int], float]]]]:
    """Returns the golden translations by case key. Fails if they belong to other weights."""
    with gzip.open(GOLDEN, "rt", encoding="utf-8") as file:
        data = json.load(file)
    assert data["checkpoint"] == checkpoint_hash(), "run `python tests/golden.py` for these weights"
    cases: dict[str, list[list[tuple[list[int], float]]]] = data["cases"]
    return cases


@functools.cache
def _reference() -> Reference:
    return Reference()


def _make(case: Case) -> tuple[str, list[list[tuple[list[int], float]]]]:
    rows = _reference().translate(case.texts(), case.direction, case.options)
    print(case.key, flush=True)
    return case.key, [[(tokens, round(score, 6)) for tokens, score in row] for row in rows]


def main() -> None:
    """Writes the golden file with one process per core, in some ten minutes on two cores."""
    import transformers

    cases = {case.key: case for case in itertools.chain(whole_cases(), matrix_cases())}
    # The longest cases come first, so that the processes end at about the same time.
    order = sorted(cases.values(), key=lambda c: -len(c.texts()) * c.options["beam_size"])
    with multiprocessing.Pool() as pool:
        made = dict(pool.imap_unordered(_make, order))
    found = {key: made[key] for key in cases}
    data = {
        "transformers": transformers.__version__,
        "checkpoint": checkpoint_hash(),
        "cases": found,
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    # mtime=0: the same translations give the same file.
    text = json.dumps(data, separators=(",", ":")).encode()
    GOLDEN.write_bytes(gzip.compress(text, mtime=0))


if __name__ == "__main__":
    main()
