"""Alignments: which words of a translation stand for which words of its source.

Knows the tokenizer and attention; leaves batches to `engine/` and the choice of links to `search/`.

A few heads of a model align, and most do not. Which ones is found by translating a few sentences:
the head whose words agree most, that is choose one another. Whether a word's attention is that of
the step that predicts it, or of the step which it is fed to, is part of the choice; the second is
from "Accurate Word Alignment Induction from Neural Machine Translation",
https://arxiv.org/abs/2004.14837. benchmarks/README.md compares the choice with links made by hand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from weakref import WeakMethod

import numpy as np

from m2m100_onnx.engine.pair_reader import PairReader
from m2m100_onnx.engine.stopping import Stop
from m2m100_onnx.errors import InvalidInputError, UnknownLanguageError
from m2m100_onnx.model.model import Model
from m2m100_onnx.options import CallOptions, Settings
from m2m100_onnx.process import renew_in_children
from m2m100_onnx.search.alignment import agreement, between_words, mutual_pairs
from m2m100_onnx.search.state import Float32Array
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx.text.words import Word, words_of
from m2m100_onnx.translation import Alignment, AlignmentHeads, Hypothesis, Translation

__all__ = ["Aligner", "Pair"]

_SAMPLES = {
    "en": (
        "Open the file and save a copy before you close the window.",
        "The user name or the password is wrong.",
        "Select the language in which you want to read this page.",
    ),
    "de": (
        "Die Datei wurde nicht gefunden, weil der Ordner leer ist.",
        "Wählen Sie den Drucker, den Sie verwenden möchten.",
        "Das Programm kann die Einstellungen nicht speichern.",
    ),
    "fr": (
        "Voulez-vous supprimer ce dossier et tous ses fichiers ?",
        "Le serveur ne répond pas à votre demande.",
        "Cliquez sur le bouton pour ajouter une nouvelle image.",
    ),
    "es": (
        "El archivo ya existe en esta carpeta.",
        "Escriba el nombre de la tabla que desea crear.",
        "No se puede abrir la página porque no hay conexión.",
    ),
    "ru": (
        "Введите имя пользователя и пароль.",
        "Этот документ содержит новые данные.",
        "Выберите язык программы в списке.",
    ),
}
"""Texts that tell which heads align, in languages that most checkpoints have."""


@dataclass(frozen=True)
class Pair:
    """A source and a translation.

    Attributes:
        text: the source.
        source: its tokens, as the encoder reads them.
        target: the decoder's tokens, from its start token on.
        target_lang: the language of the translation.
    """

    text: str
    source: Sequence[int]
    target: Sequence[int]
    target_lang: str


Translate = Callable[[str, str, str], Pair]
"""Translates a text from one language to another."""


class Aligner:
    """Aligns sources with translations; many threads may use one at the same time."""

    def __init__(self, model: Model, tokenizer: Tokenizer, translate: Translate) -> None:
        """Takes the parts; no graph is opened, and no text translated."""
        self._reader, self._tokenizer = PairReader(model), tokenizer
        # Whose method it is has this aligner, and is to be freed at once.
        self._translate = WeakMethod(translate)
        self._config = model.bundle.config
        self._chosen: AlignmentHeads | None = None
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Makes a lock that no thread holds: the parent's threads are not in a forked process."""
        self._lock = threading.Lock()

    def align(
        self, pairs: Sequence[Pair], options: CallOptions, stop: Stop, heads: AlignmentHeads | None
    ) -> dict[int, Alignment]:
        """Returns the alignments of pairs, by index, as far as `stop` allowed.

        Args:
            pairs: sources and translations.
            options: has the budgets of a batch.
            stop: ends the work.
            heads: whose attention aligns; None for the model's.

        Raises:
            BundleError: the bundle has no graph of attention.
            InferenceError: onnxruntime failed.
            InvalidInputError: there is no such layer or head.
        """
        chosen = self.heads() if heads is None else self._checked(heads)
        read = self._attention(pairs, [chosen.layer], options, stop)
        found = {}
        for place, weights in read.items():
            mean = weights[0, list(chosen.heads)].mean(axis=0)
            sources, targets, matrix = self._words(pairs[place], mean, chosen.fed)
            found[place] = Alignment(
                tuple(word.text for word in sources),
                tuple(word.text for word in targets),
                tuple(map(tuple, matrix.tolist())),
                tuple(mutual_pairs(matrix)),
            )
        return found

    def attach(
        self,
        results: Mapping[int, Translation],
        sides: Mapping[int, tuple[str, Sequence[int], str]],
        settings: Settings,
        stop: Stop,
    ) -> dict[int, Translation]:
        """Gives every hypothesis its alignment, or source words in the place of unknown tokens.

        Args:
            results: translations by position.
            sides: the text, its tokens and the language of the translation, by position.
            settings: say which of the two.
            stop: ends the work; what was not reached is left out.
        """
        wanted, unknown = settings.search.alignments, self._tokenizer.unk_id
        asked: dict[tuple[int, int], Pair] = {}
        for position, result in results.items():
            text, source, target_lang = sides[position]
            for number, hypothesis in enumerate(result.hypotheses):
                if wanted or unknown in hypothesis.tokens:
                    pair = Pair(text, source, hypothesis.tokens, target_lang)
                    asked[position, number] = pair
        read = self.align([*asked.values()], settings.call, stop, None) if asked else {}
        places = [*asked]
        found = {places[n]: alignment for n, alignment in read.items()}
        stopped = {position for position, number in asked.keys() - found.keys()}
        done = {}
        for position, result in results.items():
            if position in stopped:
                continue
            hypotheses = tuple(
                self._with(hypothesis, found.get((position, number)), settings)
                for number, hypothesis in enumerate(result.hypotheses)
            )
            text = hypotheses[0].text if hypotheses else result.text
            done[position] = replace(result, text=text, hypotheses=hypotheses)
        return done

    def _with(
        self, hypothesis: Hypothesis, alignment: Alignment | None, settings: Settings
    ) -> Hypothesis:
        if alignment is None:
            return hypothesis
        text = hypothesis.text
        if settings.search.replace_unknowns and self._tokenizer.unk_id in hypothesis.tokens:
            text = self._replaced(hypothesis.tokens, alignment)
        kept = alignment if settings.search.alignments else None
        return replace(hypothesis, text=text, alignment=kept)

    def _replaced(self, tokens: Sequence[int], alignment: Alignment) -> str:
        """Returns the text of tokens with a source word for each unknown one."""
        words = self._tokenizer
        kept = [t for t in tokens if t == words.unk_id or t not in words.control_ids]
        pieces = words.ids_to_pieces(kept)
        for target, word in enumerate(words_of(pieces)):
            for place in range(word.start, word.end):
                if kept[place] == words.unk_id:
                    pieces[place] = alignment.source_words[int(np.argmax(alignment.matrix[target]))]
        return "".join(pieces).replace("▁", " ").strip()

    def heads(self) -> AlignmentHeads:
        """Returns the head whose words agree most, on texts that are translated for that.

        Raises:
            InvalidInputError: the model knows too few languages of these texts.
        """
        with self._lock:
            if self._chosen is None:
                self._chosen = self._best_heads()
            return self._chosen

    def _best_heads(self) -> AlignmentHeads:
        pairs = list(self._samples())
        layers = range(self._config.decoder_layers)
        read = self._attention(pairs, layers, CallOptions(), Stop(None, None))
        rates = {
            AlignmentHeads(layer, (head,), fed): float(
                np.mean(
                    [
                        self._agreement(pairs[n], weights[layer, head], fed)
                        for n, weights in read.items()
                    ]
                )
            )
            for layer in layers
            for head in range(self._config.decoder_attention_heads)
            for fed in (True, False)
        }
        return max(rates, key=lambda heads: rates[heads])

    def _samples(self) -> Iterator[Pair]:
        resolved = ((code, self._resolved(code)) for code in _SAMPLES)
        known = [(code, language) for code, language in resolved if language is not None]
        if len(known) < 2:
            raise InvalidInputError(
                "heads: expected layer and heads for a model that knows fewer than two of "
                f"{', '.join(_SAMPLES)}, found None"
            )
        translate = self._translate()
        assert translate is not None, "it has this aligner"
        for (code, source), (_, target) in zip(known, [*known[1:], known[0]], strict=True):
            for text in _SAMPLES[code]:
                yield translate(text, source, target)

    def _resolved(self, code: str) -> str | None:
        try:
            return self._tokenizer.resolve_language(code)
        except UnknownLanguageError:
            return None

    def _agreement(self, pair: Pair, weights: Float32Array, fed: bool) -> float:
        matrix = self._words(pair, weights, fed)[2]
        return agreement(matrix) if matrix.size else 0.0

    def _attention(
        self, pairs: Sequence[Pair], layers: Sequence[int], options: CallOptions, stop: Stop
    ) -> dict[int, Float32Array]:
        sources = [pair.source for pair in pairs]
        fed = [self._fed(pair) for pair in pairs]
        return self._reader.attention(sources, fed, layers, options, stop)

    def _fed(self, pair: Pair) -> list[int]:
        """Returns the tokens of a translation without `</s>` at its end."""
        ended = len(pair.target) > 1 and pair.target[-1] == self._config.eos_token_id
        return list(pair.target[: len(pair.target) - ended])

    def _words(
        self, pair: Pair, weights: Float32Array, fed: bool
    ) -> tuple[list[Word], list[Word], Float32Array]:
        """Returns the words of both sides, and the attention between them."""
        words, tokens = self._tokenizer, self._fed(pair)
        within = words.pieces_within(pair.source)
        # The text itself has the characters that the vocabulary lacks.
        pieces = words.tokenize(pair.text)[: within.stop - within.start]
        given = len(words.build_prompt(pair.target_lang, self._config.decoder_start_token_id))
        sources, targets = words_of(pieces), words_of(words.ids_to_pieces(tokens[given:]))
        first = given if fed else given - 1
        spans = ([(word.start, word.end) for word in side] for side in (sources, targets))
        rows = weights[first : first + len(tokens) - given, within]
        return sources, targets, between_words(rows, *spans)

    def _checked(self, heads: AlignmentHeads) -> AlignmentHeads:
        layers, count = self._config.decoder_layers, self._config.decoder_attention_heads
        if not isinstance(heads, AlignmentHeads):
            kind = type(heads).__name__
            raise InvalidInputError(f"heads: expected an AlignmentHeads, found {kind}")
        if not isinstance(heads.layer, int) or not -layers <= heads.layer < layers:
            raise InvalidInputError(
                f"heads: expected a layer from {-layers} to {layers - 1}, found {heads.layer!r}"
            )
        right = all(isinstance(head, int) and 0 <= head < count for head in heads.heads)
        if not heads.heads or not right:
            raise InvalidInputError(
                f"heads: expected one or more from 0 to {count - 1}, found {heads.heads!r}"
            )
        return replace(heads, layer=heads.layer % layers)
