"""What `m2m100 benchmark` measures: the grid, its configurations, and texts of a given length.

Checks everything that can be checked before minutes of measuring. Knows the translator; knows no
clocks, no processes and no arguments.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2m100_onnx.cli.benchmark.worker import GIVEN_TOKENS
from m2m100_onnx.errors import InvalidInputError, M2M100Error
from m2m100_onnx.options import OPTIONS
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx.translator import Translator

__all__ = ["Configuration", "Grid", "Job", "prepare", "synthetic_text"]

SOURCE_LENGTH, TARGET_LENGTH = 32, 48
_SEED = 0
# Language token, one piece, end.
_SHORTEST_SOURCE = 3


@dataclass(frozen=True)
class Configuration:
    """What one row of the result was measured with.

    Attributes:
        bundle: name of its folder or on the hub, or the path where two folders share a name.
        precision: of the weights, as the bundle's manifest says.
        weights_size: bytes of its graph and weights files.
        batch_size: texts a call.
        beam_size: beams per text; 1 is greedy search.
        source_length: tokens of every source, language token and `</s>` included; None: real text.
        target_length: tokens generated for every text, start and language token not counted;
            None: real text, which ends by itself.
        threads: inside an operator; None is onnxruntime's default, one a core.
        concurrency: Python threads that call one `Translator` at once.
        source_lang: language of the texts.
        target_lang: language they are translated into.
    """

    bundle: str
    precision: str
    weights_size: int
    batch_size: int
    beam_size: int
    source_length: int | None
    target_length: int | None
    threads: int | None
    concurrency: int
    source_lang: str
    target_lang: str


@dataclass(frozen=True)
class Grid:
    """What to measure: every combination of the tuples, and how.

    Attributes:
        bundles: folders.
        batch_sizes: see `Configuration`.
        beam_sizes: see `Configuration`.
        source_lengths: see `Configuration`; unused with `text`.
        target_lengths: see `Configuration`; unused with `text`.
        threads: see `Configuration`.
        concurrencies: see `Configuration`.
        text: real texts in place of synthetic ones. Each repetition translates all of them, a batch
            a call; the last batch may be smaller.
        source_lang: language of the texts; by default `en` if the bundle has it, else its first.
        target_lang: language to translate into; by default another of the bundle's languages.
        warmup: repetitions before the timed ones.
        repetitions: timed calls a Python thread, or with `text` timed passes over it.
        loads: fresh processes whose time to the first token is measured; the last one measures
            everything else.
        device: see `Translator`.
        session_options: see `Translator`.
        names: what bundles are called that are not called as their folders.
    """

    bundles: tuple[Path, ...]
    batch_sizes: tuple[int, ...] = (1,)
    beam_sizes: tuple[int, ...] = (1, 5)
    source_lengths: tuple[int, ...] = (SOURCE_LENGTH,)
    target_lengths: tuple[int, ...] = (TARGET_LENGTH,)
    threads: tuple[int | None, ...] = (None,)
    concurrencies: tuple[int, ...] = (1,)
    text: tuple[str, ...] | None = None
    source_lang: str | None = None
    target_lang: str | None = None
    warmup: int = 1
    repetitions: int = 5
    loads: int = 3
    device: str = "cpu"
    session_options: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A configuration that is possible, and what its processes do.

    Attributes:
        configuration: the row that it makes.
        opening: arguments of `worker.open_translator`.
        batches: the texts of each call.
        first_token: options of a call that ends after one token.
        whole: options of a timed call.
        warmup: see `Grid`.
        repetitions: see `Grid`.
        loads: see `Grid`.
    """

    configuration: Configuration
    opening: Mapping[str, Any]
    batches: list[list[str]]
    first_token: Mapping[str, Any]
    whole: Mapping[str, Any]
    warmup: int
    repetitions: int
    loads: int


def prepare(grid: Grid) -> list[Job]:
    """Checks what can be checked before minutes of measuring, and makes the texts.

    Bundles take turns, so that what is compared was measured within a short time.

    Raises:
        BundleError: a folder is no bundle, or an incomplete one.
        InvalidInputError: a length or another value is out of range, or the text is too short.
        UnknownLanguageError: a bundle does not have a language.
        DependencyError: this machine or its onnxruntime lacks the device.
    """
    names = [grid.names.get(path, path.resolve().name) for path in grid.bundles]
    if len(set(names)) < len({path.resolve() for path in grid.bundles}):
        names = [grid.names.get(path, str(path)) for path in grid.bundles]
    made = {
        path: _Prepared(path, name, grid) for path, name in zip(grid.bundles, names, strict=True)
    }
    synthetic = grid.text is None
    combinations = itertools.product(
        grid.threads,
        grid.concurrencies,
        grid.source_lengths if synthetic else (None,),
        grid.target_lengths if synthetic else (None,),
        grid.batch_sizes,
        grid.beam_sizes,
        grid.bundles,
    )
    return [
        made[path].job(batch_size, beam_size, source, target, threads, concurrency)
        for threads, concurrency, source, target, batch_size, beam_size, path in combinations
    ]


class _Prepared:
    """A bundle that passed its checks; it makes jobs."""

    def __init__(self, path: Path, name: str, grid: Grid) -> None:
        self._path, self._name, self._grid = path, name, grid
        for beam_size in grid.beam_sizes:
            OPTIONS["beam_size"].check(beam_size)
        # Lazy: each checks its arguments and opens no graph.
        translators = [
            Translator(path, lazy=True, **_translator_arguments(grid, threads))
            for threads in grid.threads
        ]
        self._translator = translator = translators[0]
        self._positions = translator.bundle.config.max_position_embeddings
        self._languages = _languages(translator, grid)
        for number, text in enumerate(grid.text or (), 1):
            self._check_text(number, text)

    def job(
        self,
        batch_size: int,
        beam_size: int,
        source_length: int | None,
        target_length: int | None,
        threads: int | None,
        concurrency: int,
    ) -> Job:
        """Returns the job of one configuration.

        Raises:
            InvalidInputError: the bundle has too few positions, or there is too little text.
        """
        grid = self._grid
        if target_length is not None:
            most = self._positions - GIVEN_TOKENS
            _check(self._path, "target length", target_length, 1, most, self._positions)
        files = (path for path in self._path.iterdir() if ".onnx" in path.name)
        configuration = Configuration(
            bundle=self._name,
            precision=self._translator.bundle.precision,
            weights_size=sum(path.stat().st_size for path in files),
            batch_size=batch_size,
            beam_size=beam_size,
            source_length=source_length,
            target_length=target_length,
            threads=threads,
            concurrency=concurrency,
            **self._languages,
        )
        common = {
            "beam_size": beam_size,
            "num_hypotheses": 1,
            # The batch that was asked for runs as one.
            **{name: OPTIONS[name].high for name in ("max_batch_tokens", "max_batch_bytes")},
        }
        return Job(
            configuration=configuration,
            opening={
                "bundle": os.fspath(self._path),
                "translator": _translator_arguments(grid, threads),
                "languages": self._languages,
            },
            batches=self._batches(batch_size, source_length),
            first_token={**_exactly(1), **common},
            whole={**({} if target_length is None else _exactly(target_length)), **common},
            warmup=grid.warmup,
            repetitions=grid.repetitions,
            loads=grid.loads,
        )

    def _check_text(self, number: int, text: str) -> None:
        try:
            ids = self._translator.encode(text, *self._languages.values())
            if not self._translator.tokenizer.has_text(ids):
                # It costs nothing, so it would make every number look better.
                raise InvalidInputError("expected text, found nothing that the model is given")
        except M2M100Error as error:
            raise InvalidInputError(f"text: line {number}: {error.message}") from None

    def _batches(self, batch_size: int, source_length: int | None) -> list[list[str]]:
        if source_length is not None:
            least, most = _SHORTEST_SOURCE, self._positions
            _check(self._path, "source length", source_length, least, most, self._positions)
            chance = random.Random(_SEED)
            tokenizer, language = self._translator.tokenizer, self._languages["source_lang"]
            return [
                [
                    synthetic_text(tokenizer, language, source_length, chance)
                    for _ in range(batch_size)
                ]
            ]
        texts = list(self._grid.text or ())
        if len(texts) < batch_size:
            raise InvalidInputError(
                f"--text: expected at least a batch of {batch_size} lines, found {len(texts)}"
            )
        return [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]


def _translator_arguments(grid: Grid, threads: int | None) -> dict[str, Any]:
    return {
        "device": grid.device,
        "intra_op_num_threads": threads,
        "session_options": dict(grid.session_options),
    }


def _exactly(tokens: int) -> dict[str, Any]:
    """Search options under which every text gets `tokens` tokens, whatever the weights say."""
    length = tokens + GIVEN_TOKENS
    return {
        # What a bundle asks for beyond plain search would make bundles do different work.
        **{row.name: row.default for row in OPTIONS.values() if row.scope == "search"},
        # `</s>` is impossible before min_length, and nothing follows max_length.
        "min_length": length,
        "max_length": length,
    }


def _check(path: Path, name: str, value: int, least: int, most: int, positions: int) -> None:
    if not least <= value <= most:
        raise InvalidInputError(
            f"{name}: expected {least} to {most} tokens, since {path} has {positions} positions; "
            f"found {value}"
        )


def _languages(translator: Translator, grid: Grid) -> dict[str, str]:
    codes = translator.languages
    source = grid.source_lang or ("en" if "en" in codes else codes[0])
    target = grid.target_lang or next((code for code in codes if code != source), source)
    for code in (source, target):
        translator.tokenizer.language_id(code)
    return {"source_lang": source, "target_lang": target}


def synthetic_text(tokenizer: Tokenizer, language: str, length: int, chance: random.Random) -> str:
    """Returns words drawn from the vocabulary that encode to exactly `length` tokens.

    Raises:
        InvalidInputError: the vocabulary has too few words that are one piece.
    """
    pieces = tokenizer.ids_to_pieces(range(tokenizer.vocab_size))
    words = [piece[1:] for piece in pieces if piece[0] == "▁" and piece[1:].isalpha()]
    chosen: list[str] = []
    for word in chance.choices(words, k=20 * length) if words else ():
        if len(chosen) < length - _SHORTEST_SOURCE + 1 and tokenizer.tokenize(word) == ["▁" + word]:
            chosen.append(word)
    text = " ".join(chosen)
    # A frame of any family takes as many tokens; the language's stands for both.
    found = len(tokenizer.encode(text, language, language))
    if found != length:
        raise InvalidInputError(
            f"source length: expected {length} tokens of whole words, found {found} with this "
            "vocabulary; measure with real text instead"
        )
    return text
