"""What a translator does beside translating: it scores pairs, and makes vectors of texts.

Knows arguments, tokenizer and reader; leaves batches to the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np

from m2m100_onnx.aligning import Pair
from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.calls import Worker
from m2m100_onnx.engine.gate import Gate
from m2m100_onnx.engine.pair_reader import PairReader
from m2m100_onnx.engine.stopping import Cancellation, Stop
from m2m100_onnx.errors import InputTooLongError, InvalidInputError
from m2m100_onnx.inputs import Row, check_languages, check_texts, joined, located
from m2m100_onnx.model.model import Model
from m2m100_onnx.options import OPTIONS, CallOptions, SearchOptions, resolve_options
from m2m100_onnx.scores import Score
from m2m100_onnx.search.state import Float32Array
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx.translation import Alignment, AlignmentHeads

__all__ = ["Reading"]


class Reading:
    """The methods of a `Translator` that read whole texts and make none."""

    bundle: Bundle
    model: Model
    tokenizer: Tokenizer
    defaults: SearchOptions
    _gate: Gate
    _worker: Worker

    @overload
    def score(
        self,
        sources: str,
        targets: str,
        *,
        source_lang: str,
        target_lang: str,
        entropy: bool = False,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> Score: ...

    @overload
    def score(
        self,
        sources: Sequence[str],
        targets: Sequence[str],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        entropy: bool = False,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> list[Score]: ...

    def score(
        self,
        sources: str | Sequence[str],
        targets: str | Sequence[str],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        entropy: bool = False,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> Score | list[Score]:
        """Returns how likely each target is as the translation of its source.

        Every token of a target counts, the language token and `</s>` included. So `loss` is that of
        transformers with the target's tokens as `labels`.

        Args:
            sources: a text, or several.
            targets: its translation, or one for each source.
            source_lang: the sources' language, or one for each.
            target_lang: the targets' language, or one for each.
            entropy: whether scores have `token_entropies`.
            cancellation: lets another thread end the call.
            **options: `max_batch_tokens`, `max_batch_bytes`, `truncate` and `timeout`.

        Raises:
            UnknownLanguageError: a language is not one of `languages`.
            InputTooLongError: a text has more tokens than the model has positions.
            InvalidInputError: a text is not a string, an option is out of range, or sources and
                targets are not equally many.
            StoppedError: `timeout` or `cancellation` ended the call.
            ClosedError: the translator is closed.
        """
        call, stop = self._begin(options, cancellation)
        rows = self._encoded(sources, targets, source_lang, target_lang, call)
        first, second = [ids for _, ids, _ in rows], [target for *_, target in rows]
        with self._gate.call():
            found = self._pairs.log_probs(first, second, call, stop, with_entropies=entropy)
        read = stop.complete(found, len(rows))
        scores = [self._score(ids, row) for ids, row in zip(second, read, strict=True)]
        return scores[0] if isinstance(sources, str) else scores

    @overload
    def align(
        self,
        sources: str,
        targets: str,
        *,
        source_lang: str,
        target_lang: str,
        heads: AlignmentHeads | None = None,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> Alignment: ...

    @overload
    def align(
        self,
        sources: Sequence[str],
        targets: Sequence[str],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        heads: AlignmentHeads | None = None,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> list[Alignment]: ...

    def align(
        self,
        sources: str | Sequence[str],
        targets: str | Sequence[str],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        heads: AlignmentHeads | None = None,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> Alignment | list[Alignment]:
        """Returns which words of each target stand for which words of its source.

        Args:
            sources: a text, or several.
            targets: its translation, or one for each source.
            source_lang: the sources' language, or one for each.
            target_lang: the targets' language, or one for each.
            heads: whose attention aligns; by default `alignment_heads`.
            cancellation: lets another thread end the call.
            **options: `max_batch_tokens`, `max_batch_bytes`, `truncate` and `timeout`.

        Raises:
            BundleError: the bundle was exported without the graph of attention.
            M2M100Error: see `score`.
        """
        call, stop = self._begin(options, cancellation)
        rows = self._encoded(sources, targets, source_lang, target_lang, call)
        pairs = [Pair(row.text, ids, target, row.target_lang) for row, ids, target in rows]
        with self._gate.call():
            found = self._worker.aligner.align(pairs, call, stop, heads)
        alignments = stop.complete(found, len(pairs))
        return alignments[0] if isinstance(sources, str) else alignments

    def alignment_heads(self) -> AlignmentHeads:
        """Returns the head whose attention aligns by default.

        It is the one whose words agree most with one another, on a few sentences that the first
        call translates for it.

        Raises:
            BundleError: the bundle was exported without the graph of attention.
            InvalidInputError: the model knows too few languages of these sentences.
        """
        with self._gate.call():
            return self._worker.aligner.heads()

    def _encoded(
        self,
        sources: str | Sequence[str],
        targets: str | Sequence[str],
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        call: CallOptions,
    ) -> list[tuple[Row, list[int], list[int]]]:
        """Returns each source with its tokens and those of its target; checks that they match."""
        single = isinstance(sources, str)
        if single != isinstance(targets, str):
            kinds = type(sources).__name__, type(targets).__name__
            raise InvalidInputError(
                "targets: expected a str for a str of sources, or a list for a list, found "
                f"{kinds[1]} for {kinds[0]}"
            )
        firsts, seconds = _several(sources), _several(targets)
        if len(firsts) != len(seconds):
            raise InvalidInputError(
                f"targets: expected one for each of {len(firsts)} sources, found {len(seconds)}"
            )
        check_languages(len(firsts), source_lang=source_lang, target_lang=target_lang)
        found = []
        sides = zip(joined(firsts, source_lang, target_lang), seconds, strict=True)
        for position, (row, target) in enumerate(sides):
            with located(None if single else position):
                codes = row.source_lang, row.target_lang
                ids = self._worker.encode(row.text, *codes, truncate=call.truncate)
                found.append((row, ids, self._target(target, row.target_lang, call.truncate)))
        return found

    def encode_states(
        self,
        texts: Sequence[str],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str] | None = None,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> list[Float32Array]:
        """Returns the encoder's output for each text, `(S, D)`: one row for each token.

        The tokens are those of `encode`, the language token and `</s>` included.

        Args:
            texts: the texts.
            source_lang: their language, or one for each.
            target_lang: for SMaLL-100, whose encoder reads the language to translate into.
            cancellation: lets another thread end the call.
            **options: `max_batch_tokens`, `max_batch_bytes`, `truncate` and `timeout`.

        Raises:
            M2M100Error: see `score`.
        """
        call, stop = self._begin(options, cancellation)
        check_texts(texts)
        texts = list(texts)
        targets = source_lang if target_lang is None else target_lang
        check_languages(len(texts), source_lang=source_lang, target_lang=targets)
        rows = []
        for position, (text, source, target, *_) in enumerate(joined(texts, source_lang, targets)):
            with located(position):
                code = None if target_lang is None else target
                rows.append(self._worker.encode(text, source, code, truncate=call.truncate))
        with self._gate.call():
            found = self._pairs.states(rows, call, stop)
        return stop.complete(found, len(rows))

    def embed(
        self,
        texts: Sequence[str],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str] | None = None,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> Float32Array:
        """Returns a vector for each text, `(N, D)`: the mean of its `encode_states`.

        Arguments and errors are those of `encode_states`.
        """
        states = self.encode_states(
            texts,
            source_lang=source_lang,
            target_lang=target_lang,
            cancellation=cancellation,
            **options,
        )
        width = self.bundle.config.d_model
        return np.array([rows.mean(axis=0) for rows in states], np.float32).reshape(-1, width)

    @cached_property
    def _pairs(self) -> PairReader:
        return PairReader(self.model)

    def _begin(
        self, options: Mapping[str, Any], cancellation: Cancellation | None
    ) -> tuple[CallOptions, Stop]:
        """Returns the options of a call and what ends it; refuses those of a search."""
        self._gate.check()
        wrong = [name for name in options if name in OPTIONS and OPTIONS[name].scope == "search"]
        if wrong:
            raise TypeError(
                f"{', '.join(wrong)}: not an option of a call that makes no translations"
            )
        config = self.bundle.config
        settings = resolve_options(
            options, self.defaults, config.max_position_embeddings, config.vocab_size
        )
        return settings.call, Stop(settings.call.timeout, cancellation)

    def _target(self, text: str, target_lang: str, truncate: bool) -> list[int]:
        """Returns a target's tokens, from the decoder's start token to `</s>`."""
        config, tokenizer = self.bundle.config, self.tokenizer
        prompt = tokenizer.build_prompt(target_lang, config.decoder_start_token_id)
        ids = [*prompt, *tokenizer.pieces_to_ids(tokenizer.tokenize(text))]
        # The decoder is fed all but the last one, `</s>`.
        limit = config.max_position_embeddings
        if len(ids) > limit and not truncate:
            raise InputTooLongError(limit, len(ids), text)
        return [*ids[:limit], config.eos_token_id]

    def _score(self, target: list[int], found: Float32Array) -> Score:
        tokens = target[1:]
        pieces = self.tokenizer.ids_to_pieces(tokens)
        return Score(tuple(tokens), tuple(pieces), *map(tuple, found.tolist()))


def _several(texts: str | Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    check_texts(texts)
    return list(texts)
