"""`m2m100 score`, `generate` and `fill-mask`: lines in, scores or lines out, by a language model.

Knows lines and formats. It leaves tokens and checks to the model, whose errors name their text.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from m2m100_onnx.cli.arguments import (
    Add,
    Commands,
    add_call_options,
    add_command,
    add_device,
    add_languages,
    add_model,
    add_threads,
    given_options,
    opening,
)
from m2m100_onnx.cli.cache import add_cache_options
from m2m100_onnx.cli.lines import LINE_BREAK, add_files, answer_lines, check_input
from m2m100_onnx.cli.pairs import sides_of
from m2m100_onnx.errors import InvalidInputError, M2M100Error

if TYPE_CHECKING:
    from m2m100_onnx.language_model import LanguageModel
    from m2m100_onnx.scores import Filling, Generation, Score

__all__ = ["add_model_arguments", "add_parsers", "open_model"]


def add_parsers(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the commands to those of `m2m100`."""
    about = "Score lines of text, or sources with their translations."
    description = f"""\
{about}

A line has the sum and the mean of the log-probabilities of a text's tokens, and its perplexity.

With --source-lang and --target-lang the model is one that translates. A line is then a source and
its translation with a tab between them, as `paste SOURCES TARGETS` makes it."""
    parser = add_command(commands, "score", _score, about, description)
    add = parser.add_argument
    add_files(add, "Texts to score")
    add_model_arguments(add)
    add("--total", action="store_true", help="Write one line for all texts, and no other.")
    about = "Language of the {}; the lines are pairs then."
    add_languages(add, about.format("sources"), about.format("translations"), required=False)
    _add_format(add)
    add_call_options(parser, "call")

    parser = add_command(commands, "generate", _generate, "Go on from lines of text.")
    add = parser.add_argument
    add_files(add, "Texts to go on from")
    add_model_arguments(add)
    about = "Most tokens after a text. (default: --max-length counts all)"
    add("--max-new-tokens", type=int, metavar="N", help=about)
    _add_format(add)
    add_call_options(parser)

    about = "Find words for the masks in lines of text."
    description = f"""\
{about}

A mask is <special1> in most checkpoints. A line has the tokens for a mask, likeliest first, each
with its probability."""
    parser = add_command(commands, "fill-mask", _fill_mask, about, description)
    add = parser.add_argument
    add_files(add, "Texts with a mask")
    add_model_arguments(add)
    add("--top", type=int, default=5, metavar="N", help="Tokens for a mask. (default: 5)")
    _add_format(add)


def add_model_arguments(add: Add) -> None:
    """Adds --model, --language, and how the model runs."""
    add_model(add)
    about = "Language of the texts, such as en; for a model that has languages."
    add("-l", "--language", metavar="CODE", help=about)
    add_device(add)
    add_threads(add)
    add_cache_options(add)


def _add_format(add: Add) -> None:
    add("--json", action="store_true", help="Write a JSON object a line.")


def open_model(arguments: argparse.Namespace) -> LanguageModel:
    """Opens the language model of a command, whose input is checked first."""
    from m2m100_onnx.language_model import LanguageModel

    check_input(arguments)
    return LanguageModel(arguments.model, **opening(arguments))


def _scorer(arguments: argparse.Namespace) -> Callable[[list[str]], list[Score]]:
    """Returns what scores the texts of a command, or its pairs."""
    languages = arguments.source_lang, arguments.target_lang
    options = given_options(arguments)
    if languages == (None, None):
        model = open_model(arguments)
        return lambda texts: model.score(texts, language=arguments.language, **options)
    if None in languages or arguments.language is not None:
        raise InvalidInputError(
            "expected --source-lang and --target-lang, or --language, found "
            + " and ".join(
                flag
                for flag, value in zip(
                    ("--source-lang", "--target-lang", "--language"),
                    (*languages, arguments.language),
                    strict=True,
                )
                if value is not None
            )
        )
    from m2m100_onnx.translator import Translator

    check_input(arguments)
    translator = Translator(arguments.model, **opening(arguments))

    def score(lines: list[str]) -> list[Score]:
        sides = [sides_of(line, position) for position, line in enumerate(lines)]
        source_lang, target_lang = languages
        return translator.score(
            [source for source, _ in sides],
            [target for _, target in sides],
            source_lang=source_lang,
            target_lang=target_lang,
            **options,
        )

    return score


def _score(arguments: argparse.Namespace) -> int:
    scored = _scorer(arguments)
    totals: list[tuple[int, float]] = []

    def answer(texts: list[str]) -> list[str]:
        scores = scored(texts)
        if arguments.total:
            totals.extend((len(score.token_log_probs), score.sum) for score in scores)
            return []
        written = _scored if arguments.json else _row
        return [written(text, score) for text, score in zip(texts, scores, strict=True)]

    def end() -> list[str]:
        if not arguments.total:
            return []
        tokens, total = sum(n for n, _ in totals), math.fsum(value for _, value in totals)
        mean = total / tokens if tokens else math.nan
        facts = {"texts": len(totals), "tokens": tokens, **_facts(total, mean)}
        if arguments.json:
            return [json.dumps(facts)]
        return ["\t".join(f"{name} {value:.6g}" for name, value in facts.items())]

    return answer_lines(arguments, answer, end)


def _facts(total: float, mean: float) -> dict[str, float | None]:
    facts = {"sum": total, "mean": mean, "perplexity": math.exp(-mean)}
    # JSON has no NaN.
    return {name: None if math.isnan(value) else value for name, value in facts.items()}


def _row(_: str, score: Score) -> str:
    return f"{score.sum:.6g}\t{score.mean:.6g}\t{score.perplexity:.6g}"


def _scored(text: str, score: Score) -> str:
    facts = {"text": text, **_facts(score.sum, score.mean), **asdict(score)}
    return json.dumps(facts, ensure_ascii=False)


def _generate(arguments: argparse.Namespace) -> int:
    model = open_model(arguments)

    def answer(texts: list[str]) -> list[str]:
        found = model.generate_batch(
            texts,
            language=arguments.language,
            max_new_tokens=arguments.max_new_tokens,
            **given_options(arguments),
        )
        return [_generated(text, g, arguments) for text, g in zip(texts, found, strict=True)]

    return answer_lines(arguments, answer)


def _generated(prompt: str, generation: Generation, arguments: argparse.Namespace) -> str:
    if arguments.json:
        facts = {"prompt": prompt, "language": arguments.language, **asdict(generation)}
        return json.dumps(facts, ensure_ascii=False)
    return LINE_BREAK.sub(" ", generation.text)


def _fill_mask(arguments: argparse.Namespace) -> int:
    model = open_model(arguments)

    def answer(texts: list[str]) -> list[str]:
        lines: list[str] = []
        for position, text in enumerate(texts):
            try:
                found: Any = model.fill_mask(text, language=arguments.language, top=arguments.top)
            except M2M100Error as error:
                error.position = position
                raise
            # A text with one mask has its tokens, and one with several a list for each.
            masks = found if isinstance(found[0], list) else [found]
            lines += _filled(text, masks, as_json=arguments.json)
        return lines

    return answer_lines(arguments, answer)


def _filled(text: str, masks: list[list[Filling]], *, as_json: bool) -> Iterator[str]:
    if as_json:
        facts = {"text": text, "masks": [[asdict(f) for f in mask] for mask in masks]}
        yield json.dumps(facts, ensure_ascii=False)
        return
    for mask in masks:
        yield "\t".join(f"{f.piece.removesuffix('</w>')} {f.score:.4g}" for f in mask)
