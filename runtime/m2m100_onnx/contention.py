"""Whether other programs want the cores that a translation runs on; knows the kernel's accounts.

An operator that two threads share is done when both are. Where a busy process has one of two cores
half of the time, each operator takes twice as long; one thread alone is left in peace on the other
core, and a step takes a third longer than on two idle ones.
"""

from __future__ import annotations

from collections.abc import Callable

try:
    import resource
except ImportError:  # Windows has no such account.
    resource = None  # type: ignore[assignment]

__all__ = ["Contention"]

_WATCHED = 4
"""Steps after which the account is looked at."""
_ALONE, _LONGEST = 64, 256
"""Steps on one core before two are tried again, the only way to find that they are free.

Twice as many each time that they are not, since those that try take twice as long.
"""
_SWITCHES = 16
"""A step's involuntary context switches that tell a neighbour.

Counted on two cores, with steps of 16 to 53 ms: 0 to 2, at most 11, on an idle machine, 50 to 85
beside one busy process.
"""


def _involuntary_switches() -> int:
    """How often the kernel has taken a core away from a thread of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


class Contention:
    """Tells a search whether a step does better with one core; for one search at a time."""

    def __init__(self, switches: Callable[[], int] = _involuntary_switches) -> None:
        """Takes the account; `switches` counts up."""
        self._switches = switches
        self._watched = self._alone = self._before = 0
        self._pause = _ALONE

    def watch(self) -> Callable[[], bool]:
        """Begins with a search; returns what it asks before each step: whether one core is better.

        What happened since the search before says nothing about this one.
        """
        self._watched = 0
        return self._crowded

    def _crowded(self) -> bool:
        if self._alone:
            self._alone -= 1
            return True
        if self._watched == _WATCHED:
            self._watched = 0
            if self._switches() - self._before > _WATCHED * _SWITCHES:
                self._alone, self._pause = self._pause - 1, min(2 * self._pause, _LONGEST)
                return True
            self._pause = _ALONE
        if self._watched == 0:
            self._before = self._switches()
        self._watched += 1
        return False
