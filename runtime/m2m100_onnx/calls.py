"""Carries out a call: texts become tokens, batches, hypotheses and texts again.

The one file that knows tokenizer and engine both. `translator.py` is the face that it works behind:
arguments and their types are there.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from m2m100_onnx.afterwards import complete
from m2m100_onnx.aligning import Aligner, Pair
from m2m100_onnx.engine.batches import Batch, Sentence, cut
from m2m100_onnx.engine.gate import Gate
from m2m100_onnx.engine.generator import Generator
from m2m100_onnx.engine.stats import Stats
from m2m100_onnx.engine.stopping import Cancellation, Stop
from m2m100_onnx.errors import InputTooLongError, InvalidInputError, M2M100Error
from m2m100_onnx.inputs import Languages, Row, joined
from m2m100_onnx.model.model import Model
from m2m100_onnx.options import SearchOptions, Settings, resolve_options
from m2m100_onnx.process import raised_by_signal_handler
from m2m100_onnx.rerank import Reranker, as_reranker
from m2m100_onnx.search.hypothesis import Hypothesis as Tokens
from m2m100_onnx.targets import Targets, count_new_tokens, spelled, unmet
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx.translation import EMPTY, Hypothesis, Translation

__all__ = [
    "Call",
    "Languages",
    "OnError",
    "Progress",
    "Worker",
]

_LOGGER = logging.getLogger("m2m100_onnx")

OnError = Literal["raise", "skip", "return"]
"""What happens with a text that cannot be translated."""
Progress = Callable[[int, int | None], object]
"""Takes the number of texts that are done, and of all texts; None where that is unknown."""


@dataclass
class Call:
    """How one call is carried out, and how far it is.

    Raises:
        InvalidInputError: `on_error`, `progress` or `stats` is something else.
    """

    settings: Settings
    stop: Stop
    on_error: OnError
    progress: Progress | None
    stats: Stats | None
    targets: Targets
    rerank: Reranker | None = None
    total: int | None = None
    done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip", "return"):
            raise InvalidInputError(
                f'on_error: expected "raise", "skip" or "return", found {self.on_error!r}'
            )
        if self.progress is not None and not callable(self.progress):
            kind = type(self.progress).__name__
            raise InvalidInputError(f"progress: expected a function, found {kind}")
        if self.stats is not None and not isinstance(self.stats, Stats):
            kind = type(self.stats).__name__
            raise InvalidInputError(f"stats: expected a Stats, found {kind}")

    def advance(self, count: int) -> None:
        """Counts texts that are done, and says so."""
        self.done += count
        if count and self.progress is not None:
            self.progress(self.done, self.total)

    def record(self, stats: Stats) -> None:
        """Adds the numbers of a part of the call, and logs them; texts are not logged."""
        if self.stats is not None:
            self.stats.add(stats)
        _LOGGER.debug(
            "%d texts of %d characters: %d tokens translated to %d in %d batches; "
            "seconds: encode %.4f, search %.4f, decode %.4f",
            *(stats.texts, stats.characters, stats.source_tokens, stats.target_tokens),
            *(stats.batches, stats.encode_seconds, stats.search_seconds, stats.decode_seconds),
        )


@dataclass
class _Window:
    """Texts that are translated together.

    Attributes:
        first: position of the first text in the call.
        sentences: the texts that can be translated.
        rows: these texts, as the caller gave them.
        errors: why others cannot, by position.
        failure: why no text was read after these, where that is an error.
        stats: what was done for these texts.
    """

    first: int
    sentences: list[Sentence] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    errors: dict[int, M2M100Error] = field(default_factory=dict)
    failure: Exception | None = None
    stats: Stats = field(default_factory=Stats)

    @property
    def positions(self) -> range:
        """The positions of the texts that were read."""
        return range(self.first, self.first + len(self.sentences) + len(self.errors))

    def leave_out(self, sentence: Sentence) -> None:
        """Takes out a text, which turned out to have no translation."""
        place = self.sentences.index(sentence)
        del self.sentences[place], self.rows[place]


class Worker:
    """Translates batches and streams of texts."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        generator: Generator[Model],
        gate: Gate,
        defaults: SearchOptions,
    ) -> None:
        """Takes the parts.

        Args:
            tokenizer: text to ids and back.
            generator: runs searches.
            gate: lets no search in when the translator is closed.
            defaults: search options where a call gives none.
        """
        self._tokenizer, self._generator, self._gate = tokenizer, generator, gate
        self._config, self._defaults = generator.model.bundle.config, defaults
        self.aligner = Aligner(generator.model, tokenizer, self._sample)

    def begin(
        self,
        options: Mapping[str, Any],
        cancellation: Cancellation | None,
        on_error: OnError,
        progress: Progress | None,
        stats: Stats | None,
    ) -> Call:
        """Returns a call that has begun, with its arguments checked."""
        self._gate.check()
        positions, vocab_size = self._config.max_position_embeddings, self._config.vocab_size
        given = dict(options)
        rerank = as_reranker(given.pop("rerank", None))
        if rerank is not None:  # One hypothesis has no order.
            given.setdefault("num_hypotheses", given.get("beam_size", self._defaults.beam_size))
        prefixes, terms = given.pop("target_prefix", None), given.pop("terms", None)
        new_tokens = count_new_tokens(given, prefixes, positions)
        settings = resolve_options(given, self._defaults, positions, vocab_size)
        settings = replace(settings, search=spelled(settings.search, self._tokenizer))
        targets = Targets.of(settings.search, self._tokenizer, prefixes, terms, new_tokens)
        stop = Stop(settings.call.timeout, cancellation)
        return Call(settings, stop, on_error, progress, stats, targets, rerank)

    def batch(
        self, texts: Sequence[str], source_lang: Languages, target_lang: Languages, call: Call
    ) -> list[Translation | M2M100Error]:
        """Translates texts; checks all of them before it translates the first."""
        call.targets.check(len(texts))
        window = self._read(self.rows(texts, source_lang, target_lang, call), 0, call)
        if window.failure:
            call.record(window.stats)
            raise window.failure
        results = self._translate(window, call)
        if len(results) < len(window.sentences):
            raise call.stop.error(results)
        return list(self._results(window, results, call))

    def stream(
        self,
        texts: Iterable[str],
        source_lang: Languages,
        target_lang: Languages,
        call: Call,
        read_ahead: int,
    ) -> Iterator[Translation | M2M100Error]:
        """Checks the languages at once, and translates `read_ahead` texts together."""
        call.targets.check(None)
        return self._stream(self.rows(texts, source_lang, target_lang, call), read_ahead, call)

    def _stream(
        self, rows: Iterator[Row], read_ahead: int, call: Call
    ) -> Iterator[Translation | M2M100Error]:
        position = 0
        while True:
            self._gate.check()  # Texts that are read now would be lost.
            window = self._read(itertools.islice(rows, read_ahead), position, call)
            if window.positions:
                yield from self._results(window, self._translate(window, call), call)
            if window.failure:  # What came before it was translated first.
                raise window.failure
            position = window.positions.stop
            if len(window.positions) < read_ahead:
                return

    def rows(
        self, texts: Iterable[str], source_lang: Languages, target_lang: Languages, call: Call
    ) -> Iterator[Row]:
        """Yields each text with its languages; a language of all texts is checked at once."""
        for code in (source_lang, target_lang):
            if isinstance(code, str):
                self._tokenizer.language_id(code)
        targets = call.targets
        return joined(texts, source_lang, target_lang, targets.prefixes, targets.own_terms)

    def encode(
        self, text: str, source_lang: str, target_lang: str | None, *, truncate: bool
    ) -> list[int]:
        """Returns a text's tokens, at most as many as the model has positions."""
        ids = self._tokenizer.encode(text, source_lang, target_lang)
        limit = self._config.max_position_embeddings
        if len(ids) <= limit:
            return ids
        if not truncate:
            raise InputTooLongError(limit, len(ids), text)
        return self._tokenizer.truncate(ids, limit)

    def _read(self, rows: Iterable[Row], first: int, call: Call) -> _Window:
        """Encodes texts, up to the first that cannot be if the call is to raise then."""
        window = _Window(first)
        try:
            for position, row in enumerate(rows, first):
                if call.stop.reached:
                    raise call.stop.error({})
                began = time.perf_counter()
                try:
                    sentence = self.sentence(position, row, call)
                except M2M100Error as error:
                    self._fail(error, position, window, call)
                else:
                    window.sentences.append(sentence)
                    window.rows.append(row)
                    window.stats.characters += len(row.text)
                window.stats.encode_seconds += time.perf_counter() - began
        except Exception as error:
            if raised_by_signal_handler(error):
                raise
            # That of a text, or of whoever yields the texts: what was read before comes first.
            window.failure = error
            _LOGGER.debug(
                "the call ends after %d texts: %s", window.positions.stop, type(error).__name__
            )
        return window

    @staticmethod
    def _fail(error: M2M100Error, position: int, window: _Window, call: Call) -> None:
        """Keeps why a text is not translated; raises it if the call is to."""
        error.position = position
        if call.on_error == "raise":
            raise error
        # Frames would keep what they refer to for as long as the error.
        window.errors[position] = error.with_traceback(None)
        window.stats.errors += 1
        level = logging.WARNING if call.on_error == "skip" else logging.DEBUG
        _LOGGER.log(level, "texts[%d] is not translated: %s", position, type(error).__name__)

    def sentence(self, position: int, row: Row, call: Call) -> Sentence:
        """Returns a text as tokens."""
        text, source_lang, target_lang, *_ = row
        if not isinstance(text, str):
            raise InvalidInputError(f"expected a str, found {type(text).__name__}")
        truncate = call.settings.call.truncate
        source = self.encode(text, source_lang, target_lang, truncate=truncate)
        prompt = self._tokenizer.build_prompt(target_lang, self._config.decoder_start_token_id)
        return call.targets.sentence(position, row, source, prompt)

    def _translate(self, window: _Window, call: Call) -> dict[int, Translation]:
        """Translates a window; returns the results that `call.stop` allowed, by position."""
        stats = window.stats
        empty = [sentence for sentence in window.sentences if not self.has_text(sentence)]
        texts = [sentence for sentence in window.sentences if self.has_text(sentence)]
        results = {sentence.position: EMPTY for sentence in empty}
        try:
            with self._gate.call():
                stats.texts = len(empty)
                call.advance(len(empty) + len(window.errors))
                for some in cut(texts, call.settings, self._generator.model.cache_bytes):
                    failed = len(window.errors)
                    found = self._search(some, call, window)
                    results.update(found)
                    call.advance(len(found) + len(window.errors) - failed)
            pairs = [*zip(window.sentences, window.rows, strict=True)]
            results = self.complete(pairs, results, call)
        finally:
            call.record(stats)
        return results

    def has_text(self, sentence: Sentence) -> bool:
        """Says whether there is anything to translate in a text."""
        return self._tokenizer.has_text(sentence.source)

    def complete(
        self, texts: Sequence[tuple[Sentence, Row]], results: dict[int, Translation], call: Call
    ) -> dict[int, Translation]:
        """Returns what a search found with what else its call wants, as far as it may."""
        wanted = (call.settings, call.rerank, call.stop)
        return complete(texts, results, *wanted, self.aligner, self._gate)

    def _sample(self, text: str, source_lang: str, target_lang: str) -> Pair:
        """Translates a text greedily, to find out which heads align."""
        options = {"beam_size": 1, "do_sample": False, "max_length": 48, "min_length": 0}
        call = self.begin(options, None, "raise", None, None)
        sentence = self.sentence(0, Row(text, source_lang, target_lang), call)
        batch = Batch.of([sentence], self._config.pad_token_id)
        (found,) = self._generator.run(batch, call.settings.search, call.stop)
        assert found, "a greedy search has a result"
        return Pair(text, sentence.source, found[0].tokens, target_lang)

    def _search(
        self, sentences: list[Sentence], call: Call, window: _Window
    ) -> dict[int, Translation]:
        """Translates one batch; a sentence that `call.stop` ended is left out."""
        stats, began = window.stats, time.perf_counter()
        batch = Batch.of(sentences, self._config.pad_token_id)
        found = self._generator.run(batch, call.settings.search, call.stop)
        ended = time.perf_counter()
        results = {}
        for sentence, hypotheses in zip(sentences, found, strict=True):
            if hypotheses:
                results[sentence.position] = self.decode(hypotheses)
            elif hypotheses is not None:
                window.leave_out(sentence)
                self._fail(unmet(), sentence.position, window, call)
        stats.batches += 1
        stats.texts += len(results)
        stats.source_tokens += sum(len(sentence.source) for sentence in sentences)
        stats.target_tokens += sum(len(translation.tokens) for translation in results.values())
        stats.search_seconds += ended - began
        stats.decode_seconds += time.perf_counter() - ended
        return results

    def decode(self, hypotheses: Iterable[Tokens]) -> Translation:
        """Returns hypotheses, best first, as a text."""
        decoded = tuple(
            Hypothesis(self._tokenizer.decode(h.tokens), h.score, h.tokens, h.log_probs)
            for h in hypotheses
        )
        best = decoded[0]
        return Translation(best.text, best.score, best.tokens, decoded)

    @staticmethod
    def _results(
        window: _Window, results: dict[int, Translation], call: Call
    ) -> Iterator[Translation | M2M100Error]:
        """Yields the results of a window in order; raises where `call.stop` left one out."""
        for position in window.positions:
            if position in results:
                yield results.pop(position)
            elif position not in window.errors:
                raise call.stop.error(results)
            elif call.on_error == "return":
                yield window.errors[position]
