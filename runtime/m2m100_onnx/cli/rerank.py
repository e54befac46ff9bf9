"""`m2m100 rerank`: translations with several hypotheses in, in a language model's order out.

Knows the JSON lines of `m2m100 translate --json`. It leaves the order to `rerank.py`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from m2m100_onnx.cli.arguments import Commands, add_command
from m2m100_onnx.cli.language_model import add_model_arguments, open_model
from m2m100_onnx.cli.lines import LINE_BREAK, add_files, answer_lines
from m2m100_onnx.cli.translate import facts_of
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.rerank import DEFAULT_WEIGHT, Reranker
from m2m100_onnx.translation import Hypothesis, Translation

__all__ = ["add_parser"]

_ABOUT = "Order the hypotheses of translations by fluency."
_DESCRIPTION = f"""\
{_ABOUT}

  m2m100 translate -m BUNDLE -s en -t de --json --num-hypotheses 5 --input FILE |
  m2m100 rerank -m XLM

A hypothesis counts its own score plus --weight times the mean log-probability of its tokens in the
language model."""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command to those of `m2m100`."""
    add = add_command(commands, "rerank", _run, _ABOUT, _DESCRIPTION).add_argument
    add_files(add, "Lines of JSON")
    add_model_arguments(add)
    about = f"Weight of the language model. (default: {DEFAULT_WEIGHT})"
    add("--weight", type=float, default=DEFAULT_WEIGHT, metavar="X", help=about)
    add("--json", action="store_true", help="Write the JSON, with its hypotheses in order.")


def _run(arguments: argparse.Namespace) -> int:
    rerank = Reranker(open_model(arguments), arguments.weight)

    def answer(texts: list[str]) -> list[str]:
        records = [_record(text, n) for n, text in enumerate(texts)]
        # The record names its target language, unless the language model calls it else.
        languages = [arguments.language or record["target_lang"] for record in records]
        found = rerank.order([_translation(record) for record in records], languages)
        return [_line(*pair, as_json=arguments.json) for pair in zip(records, found, strict=True)]

    return answer_lines(arguments, answer)


def _record(text: object, position: int) -> dict[str, Any]:
    """Reads a line of `m2m100 translate --json`; the line of an error stays an empty translation.

    Raises:
        InvalidInputError: the line is something else.
    """
    try:
        record = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        record = None
    hypotheses = record.get("hypotheses", []) if isinstance(record, dict) else None
    right = isinstance(hypotheses, list) and all(
        isinstance(h, dict)
        and isinstance(h.get("text"), str)
        and isinstance(h.get("score"), (int, float))
        and isinstance(h.get("tokens"), list)
        for h in hypotheses
    )
    if not isinstance(record, dict) or not right or not isinstance(record.get("target_lang"), str):
        error = InvalidInputError(
            f"expected a line of `m2m100 translate --json`, found {str(text)[:60]!r}"
        )
        error.position = position
        raise error
    return record


def _translation(record: dict[str, Any]) -> Translation:
    hypotheses = tuple(
        Hypothesis(
            h["text"], float(h["score"]), tuple(h["tokens"]), tuple(h.get("token_log_probs", ()))
        )
        for h in record.get("hypotheses", [])
    )
    best = hypotheses[0] if hypotheses else Hypothesis("", 0.0, ())
    return Translation(best.text, best.score, best.tokens, hypotheses)


def _line(record: dict[str, Any], translation: Translation, *, as_json: bool) -> str:
    if as_json:
        kept = record if "error" in record else {**record, **facts_of(translation)}
        return json.dumps(kept, ensure_ascii=False)
    return LINE_BREAK.sub(" ", translation.text)
