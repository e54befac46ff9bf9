"""Lines that are a source and its translation, with a tab between them.

Knows lines; knows no command.
"""

from __future__ import annotations

from m2m100_onnx.errors import InvalidInputError

__all__ = ["sides_of"]


def sides_of(line: object, position: int) -> tuple[str, str]:
    """Returns the two texts of a line.

    Raises:
        InvalidInputError: there are more or fewer, or the line is no text.
    """
    sides = line.split("\t") if isinstance(line, str) else []
    if len(sides) != 2:
        error = InvalidInputError(
            "expected a source and its translation with a tab between them, found "
            f"{len(sides)} of them"
        )
        error.position = position
        raise error
    return sides[0], sides[1]
