"""Compares engines on a GPU: random 418M weights, a fixed number of tokens, engines in turns.

    python benchmarks/cuda.py CHECKPOINT --ours fp16=FOLDER --ours fp32=FOLDER

CHECKPOINT is what make_checkpoint.py wrote, and the folders are its bundles. Each engine opens
once. In a round each translates the cell's batch once; the first round is thrown away. The table
gives the median, and the ratio is that of the pairs of a round: median, least and most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engines import LANGUAGE, Translate, ctranslate2, generate, ours

CELLS = ((1, 1), (1, 5), (8, 1), (8, 5), (32, 1), (32, 5))
SOURCE, TOKENS = 32, 64


def pytorch(dtype: str) -> Callable[[str, int], Any]:
    """Returns what opens the checkpoint as transformers' own model on the GPU."""

    def open_generator(folder: str, _threads: int) -> Any:
        import torch
        from transformers import M2M100ForConditionalGeneration

        model = M2M100ForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
        return model.to("cuda").eval()

    return open_generator


def batch(sentences: int) -> list[list[int]]:
    """Returns made-up sources of equal length."""
    ids = np.random.default_rng(sentences).integers(5, 100_000, (sentences, SOURCE))
    ids[:, 0], ids[:, -1] = LANGUAGE - 1, 2
    rows: list[list[int]] = ids.tolist()
    return rows


def measure(engines: dict[str, Translate], rounds: int) -> list[dict[str, Any]]:
    """Returns the seconds of each engine in each cell, in turns."""
    cells = []
    for sentences, beams in CELLS:
        source = batch(sentences)
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(rounds + 1):
            for name, translate in engines.items():
                start = time.perf_counter()
                made = translate(source, beams, TOKENS)
                took = time.perf_counter() - start
                if made != sentences * TOKENS:
                    raise SystemExit(f"{name}: expected {sentences * TOKENS} tokens, found {made}")
                if number:
                    seconds[name].append(took)
        cells.append({"sentences": sentences, "beams": beams, "seconds": seconds})
        print(line(cells[-1], list(engines)), flush=True)
    return cells


def line(cell: dict[str, Any], names: list[str]) -> str:
    """Returns a row of the table: medians, and the others' time over that of the first engine."""
    seconds = cell["seconds"]
    found = [f"| {cell['sentences']} x {cell['beams']}"]
    for name in names:
        text = f"{statistics.median(seconds[name]):.3f} s"
        if name != names[0]:
            ratios = [b / a for a, b in zip(seconds[names[0]], seconds[name], strict=True)]
            middle = statistics.median(ratios)
            text += f" ({middle:.2f}x, {min(ratios):.2f} to {max(ratios):.2f})"
        found.append(text)
    return " | ".join(found) + " |"


def main() -> None:
    """Opens the engines, measures, and writes the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--ours", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--portable", metavar="FOLDER", help="a bundle whose portable graphs run")
    parser.add_argument("--ctranslate2", metavar="FOLDER")
    parser.add_argument("--compute", default="float16", help="CTranslate2's compute type")
    parser.add_argument("--transformers", nargs="*", default=["float16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    engines: dict[str, Translate] = {}
    for pair in arguments.ours:
        name, _, folder = pair.partition("=")
        engines[f"ours {name}"] = ours(device="cuda")(folder, None)
    if arguments.portable:
        engines["ours portable"] = ours(device="cuda", fused=False)(arguments.portable, None)
    for dtype in arguments.transformers:
        opened = generate(pytorch(dtype), device="cuda")(str(arguments.checkpoint), None)
        engines[f"transformers {dtype}"] = opened
    if arguments.ctranslate2:
        opened = ctranslate2(arguments.compute, device="cuda")(arguments.ctranslate2, None)
        engines[f"ctranslate2 {arguments.compute}"] = opened
    print("| cell | " + " | ".join(engines) + " |", flush=True)
    cells = measure(engines, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(cells, indent=1) + "\n")


if __name__ == "__main__":
    main()
