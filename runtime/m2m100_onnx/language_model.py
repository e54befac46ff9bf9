"""The face of language models: text in, scores and text out. Knows arguments and their types."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np

from m2m100_onnx._typing import Unpack
from m2m100_onnx.bundle.kinds import opened
from m2m100_onnx.bundle.language_model import LanguageModelBundle
from m2m100_onnx.engine.gate import Gate
from m2m100_onnx.engine.reader import POOLINGS
from m2m100_onnx.engine.stopping import Cancellation
from m2m100_onnx.errors import InvalidInputError, M2M100Error
from m2m100_onnx.face import Face
from m2m100_onnx.inputs import check_texts
from m2m100_onnx.language_calls import LanguageWorker
from m2m100_onnx.model.causal import LanguageGraphs
from m2m100_onnx.model.support import Provider
from m2m100_onnx.options import Option, SearchOptions, TranslateOptions
from m2m100_onnx.process import side_by_side
from m2m100_onnx.scores import Filling, Generation, Score
from m2m100_onnx.search.state import Float32Array, Int64Array
from m2m100_onnx.text.xlm import XLMTokenizer

__all__ = ["LanguageModel"]

_MAX_LENGTH = 200
_TOP = Option("top", "int", 5, "Tokens for each mask.", 1, 1 << 20)


class LanguageModel(Face[LanguageModelBundle]):
    """Scores, continues and encodes text with an exported XLM; many threads may use one.

    A copy, or one that was pickled and sent to another process, opens the bundle anew.

    Attributes:
        bundle: the opened bundle.
        tokenizer: text to ids and back.
        model: the onnxruntime sessions.
        defaults: search options of `generate` where a call gives none.
    """

    model: LanguageGraphs
    _bundle_kind = LanguageModelBundle
    _name = "LanguageModel"

    def __init__(
        self,
        bundle: str | os.PathLike[str] | LanguageModelBundle,
        *,
        revision: str | None = None,
        device: str = "cpu",
        intra_op_num_threads: int | None = None,
        providers: Sequence[Provider] | None = None,
        session_options: Mapping[str, str] | None = None,
        fused: bool | None = None,
        cache_dir: str | os.PathLike[str] | Literal[False] | None = None,
        lazy: bool = False,
    ) -> None:
        """Opens a bundle, and the graph of whole texts; those of `generate` at its first call.

        `Translator` describes the arguments. `fused` is about `generate` alone.

        Raises:
            BundleError: the bundle is incomplete, damaged, of a newer format, or holds a
                translation model.
            DependencyError: onnxruntime lacks what `device` or `providers` need.
            InvalidInputError: an argument is out of range.
        """
        self.bundle = opened(LanguageModelBundle, bundle, revision)
        self._arguments: dict[str, Any] = {
            "device": device,
            "providers": providers,
            "intra_op_num_threads": intra_op_num_threads,
            "session_options": session_options,
            "fused": fused,
            "cache_dir": cache_dir,
        }
        self.model = LanguageGraphs(self.bundle, **self._arguments)
        config = self.bundle.config

        def read() -> XLMTokenizer:
            return XLMTokenizer(self.bundle.directory, embedding_rows=config.vocab_size)

        self.tokenizer = read() if lazy else side_by_side(self.model.load_reader, read)[1]
        longest = min(_MAX_LENGTH, config.max_position_embeddings)
        self.defaults = SearchOptions(beam_size=1, early_stopping=False, max_length=longest)
        self._gate = Gate(self._name, self.model.release)
        self._worker = LanguageWorker(self.tokenizer, self.model, self._gate, self.defaults)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that have an embedding; none for a model without."""
        return self.tokenizer.languages if self.bundle.config.languages else ()

    @property
    def causal(self) -> bool:
        """Whether a token sees earlier tokens alone, so that the model can `generate`."""
        return self.bundle.config.causal

    def logits(
        self,
        input_ids: Sequence[Sequence[int]] | Int64Array,
        langs: Sequence[Sequence[int]] | Int64Array | None = None,
        attention_mask: Sequence[Sequence[int]] | Int64Array | None = None,
    ) -> Float32Array:
        """Returns the LM head's outputs `(B, S, V)` for token ids, as transformers' XLM does.

        Args:
            input_ids: `(B, S)` tokens, padded at the end.
            langs: `(B, S)` a language id at each position; None reads no language.
            attention_mask: `(B, S)` 1 at tokens and 0 at padding; by default all count but those
                of the token of padding.

        Raises:
            InvalidInputError: an id or a shape is out of range, or the model has no LM head.
        """
        self._need_head("logits")
        config = self.bundle.config
        ids = _matrix("input_ids", input_ids, config.vocab_size)
        if ids.shape[1] > config.max_position_embeddings:
            raise InvalidInputError(
                f"input_ids: expected at most {config.max_position_embeddings} positions, "
                f"found {ids.shape[1]}"
            )
        none = np.full_like(ids, config.languages)
        languages = none if langs is None else _matrix("langs", langs, max(1, config.languages))
        mask = (
            (ids != config.pad_token_id).astype(np.int64)
            if attention_mask is None
            else _matrix("attention_mask", attention_mask, 2)
        )
        for name, found in (("langs", languages), ("attention_mask", mask)):
            if found.shape != ids.shape:
                raise InvalidInputError(
                    f"{name}: expected the shape of input_ids {ids.shape}, found {found.shape}"
                )
        with self._gate.call():
            return self.model.run(ids, mask, languages)

    __call__ = logits

    # A str is a sequence of str too; the first signature that fits is the one that counts.
    @overload
    def score(self, texts: str, *, language: str | None = None, **options: Any) -> Score: ...

    @overload
    def score(
        self,
        texts: Sequence[str],
        *,
        language: str | Sequence[str] | None = None,
        **options: Any,
    ) -> list[Score]: ...

    def score(
        self,
        texts: str | Sequence[str],
        *,
        language: str | Sequence[str] | None = None,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> Score | list[Score]:
        """Returns how likely each text is.

        Args:
            texts: one text, or several.
            language: their language, or one for each; a model without a language embedding needs
                none, and then English rules split the words.
            cancellation: lets another thread end the call.
            **options: `max_batch_tokens`, `max_batch_bytes`, `truncate` and `timeout`.

        Raises:
            UnknownLanguageError: a language is not one of `languages`.
            InputTooLongError: a text has more tokens than the model has positions.
            InvalidInputError: a text is not a string, an option is out of range, a language is
                missing, or the model has no LM head.
            StoppedError: `timeout` or `cancellation` ended the call.
            ClosedError: the model is closed.
        """
        self._need_head("score")
        call = self._worker.begin(options, cancellation)
        rows = self._worker.rows(texts, language, call)
        found = self._worker.scores(rows, call)
        return found[0] if isinstance(texts, str) else found

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        language: str | Sequence[str] | None = None,
        pooling: str = "mean",
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> Float32Array:
        """Returns a vector for each text, `(N, D)`, or `(D,)` for one text.

        Args:
            texts: one text, or several.
            language: see `score`.
            pooling: how the last layer's outputs become one vector: the `mean` of all tokens,
                `<s>` and `</s>` included, the `first`, or the `last`.
            cancellation: lets another thread end the call.
            **options: see `score`.

        Raises:
            InvalidInputError: `pooling` is another word; otherwise as `score`.
        """
        if pooling not in POOLINGS:
            expected = ", ".join(POOLINGS)
            raise InvalidInputError(f"pooling: expected one of {expected}, found {pooling!r}")
        call = self._worker.begin(options, cancellation)
        rows = self._worker.rows(texts, language, call)
        found = self._worker.vectors(rows, pooling, call)
        width = self.bundle.config.d_model
        return found[0] if isinstance(texts, str) else np.reshape(found, (-1, width))

    def fill_mask(
        self, text: str, *, language: str | None = None, top: int = 5
    ) -> list[Filling] | list[list[Filling]]:
        """Returns the likeliest tokens for the masks of a text, likeliest first.

        Args:
            text: a text with `tokenizer.mask_token` in one or several places.
            language: its language; see `score`.
            top: tokens for each mask.

        Returns:
            The tokens for a text's one mask, or a list of them for each of several masks.

        Raises:
            InvalidInputError: the text has no mask, or the model is causal or has no LM head.
        """
        self._need_head("fill_mask")
        if self.causal:
            raise InvalidInputError(
                "fill_mask: expected a masked language model, found a causal one, whose tokens do "
                "not see what follows a mask"
            )
        count = min(_TOP.check(top), self.bundle.config.vocab_size)
        found = self._worker.fill(text, language, count)
        return found[0] if len(found) == 1 else found

    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        prompt: str,
        *,
        language: str | None = None,
        max_new_tokens: int | None = None,
        cancellation: Cancellation | None = None,
        **options: Unpack[TranslateOptions],
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str],
        *,
        language: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        cancellation: Cancellation | None = None,
        **options: Unpack[TranslateOptions],
    ) -> list[str]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        language: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        cancellation: Cancellation | None = None,
        **options: Unpack[TranslateOptions],
    ) -> str | list[str]:
        """Goes on from a text; returns the text and what follows, as `generate_batch` does.

        Arguments and errors are those of `generate_batch`; one prompt gives one text.
        """
        single = isinstance(prompt, str)
        try:
            found = self.generate_batch(
                [prompt] if isinstance(prompt, str) else prompt,
                language=language,
                max_new_tokens=max_new_tokens,
                cancellation=cancellation,
                **options,
            )
        except M2M100Error as error:
            error.position = None if single else error.position  # There is only this text.
            raise
        made = [generation.text for generation in found]
        return made[0] if single else made

    def generate_batch(
        self,
        prompts: Sequence[str],
        *,
        language: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        cancellation: Cancellation | None = None,
        **options: Unpack[TranslateOptions],
    ) -> list[Generation]:
        """Goes on from each text with the search that translations have, and with a cache.

        The words of a text are those of the tokenizer: of most checkpoints, in lower case, without
        accents, and with a blank before punctuation.

        Args:
            prompts: the texts; an empty one lets the model begin.
            language: their language, or one for each; see `score`.
            max_new_tokens: the most tokens after a prompt; by default `max_length` counts all.
            cancellation: lets another thread end the call.
            **options: see `TranslateOptions`. `max_length` and `min_length` count `<s>` and the
                prompt. The default is a greedy search.

        Raises:
            InvalidInputError: the model is not causal, or has no LM head; a prompt has
                `max_length` tokens or more; otherwise as `score`.
        """
        check_texts(prompts)
        call = self._worker.begin(options, cancellation, max_new_tokens)
        rows = self._worker.rows(prompts, language, call, is_prompt=True)
        return self._worker.generate(rows, call)

    def __repr__(self) -> str:
        kind = "causal" if self.causal else "masked"
        closed = ", closed" if self._gate.closed else ""
        return (
            f"<{type(self).__name__} of {str(self.bundle.directory)!r}: {self.bundle.precision}, "
            f"{kind}, {len(self.languages)} languages, on {self.model.device}{closed}>"
        )

    def _need_head(self, what: str) -> None:
        if not self.bundle.config.has_head:
            raise InvalidInputError(
                f"{what}: expected a model with an LM head, found one exported from XLMModel, "
                "which can encode and no more"
            )


def _matrix(name: str, values: object, count: int) -> Int64Array:
    """Returns `(B, S)` ids; each must be below `count`."""
    try:
        found = np.asarray(values)
        whole = found.ndim == 2 and found.size > 0 and np.issubdtype(found.dtype, np.integer)
    except ValueError:  # rows of several lengths
        whole = False
    if not whole:
        shape = getattr(values, "shape", type(values).__name__)
        raise InvalidInputError(f"{name}: expected rows of ids of one length, found {shape}")
    if found.min() < 0 or found.max() >= count:
        wrong = found.min() if found.min() < 0 else found.max()
        raise InvalidInputError(f"{name}: expected ids from 0 to {count - 1}, found {wrong}")
    return found.astype(np.int64)
