"""Several bundles in one process: each text goes to one that has its languages, within a budget.

Knows translators, languages and sizes; translates nothing itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from m2m100_onnx._typing import Self
from m2m100_onnx.bundle.folder import WEIGHTS_FILE
from m2m100_onnx.errors import InvalidInputError, UnknownLanguageError
from m2m100_onnx.option import Option
from m2m100_onnx.translator import Translator

__all__ = ["MemoryBudget", "TranslatorPool"]

_MEMORY = Option("memory", "int | None", None, "Bytes of weights.", 1, 1 << 50)


class MemoryBudget:
    """Closes the graphs of the translators that were used least recently, beyond a budget.

    Their next call opens them again. A translator is charged the bytes of its weights file: the
    weights are most of what open graphs take, mapped or not.
    """

    def __init__(self, memory: int | None) -> None:
        """Takes the budget in bytes; None for no limit.

        Raises:
            InvalidInputError: it is no number of bytes.
        """
        self.memory: int | None = _MEMORY.check(memory)
        self._lock = threading.Lock()
        self._open: dict[Translator, int] = {}  # What was used least recently stands first.

    def check(self, translators: Iterable[Translator]) -> None:
        """Raises `InvalidInputError` if a translator alone is beyond the budget."""
        for translator in translators:
            size = size_of(translator)
            if self.memory is not None and size > self.memory:
                raise InvalidInputError(
                    f"memory: expected {size} bytes or more, as {translator.bundle.directory} "
                    f"needs for its weights, found {self.memory}"
                )

    @property
    def used(self) -> int:
        """Bytes of the translators whose graphs may be open."""
        with self._lock:
            return sum(self._open.values())

    def use(self, translator: Translator) -> None:
        """Notes that a translator is about to be used, and closes others beyond the budget.

        Calls of another one that run keep what they use until they end.
        """
        if self.memory is None:
            return
        left: list[Translator] = []
        with self._lock:
            size = self._open.pop(translator, None) or size_of(translator)
            self._open[translator] = size
            total = sum(self._open.values())
            for other in [*self._open][:-1]:
                if total <= self.memory:
                    break
                total -= self._open.pop(other)
                left.append(other)
        for other in left:
            other.release_memory()

    def forget(self, translator: Translator) -> None:
        """Notes that a translator is closed."""
        with self._lock:
            self._open.pop(translator, None)


class TranslatorPool:
    """Translators of several bundles, each opened at its first use.

        with TranslatorPool(["bundles/418M", "bundles/en-de"], memory=1 << 30) as pool:
            translator = pool.route("en", "de")
            print(translator.translate("Open the file.", source_lang="en", target_lang="de"))

    Many threads may use one at the same time.

    Attributes:
        translators: those of the bundles, in order.
        budget: closes graphs beyond `memory`.
    """

    def __init__(
        self,
        bundles: Sequence[str | os.PathLike[str]],
        *,
        memory: int | None = None,
        **arguments: Any,
    ) -> None:
        """Reads the bundles' configurations and vocabularies; no graph is opened.

        Args:
            bundles: their folders, or names on the hub; where several have a pair of languages,
                the first of them translates it.
            memory: bytes of weights that may be open at the same time; None for no limit.
            **arguments: those of every `Translator`.

        Raises:
            InvalidInputError: there is no bundle, or one alone is larger than `memory`.
            M2M100Error: those of `Translator`.
        """
        if isinstance(bundles, (str, os.PathLike)) or not bundles:
            raise InvalidInputError(f"bundles: expected a list of one or more, found {bundles!r}")
        self.budget = MemoryBudget(memory)
        translators: list[Translator] = []
        try:
            # What was opened before an error is in the list.
            translators.extend(Translator(each, **{**arguments, "lazy": True}) for each in bundles)
            self.budget.check(translators)
        except BaseException:
            for translator in translators:
                translator.close()
            raise
        self.translators = tuple(translators)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of all bundles, each once."""
        every = (code for translator in self.translators for code in translator.languages)
        return tuple(dict.fromkeys(every))

    def route(self, source_lang: str, target_lang: str) -> Translator:
        """Returns the translator of a pair of languages, to be used at once.

        Raises:
            UnknownLanguageError: no bundle has a language, or none has both.
        """
        for translator in self.translators:
            if {source_lang, target_lang} <= set(translator.languages):
                self.budget.use(translator)
                return translator
        known = self.languages
        for code in (source_lang, target_lang):
            if code not in known:
                raise UnknownLanguageError(code, known)
        partners = [t.languages for t in self.translators if source_lang in t.languages]
        raise UnknownLanguageError(target_lang, sorted({c for some in partners for c in some}))

    def close(self, timeout: float | None = None) -> None:
        """Closes all translators; see `Translator.close`."""
        for translator in self.translators:
            translator.close(timeout)
            self.budget.forget(translator)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def size_of(translator: Translator) -> int:
    """Returns the bytes of a translator's weights file."""
    folder = translator.bundle.directory
    files = [folder / WEIGHTS_FILE]
    if not files[0].exists():  # Folders that Optimum exported have other names.
        files = [path for path in folder.iterdir() if ".onnx" in path.name]
    return sum(path.stat().st_size for path in files)
