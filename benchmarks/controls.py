"""Measures scores, streams and terms: the controls whose cost is not that of a translation.

    python benchmarks/controls.py BUNDLE [--ctranslate2 FOLDER --interpreter PYTHON] [--only score]

`score` compares pairs a second with CTranslate2's `score_batch`, by turns, each in its own process;
CTranslate2 takes the best of several thread settings. `stream` compares the time to the first
tokens of a stream with whole calls that end after one, two and three steps. `terms` compares
constrained with plain beam search at one length. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from m2m100_onnx import Translator
from m2m100_onnx.engine.batches import Batch
from m2m100_onnx.inputs import Row

ROUNDS = 5
WORDS = ["file", "open", "window", "save", "close", "folder", "name", "error", "list", "menu"]
LANGUAGES: dict[str, Any] = {"source_lang": "en", "target_lang": "fr"}
# Reads the tokens of pairs, and answers each line with the seconds of one call.
CTRANSLATE2 = """
import json, sys, time
import ctranslate2
folder, workers, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = ctranslate2.Translator(folder, inter_threads=workers, intra_threads=threads)
pairs = json.loads(sys.stdin.readline())
for line in sys.stdin:
    started = time.perf_counter()
    found = model.score_batch(*pairs, max_batch_size=json.loads(line), batch_type="examples")
    print(json.dumps([time.perf_counter() - started, sum(found[0].log_probs)]), flush=True)
"""


def seconds(run: Callable[[], object]) -> float:
    """Returns the seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def texts(count: int, length: int) -> list[str]:
    """Returns texts of words that are one token each, and of mixed lengths."""
    chance = random.Random(length)
    return [
        " ".join(chance.choices(WORDS, k=chance.randint(length // 2, length))) for _ in range(count)
    ]


def summed_up(name: str, ratios: Sequence[float], **more: Any) -> dict[str, Any]:
    """Prints and returns the median and the spread of ratios."""
    row = {"what": name, "median": round(statistics.median(ratios), 3)}
    row |= {"low": round(min(ratios), 3), "high": round(max(ratios), 3), **more}
    print(json.dumps(row), flush=True)
    return row


def measure_scores(translator: Translator, folder: str, interpreter: str) -> None:
    """Compares pairs a second with CTranslate2."""
    sources, targets = texts(64, 40), texts(64, 36)
    words = translator.tokenizer
    pairs = [
        [["__en__", *words.tokenize(text), "</s>"] for text in sources],
        [["__fr__", *words.tokenize(text)] for text in targets],
    ]
    ours: Callable[[], Any] = lambda: translator.score(sources, targets, **LANGUAGES)  # noqa: E731
    print(json.dumps({"log_probs": ours()[0].sum}), flush=True)
    for workers, threads in ((1, 2), (2, 1), (1, 1)):
        command = [interpreter, "-c", CTRANSLATE2, folder, str(workers), str(threads)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps(pairs), file=process.stdin, flush=True)
            for size in (8, 32, 64):
                ratios, rates = [], []
                for round_ in range(ROUNDS + 1):
                    own = seconds(ours)
                    print(size, file=process.stdin, flush=True)
                    theirs, total = json.loads(process.stdout.readline())
                    if round_:  # The first is for caches.
                        ratios.append(theirs / own)
                        rates.append(len(sources) / own)
                setting = f"{workers} x {threads}, batches of {size}"
                rate = round(statistics.median(rates), 1)
                summed_up("score", ratios, ctranslate2=setting, rate=rate, log_probs=total)


def measure_streams(translator: Translator) -> None:
    """Compares the first piece with one step and three steps."""
    (text,) = texts(1, 32)
    for beams in (1, 5):
        search: dict[str, Any] = {"beam_size": beams, "min_length": 40, "max_length": 40}
        options = {**LANGUAGES, **search}

        def first(search: dict[str, Any] = search) -> None:
            # The tokens of random weights may have no text.
            call = translator._worker.begin(search, None, "raise", None, None)
            sentence = translator._worker.sentence(0, Row(text, *LANGUAGES.values()), call)
            batch = Batch.of([sentence], translator.bundle.config.pad_token_id)
            tokens = translator.generator.stream(batch, call.settings.search, call.stop)
            next(tokens)
            tokens.close()

        def steps(count: int, options: dict[str, Any] = options) -> Callable[[], object]:
            limits = {"min_length": 2 + count, "max_length": 2 + count}
            return lambda: translator.translate(text, **{**options, **limits})

        ratios: dict[int, list[float]] = {1: [], 2: [], 3: []}
        for round_ in range(4 * ROUNDS + 1):
            own = seconds(first)
            for count, found in ratios.items():
                found.append(own / seconds(steps(count)))
            if not round_:
                ratios = {count: [] for count in ratios}
        for count, found in ratios.items():
            summed_up(f"first piece over prefill and {count} steps", found, beams=beams)


def measure_terms(translator: Translator) -> None:
    """Compares constrained with plain beam search, over the same number of steps."""
    some = texts(8, 32)
    terms = {"file": "dossier", "menu": ["carte", "cartes"]}
    for beams in (5, 10):
        options: dict[str, Any] = {
            **LANGUAGES,
            "beam_size": beams,
            "min_length": 47,
            "max_length": 48,
        }
        ratios = []
        for round_ in range(ROUNDS + 1):
            plain = seconds(lambda options=options: translator.translate(some, **options))
            bound = seconds(
                lambda options=options: translator.translate(some, **options, terms=terms)
            )
            if round_:
                ratios.append(bound / plain)
        summed_up("terms over none", ratios, beams=beams)


def main() -> None:
    """Prints a line of JSON for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--ctranslate2", help="Folder of the same model, int8.")
    parser.add_argument("--interpreter", default=sys.executable, help="Has ctranslate2.")
    parser.add_argument("--only", choices=("score", "stream", "terms"))
    given = parser.parse_args()
    translator = Translator(given.bundle)
    if given.ctranslate2 and given.only in (None, "score"):
        measure_scores(translator, given.ctranslate2, given.interpreter)
    if given.only in (None, "stream"):
        measure_streams(translator)
    if given.only in (None, "terms"):
        measure_terms(translator)


if __name__ == "__main__":
    main()
