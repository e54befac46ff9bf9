"""The face of the library: text in, text out. Knows arguments and their types.

`calls.py` carries a call out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import Any, Literal, overload

from m2m100_onnx._typing import Unpack
from m2m100_onnx.alternatives import Alternatives
from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.bundle.defaults import default_options
from m2m100_onnx.bundle.kinds import opened
from m2m100_onnx.calls import OnError, Progress, Worker
from m2m100_onnx.engine.aside import Aside
from m2m100_onnx.engine.gate import Gate
from m2m100_onnx.engine.generator import Generator
from m2m100_onnx.engine.stats import Stats
from m2m100_onnx.engine.stopping import Cancellation
from m2m100_onnx.errors import M2M100Error
from m2m100_onnx.face import Face
from m2m100_onnx.inputs import as_texts, check_languages, check_texts
from m2m100_onnx.model.model import Model
from m2m100_onnx.model.support import Provider
from m2m100_onnx.options import READ_AHEAD, Option
from m2m100_onnx.process import side_by_side
from m2m100_onnx.reading import Reading
from m2m100_onnx.rerank import TranslateArguments
from m2m100_onnx.streaming import Streaming
from m2m100_onnx.submitting import Submitting, queue_of
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx.translation import Translation

__all__ = ["Translator"]

_READ_AHEAD = Option("read_ahead", "int", READ_AHEAD, "Texts read at once.", 1, 1 << 20)


class Translator(Reading, Streaming, Submitting, Alternatives, Face[Bundle]):
    """Translates text with an exported bundle; many threads may use one at the same time.

    A copy, or one that was pickled and sent to another process, opens the bundle anew.

    Attributes:
        bundle: the opened bundle.
        tokenizer: text to ids and back.
        model: the onnxruntime sessions.
        generator: runs searches on the model.
        defaults: search options where a call gives none, from the bundle's generation config.
    """

    model: Model
    _bundle_kind = Bundle
    _name = "Translator"

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle,
        *,
        revision: str | None = None,
        device: str = "cpu",
        intra_op_num_threads: int | None = None,
        providers: Sequence[Provider] | None = None,
        session_options: Mapping[str, str] | None = None,
        fused: bool | None = None,
        kernels: bool | None = None,
        kv_cache_dtype: Literal["float32", "float16"] | None = None,
        sp_model_kwargs: Mapping[str, object] | None = None,
        cache_dir: str | os.PathLike[str] | Literal[False] | None = None,
        lazy: bool = False,
    ) -> None:
        """Opens a bundle.

        Args:
            bundle: its folder, or its name on the hub, such as `org/name`.
            revision: branch, tag or commit on the hub. A commit in the hub's cache opens without a
                request.
            device: `cpu`, `cuda`, `cuda:N`, or `auto` (CUDA where it is available).
            intra_op_num_threads: threads of an operator; by default one per core.
            providers: onnxruntime execution providers with their options, in place of the device's
                usual ones; the cache still lives on `device`.
            session_options: session config entries: `{"session.intra_op.allow_spinning": "0"}`.
            fused: whether to use the bundle's fused graphs. By default they are used on a CPU. With
                True they run on CUDA too, where their translations were not compared yet.
            kernels: whether to use the operators of the package `m2m100-onnx-kernels`, for bundles
                of eight and four bits on a CPU. By default they are used wherever they run.
            kv_cache_dtype: type of kept keys and values; `float16`, with `kernels`, halves them.
            sp_model_kwargs: SentencePiece options, such as subword sampling.
            cache_dir: folder of the weights cache; False for no cache. By default
                `M2M100_ONNX_CACHE` decides (a folder, or `off`), else int8 and four-bit bundles use
                `m2m100-onnx` in the user's cache folder. Four bits need onnxruntime 1.32 for it.
            lazy: whether each graph is opened at its first use, and not now.

        Raises:
            BundleError: the bundle is incomplete, damaged, or of a newer format, or the hub has no
                such bundle.
            DependencyError: onnxruntime lacks what `device` or `providers` need, `kernels` is True
                and the package is not installed, or a name on the hub needs the extra `hub`.
            InvalidInputError: an argument is out of range.
            OSError: a download cannot be stored.
        """
        self.bundle = opened(Bundle, bundle, revision)
        config = self.bundle.config
        self.defaults = default_options(self.bundle)
        arguments: dict[str, Any] = {
            "device": device,
            "providers": providers,
            "intra_op_num_threads": intra_op_num_threads,
            "session_options": session_options,
            "fused": fused,
            "kernels": kernels,
            "kv_cache_dtype": kv_cache_dtype,
            "cache_dir": cache_dir,
        }
        self._arguments = {**arguments, "sp_model_kwargs": sp_model_kwargs}
        self.model = Model(self.bundle, **arguments)
        self.generator = Generator(self.model)
        manifest = self.bundle.manifest
        read = partial(
            Tokenizer,
            self.bundle.directory,
            sp_model_kwargs=sp_model_kwargs,
            family=manifest.family if manifest else None,
            embedding_rows=config.vocab_size,
            trained_languages=manifest.languages if manifest else None,
        )
        # onnxruntime releases Python's lock while it opens graphs, so the vocabulary is read then.
        self.tokenizer: Tokenizer = read() if lazy else side_by_side(self.model.load, read)[1]
        self._gate = Gate(self._name, self.model.release)
        self._worker = Worker(self.tokenizer, self.generator, self._gate, self.defaults)
        self.queue = queue_of(self.generator, self._worker, self._gate)
        self._aside = Aside(self.model.threads)

    def close(self, timeout: float | None = None) -> None:
        """Closes the graphs and gives their memory back; a second time has no effect.

        Calls that run in other threads end first, and new ones raise `ClosedError`; a
        `Cancellation` ends a long one. What was submitted is finished too, as far as `timeout`
        allows. A call that this interrupts in its own thread, in a signal handler or in `progress`,
        goes on and closes the graphs at its end.

        Args:
            timeout: seconds for what was submitted; what is not done by then raises `ClosedError`.
                None waits without limit.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        self.queue.close(timeout)
        self._aside.close(None if ends is None else max(0.0, ends - time.monotonic()))
        super().close()

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes that a call may use as source or target language."""
        return self.tokenizer.languages

    def encode(
        self, text: str, source_lang: str, target_lang: str | None = None, *, truncate: bool = False
    ) -> list[int]:
        """Returns the encoder's input for a text: language token, pieces, `</s>`.

        Args:
            text: the text.
            source_lang: its language.
            target_lang: the language to translate into, which SMaLL-100's encoder reads.
            truncate: whether to cut what exceeds the model's positions, instead of raising.

        Raises:
            UnknownLanguageError: the language is not one of `languages`.
            InputTooLongError: the text has more tokens than the model has positions.
            InvalidInputError: the text is not valid Unicode, or `target_lang` is missing.
        """
        return self._worker.encode(text, source_lang, target_lang, truncate=truncate)

    # A str is a sequence of str too; the first signature that fits is the one that counts.
    @overload
    def translate(  # type: ignore[overload-overlap]
        self,
        text: str,
        *,
        source_lang: str,
        target_lang: str,
        cancellation: Cancellation | None = None,
        progress: Progress | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> str: ...

    @overload
    def translate(
        self,
        text: Sequence[str],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        cancellation: Cancellation | None = None,
        progress: Progress | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> list[str]: ...

    def translate(
        self,
        text: str | Sequence[str],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        cancellation: Cancellation | None = None,
        progress: Progress | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> str | list[str]:
        """Translates a text into a text, or a list of texts into as many, in the same order.

        Args:
            text: one text, best a sentence, or several.
            source_lang: their language, or one for each.
            target_lang: the language to translate into, or one for each.
            cancellation: lets another thread end the call.
            progress: called in this thread after each batch, with the number of texts that are done
                and of all texts; an error that it raises ends the call.
            stats: takes counts and times of the call.
            **options: see `TranslateOptions`; `rerank` takes a `LanguageModel` or a `Reranker`, and
                `target_prefix` what a translation begins with: a str, or one or a list of token ids
                for each text. All of the prefix is in the translation, and none in its length.
                `terms` maps terms of the sources to what translations must contain, for all texts
                or for each.
                `max_new_tokens` and `min_new_tokens` count as `max_length` and `min_length`, but
                for what is given: the start token, or all of a prefix, as in transformers.

        Raises:
            UnknownLanguageError: a language is not one of `languages`.
            InputTooLongError: a text has more tokens than the model has positions.
            InvalidInputError: a text is not a string, or an option is out of range.
            StoppedError: `timeout` or `cancellation` ended the call.
            ClosedError: the translator is closed.
        """
        single = isinstance(text, str)
        texts = as_texts(text, options)
        try:
            found = self.translate_batch(
                texts,
                source_lang=source_lang,
                target_lang=target_lang,
                cancellation=cancellation,
                progress=progress,
                stats=stats,
                **options,
            )
        except M2M100Error as error:
            error.position = None if single else error.position  # There is only this text.
            raise
        translated = [translation.text for translation in found]
        return translated[0] if single else translated

    @overload
    def translate_batch(
        self,
        texts: Sequence[str],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        on_error: Literal["raise", "skip"] = "raise",
        cancellation: Cancellation | None = None,
        progress: Progress | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> list[Translation]: ...

    @overload
    def translate_batch(
        self,
        texts: Sequence[str],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        on_error: Literal["return"],
        cancellation: Cancellation | None = None,
        progress: Progress | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> list[Translation | M2M100Error]: ...

    def translate_batch(
        self,
        texts: Sequence[str],
        *,
        source_lang: str | Sequence[str],
        target_lang: str | Sequence[str],
        on_error: OnError = "raise",
        cancellation: Cancellation | None = None,
        progress: Progress | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> Sequence[Translation | M2M100Error]:
        """Translates texts, with scores, tokens and further hypotheses, in the same order.

        A text's result does not depend on the texts beside it. Other arguments and errors are those
        of `translate`.

        Args:
            texts: the texts.
            source_lang: their language, or one for each.
            target_lang: the language to translate into, or one for each.
            on_error: for a text that cannot be translated. `raise` raises before any is translated;
                `return` puts the error in the text's place, so that places are kept; `skip` leaves
                it out, so that the list is shorter. Other errors are always raised.
            cancellation: see `translate`.
            progress: see `translate`.
            stats: see `translate`.
            **options: see `TranslateOptions`.
        """
        call = self._worker.begin(options, cancellation, on_error, progress, stats)
        check_texts(texts)
        texts = list(texts)
        call.total = len(texts)
        check_languages(call.total, source_lang=source_lang, target_lang=target_lang)
        return self._worker.batch(texts, source_lang, target_lang, call)

    @overload
    def translate_iterable(
        self,
        texts: Iterable[str],
        *,
        source_lang: str | Iterable[str],
        target_lang: str | Iterable[str],
        read_ahead: int = READ_AHEAD,
        on_error: Literal["raise", "skip"] = "raise",
        cancellation: Cancellation | None = None,
        progress: Progress | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> Iterator[Translation]: ...

    @overload
    def translate_iterable(
        self,
        texts: Iterable[str],
        *,
        source_lang: str | Iterable[str],
        target_lang: str | Iterable[str],
        read_ahead: int = READ_AHEAD,
        on_error: Literal["return"],
        cancellation: Cancellation | None = None,
        progress: Progress | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> Iterator[Translation | M2M100Error]: ...

    def translate_iterable(
        self,
        texts: Iterable[str],
        *,
        source_lang: str | Iterable[str],
        target_lang: str | Iterable[str],
        read_ahead: int = READ_AHEAD,
        on_error: OnError = "raise",
        cancellation: Cancellation | None = None,
        progress: Progress | None = None,
        stats: Stats | None = None,
        **options: Unpack[TranslateArguments],
    ) -> Iterator[Translation | M2M100Error]:
        """Translates a stream, endless if need be, in constant memory and in the same order.

        An error about one text comes after the results of all texts before it. `timeout` counts
        from the call to the end of the stream.

        Args:
            texts: the texts.
            source_lang: their language, or a stream of one for each.
            target_lang: the language to translate into, or a stream of one for each.
            read_ahead: texts read, sorted by length and translated before the first result comes.
            on_error: see `translate_batch`.
            cancellation: lets another thread end the stream.
            progress: see `translate`; the number of all texts is None if `texts` has no length.
            stats: see `translate`.
            **options: see `TranslateOptions`.

        Raises:
            InvalidInputError: `read_ahead` is out of range; otherwise as `translate`.
        """
        read_ahead = _READ_AHEAD.check(read_ahead)
        check_texts(texts)
        call = self._worker.begin(options, cancellation, on_error, progress, stats)
        call.total = len(texts) if isinstance(texts, Sized) else None
        check_languages(None, source_lang=source_lang, target_lang=target_lang)
        return self._worker.stream(texts, source_lang, target_lang, call, read_ahead)

    def __repr__(self) -> str:
        threads = self.model.threads
        closed = ", closed" if self._gate.closed else ""
        return (
            f"<{type(self).__name__} of {str(self.bundle.directory)!r}: {self.bundle.precision}, "
            f"{len(self.languages)} languages, {self.model.kind} graphs on {self.model.device}, "
            f"{threads} thread{'s' if threads > 1 else ''}{closed}>"
        )
