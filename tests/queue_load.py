"""Submits thousands of texts, with mixed options and languages; each must be as in a serial call.

    python tests/queue_load.py BUNDLE [COUNT]

A test of `scripts/test-all`, since it takes minutes. Some callers go away meanwhile, some are late.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from m2m100_onnx import Cancellation, StoppedError, Translation, Translator

HELDOUT = Path(__file__).resolve().parent.parent / "demo" / "heldout"
LANGUAGES = ("en", "de", "fr", "es", "ru", "zh")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"beam_size": 1},
    {"beam_size": 1, "max_new_tokens": 12},
    {"beam_size": 2, "num_hypotheses": 2, "length_penalty": 0.6},
    {"beam_size": 5, "no_repeat_ngram_size": 3},
    {"beam_size": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"do_sample": True, "beam_size": 1, "seed": 11, "top_k": 20},
    {"beam_size": 2, "repetition_penalty": 1.2},
)
CALLERS = 48


def cases(count: int) -> list[tuple[str, dict[str, Any]]]:
    """Returns texts with their languages and options."""
    lines = {
        code: (HELDOUT / f"test.{code}").read_text(encoding="utf-8").splitlines()
        for code in LANGUAGES
    }
    chance = random.Random(count)
    found = []
    for _ in range(count):
        source, target = chance.sample(LANGUAGES, 2)
        languages = {"source_lang": source, "target_lang": target}
        found.append((chance.choice(lines[source]), {**languages, **chance.choice(OPTIONS)}))
    return found


def main() -> None:
    """Compares the queue with serial calls; ends with an error where one differs."""
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    every = cases(count)
    translator = Translator(sys.argv[1])
    print(f"{translator.model.kind} graphs, {count} texts")
    chance = random.Random(0)
    ends = [chance.choice(["", "", "", "", "", "", "", "gone", "late"]) for _ in every]
    stopped = [0]

    def ask(number: int) -> Translation | None:
        text, options = every[number]
        cancellation = Cancellation()
        if ends[number] == "gone":
            threading.Timer(0.05, cancellation.cancel).start()
        timeout = 0.05 if ends[number] == "late" else None
        future = translator.submit(text, cancellation=cancellation, timeout=timeout, **options)
        try:
            return future.result(600)
        except StoppedError:
            stopped[0] += 1
            return None

    began = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        found = list(pool.map(ask, range(count)))
    print(f"{count / (time.perf_counter() - began):.0f} texts a second, {stopped[0]} were ended")
    assert translator.queue.waiting == translator.queue.running == 0
    wrong = 0
    for number, (text, options) in enumerate(every):
        if found[number] is not None:
            (wanted,) = translator.translate_batch([text], **options)
            wrong += wanted != found[number]
        else:
            assert ends[number], "a text without a deadline was ended"
    translator.close()
    if wrong or stopped[0] == count:
        sys.exit(f"expected those of serial calls, found {wrong} others")
    print("each is that of a serial call, to the last bit")


if __name__ == "__main__":
    main()
