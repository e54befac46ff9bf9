"""Processes of tests that hear signals, even if the tests do not."""

from __future__ import annotations

import signal


def usual() -> None:
    """Whoever runs the tests in the background, or by nohup, has them ignore some."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
