"""transformers' translation pipeline, which its version 5 removed, on a bundle.

Knows that pipeline's arguments and results (transformers 4.57, `TranslationPipeline`), and turns
them into a `Translator`'s.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.option import Option
from m2m100_onnx.options import OPTIONS
from m2m100_onnx.translation import Translation
from m2m100_onnx.translator import Translator

__all__ = ["TranslationPipeline", "pipeline"]

_BEAMS, _NEW_TOKENS = 4, 256
_SIZE = Option("batch_size", "int", 1, "Texts translated together.", 1, 1 << 20)
_TASK = re.compile(r"translation(?:_(?P<source>\w+?)_to_(?P<target>\w+))?")
_OURS = {row.transformers: row.name for row in OPTIONS.values() if row.transformers}
# What a translating call takes and the table does not have.
_BESIDE = ("max_new_tokens", "min_new_tokens", "target_prefix")
# What changes nothing here, with the value that says so.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "return_tensors": (None, False),
    "return_text": (None, True),
    "clean_up_tokenization_spaces": (None, False),
    "framework": (None, "pt"),
}

Record = dict[str, str]
"""`{"translation_text": ...}`."""


def pipeline(
    task: str = "translation",
    model: str | os.PathLike[str] | Translator | None = None,
    *,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    device: int | str | None = None,
    revision: str | None = None,
    **options: Any,
) -> TranslationPipeline:
    """Returns a callable with the arguments and results of transformers' translation pipeline.

    Args:
        task: `translation`, or `translation_XX_to_YY` for the languages of a call that names none.
        model: a bundle's folder or its name on the hub, or a `Translator`.
        src_lang: the texts' language, where a call does not name it.
        tgt_lang: the language to translate into, where a call does not name it.
        device: -1 or `cpu`, a number of a CUDA device, or as `Translator` takes it.
        revision: a branch, tag or commit on the hub.
        **options: of the call, where it does not name them.

    Raises:
        InvalidInputError: `task` is another one, or there is no model.
        TypeError: there is no such option.
        M2M100Error: see `Translator`.
    """
    found = _TASK.fullmatch(task)
    if found is None:
        raise InvalidInputError(
            f"task: expected translation or translation_XX_to_YY, found {task!r}"
        )
    if model is None:
        raise InvalidInputError("model: expected a bundle or a Translator, found None")
    if not isinstance(model, Translator):
        if isinstance(device, int):
            device = "cpu" if device < 0 else f"cuda:{device}"
        model = Translator(model, device=device or "cpu", revision=revision)
    return TranslationPipeline(
        model, src_lang or found["source"], tgt_lang or found["target"], **options
    )


class TranslationPipeline:
    """Translates as transformers' pipeline of this name does.

    Attributes:
        translator: what it runs on.
    """

    def __init__(
        self, translator: Translator, src_lang: str | None, tgt_lang: str | None, **options: Any
    ) -> None:
        """See `pipeline`."""
        self.translator = translator
        self._languages = {"src_lang": src_lang, "tgt_lang": tgt_lang}
        self._options = options
        _translated(options)  # Refuses here what no call could have.

    def __call__(
        self,
        texts: str | Iterable[str],
        *,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Any:
        """Translates a text, a list of texts, or a stream of them.

        Args:
            texts: the texts.
            src_lang: their language.
            tgt_lang: the language to translate into.
            batch_size: texts that are translated together; by default as many as fit.
            **options: those of transformers' `generate` that the table of options names,
                `max_new_tokens`, `min_new_tokens` and `truncation`.

        Returns:
            `[{"translation_text": ...}]` for a text, with one entry for each of
            `num_return_sequences`; one entry for each text of a list, or a list of entries where
            there are several; an iterator of lists for a stream.

        Raises:
            InvalidInputError: a language is missing, or a value is out of range.
            TypeError: there is no such option.
            M2M100Error: see `Translator.translate`.
        """
        named = self._languages | _given(src_lang=src_lang, tgt_lang=tgt_lang)
        for name, language in named.items():
            if language is None:
                raise InvalidInputError(f"{name}: expected a language, found None")
        call = {
            "source_lang": named["src_lang"],
            "target_lang": named["tgt_lang"],
            **self._completed(_translated({**self._options, **options})),
        }
        size = None if batch_size is None else _SIZE.check(batch_size)
        if isinstance(texts, str):
            return self._records([texts], call, size)[0]
        if isinstance(texts, (list, tuple)):
            found = self._records(texts, call, size)
            return [row[0] for row in found] if all(len(row) == 1 for row in found) else found
        return self._stream(texts, call, size)

    def _completed(self, call: dict[str, Any]) -> dict[str, Any]:
        """Adds that pipeline's defaults, the number of beams even where the checkpoint has one."""
        if not call.get("do_sample"):
            call.setdefault("beam_size", _BEAMS)
        config, named = self.translator.bundle.config, self.translator.bundle.generation
        if not {"max_length", "max_new_tokens"} & {*call, *named}:
            call["max_length"] = min(_NEW_TOKENS + 1, config.max_position_embeddings)
        return call

    def _records(
        self, texts: Sequence[str], call: Mapping[str, Any], size: int | None
    ) -> list[list[Record]]:
        step = size or len(texts) or 1
        return [
            _record(translation)
            for start in range(0, len(texts), step)
            for translation in self.translator.translate_batch(texts[start : start + step], **call)
        ]

    def _stream(
        self, texts: Iterable[str], call: Mapping[str, Any], size: int | None
    ) -> Iterator[list[Record]]:
        read = {} if size is None else {"read_ahead": size}
        named: dict[str, Any] = {**call, **read}
        return map(_record, self.translator.translate_iterable(texts, **named))


def _record(translation: Translation) -> list[Record]:
    """Returns what the pipeline returns for a text."""
    hypotheses = [h.text for h in translation.hypotheses] or [translation.text]
    return [{"translation_text": text} for text in hypotheses]


def _translated(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a call by our names.

    Raises:
        InvalidInputError: two options are about the same, or one is not supported.
        TypeError: there is no such option.
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise InvalidInputError(
                    f"{name}: expected {' or '.join(map(repr, _NEUTRAL[name]))}, found {value!r}"
                )
        elif name == "truncation":
            if value not in (True, False, None, "do_not_truncate", "longest_first", "only_first"):
                raise InvalidInputError(f"truncation: expected True or False, found {value!r}")
            found["truncate"] = value not in (False, None, "do_not_truncate")
        elif name in _BESIDE:
            found[name] = value
        elif name in _OURS:
            if value is not None:
                found[_OURS[name]] = value
        elif name in OPTIONS and name not in _OURS.values():
            found[name] = value  # Those of a call have no other name.
        else:
            raise TypeError(f"unknown option: {name}")
    return found


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
