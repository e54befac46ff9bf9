"""Whose turn it is: sentences that wait, in turns between the requests that they belong to.

Knows requests, priorities and what sentences have in common; knows no threads, for its owner has a
lock. Nothing but `requests` looks at all that waits: each step of a batch asks, and more would have
to wait the longer, the more waits.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Iterator

from m2m100_onnx.engine.batches import Sentence
from m2m100_onnx.engine.requests import Request
from m2m100_onnx.options import SearchOptions

__all__ = ["Turns"]


class _Line:
    """Requests, higher priorities first, and those of one priority in the order of their turns."""

    def __init__(self) -> None:
        self._lines: dict[int, dict[Request, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Request]:
        """Yields what is in line now; it may change meanwhile."""
        for priority in sorted(self._lines, reverse=True):
            yield from list(self._lines.get(priority, ()))

    def add(self, request: Request) -> None:
        """Lets a request stand behind the others."""
        self._lines.setdefault(request.priority, {})[request] = None

    def remove(self, request: Request) -> None:
        """Takes a request out."""
        line = self._lines[request.priority]
        del line[request]
        if not line:
            del self._lines[request.priority]

    @property
    def first(self) -> Request | None:
        """Whose turn it is."""
        return next(iter(self._lines[max(self._lines)])) if self._lines else None


class Turns:
    """Sentences that wait.

    Attributes:
        count: their number.
    """

    def __init__(self, group_of: Callable[[SearchOptions, Sentence], Hashable]) -> None:
        """Takes what tells which sentences can run together: those of one group."""
        self.count = 0
        self._group_of = group_of
        self._all = _Line()
        self._alike: dict[Hashable, _Line] = {}
        self._rows: dict[Hashable, int] = {}
        # Those of a request by group, the longest and first of each last.
        self._waiting: dict[Request, dict[Hashable, list[Sentence]]] = {}

    @property
    def requests(self) -> list[Request]:
        """The requests, in the order of their turns."""
        return list(self._all)

    @property
    def first(self) -> Request | None:
        """The request whose turn it is; None where nothing waits."""
        return self._all.first

    def add(self, request: Request) -> None:
        """Lets the sentences of a request wait; it has some."""
        groups = self._waiting[request] = {}
        # Of equal ones the first stands last, too.
        ordered = sorted(request.sentences, key=lambda one: -len(one.source))
        for sentence in reversed(ordered):
            group = self._group_of(request.settings.search, sentence)
            groups.setdefault(group, []).append(sentence)
        for group, some in groups.items():
            self._add(request, group, len(some))
        self._stand(request)

    def remove(self, request: Request) -> None:
        """Forgets what waits of a request, if anything does."""
        if request in self._waiting:
            self._leave(request)
            for group, some in self._waiting.pop(request).items():
                self._add(request, group, -len(some))

    def stand_behind(self, request: Request) -> None:
        """Lets a request whose turn it was stand behind the others, if more of it waits."""
        if request in self._waiting:
            self._leave(request)
            self._stand(request)

    def next_group(self, request: Request) -> Hashable:
        """Returns the group of the sentences of a request that are next."""
        return next(iter(self._waiting[request]))

    def rows(self, group: Hashable) -> int:
        """Returns how many decoder rows the sentences of a group will have."""
        return self._rows.get(group, 0)

    def alike(self, group: Hashable) -> Iterator[Request]:
        """Yields the requests that have sentences of a group, in the order of their turns."""
        yield from self._alike.get(group, ())

    def peek(self, request: Request, group: Hashable, most: int | None) -> Sentence | None:
        """Returns the longest sentence of a group that has at most so many source tokens."""
        some = self._waiting.get(request, {}).get(group, [])
        place = _place(some, most)
        return None if place < 0 else some[place]

    def take(self, request: Request, group: Hashable, most: int | None) -> None:
        """Takes the sentence that `peek` returns, to be run."""
        groups = self._waiting[request]
        some = groups[group]
        del some[_place(some, most)]
        self._add(request, group, -1)
        if not some:
            self._leave_alike(request, group)
            del groups[group]
        if not groups:
            self._all.remove(request)
            del self._waiting[request]
        request.begin()

    def _add(self, request: Request, group: Hashable, count: int) -> None:
        self.count += count
        self._rows[group] = self._rows.get(group, 0) + count * request.settings.search.rows
        if not self._rows[group]:
            del self._rows[group]

    def _stand(self, request: Request) -> None:
        self._all.add(request)
        for group in self._waiting[request]:
            self._alike.setdefault(group, _Line()).add(request)

    def _leave(self, request: Request) -> None:
        self._all.remove(request)
        for group in self._waiting[request]:
            self._leave_alike(request, group)

    def _leave_alike(self, request: Request, group: Hashable) -> None:
        line = self._alike[group]
        line.remove(request)
        if not line:
            del self._alike[group]


def _place(some: list[Sentence], most: int | None) -> int:
    """Returns the place of the last sentence that is not too long, else -1; lengths increase."""
    if most is None:
        return len(some) - 1
    return bisect.bisect_right(some, most, key=lambda one: len(one.source)) - 1
