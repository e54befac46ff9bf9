"""The ways in which a translation may go on at a position, each with the translation that follows.

Knows the likeliest next tokens and prefixes; leaves the search to `translate_batch`.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.calls import Worker
from m2m100_onnx.engine.batches import Batch
from m2m100_onnx.engine.gate import Gate
from m2m100_onnx.engine.generator import Generator
from m2m100_onnx.engine.stopping import Cancellation
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.inputs import Prefix, Row
from m2m100_onnx.model.model import Model
from m2m100_onnx.option import Option
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx.translation import Alternative

__all__ = ["Alternatives"]

_COUNT = Option("count", "int", 5, "Alternatives at most.", 1, 1 << 10)
_LEAST = Option("min_probability", "float", 0.0, "Least probability.", 0.0, 1.0)


class Alternatives:
    """The method of a `Translator` that shows what else it might have said."""

    bundle: Bundle
    tokenizer: Tokenizer
    generator: Generator[Model]
    _gate: Gate
    _worker: Worker

    def alternatives(
        self,
        text: str,
        *,
        source_lang: str,
        target_lang: str,
        prefix: Prefix = None,
        count: int = 5,
        min_probability: float = 0.0,
        cancellation: Cancellation | None = None,
        **options: Any,
    ) -> list[Alternative]:
        """Returns the likeliest next tokens after a prefix, and the translations that they lead to.

        Args:
            text: the text.
            source_lang: its language.
            target_lang: the language to translate into.
            prefix: what the translation begins with, as text or tokens; by default the alternatives
                are those of the first token.
            count: alternatives at most; tokens that are no words of a text are left out.
            min_probability: what an alternative has at least.
            cancellation: lets another thread end the call.
            **options: those of `translate` but for `target_prefix`.

        Returns:
            The alternatives, likeliest first.

        Raises:
            M2M100Error: those of `translate`.
        """
        count, least = _COUNT.check(count), _LEAST.check(min_probability)
        call = self._worker.begin(options, cancellation, "raise", None, None)
        if call.settings.search.do_sample:
            raise InvalidInputError(
                "do_sample: expected False for alternatives, which are the likeliest, found True"
            )
        row = Row(text, source_lang, target_lang, prefix)
        sentence = self._worker.sentence(0, row, call)
        batch = Batch.of([sentence], self.bundle.config.pad_token_id)
        # Some of the best may be control tokens.
        wanted = count + len(self.tokenizer.control_ids)
        with self._gate.call():
            likeliest = self.generator.next_tokens(batch, wanted, call.stop)
        if likeliest is None:
            raise call.stop.error({})
        tokens, log_probs = likeliest
        found = [
            (token, float(np.exp(score)))
            for token, score in zip(tokens.tolist(), log_probs.tolist(), strict=True)
            if token not in self.tokenizer.control_ids and np.exp(score) >= least
        ][:count]
        given = len(self.tokenizer.build_prompt(target_lang, 0))
        own = list(sentence.prompt[given:])
        translations = cast("Any", self).translate_batch(
            [text] * len(found),
            source_lang=source_lang,
            target_lang=target_lang,
            target_prefix=[[*own, token] for token, _ in found],
            cancellation=cancellation,
            **options,
        )
        pieces = self.tokenizer.ids_to_pieces([token for token, _ in found])
        return [
            Alternative(piece, token, probability, translation)
            for piece, (token, probability), translation in zip(
                pieces, found, translations, strict=True
            )
        ]
