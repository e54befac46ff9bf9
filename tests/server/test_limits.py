"""Keys, rates, sizes, concurrency; headers of safety; what is logged."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from m2m100_onnx import InvalidInputError
from m2m100_onnx.server.keys import Keys
from m2m100_onnx.server.limits import Rate
from serving import Server, serving

FLAGS = ("--calls", "3", "--parallel", "1", "--body-bytes", "5000")
JOB = {"source_lang": "en", "target_lang": "de"}
LT = {"q": "Open the file.", "source": "en", "target": "de"}
SLOW = {"text": ["word " * 60], **JOB, "min_length": 190, "num_hypotheses": 10, "beam_size": 10}


def line(name: str, key: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}\n"


def test_a_rate_fills_evenly() -> None:
    now = 0.0
    rate = Rate(60, lambda: now)
    assert [rate.take("a") for _ in range(60)] == [0.0] * 60
    assert rate.take("a") == pytest.approx(1.0)
    assert rate.take("b", 60) == 0.0
    now = 1.5
    assert rate.take("a") == 0.0
    assert rate.take("a") == pytest.approx(0.5)
    assert rate.take("c", 10**6) == 0.0


def test_a_rate_remembers_few_clients() -> None:
    rate = Rate(1, lambda: 0.0)
    for number in range(20_000):
        rate.take(str(number))
    assert len(rate._left) == 10_000


def test_keys_are_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text("# comment\n\n" + line("a", "one"))
    keys = Keys(path)
    assert (keys.name_of("one"), keys.name_of("two"), keys.name_of("\ud800")) == ("a", None, None)
    path.write_text(line("a", "one") + line("b", "two"))
    assert keys.name_of("two") == "b"
    path.write_text("two")
    # The broken line is not shown: it may be a key.
    assert keys.name_of("two") == "b"
    assert "line 1" in caplog.text
    path.unlink()
    assert keys.name_of("two") == "b"
    path.write_text("")
    with pytest.raises(InvalidInputError, match="found none"):
        Keys(path)


def test_a_server_with_keys(demo_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(line("first", "k1"))
    flags = ("--api-keys", str(keys), "--requests-per-minute", "30")
    with serving(demo_bundle, tmp_path, *flags) as server:
        message = "Please get an API key from the server's operator"
        answer = server.post("/translate", LT)
        assert (answer.status, answer.json) == (400, {"error": message})
        answer = server.post("/translate", {**LT, "api_key": "wrong"})
        assert (answer.status, answer.json) == (403, {"error": "Invalid API key"})
        for name in ("api_key", "apiKey"):
            assert server.post("/translate", {**LT, name: "k1"}).status == 200
        own = {"text": "a", **JOB}
        assert server.post("/v1/translations", own).status == 401
        assert server.post("/v1/translations", own).headers["www-authenticate"] == "Bearer"
        assert server.post("/v1/translations", own, Authorization="Bearer k1").status == 200
        assert server.post("/v1/translations", own, **{"X-API-Key": "k1"}).status == 200
        deepl = {"text": ["a"], "source_lang": "EN", "target_lang": "DE"}
        assert server.post("/v2/translate", deepl).status == 403
        header = {"Authorization": "DeepL-Auth-Key k1"}
        assert server.post("/v2/translate", deepl, **header).status == 200
        assert server.post("/v2/models/demo/infer", {}).status == 401
        assert server.get("/metrics").status == 401
        assert server.get("/metrics", Authorization="Bearer k1").status == 200
        assert server.get("/health/ready").status == 200
        # A key comes and another goes, without a restart.
        keys.write_text(line("second", "k2"))
        os.utime(keys, ns=(1, 1))
        assert server.post("/translate", {**LT, "api_key": "k1"}).status == 403
        assert server.post("/translate", {**LT, "api_key": "k2"}).status == 200
        # Wrong keys are counted too, so they cannot be guessed quickly.
        statuses = [server.post("/translate", {**LT, "api_key": "no"}).status for _ in range(40)]
        assert statuses[-1] == 429
        answer = server.post("/translate", {**LT, "api_key": "no"})
        assert answer.json["error"].startswith("Slowdown: ")
        assert int(answer.headers["retry-after"]) >= 1
        # Those who have a key have a rate of their own; a batch costs as many as it has texts.
        batch = {**LT, "q": ["a"] * 28, "api_key": "k2"}
        assert [server.post("/translate", batch).status for _ in range(2)] == [200, 429]
    log = server.log.read_text()
    assert not any(word in log for word in ("k1", "k2", LT["q"]))


def test_too_large_a_body(server: Server) -> None:
    answer = server.post("/translate", b"x" * 5001)
    assert (answer.status, list(answer.json)) == (413, ["error"])
    answer = server.post("/v1/translations", b"x" * 5001, "application/json")
    assert answer.json["error"]["type"] == "body_too_large"
    with server.raw() as one:  # Nothing says how large it is.
        one.sendall(b"POST /translate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n")
        one.sendall(b"Content-Type: application/json\r\n\r\n1388\r\n" + b" " * 5000 + b"\r\n")
        one.sendall(b"5\r\naaaaa\r\n")
        assert one.recv(100).startswith(b"HTTP/1.1 413")


def test_compressed_bodies_are_refused(server: Server) -> None:
    for kind in ("gzip", "br", "deflate, gzip"):
        answer = server.post("/translate", b"\x1f\x8b", **{"Content-Encoding": kind})
        assert (answer.status, list(answer.json)) == (415, ["error"])


def test_too_many_calls(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.post("/v1/translations", SLOW), range(8)))
    statuses = sorted(answer.status for answer in answers)
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 3
    busy = next(answer for answer in answers if answer.status == 503)
    assert busy.headers["retry-after"] == "1"
    assert busy.json["error"]["type"] == "busy"
    assert server.post("/translate", LT).status == 200


def test_headers_of_safety(server: Server) -> None:
    for path in ("/", "/health", "/nowhere", "/translate"):
        headers = server.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
    headers = server.ask("GET", "/health", headers={"Origin": "http://x"}).headers
    assert "access-control-allow-origin" not in headers


def test_request_ids(server: Server) -> None:
    assert server.get("/health", **{"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    for odd in ("a b", "x" * 65, '"'):
        assert server.get("/health", **{"X-Request-ID": odd}).headers["x-request-id"] != odd
    found = server.logged("abc-1")
    assert (found["route"], found["status"]) == ("/health", 200)


def test_cors_and_texts_in_logs(demo_bundle: Path, tmp_path: Path) -> None:
    flags = ("--cors-origin", "https://a.example", "--log-texts")
    with serving(demo_bundle, tmp_path, *flags) as server:
        found = {}
        for origin in ("https://a.example", "https://b.example"):
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            answer = server.ask("OPTIONS", "/v1/translations", headers=headers)
            found[origin] = answer.headers.get("access-control-allow-origin")
        assert found == {"https://a.example": "https://a.example", "https://b.example": None}
        server.post("/translate", LT, **{"X-Request-ID": "told"})
        assert server.logged("told")["status"] == 200
        job = {"text": "Save it.", **JOB, "stream": True}
        server.post("/v1/translations", job, **{"X-Request-ID": "streamed"})
        assert server.logged("streamed")["status"] == 200
        assert any("Save it." in each.get("texts", ()) for each in server.lines())
        assert any(LT["q"] in each.get("texts", ()) for each in server.lines())


def test_no_text_in_logs(server: Server) -> None:
    server.post("/v1/translations", {"text": ["secret word", "secret " * 3000], **JOB})
    server.post("/v1/translations", json.dumps({"text": "secret", **JOB, "secret": 1}), "text/x")
    server.get("/secret?secret=secret", **{"X-Request-ID": "last"})
    assert server.logged("last")["route"] == "other"
    assert "secret" not in server.log.read_text()
