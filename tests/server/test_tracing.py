"""Spans, as a collector of OpenTelemetry receives them."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from m2m100_onnx.errors import DependencyError
from m2m100_onnx.server.tracing import Traces
from services import free_port
from serving import Server, refused_start, serving

JOB = {"text": "Open the file.", "source_lang": "en", "target_lang": "de"}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENTED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
ERROR = 2  # Status.StatusCode of opentelemetry/proto/trace/v1/trace.proto
SERVER = 2  # Span.SpanKind there


class Collector:
    """Takes spans as OTLP over HTTP.

    Attributes:
        url: where they are sent to.
        bodies: of the requests.
        resources: attributes of their senders.
    """

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.resources: list[dict[str, Any]] = []
        self._spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector._take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(attributes(resource.resource))
            self._spans += [span for scope in resource.scope_spans for span in scope.spans]

    def span(self, wanted: Callable[[Any], bool]) -> Any:
        """Waits for the one span that is wanted."""
        end = time.monotonic() + 20
        while not (found := [span for span in list(self._spans) if wanted(span)]):
            assert time.monotonic() < end, [span.name for span in self._spans]
            time.sleep(0.05)
        (span,) = found
        return span

    def of_trace(self, trace: str, name: str) -> Any:
        return self.span(lambda span: span.trace_id.hex() == trace and span.name == name)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    values = {each.key: each.value for each in span.attributes}
    return {key: getattr(value, value.WhichOneof("value")) for key, value in values.items()}


def sending_to(url: str, *variables: str) -> list[str]:
    """The start of a command whose spans go to a collector, soon."""
    return ["env", f"OTEL_EXPORTER_OTLP_ENDPOINT={url}", "OTEL_BSP_SCHEDULE_DELAY=50", *variables]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.close()


@pytest.fixture(scope="module")
def server(
    demo_bundle: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(demo_bundle, folder, "--traces", start=sending_to(collector.url)) as running:
        yield running


def test_a_request_is_a_span_within_its_clients(server: Server, collector: Collector) -> None:
    answer = server.post("/v1/translations", JOB, **PARENTED, **{"X-Request-ID": "traced"})
    (translation,) = answer.json["translations"]

    request = collector.of_trace(TRACE, "POST /v1/translations")
    assert (request.parent_span_id.hex(), request.kind) == (PARENT, SERVER)
    assert attributes(request) == {
        "url.scheme": "http",
        "http.route": "/v1/translations",
        "http.request.method": "POST",
        "http.response.status_code": 200,
    }
    call = collector.of_trace(TRACE, "translate")
    assert call.parent_span_id == request.span_id
    assert request.start_time_unix_nano <= call.start_time_unix_nano
    assert call.end_time_unix_nano <= request.end_time_unix_nano
    found = attributes(call)
    assert (found["m2m100.source_lang"], found["m2m100.target_lang"]) == ("en", "de")
    assert (found["m2m100.model"], found["m2m100.texts"]) == (answer.json["model"], 1)
    assert found["m2m100.characters"] == len(JOB["text"])
    assert found["m2m100.target_tokens"] == len(translation["hypotheses"][0]["tokens"])
    assert found["m2m100.search_seconds"] > 0
    logged = server.logged("traced")
    assert (logged["trace_id"], logged["span_id"]) == (TRACE, request.span_id.hex())
    assert {each["service.name"] for each in collector.resources} == {"m2m100"}


def test_a_stream_is_a_span_too(server: Server, collector: Collector) -> None:
    trace = "1" * 32
    job = {**JOB, "stream": True, "beam_size": 1}
    answer = server.post("/v1/translations", job, traceparent=f"00-{trace}-{PARENT}-01")
    events = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    whole = server.post("/v1/translations", {**JOB, "beam_size": 1}).json["translations"][0]
    assert json.loads(events[-1])["text"] == whole["text"]
    found = attributes(collector.of_trace(trace, "stream"))
    assert found["m2m100.target_tokens"] == len(whole["hypotheses"][0]["tokens"])
    assert found["m2m100.texts"] == 1


def test_a_refused_request_is_no_error_of_the_server(server: Server, collector: Collector) -> None:
    trace = "2" * 32
    job = {**JOB, "target_lang": "xx"}
    answer = server.post("/v1/translations", job, traceparent=f"00-{trace}-{PARENT}-01")
    request = collector.of_trace(trace, "POST /v1/translations")
    assert attributes(request)["http.response.status_code"] == answer.status == 400
    assert request.status.code != ERROR


def test_a_request_without_a_parent_begins_a_trace(server: Server, collector: Collector) -> None:
    server.get("/languages", traceparent="no such thing", **{"X-Request-ID": "alone"})
    logged = server.logged("alone")
    request = collector.of_trace(logged["trace_id"], "GET /languages")
    assert request.parent_span_id == b""


def test_no_span_has_texts_keys_paths_or_health(server: Server, collector: Collector) -> None:
    secrets = {"q": "Save a copy.", "source": "en", "target": "de", "api_key": "hidden-key"}
    translated = server.post("/translate", secrets).json["translatedText"]
    server.get("/translate?q=Quit&source=en&target=de")
    server.get("/download_file/hidden-link")
    server.get("/health", **{"X-Request-ID": "unseen"})
    assert "trace_id" not in server.logged("unseen")
    trace = "3" * 32  # Spans are sent in their order, so this one comes last.
    server.get("/languages", traceparent=f"00-{trace}-{PARENT}-01")
    collector.of_trace(trace, "GET /languages")
    sent = b"".join(collector.bodies)
    assert b"/translate" in sent
    for secret in ("Save a copy.", translated, "hidden", "Quit", JOB["text"], "/health"):
        assert secret.encode() not in sent, secret


def test_every_worker_sends_and_the_variables_name_the_service(
    demo_bundle: Path, tmp_path: Path
) -> None:
    collector = Collector()
    named = sending_to(collector.url, "OTEL_SERVICE_NAME=translation")
    with serving(demo_bundle, tmp_path, "--traces", "--workers", "2", start=named) as server:
        end, traces = time.monotonic() + 30, {}
        while len(traces) < 2:
            assert time.monotonic() < end
            server.get("/languages", **{"X-Request-ID": f"n{time.monotonic_ns()}"})
            for line in server.lines():
                if line.get("route") == "/languages":
                    traces[line["worker"]] = line["trace_id"]
    # Both have ended, and what they had not sent before, they sent then.
    for trace in traces.values():
        collector.of_trace(trace, "GET /languages")
    assert {each["service.name"] for each in collector.resources} == {"translation"}
    collector.close()


def test_a_collector_that_is_away_holds_up_nobody(demo_bundle: Path, tmp_path: Path) -> None:
    away = sending_to(f"http://127.0.0.1:{free_port()}")
    with serving(demo_bundle, tmp_path, "--traces", start=away) as server:
        for _ in range(3):
            assert server.post("/v1/translations", JOB).status == 200
        server.running.terminate()
        assert server.running.wait(20) == 0
        lines = server.lines()  # All of them are JSON, the exporter's complaints too.
    assert any("export" in line["message"].lower() for line in lines)


def test_another_protocol_is_refused(demo_bundle: Path, tmp_path: Path) -> None:
    flags = ("--model", str(demo_bundle), "--traces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        status, said = refused_start(tmp_path, *flags)
    assert status != 0
    assert "OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf, found 'grpc'" in said


@pytest.mark.parametrize(
    "package", ["opentelemetry.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"]
)
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=r"opentelemetry.*m2m100-onnx\[traces\]"):
        Traces(True)
