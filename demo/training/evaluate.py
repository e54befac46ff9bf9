#!/usr/bin/env python3
"""Scores a checkpoint on a held-out set: BLEU and chrF by direction and beam size, as JSON.

    evaluate.py demo/model --set test --out scores.json
    evaluate.py NEW_MODEL --set test --baseline scores.json

The model and the baseline are checkpoint folders, or results of an earlier run. --baseline also
prints chrF before, chrF after and the difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import sacrebleu
import torch
from checkpoint import SHIPPED_HELD_OUT, Checkpoint, read_lines
from vocabulary import LANGS

DIRECTIONS = (
    *(direction for lang in LANGS[1:] for direction in (f"en-{lang}", f"{lang}-en")),
    "de-fr",
    "ru-es",
    "zh-de",
)


def score(
    checkpoint: Checkpoint, texts: dict[str, list[str]], direction: str, beam_size: int
) -> dict[str, float]:
    """Returns BLEU, chrF and the translation time in seconds of one direction."""
    source_lang, target_lang = direction.split("-")
    start = time.monotonic()
    hypotheses = checkpoint.translate(texts[source_lang], source_lang, target_lang, beam_size)
    seconds = time.monotonic() - start
    references = [texts[target_lang]]
    tokenize = "zh" if target_lang == "zh" else "13a"
    bleu = sacrebleu.corpus_bleu(hypotheses, references, tokenize=tokenize).score
    chrf = sacrebleu.corpus_chrf(hypotheses, references).score
    return {"bleu": round(bleu, 2), "chrf": round(chrf, 2), "seconds": round(seconds, 1)}


def evaluate(folder: Path, args: argparse.Namespace, out: Path | None) -> dict[str, Any]:
    """Scores every direction with every beam size.

    Args:
        folder: the checkpoint.
        args: the command line.
        out: results file, written after every direction, so that an interrupted run keeps them.
    """
    checkpoint = Checkpoint(folder)
    texts = {lang: read_lines(args.heldout / f"{args.set}.{lang}", args.lines) for lang in LANGS}
    scores: dict[str, dict[str, Any]] = {}
    weights = (folder / "model.safetensors").read_bytes()
    results = {
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "set": args.set,
        "lines": len(texts["en"]),
        "sacrebleu": sacrebleu.__version__,
        "scores": scores,
    }
    for beam_size in args.beams:
        for direction in args.directions:
            found = score(checkpoint, texts, direction, beam_size)
            scores.setdefault(direction, {})[f"beam{beam_size}"] = found
            print(
                f"{direction} beam {beam_size}: BLEU {found['bleu']:.2f} chrF {found['chrf']:.2f} "
                f"({found['seconds']:.0f}s)",
                flush=True,
            )
            if out:
                out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def load_or_evaluate(path: Path, args: argparse.Namespace, out: Path | None) -> dict[str, Any]:
    """Returns the results in a JSON file, or evaluates a checkpoint folder."""
    if path.is_dir():
        return evaluate(path, args, out)
    return json.loads(path.read_text(encoding="utf-8"))


def print_comparison(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Prints chrF before and after, for every direction and beam size that both results have."""
    for key in ("set", "lines"):
        if before[key] != after[key]:
            raise SystemExit(f"not comparable: {key} is {before[key]} before, {after[key]} after")
    print(f"\nchrF, {after['set']} set, {after['lines']} lines")
    beams = sorted({beam for found in after["scores"].values() for beam in found})
    for beam in beams:
        rows = [
            (direction, before["scores"][direction][beam]["chrf"], found[beam]["chrf"])
            for direction, found in after["scores"].items()
            if beam in found and beam in before["scores"].get(direction, {})
        ]
        if not rows:
            continue
        means = (sum(row[column] for row in rows) / len(rows) for column in (1, 2))
        print(f"{beam:8s}{'before':>8s}{'after':>8s}{'diff':>8s}")
        for name, old, new in [*rows, ("mean", *means)]:
            print(f"{name:8s}{old:8.2f}{new:8.2f}{new - old:+8.2f}")


def parse_args() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="checkpoint folder, or results of one")
    parser.add_argument("--baseline", type=Path, help="checkpoint folder, or results of one")
    parser.add_argument("--heldout", type=Path, default=SHIPPED_HELD_OUT)
    parser.add_argument("--set", choices=("dev", "test"), default="test")
    parser.add_argument("--lines", type=int, help="only the first lines")
    parser.add_argument("--directions", default=",".join(DIRECTIONS), help="as in en-de,de-fr")
    parser.add_argument("--beams", default="1,5", help="beam sizes; 1 is greedy")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--nice", type=int, default=10, help="give way to other programs, 0 to 19")
    parser.add_argument("--out", type=Path, help="JSON file for the model's scores")
    args = parser.parse_args()
    args.directions = args.directions.split(",")
    args.beams = [int(beam) for beam in args.beams.split(",")]
    return args


def main() -> None:
    """Scores a checkpoint, and compares it with another."""
    args = parse_args()
    os.nice(args.nice)
    torch.set_num_threads(args.threads)
    results = load_or_evaluate(args.model, args, args.out)
    if args.baseline:
        print_comparison(load_or_evaluate(args.baseline, args, None), results)
    elif not args.out:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
