"""Work beside the queue, which would hold up the batches of others in its threads.

Knows threads; knows nothing of the work.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from m2m100_onnx.process import renew_in_children

__all__ = ["Aside"]


class Aside:
    """Runs work in the order in which it comes, in threads that end when none is left."""

    def __init__(self, threads: int) -> None:
        """Starts no thread.

        Args:
            threads: works that run at the same time.
        """
        self._most = threads
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Forgets what waits: the parent's threads do not run in a forked process."""
        # A signal's handler may close it in the middle of anything.
        self._changed = threading.Condition(threading.RLock())
        self._waiting = deque[Callable[[], object]]()
        self._running: set[threading.Thread] = set()

    def put(self, work: Callable[[], object]) -> None:
        """Has work done, which raises nothing; in this thread where the system allows no other."""
        with self._changed:
            if len(self._running) == self._most:
                self._waiting.append(work)
                return
            thread = threading.Thread(target=self._run, name="m2m100-aside")
            try:
                thread.start()  # It waits for the lock.
            except RuntimeError:  # Also once the program's main thread has ended.
                pass
            else:
                self._waiting.append(work)
                self._running.add(thread)
                return
        work()

    def close(self, timeout: float | None = None) -> bool:
        """Waits until all is done; returns whether it is.

        Args:
            timeout: seconds to wait; None waits without limit.
        """
        me = threading.current_thread()  # What runs in a thread of this may close it.
        with self._changed:
            return self._changed.wait_for(lambda: not self._running - {me}, timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._running.remove(threading.current_thread())
                    self._changed.notify_all()
                    return
                work = self._waiting.popleft()
            work()
