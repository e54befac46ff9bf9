"""The exception tree. This file knows names and no behaviour.

M2M100Error
├── BundleError           a bundle (or a checkpoint) that cannot be used
├── UnknownLanguageError  a language code the model has no token for, or was not trained on
├── InputTooLongError     more tokens than the model has positions
├── InvalidInputError     an argument or a text of the wrong kind or out of range
├── DependencyError       a package that is needed and not installed
├── InferenceError        onnxruntime failed while it ran a graph, for instance out of memory
└── ExportError           an export that could not be completed or did not verify
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "BundleError",
    "DependencyError",
    "ExportError",
    "InferenceError",
    "InputTooLongError",
    "InvalidInputError",
    "M2M100Error",
    "UnknownLanguageError",
]


# Countries' and older codes for languages; by spelling alone, `jp` is nearest to `pt`.
_OFTEN_MEANT = {
    "cn": "zh",
    "cz": "cs",
    "dk": "da",
    "gr": "el",
    "iw": "he",
    "jp": "ja",
    "kr": "ko",
    "nb": "no",
    "se": "sv",
    "ua": "uk",
    "vn": "vi",
}


class M2M100Error(Exception):
    """Root of every error this project raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled as exceptions are by default, those whose constructors take other things than a
        # message could not be read again, and a pool of processes would wait for them for ever.
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[M2M100Error], args: tuple[Any, ...], state: Mapping[str, Any]) -> M2M100Error:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class BundleError(M2M100Error, ValueError):
    """A bundle or checkpoint is unusable; the message names file, expectation and finding."""


class InvalidInputError(M2M100Error, ValueError):
    """An argument is of the wrong kind or out of range; the message says what is accepted."""


class DependencyError(M2M100Error, ImportError):
    """A package is needed that is not installed; the message says the command that installs it."""


class ExportError(M2M100Error, RuntimeError):
    """An export could not be completed or did not verify; nothing was left behind."""


class InferenceError(M2M100Error, RuntimeError):
    """onnxruntime failed while it ran a graph; the message is its own."""


class InputTooLongError(M2M100Error, ValueError):
    """A text has more tokens than the model has positions.

    Attributes:
        limit: the most tokens the model takes, language token and `</s>` included.
        length: the tokens the text came to.
    """

    def __init__(self, *, limit: int, length: int, text: str) -> None:
        shown = text if len(text) <= 60 else text[:57] + "..."
        super().__init__(
            f"the text has {length} tokens, the model takes at most {limit}: {shown!r}; "
            "split it into sentences, or ask to truncate (truncate=True, --truncate)"
        )
        self.limit = limit
        self.length = length


class UnknownLanguageError(M2M100Error, ValueError):
    """A language code is not one of the model's.

    Attributes:
        code: the code as given.
        matches: supported codes that look like it, best first.
    """

    def __init__(
        self, code: object, supported: Iterable[str], *, known: Iterable[str] = ()
    ) -> None:
        """Builds the message.

        Args:
            code: what the caller asked for.
            supported: the codes that may be asked for.
            known: codes that have a token but were not trained.
        """
        choices = list(supported)
        text = str(code)
        folded = text.strip().strip("_").replace("-", "_").lower()
        # A code that differs in case or carries a region ("EN", "en-US") needs no second guess.
        near = [c for c in choices if c in (folded, folded.split("_")[0])][:1]
        if not near and _OFTEN_MEANT.get(folded) in choices:
            near = [_OFTEN_MEANT[folded]]
        near = near or difflib.get_close_matches(folded, choices, n=3, cutoff=0.5)
        self.code = text
        self.matches = tuple(dict.fromkeys(near))
        if isinstance(code, str) and code in set(known):
            message = f"language {text!r} has a token, but this checkpoint was not trained on it"
        else:
            message = f"unknown language {text!r}"
        if self.matches:
            message += f"; did you mean {' or '.join(map(repr, self.matches))}?"
        shown = (
            ", ".join(choices) if len(choices) <= 12 else f"{len(choices)} codes, see `languages`"
        )
        super().__init__(f"{message} (supported: {shown})")
