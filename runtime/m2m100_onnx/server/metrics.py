"""Numbers for Prometheus. Labels are routes, statuses and phases: no texts, keys or addresses."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from m2m100_onnx.engine.stats import Stats

__all__ = ["Metrics", "bury"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def bury(folder: Path, worker: str) -> None:
    """Takes what a worker did at its death out of the numbers; what it had done stays."""
    mark_process_dead(worker, str(folder))  # type: ignore[no-untyped-call]


class Metrics:
    """The numbers of one server, in a registry of their own.

    Attributes:
        in_flight: HTTP requests that are not answered yet.
        waiting: texts that wait for a batch, and calls that wait for a thread.
        running: calls that are not answered yet.
        refused: calls that were refused, since too many waited.
        reloads: switches to newly opened bundles, by result.
        workers: processes that answer.
        restarts: workers that were started in the place of one that died.
    """

    def __init__(self, folder: Path | None = None, worker: str = "") -> None:
        """Begins at 0; a worker goes on where the one before it ended.

        Args:
            folder: has the numbers of all workers of a server, of which `text` gives the sums; None
                where there is one process.
            worker: the name of this one, which no other has at the same time.
        """
        self._folder = folder
        if folder is not None:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
            values.ValueClass = values.MultiProcessValue(  # type: ignore[no-untyped-call]
                lambda: worker
            )
        self._registry = CollectorRegistry()
        kept = self._registry
        about = "HTTP requests that were answered."
        labels = ("route", "method", "status")
        self._requests = Counter("m2m100_http_requests", about, labels, registry=kept)
        about = "Seconds from a request's first byte to the last of its answer."
        self._seconds = Histogram(
            "m2m100_http_request_seconds", about, ("route",), buckets=_SECONDS, registry=kept
        )
        about = "HTTP requests that are not answered yet."
        self.in_flight = self._gauge("m2m100_http_requests_in_flight", about)
        about = "Texts that wait for a batch, and calls that wait for a thread."
        self.waiting = self._gauge("m2m100_queue_depth", about)
        self.running = self._gauge("m2m100_calls_running", "Calls that are not answered yet.")
        self.workers = self._gauge("m2m100_workers", "Processes that answer.")
        about = "Workers that were started in the place of one that died."
        self.restarts = Counter("m2m100_worker_restarts", about, registry=kept)
        about = "Calls that were refused, since too many waited."
        self.refused = Counter("m2m100_calls_refused", about, registry=kept)
        about = "Switches to newly opened bundles."
        self.reloads = Counter("m2m100_reloads", about, ("result",), registry=kept)
        about = "Seconds that a call waited for its first step."
        self._waited = Histogram("m2m100_queue_seconds", about, buckets=_SECONDS, registry=kept)
        about = "Decoder rows of a batch, at each step."
        self._rows = Histogram("m2m100_batch_rows", about, buckets=_ROWS, registry=kept)
        about = "Share of a batch's budget that its texts take, at each step."
        self._fill = Histogram("m2m100_batch_fill", about, buckets=_SHARES, registry=kept)
        self._texts = Counter("m2m100_texts", "Texts that were translated.", registry=kept)
        self._characters = Counter("m2m100_characters", "Characters of the texts.", registry=kept)
        about = "Characters of the texts that clients sent."
        self._received = Counter("m2m100_received_characters", about, registry=kept)
        about = "Tokens that the encoder read (source), and of translations (target)."
        self._tokens = Counter("m2m100_tokens", about, ("side",), registry=kept)
        about = "Seconds of calls, by phase: encode (text to tokens), search, decode."
        self._phases = Counter("m2m100_phase_seconds", about, ("phase",), registry=kept)

    def _gauge(self, name: str, about: str) -> Gauge:
        """Makes a number that is the sum over the workers that live."""
        return Gauge(name, about, registry=self._registry, multiprocess_mode="livesum")

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts an HTTP request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def called(self, stats: Stats) -> None:
        """Counts a call: what it did, and the seconds that it waited."""
        self._waited.observe(stats.queue_seconds)
        self._texts.inc(stats.texts)
        self._characters.inc(stats.characters)
        self._tokens.labels("source").inc(stats.source_tokens)
        self._tokens.labels("target").inc(stats.target_tokens)
        for phase in ("encode", "search", "decode"):
            self._phases.labels(phase).inc(getattr(stats, f"{phase}_seconds"))

    def stepped(self, rows: int, fill: float) -> None:
        """Counts a step of a batch.

        Args:
            rows: the batch's decoder rows.
            fill: the share of the budget that it takes.
        """
        self._rows.observe(rows)
        self._fill.observe(fill)

    def received(self, characters: int) -> None:
        """Counts characters that a client sent."""
        self._received.inc(characters)

    def all_received(self) -> int:
        """Returns the characters that clients sent since the server began."""
        return int(self._all().get_sample_value("m2m100_received_characters_total") or 0)

    def text(self) -> bytes:
        """Returns all numbers in Prometheus' text format."""
        return generate_latest(self._all())

    def _all(self) -> CollectorRegistry:
        if self._folder is None:
            return self._registry
        registry = CollectorRegistry()
        MultiProcessCollector(  # type: ignore[no-untyped-call]
            registry, str(self._folder)
        )
        return registry
