"""What a forked process begins anew, since the threads of the one it was forked from are not in it.

A server that forks its workers shares with them what it has imported and read; only graphs are
opened by each. Knows which objects want to be told; knows nothing of what they do then.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol

__all__ = ["Renewable", "leave_behind", "renew_in_children"]


class Renewable(Protocol):
    """Something with locks, counts or threads that mean nothing in a child."""

    def renew(self) -> None:
        """Begins anew; called in the child, where no other thread runs yet."""


_known: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_in_children(thing: Renewable) -> None:
    """Has `renew` called in every process that is forked from this one while `thing` lives."""
    _known.add(thing)


def leave_behind(thing: object) -> None:
    """Keeps an object of the parent's from ever being closed in this process.

    Closing waits for the object's threads, which are not here, so that a child would hang when it
    ends. The memory is the parent's, shared until somebody writes to it.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _renew() -> None:
    for thing in list(_known):
        thing.renew()


if hasattr(os, "register_at_fork"):  # Windows does not fork.
    os.register_at_fork(after_in_child=_renew)
