"""Numbers for Prometheus. Labels are routes, statuses and phases: no texts, keys or addresses."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from m2m100_onnx.engine.stats import Stats

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


class Metrics:
    """The numbers of one server, in a registry of their own.

    Attributes:
        in_flight: HTTP requests that are not answered yet.
        waiting: texts that wait for a batch, and calls that wait for a thread.
        running: calls that are not answered yet.
        refused: calls that were refused, since too many waited.
        reloads: switches to newly opened bundles, by result.
    """

    def __init__(self) -> None:
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
        self.in_flight = Gauge("m2m100_http_requests_in_flight", about, registry=kept)
        about = "Texts that wait for a batch, and calls that wait for a thread."
        self.waiting = Gauge("m2m100_queue_depth", about, registry=kept)
        self.running = Gauge(
            "m2m100_calls_running", "Calls that are not answered yet.", registry=kept
        )
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
        about = "Tokens that the encoder read (source), and of translations (target)."
        self._tokens = Counter("m2m100_tokens", about, ("side",), registry=kept)
        about = "Seconds of calls, by phase: encode (text to tokens), search, decode."
        self._phases = Counter("m2m100_phase_seconds", about, ("phase",), registry=kept)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts an HTTP request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def called(self, stats: Stats, waited: float) -> None:
        """Counts a call: what it did, and the seconds that it waited."""
        self._waited.observe(waited)
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

    def text(self) -> bytes:
        """Returns all numbers in Prometheus' text format."""
        return generate_latest(self._registry)
