"""The tree of errors. This file knows names and messages, and no behaviour.

M2M100Error
├── BundleError           a bundle or a checkpoint that cannot be used
├── UnknownLanguageError  a language that the model has no token for, or was not trained on
├── InputTooLongError     a text of more tokens than the model has positions
├── InvalidInputError     an argument or a text of the wrong type or out of range
├── DependencyError       a package that is needed and not installed, or too old
├── InferenceError        onnxruntime failed during a run, for instance out of memory
├── ClosedError           a call of a `Translator` that was closed
├── OverloadedError       a request that a full queue refused
├── StoppedError          a call that ended early, at a deadline or cancelled
│   ├── DeadlineExceeded  because its `timeout` was over
│   └── Cancelled         because its `Cancellation` was cancelled
├── ExportError           an export that failed or did not pass its verification
└── JobError              a job on a cluster that failed; what was finished stays

Every error can be pickled, and rebuilt as `type(error)(*error.args)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "BundleError",
    "Cancelled",
    "ClosedError",
    "DeadlineExceeded",
    "DependencyError",
    "ExportError",
    "InferenceError",
    "InputTooLongError",
    "InvalidInputError",
    "JobError",
    "M2M100Error",
    "OverloadedError",
    "StoppedError",
    "UnknownLanguageError",
]


class M2M100Error(Exception):
    """Root of every error that this project raises on purpose.

    Attributes:
        position: index of the text in the call's texts, where the error is about one text or its
            language; else None.
    """

    position: int | None = None

    @property
    def message(self) -> str:
        """The message without the text's position."""
        return Exception.__str__(self)

    def __str__(self) -> str:
        place = "" if self.position is None else f"texts[{self.position}]: "
        return place + self.message


class BundleError(M2M100Error, ValueError):
    """A bundle or checkpoint cannot be used; the message names the file, expected and found."""


class InvalidInputError(M2M100Error, ValueError):
    """An argument or a text has the wrong type or is out of range; the message says which."""


class DependencyError(M2M100Error, ImportError):
    """A needed package is missing or too old; the message has the command that installs it."""

    # ImportError keeps a message of its own beside `args`.
    __str__ = M2M100Error.__str__


class ExportError(M2M100Error, RuntimeError):
    """An export failed or did not pass its verification; it leaves nothing that is not named."""


class JobError(M2M100Error, RuntimeError):
    """A job on a cluster failed; the message names node and cause, and finished shards stay."""


class InferenceError(M2M100Error, RuntimeError):
    """onnxruntime failed during a run; the message is onnxruntime's."""


class ClosedError(M2M100Error, RuntimeError):
    """The `Translator` was closed before the call."""


class OverloadedError(M2M100Error, RuntimeError):
    """A queue is full; the request was refused, and may be tried again.

    Attributes:
        retry_after: seconds until there is room again, an estimate; 0 where nothing was timed yet.
        queued: the sentences that wait.
    """

    def __init__(self, retry_after: float, queued: int) -> None:
        super().__init__(retry_after, queued)
        self.retry_after, self.queued = retry_after, queued

    @property
    def message(self) -> str:
        """The message without a position; a refused request concerns no single text."""
        return (
            f"{self.queued} sentences wait and the queue has no room for more; "
            f"try again in {self.retry_after:.1f} s"
        )


class InputTooLongError(M2M100Error, ValueError):
    """A text has more tokens than the model has positions.

    Attributes:
        limit: the most tokens that the model takes, language token and `</s>` included.
        length: the tokens of the text.
        text: the text.
    """

    def __init__(self, limit: int, length: int, text: str) -> None:
        super().__init__(limit, length, text)
        self.limit, self.length, self.text = limit, length, text

    @property
    def message(self) -> str:
        """The message without the text's position."""
        shown = self.text if len(self.text) <= 60 else self.text[:57] + "..."
        return (
            f"the text has {self.length} tokens, the model takes at most {self.limit}: {shown!r}; "
            "split it into sentences, or cut it with truncate=True (--truncate)"
        )


class UnknownLanguageError(M2M100Error, ValueError):
    """A language is not one of the model's.

    Attributes:
        code: the code as given.
        supported: the codes that the model translates.
        matches: supported codes that the caller may have meant, best first.
        untrained: whether the model has a token for the code, but was not trained on it.
    """

    def __init__(
        self,
        code: object,
        supported: Iterable[str],
        matches: Iterable[str] = (),
        untrained: bool = False,
    ) -> None:
        self.code, self.supported = str(code), tuple(supported)
        self.matches, self.untrained = tuple(matches), untrained
        super().__init__(self.code, self.supported, self.matches, untrained)

    @property
    def message(self) -> str:
        """The message without the text's position."""
        message = f"unknown language {self.code!r}"
        if self.untrained:
            message = (
                f"language {self.code!r} has a token, but this checkpoint was not trained on it"
            )
        if self.matches:
            message += f"; did you mean {' or '.join(map(repr, self.matches))}?"
        few = len(self.supported) <= 12
        shown = (
            ", ".join(self.supported) if few else f"{len(self.supported)} codes, see `languages`"
        )
        return f"{message} (supported: {shown})"


class StoppedError(M2M100Error):
    """A call was ended by its deadline or its caller before all texts were translated.

    Attributes:
        finished: the `Translation` of each text that was done by then, by position. A stream yields
            what is done in order before it raises; here it has what was done beyond that.
    """

    def __init__(self, reason: str, finished: Mapping[int, Any] | None = None) -> None:
        self.finished = dict(finished or {})
        # Not `super()`, since OSError would take a reason and a dict for its errno and strerror.
        Exception.__init__(self, reason, self.finished)

    @property
    def message(self) -> str:
        """The message; a stopped call concerns no single text."""
        return f"{self.args[0]}; translated by then: {len(self.finished)}"


class DeadlineExceeded(StoppedError, TimeoutError):  # noqa: N818 - the field's name for it
    """The seconds of `timeout` were over."""

    __str__ = M2M100Error.__str__


class Cancelled(StoppedError):  # noqa: N818 - as concurrent.futures and asyncio say
    """Another thread cancelled the call's `Cancellation`."""
