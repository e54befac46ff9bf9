"""Text in, text out: batching, ordering and options.

The only file that knows tokenizer, model and search all three.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from m2m100_onnx.bundle import Bundle
from m2m100_onnx.decoding import SearchOptions
from m2m100_onnx.errors import InputTooLongError, InvalidInputError
from m2m100_onnx.generation import Generator
from m2m100_onnx.model import Model
from m2m100_onnx.options import (
    READ_AHEAD,
    Settings,
    TranslateOptions,
    default_options,
    resolve_options,
)
from m2m100_onnx.sessions import Provider
from m2m100_onnx.threads import side_by_side
from m2m100_onnx.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Hypothesis", "Translation", "Translator"]

# A row costs a vocabulary of logits however short its source, so short sources count as this many.
_LEAST_TOKENS_A_ROW = 32


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
        providers: Sequence[Provider] | None = None,
        session_options: Mapping[str, str] | None = None,
        fused: bool | None = None,
        sp_model_kwargs: Mapping[str, object] | None = None,
        cache_dir: str | os.PathLike[str] | Literal[False] | None = None,
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
            fused: whether to use the bundle's fused graphs; None is wherever they run, on a CPU.
            sp_model_kwargs: SentencePiece options, such as subword sampling.
            cache_dir: where packed graphs are kept for later loads to map; False for nowhere; by
                default what `M2M100_ONNX_CACHE` says (a folder, or `off`), else, for int8 and
                four-bit bundles, `m2m100-onnx` in the user's cache folder. Four bits need
                onnxruntime 1.32 for it.
            lazy: open each graph at its first use, not now.

        Raises:
            BundleError: the bundle is incomplete, damaged, or of a newer format.
            DependencyError: onnxruntime lacks what `device` or `providers` ask for.
            InvalidInputError: an argument is out of range.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self._positions = self.bundle.config.max_position_embeddings
        self.defaults = default_options(self.bundle)
        self.model = Model(
            self.bundle,
            device=device,
            providers=providers,
            intra_op_num_threads=intra_op_num_threads,
            inter_op_num_threads=inter_op_num_threads,
            session_options=session_options,
            fused=fused,
            cache_dir=cache_dir,
        )
        self.generator = Generator(self.model)
        manifest = self.bundle.manifest
        read = partial(
            Tokenizer,
            self.bundle.directory,
            sp_model_kwargs=sp_model_kwargs,
            embedding_rows=self.bundle.config.vocab_size,
            trained_languages=manifest.languages if manifest else None,
        )
        # onnxruntime opens graphs without holding Python up, so the vocabulary is read meanwhile.
        self.tokenizer: Tokenizer = read() if lazy else side_by_side(self.model.load, read)[1]

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
        limit = self._positions
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
        _check_texts(texts)
        texts = list(texts)
        for name, value in (("source_lang", source_lang), ("target_lang", target_lang)):
            ordered = isinstance(value, Sized) and not isinstance(value, (Set, Mapping))
            found = len(value) if ordered else type(value).__name__
            if not isinstance(value, str) and found != len(texts):
                raise InvalidInputError(
                    f"{name}: expected one code, or one for each of {len(texts)} texts, "
                    f"found {found}"
                )
        settings = resolve_options(options, self.defaults, self._positions)
        return self._translate(texts, source_lang, target_lang, settings)

    def _translate(
        self,
        texts: list[str],
        source_lang: str | Iterable[str],
        target_lang: str | Iterable[str],
        settings: Settings,
        first: int = 0,
    ) -> list[Translation]:
        """Translates checked arguments; errors count the texts from `first` on."""
        languages = zip(_repeat(source_lang), _repeat(target_lang), strict=False)
        sources = [
            self._encode(position, text, *pair, truncate=settings.truncate)
            for position, (text, pair) in enumerate(zip(texts, languages, strict=False), first)
        ]
        results = [_EMPTY] * len(texts)
        for batch in _batches([s for s in sources if s], settings):
            for source, translation in zip(batch, self._run(batch, settings.search), strict=True):
                results[source.position - first] = translation
        return results

    def translate_iterable(
        self,
        texts: Iterable[str],
        *,
        source_lang: str | Iterable[str],
        target_lang: str | Iterable[str],
        read_ahead: int = READ_AHEAD,
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
            InvalidInputError: `read_ahead` is no int or below 1; otherwise as `translate`.
        """
        if type(read_ahead) is not int or not 1 <= read_ahead <= sys.maxsize:
            raise InvalidInputError(
                f"read_ahead: expected an int of at least 1, found {read_ahead!r}"
            )
        _check_texts(texts)
        settings = resolve_options(options, self.defaults, self._positions)
        return self._stream(_rows(texts, source_lang, target_lang), read_ahead, settings)

    def _stream(
        self,
        rows: Iterator[tuple[str, str, str]],
        read_ahead: int,
        settings: Settings,
    ) -> Iterator[Translation]:
        first = 0
        while chunk := list(itertools.islice(rows, read_ahead)):
            texts, sources, targets = map(list, zip(*chunk, strict=True))
            yield from self._translate(texts, sources, targets, settings, first)
            first += len(chunk)

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
        translations = []
        for sentence in self.generator.generate(input_ids, mask, prompt, options):
            hypotheses = tuple(
                Hypothesis(self.tokenizer.decode(h.tokens), h.score, h.tokens) for h in sentence
            )
            best = hypotheses[0]
            translations.append(Translation(best.text, best.score, best.tokens, hypotheses))
        return translations


def _check_texts(texts: object) -> None:
    single = isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable)
    if single or getattr(texts, "shape", None) == ():  # an array of no dimensions
        raise InvalidInputError(f"texts: expected several str, found one {type(texts).__name__}")


def _rows(
    texts: Iterable[str], source_lang: str | Iterable[str], target_lang: str | Iterable[str]
) -> Iterator[tuple[str, str, str]]:
    """Each text with its two languages; a stream of languages must not end before the texts."""
    sources, targets = iter(_repeat(source_lang)), iter(_repeat(target_lang))
    for position, text in enumerate(texts):
        try:
            name = "source_lang"
            source = next(sources)
            name = "target_lang"
            target = next(targets)
        except StopIteration:
            raise InvalidInputError(
                f"{name}: expected a code for each text, found no more after {position}"
            ) from None
        yield text, source, target


def _repeat(value: str | Iterable[str]) -> Iterable[str]:
    return itertools.repeat(value) if isinstance(value, str) else value


def _batches(sources: list[_Source], settings: Settings) -> Iterator[list[_Source]]:
    """Cuts sources, longest first, into batches within `max_batch_tokens`."""
    ordered = sorted(sources, key=lambda source: -len(source.ids))
    start = 0
    while start < len(ordered):
        cost = max(len(ordered[start].ids), _LEAST_TOKENS_A_ROW) * settings.search.beam_size
        stop = start + max(1, settings.max_batch_tokens // cost)
        yield ordered[start:stop]
        start = stop
