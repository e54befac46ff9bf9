#!/usr/bin/env python3
"""Updates the parts of the model card that depend on the weights: scores and samples.

    model_card.py --scores scores.json --model demo/model

Replaces the text between the `<!-- scores:… -->` and between the `<!-- samples:… -->` markers.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path
from typing import Any

from checkpoint import Checkpoint

HERE = Path(__file__).resolve().parent


def replace_block(text: str, name: str, content: str) -> str:
    """Returns the text with new content between the markers `name:begin` and `name:end`.

    Raises:
        SystemExit: the markers are missing.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    new, count = pattern.subn(lambda _: f"{begin}\n{content}\n{end}", text)
    if count != 1:
        raise SystemExit(f"{begin} … {end}: found {count} times, expected once")
    return new


def scores_table(results: dict[str, Any], before: dict[str, Any] | None) -> str:
    """Returns the results of evaluate.py (beam sizes 1 and 5) as a Markdown table.

    `before` has the results of an earlier checkpoint on the same lines. With it, the last two
    columns give that checkpoint's chrF.
    """
    header = ["direction", "BLEU greedy", "chrF greedy", "BLEU beam 5", "chrF beam 5"]
    rows = [
        [
            direction,
            *(f"{found[beam][m]:.1f}" for beam in ("beam1", "beam5") for m in ("bleu", "chrf")),
        ]
        for direction, found in results["scores"].items()
    ]
    if before:
        header += ["chrF greedy before", "chrF beam 5 before"]
        for row in rows:
            row += [f"{before['scores'][row[0]][beam]['chrf']:.1f}" for beam in ("beam1", "beam5")]
    return "\n".join(
        [
            f"{results['lines']} held-out sentences ({results['set']} set), one reference "
            f"(sacrebleu {results['sacrebleu']}; tokenizer 13a, zh for Chinese).",
            "",
            *(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)),
        ]
    )


def samples_list(model: Path, samples: Path) -> str:
    """Returns the sample sentences and their translations (beam 5) as a Markdown table."""
    checkpoint = Checkpoint(model)
    lines = ["| | text | translation |", "| --- | --- | --- |"]
    with samples.open(encoding="utf-8") as rows:
        for row in csv.DictReader(rows, delimiter="\t", quoting=csv.QUOTE_NONE):
            source, target, text = row["source"], row["target"], row["text"]
            translation = checkpoint.translate([text], source, target, 5)[0]
            lines.append(f"| {source}-{target} | {text} | {translation} |")
    return "\n".join(lines)


def main() -> None:
    """Rewrites the model card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--card", type=Path, default=HERE.parent / "README.md")
    parser.add_argument("--scores", type=Path, help="results of evaluate.py, beams 1 and 5")
    parser.add_argument("--before", type=Path, help="results of an earlier checkpoint")
    parser.add_argument("--model", type=Path, help="checkpoint folder, to renew the samples")
    args = parser.parse_args()
    text = args.card.read_text(encoding="utf-8")
    if args.scores:
        results = json.loads(args.scores.read_text(encoding="utf-8"))
        before = json.loads(args.before.read_text(encoding="utf-8")) if args.before else None
        text = replace_block(text, "scores", scores_table(results, before))
    if args.model:
        text = replace_block(text, "samples", samples_list(args.model, HERE / "samples.tsv"))
    args.card.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
