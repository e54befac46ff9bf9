"""Translates a file with processes of one thread each: `python pool.py INPUT`."""

import multiprocessing
import os
import sys

from m2m100_onnx import Translator

translator: Translator


def receive(one: Translator) -> None:
    """Keeps the translator that this process got: it opens the bundle here, at its first call."""
    global translator
    translator = one


def translate(texts: list[str]) -> list[str]:
    """Translates some lines at once, as a batch is faster than its lines one by one."""
    return translator.translate(texts, source_lang="en", target_lang="de")


def main() -> None:
    """Translates a file's lines in order."""
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 - as short as can be
        lines = file.read().splitlines()
    parts = [lines[start : start + 8] for start in range(0, len(lines), 8)]
    bundle = os.environ.get("BUNDLE", "bundles/demo")
    one = Translator(bundle, intra_op_num_threads=1, lazy=True)
    # "spawn" works on every system and with CUDA; "fork" works too, see gunicorn's example.
    context = multiprocessing.get_context("spawn")
    with context.Pool(2, receive, (one,)) as pool:
        for part in pool.imap(translate, parts):
            print(*part, sep="\n")


if __name__ == "__main__":
    main()
