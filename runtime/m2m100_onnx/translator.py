"""Text in, text out: batching, ordering and options.

The only file that knows tokenizer, model and search all three.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import numpy as np

from m2m100_onnx.bundle import Bundle
from m2m100_onnx.decoding import SearchOptions, search
from m2m100_onnx.errors import InputTooLongError, InvalidInputError
from m2m100_onnx.model import Model
from m2m100_onnx.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Hypothesis", "TranslateOptions", "Translation", "Translator"]

# What config files call the options, and what M2M100 checkpoints set where a config says nothing.
_CONFIG_NAMES = {"num_beams": "beam_size", "num_return_sequences": "num_hypotheses"}
_FALLBACK = {"beam_size": 5, "max_length": 200, "early_stopping": True}
# A row costs a vocabulary of logits however short its source, so short sources count as this many.
_LEAST_TOKENS_A_ROW = 32
_MAX_BATCH_TOKENS = 4096
_READ_AHEAD = 256


class TranslateOptions(TypedDict, total=False):
    """Options of one translate call; what is left out comes from the bundle's generation config.

    Attributes:
        beam_size: hypotheses kept a sentence; 1 is greedy search.
        num_hypotheses: how many of them to return, at most `beam_size`.
        max_length: most decoder tokens; as in transformers, start and language token count.
        min_length: fewest decoder tokens before `</s>` may come, counted likewise.
        length_penalty: exponent of the length in a hypothesis' score; above 0 favours longer ones.
        early_stopping: when a sentence is done: True, as soon as `beam_size` hypotheses ended;
            False, when the best running one looks unable to beat them; "never", when it cannot.
        no_repeat_ngram_size: no token sequence of this length comes twice; 0 allows all.
        repetition_penalty: above 1 makes tokens that were used before less likely.
        suppress_tokens: ids that never come.
        max_batch_tokens: a batch is cut so that `sentences * beam_size * longest source` stays
            below this, a source counting at least 32 tokens; one sentence is always taken.
        truncate: cut texts that are longer than the model's positions, instead of raising.
    """

    beam_size: int
    num_hypotheses: int
    max_length: int
    min_length: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    no_repeat_ngram_size: int
    repetition_penalty: float
    suppress_tokens: tuple[int, ...]
    max_batch_tokens: int
    truncate: bool


@dataclass(frozen=True)
class Hypothesis:
    """One translation of a text.

    Attributes:
        text: the translation.
        score: sum of its tokens' log-probabilities over `(len(tokens) - 1) ** length_penalty`.
        tokens: the decoder's whole sequence as transformers' `generate` returns it, without
            padding: start token, language token, the text, and `</s>` unless max_length cut it.
    """

    text: str
    score: float
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Translation:
    """The best hypothesis of a text, and all that were asked for.

    Attributes:
        text: the best translation; empty if the source has nothing to translate.
        score: its score, see `Hypothesis`; 0.0 for an empty source.
        tokens: its tokens, see `Hypothesis`.
        hypotheses: `num_hypotheses` of them, best first; none for an empty source.
    """

    text: str
    score: float
    tokens: tuple[int, ...]
    hypotheses: tuple[Hypothesis, ...]


_EMPTY = Translation("", 0.0, (), ())


@dataclass(frozen=True)
class _Source:
    """A text on its way: its place in the input, its tokens, its target language's token."""

    position: int
    ids: list[int]
    target: int


class Translator:
    """Translates text with an exported bundle; one may be used from many threads at once.

    Attributes:
        bundle: the opened bundle.
        tokenizer: text to ids and back.
        model: the onnxruntime sessions.
        defaults: search options where a call gives none, from the bundle's generation config.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        device: str = "cpu",
        intra_op_num_threads: int | None = None,
        inter_op_num_threads: int | None = None,
        providers: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
        session_options: Mapping[str, str] | None = None,
        sp_model_kwargs: Mapping[str, object] | None = None,
        lazy: bool = False,
    ) -> None:
        """Opens a bundle.

        Args:
            bundle: its folder.
            device: `cpu`, `cuda`, `cuda:N`, or `auto`.
            intra_op_num_threads: threads inside an operator; by default one a core.
            inter_op_num_threads: threads across operators.
            providers: onnxruntime execution providers, in place of the device's usual ones.
            session_options: onnxruntime session config entries.
            sp_model_kwargs: SentencePiece options, such as subword sampling.
            lazy: open each graph at its first use, not now.

        Raises:
            BundleError: the bundle is incomplete, damaged, or of a newer format.
            DependencyError: onnxruntime lacks what `device` or `providers` ask for.
            InvalidInputError: an argument is out of range.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        manifest = self.bundle.manifest
        self.tokenizer = Tokenizer(
            self.bundle.directory,
            sp_model_kwargs=sp_model_kwargs,
            embedding_rows=self.bundle.config.vocab_size,
            trained_languages=manifest.languages if manifest else None,
        )
        self.model = Model(
            self.bundle,
            device=device,
            providers=providers,
            intra_op_num_threads=intra_op_num_threads,
            inter_op_num_threads=inter_op_num_threads,
            session_options=session_options,
        )
        self.defaults = _defaults(self.bundle)
        if not lazy:
            self.model.load()

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes that may be asked for as source or target."""
        return self.tokenizer.languages

    def encode(self, text: str, source_lang: str, *, truncate: bool = False) -> list[int]:
        """The tokens the model is given for a text: language, pieces, `</s>`.

        Args:
            text: the text.
            source_lang: its language.
            truncate: cut what is beyond the model's positions, instead of raising.

        Raises:
            UnknownLanguageError: the language is not one of `languages`.
            InputTooLongError: the text has more tokens than the model has positions.
            InvalidInputError: the text is not valid Unicode.
        """
        ids = self.tokenizer.encode(text, source_lang)
        limit = self.bundle.config.max_position_embeddings
        if len(ids) <= limit:
            return ids
        if not truncate:
            raise InputTooLongError(limit=limit, length=len(ids), text=text)
        return [*ids[: limit - 1], ids[-1]]

    @overload
    def translate(
        self, text: str, *, source_lang: str, target_lang: str, **options: Unpack[TranslateOptions]
    ) -> str: ...

    @overload
    def translate(
        self,
        text: list[str] | tuple[str, ...],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        **options: Unpack[TranslateOptions],
    ) -> list[str]: ...

    def translate(
        self,
        text: str | list[str] | tuple[str, ...],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        **options: Unpack[TranslateOptions],
    ) -> str | list[str]:
        """Translates a text into a text, or a list of texts into as many, in the same order.

        Args:
            text: one text, best a sentence, or several.
            source_lang: their language, or one for each.
            target_lang: the language to translate into, or one for each.
            **options: see `TranslateOptions`.

        Raises:
            UnknownLanguageError: a language is not one of `languages`.
            InputTooLongError: a text has more tokens than the model has positions.
            InvalidInputError: a text is not a string, or an option is out of range.
        """
        found = self.translate_batch(
            [text] if isinstance(text, str) else text,
            source_lang=source_lang,
            target_lang=target_lang,
            **options,
        )
        texts = [translation.text for translation in found]
        return texts[0] if isinstance(text, str) else texts

    def translate_batch(
        self,
        texts: Sequence[str],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        **options: Unpack[TranslateOptions],
    ) -> list[Translation]:
        """Translates texts, with scores, tokens and further hypotheses, in the same order.

        A text's result does not depend on the texts beside it. Arguments and errors are those of
        `translate`.
        """
        if isinstance(texts, (str, bytes)):
            raise InvalidInputError(
                f"texts: expected a list of str, found one {type(texts).__name__}"
            )
        texts = list(texts)
        for name, value in (("source_lang", source_lang), ("target_lang", target_lang)):
            if not isinstance(value, str) and len(value) != len(texts):
                raise InvalidInputError(
                    f"{name}: expected one code, or one for each of {len(texts)} texts, "
                    f"found {len(value)}"
                )
        settings = self._settings(options)
        languages = zip(_repeat(source_lang), _repeat(target_lang), strict=False)
        sources = [
            self._encode(position, text, *pair, truncate=settings.truncate)
            for position, (text, pair) in enumerate(zip(texts, languages, strict=False))
        ]
        results = [_EMPTY] * len(texts)
        for batch in _batches([s for s in sources if s], settings):
            for source, translation in zip(batch, self._run(batch, settings.search), strict=True):
                results[source.position] = translation
        return results

    def translate_iterable(
        self,
        texts: Iterable[str],
        *,
        source_lang: str | Iterable[str],
        target_lang: str | Iterable[str],
        read_ahead: int = _READ_AHEAD,
        **options: Unpack[TranslateOptions],
    ) -> Iterator[Translation]:
        """Translates a stream, endless if need be, in constant memory and in the same order.

        Args:
            texts: the texts.
            source_lang: their language, or a stream of one for each.
            target_lang: the language to translate into, or a stream of one for each.
            read_ahead: texts read, sorted by length and translated before the first result comes.
            **options: see `TranslateOptions`.

        Raises:
            InvalidInputError: `read_ahead` is below 1; otherwise as `translate`.
        """
        if read_ahead < 1:
            raise InvalidInputError(f"read_ahead: expected at least 1, found {read_ahead}")
        if isinstance(texts, (str, bytes)):
            raise InvalidInputError(
                f"texts: expected an iterable of str, found one {type(texts).__name__}"
            )
        self._settings(options)
        return self._stream(texts, source_lang, target_lang, read_ahead, options)

    def _stream(
        self,
        texts: Iterable[str],
        source_lang: str | Iterable[str],
        target_lang: str | Iterable[str],
        read_ahead: int,
        options: TranslateOptions,
    ) -> Iterator[Translation]:
        stream = zip(texts, _repeat(source_lang), _repeat(target_lang), strict=False)
        while chunk := list(itertools.islice(stream, read_ahead)):
            part, source, target = map(list, zip(*chunk, strict=True))
            yield from self.translate_batch(part, source_lang=source, target_lang=target, **options)

    def _settings(self, options: TranslateOptions) -> _Settings:
        given: dict[str, Any] = dict(options)
        max_batch_tokens = given.pop("max_batch_tokens", _MAX_BATCH_TOKENS)
        if not isinstance(max_batch_tokens, int) or max_batch_tokens < 1:
            raise InvalidInputError(
                f"max_batch_tokens: expected 1 or more, found {max_batch_tokens!r}"
            )
        truncate = bool(given.pop("truncate", False))
        names = {field.name for field in dataclasses.fields(SearchOptions)}
        if unknown := sorted(set(given) - names):
            raise TypeError(f"unknown option {', '.join(unknown)}; see TranslateOptions")
        chosen = dataclasses.replace(self.defaults, **given)
        limit = self.bundle.config.max_position_embeddings
        if chosen.max_length > limit:
            raise InvalidInputError(
                f"max_length: the model has {limit} positions, found {chosen.max_length}"
            )
        return _Settings(chosen, max_batch_tokens, truncate)

    def _encode(
        self, position: int, text: str, source_lang: str, target_lang: str, *, truncate: bool
    ) -> _Source | None:
        """A text's tokens, or None if it has none beside the control tokens."""
        if not isinstance(text, str):
            raise InvalidInputError(
                f"texts[{position}]: expected a str, found {type(text).__name__}"
            )
        ids = self.encode(text, source_lang, truncate=truncate)
        target = self.tokenizer.language_id(target_lang)
        return _Source(position, ids, target) if len(ids) > 2 else None

    def _run(self, batch: list[_Source], options: SearchOptions) -> list[Translation]:
        config = self.bundle.config
        longest = max(len(source.ids) for source in batch)
        input_ids = np.full((len(batch), longest), config.pad_token_id, np.int64)
        for row, source in zip(input_ids, batch, strict=True):
            row[: len(source.ids)] = source.ids
        mask = np.array([[1] * len(s.ids) + [0] * (longest - len(s.ids)) for s in batch], np.int64)
        prompt = np.array([[config.decoder_start_token_id, s.target] for s in batch], np.int64)
        cache, logits = self.model.start(input_ids, mask, prompt)
        found = search(cache, logits, prompt, eos_id=config.eos_token_id, options=options)
        translations = []
        for sentence in found:
            hypotheses = tuple(
                Hypothesis(self.tokenizer.decode(h.tokens), h.score, h.tokens) for h in sentence
            )
            best = hypotheses[0]
            translations.append(Translation(best.text, best.score, best.tokens, hypotheses))
        return translations


@dataclass(frozen=True)
class _Settings:
    search: SearchOptions
    max_batch_tokens: int
    truncate: bool


def _defaults(bundle: Bundle) -> SearchOptions:
    values: dict[str, Any] = dict(_FALLBACK)
    values.update({_CONFIG_NAMES.get(k, k): v for k, v in bundle.generation.items()})
    values["max_length"] = min(values["max_length"], bundle.config.max_position_embeddings)
    return SearchOptions(**values)


def _repeat(value: str | Iterable[str]) -> Iterable[str]:
    return itertools.repeat(value) if isinstance(value, str) else value


def _batches(sources: list[_Source], settings: _Settings) -> Iterator[list[_Source]]:
    """Cuts sources, longest first, into batches within `max_batch_tokens`."""
    ordered = sorted(sources, key=lambda source: -len(source.ids))
    start = 0
    while start < len(ordered):
        cost = max(len(ordered[start].ids), _LEAST_TOKENS_A_ROW) * settings.search.beam_size
        stop = start + max(1, settings.max_batch_tokens // cost)
        yield ordered[start:stop]
        start = stop
