"""Work side by side, in a thread for each piece; knows no models.

The executors of `concurrent.futures` take nothing more once the main thread has ended, while
threads that outlive it, as those of a pool may, have translations to do to the very end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

__all__ = ["side_by_side"]


def side_by_side(*functions: Callable[[], Any]) -> list[Any]:
    """Calls functions at once, the first in this thread; returns what they return, in their order.

    Returns when all have ended, and raises the error of the first, in their order, that had one.
    """
    futures: list[Future[Any]] = [Future() for _ in functions]
    threads = [
        threading.Thread(target=_settle, args=pair)
        for pair in list(zip(futures, functions, strict=True))[1:]
    ]
    try:
        for thread in threads:
            thread.start()
        _settle(futures[0], functions[0])
    finally:
        for thread in threads:
            if thread.ident is not None:  # It could be started.
                thread.join()
    # An error's frames, this one and `_settle`'s, must not lead back to the error: what they hold,
    # as all keys and values of a search, would stay until the next garbage collection.
    results = []
    while futures:
        results.append(futures.pop(0).result())
    return results


def _settle(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
        del future
