"""What the faces have in common: they close, and a copy of one opens its bundle anew.

Refuses to know what a face does with its model.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from m2m100_onnx._typing import Self
from m2m100_onnx.bundle.bundle import Bundle
from m2m100_onnx.bundle.identity import identity_of
from m2m100_onnx.bundle.kinds import open_again
from m2m100_onnx.bundle.language_model import LanguageModelBundle
from m2m100_onnx.engine.gate import Gate
from m2m100_onnx.model.graphs import Graphs

__all__ = ["Face"]

_B = TypeVar("_B", Bundle, LanguageModelBundle)


class Face(Generic[_B]):
    """An opened bundle that many threads may use at the same time.

    A copy, or one that was pickled and sent to another process, opens the bundle anew.
    """

    bundle: _B
    model: Graphs[_B]
    _gate: Gate
    _arguments: dict[str, Any]
    """The constructor's arguments beside the bundle, which a copy is opened with."""
    _bundle_kind: ClassVar[type[Bundle] | type[LanguageModelBundle]]
    _name: ClassVar[str]
    """What an error calls the face."""

    def release_memory(self) -> None:
        """Gives the memory of past calls back to the system.

        onnxruntime keeps what its largest batch needed. This closes the graphs, and the next call
        opens them again. Calls that run in other threads keep what they use until they end.
        """
        self.model.release()

    def close(self) -> None:
        """Closes the graphs and gives their memory back; a second time has no effect.

        Calls that run in other threads end first, and new ones raise `ClosedError`; a
        `Cancellation` ends a long one. A call that this interrupts in its own thread, in a signal
        handler or in `progress`, goes on and closes the graphs at its end.
        """
        self._gate.close()

    def __enter__(self) -> Self:
        self._gate.check()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        folder = str(self.bundle.directory)
        return _open_again, (type(self), folder, identity_of(self.bundle), self._arguments)


def _open_again(kind: Any, folder: str, identity: str, arguments: dict[str, Any]) -> Any:
    """Opens the bundle of a face that was copied or pickled, if it is still the same."""
    bundle = open_again(kind._bundle_kind, folder, identity, kind._name)
    return kind(bundle, **arguments, lazy=True)
