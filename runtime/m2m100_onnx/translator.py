"""Text in, text out. The one file that knows tokenizer and engine both."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.bundle.generation import options_from_config
from m2m100_onnx.engine.batches import Batch, Sentence, cut
from m2m100_onnx.engine.generator import Generator
from m2m100_onnx.engine.stopping import Cancellation, Stop
from m2m100_onnx.errors import BundleError, InputTooLongError, InvalidInputError, M2M100Error
from m2m100_onnx.model.model import Model
from m2m100_onnx.model.support import Provider
from m2m100_onnx.options import (
    READ_AHEAD,
    Option,
    SearchOptions,
    Settings,
    TranslateOptions,
    resolve_options,
)
from m2m100_onnx.process import side_by_side
from m2m100_onnx.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Hypothesis", "Translation", "Translator"]

_READ_AHEAD = Option("read_ahead", "int", READ_AHEAD, "Texts read at once.", 1, 1 << 20)


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
    """The translation of a text: its best hypothesis, and all hypotheses.

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


class Translator:
    """Translates text with an exported bundle; many threads may use one at the same time.

    Attributes:
        bundle: the opened bundle.
        tokenizer: text to ids and back.
        model: the onnxruntime sessions.
        generator: runs searches on the model.
        defaults: search options where a call gives none, from the bundle's generation config.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        device: str = "cpu",
        intra_op_num_threads: int | None = None,
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
            device: `cpu`, `cuda`, `cuda:N`, or `auto` (CUDA where it is available).
            intra_op_num_threads: threads of an operator; by default one per core.
            providers: onnxruntime execution providers with their options, in place of the device's
                usual ones; the cache still lives on `device`.
            session_options: onnxruntime session config entries, such as
                `{"session.intra_op.allow_spinning": "0"}`.
            fused: whether to use the bundle's fused graphs. By default they are used wherever they
                run, which is on a CPU.
            sp_model_kwargs: SentencePiece options, such as subword sampling.
            cache_dir: folder of the weights cache; False for no cache. By default
                `M2M100_ONNX_CACHE` decides (a folder, or `off`), else int8 and four-bit bundles use
                `m2m100-onnx` in the user's cache folder. Four bits need onnxruntime 1.32 for it.
            lazy: whether each graph is opened at its first use, and not now.

        Raises:
            BundleError: the bundle is incomplete, damaged, or of a newer format.
            DependencyError: onnxruntime lacks what `device` or `providers` need.
            InvalidInputError: an argument is out of range.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self._config = self.bundle.config
        self._positions = self._config.max_position_embeddings
        self.defaults = _default_options(self.bundle)
        self.model = Model(
            self.bundle,
            device=device,
            providers=providers,
            intra_op_num_threads=intra_op_num_threads,
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
            embedding_rows=self._config.vocab_size,
            trained_languages=manifest.languages if manifest else None,
        )
        # onnxruntime releases Python's lock while it opens graphs, so the vocabulary is read then.
        self.tokenizer: Tokenizer = read() if lazy else side_by_side(self.model.load, read)[1]

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes that a call may use as source or target language."""
        return self.tokenizer.languages

    def encode(self, text: str, source_lang: str, *, truncate: bool = False) -> list[int]:
        """Returns the encoder's input for a text: language token, pieces, `</s>`.

        Args:
            text: the text.
            source_lang: its language.
            truncate: whether to cut what exceeds the model's positions, instead of raising.

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
            raise InputTooLongError(limit, len(ids), text)
        return [*ids[: limit - 1], ids[-1]]

    @overload
    def translate(
        self,
        text: str,
        *,
        source_lang: str,
        target_lang: str,
        cancellation: Cancellation | None = None,
        **options: Unpack[TranslateOptions],
    ) -> str: ...

    @overload
    def translate(
        self,
        text: list[str] | tuple[str, ...],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        cancellation: Cancellation | None = None,
        **options: Unpack[TranslateOptions],
    ) -> list[str]: ...

    def translate(
        self,
        text: str | list[str] | tuple[str, ...],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        cancellation: Cancellation | None = None,
        **options: Unpack[TranslateOptions],
    ) -> str | list[str]:
        """Translates a text into a text, or a list of texts into as many, in the same order.

        Args:
            text: one text, best a sentence, or several.
            source_lang: their language, or one for each.
            target_lang: the language to translate into, or one for each.
            cancellation: lets another thread end the call.
            **options: see `TranslateOptions`.

        Raises:
            UnknownLanguageError: a language is not one of `languages`.
            InputTooLongError: a text has more tokens than the model has positions.
            InvalidInputError: a text is not a string, or an option is out of range.
            StoppedError: `timeout` or `cancellation` ended the call.
        """
        single = isinstance(text, str)
        try:
            found = self.translate_batch(
                [text] if isinstance(text, str) else text,
                source_lang=source_lang,
                target_lang=target_lang,
                cancellation=cancellation,
                **options,
            )
        except M2M100Error as error:
            error.position = None if single else error.position  # There is only this text.
            raise
        texts = [translation.text for translation in found]
        return texts[0] if single else texts

    def translate_batch(
        self,
        texts: Sequence[str],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        cancellation: Cancellation | None = None,
        **options: Unpack[TranslateOptions],
    ) -> list[Translation]:
        """Translates texts, with scores, tokens and further hypotheses, in the same order.

        A text's result does not depend on the texts beside it. Arguments and errors are those of
        `translate`.
        """
        settings = resolve_options(options, self.defaults, self._positions)
        stop = Stop(settings.call.timeout, cancellation)
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
        rows = _rows(texts, source_lang, target_lang)
        sentences = [self._encode(n, *row, settings) for n, row in enumerate(rows)]
        results = self._translate(sentences, settings, stop)
        if len(results) < len(texts):
            raise stop.error(results)
        return [results[position] for position in range(len(texts))]

    def translate_iterable(
        self,
        texts: Iterable[str],
        *,
        source_lang: str | Iterable[str],
        target_lang: str | Iterable[str],
        read_ahead: int = READ_AHEAD,
        cancellation: Cancellation | None = None,
        **options: Unpack[TranslateOptions],
    ) -> Iterator[Translation]:
        """Translates a stream, endless if need be, in constant memory and in the same order.

        An error about one text comes after the results of all texts before it. `timeout` counts
        from the call to the end of the stream.

        Args:
            texts: the texts.
            source_lang: their language, or a stream of one for each.
            target_lang: the language to translate into, or a stream of one for each.
            read_ahead: texts read, sorted by length and translated before the first result comes.
            cancellation: lets another thread end the stream.
            **options: see `TranslateOptions`.

        Raises:
            InvalidInputError: `read_ahead` is out of range; otherwise as `translate`.
        """
        read_ahead = _READ_AHEAD.check(read_ahead)
        _check_texts(texts)
        settings = resolve_options(options, self.defaults, self._positions)
        stop = Stop(settings.call.timeout, cancellation)
        return self._stream(_rows(texts, source_lang, target_lang), read_ahead, settings, stop)

    def _stream(
        self, rows: Iterator[tuple[Any, str, str]], read_ahead: int, settings: Settings, stop: Stop
    ) -> Iterator[Translation]:
        error: M2M100Error | None = None
        position = 0
        while error is None:
            sentences: list[Sentence] = []
            try:
                for row in itertools.islice(rows, read_ahead):
                    sentences.append(self._encode(position + len(sentences), *row, settings))
            except M2M100Error as bad:
                error = bad  # What came before it is translated first.
            results = self._translate(sentences, settings, stop)
            ended = len(sentences) < read_ahead
            for _ in sentences:
                if position not in results:
                    raise stop.error(results)
                yield results.pop(position)
                position += 1
            if ended:
                break
        if error is not None:
            raise error

    def _translate(
        self, sentences: Sequence[Sentence], settings: Settings, stop: Stop
    ) -> dict[int, Translation]:
        """Translates sentences; returns the results that `stop` allowed, by position."""
        # Language token and `</s>` alone are no text.
        empty = [sentence for sentence in sentences if len(sentence.source) <= 2]
        results = {sentence.position: _EMPTY for sentence in empty}
        texts = [sentence for sentence in sentences if len(sentence.source) > 2]
        for some in cut(texts, settings, self.model.cache_bytes):
            batch = Batch.of(some, self._config.pad_token_id)
            found = self.generator.run(batch, settings.search, stop)
            for sentence, hypotheses in zip(some, found, strict=True):
                if hypotheses is not None:
                    decoded = tuple(
                        Hypothesis(self.tokenizer.decode(h.tokens), h.score, h.tokens)
                        for h in hypotheses
                    )
                    best = decoded[0]
                    translation = Translation(best.text, best.score, best.tokens, decoded)
                    results[sentence.position] = translation
        return results

    def _encode(
        self, position: int, text: object, source_lang: str, target_lang: str, settings: Settings
    ) -> Sentence:
        """Returns a text's tokens; an error about it names its position."""
        try:
            if not isinstance(text, str):
                raise InvalidInputError(f"expected a str, found {type(text).__name__}")
            source = self.encode(text, source_lang, truncate=settings.call.truncate)
            start = self._config.decoder_start_token_id
            return Sentence(position, source, self.tokenizer.build_prompt(target_lang, start))
        except M2M100Error as error:
            error.position = position
            raise


def _default_options(bundle: Bundle) -> SearchOptions:
    try:
        return options_from_config(
            bundle.generation,
            is_generation_config=bundle.has_generation_config,
            positions=bundle.config.max_position_embeddings,
        )
    except InvalidInputError as error:
        raise BundleError(f"{bundle.generation_file}: {error}") from None


def _check_texts(texts: object) -> None:
    single = isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable)
    if single or getattr(texts, "shape", None) == ():  # an array of no dimensions
        raise InvalidInputError(f"texts: expected several str, found one {type(texts).__name__}")
    if isinstance(texts, (Set, Mapping)):
        kind = type(texts).__name__
        raise InvalidInputError(f"texts: expected them in an order, found a {kind}")


def _rows(
    texts: Iterable[str], source_lang: str | Iterable[str], target_lang: str | Iterable[str]
) -> Iterator[tuple[str, str, str]]:
    """Yields each text with its languages; a stream of languages must not end before the texts."""
    sources, targets = iter(_repeat(source_lang)), iter(_repeat(target_lang))
    for position, text in enumerate(texts):
        try:
            name = "source_lang"
            source = next(sources)
            name = "target_lang"
            target = next(targets)
        except StopIteration:
            raise InvalidInputError(
                f"{name}: expected a code for each text, found {position} codes"
            ) from None
        yield text, source, target


def _repeat(value: str | Iterable[str]) -> Iterable[str]:
    return itertools.repeat(value) if isinstance(value, str) else value
