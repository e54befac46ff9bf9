"""What older Pythons lack in `typing`, for those who read annotations while a program runs.

FastAPI and pydantic call `typing.get_type_hints`, so each name of an annotation exists. Before
Python 3.12 pydantic accepts the `TypedDict` of typing_extensions alone. The runtime does not need
that package: where it is missing, nobody is there who would look.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    try:
        from typing_extensions import TypedDict
    except ImportError:
        from typing import TypedDict

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack
elif sys.version_info >= (3, 11):
    from typing import Self, Unpack
else:
    Self = Any
    try:
        from typing_extensions import Unpack
    except ImportError:

        class Unpack:
            """Stands for `typing.Unpack` on Python 3.10."""

            def __class_getitem__(cls, kind: Any) -> Any:
                """Returns the `TypedDict` itself."""
                return kind


__all__ = ["Self", "TypedDict", "Unpack"]
