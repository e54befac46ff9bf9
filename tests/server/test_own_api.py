"""Our own API: the answers are the library's, with every option; streams; the OpenAPI document."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from m2m100_onnx import OPTIONS, Translator
from m2m100_onnx.server.app import _ROUTES
from m2m100_onnx.server.openapi import CALL_OPTIONS, document
from m2m100_onnx.server.settings import Limits
from serving import Server

FLAGS = ("--deadline", "20", "--texts", "4", "--parallel", "2")
JOB = {"source_lang": "en", "target_lang": "de"}
TEXT = "Open the file and save a copy."


def translate(server: Server, **given: Any) -> Any:
    answer = server.post("/v1/translations", {"text": TEXT, **JOB, **given})
    assert answer.status == 200, answer.body
    return answer.json


def events(server: Server, **given: Any) -> list[tuple[str, Any]]:
    """The events of a stream: their names and what they have."""
    answer = server.post("/v1/translations", {"text": TEXT, **JOB, "stream": True, **given})
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in answer.body.decode().split("\n\n")[:-1]:
        *name, data = block.split("\n")
        found.append((name[0][7:] if name else "", json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam_size": 1},
        {"num_hypotheses": 3},
        {"do_sample": True, "beam_size": 1, "seed": 3, "num_hypotheses": 2, "top_k": 5},
        {"target_prefix": "Die Datei"},
        {"early_stopping": "never", "length_penalty": 0.5, "max_new_tokens": 8},
        {"suppress_tokens": [5], "suppress_sequences": [[7, 8]], "disable_unk": True},
        {"suppress_sequences": ["Datei"], "stop_sequences": [" nicht", [5, 6]]},
        {"beam_size": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "num_hypotheses": 4},
        {"terms": {"file": ["Dokument", "Dokumente"]}, "alignments": True},
        {"terms": [{"file": "Dokument"}, None], "max_length_ratio": 3.0},
    ],
    ids=str,
)
def test_answers_are_the_librarys(
    server: Server, translator: Translator, options: dict[str, Any]
) -> None:
    texts = [TEXT, "The file could not be found."]
    library = dict(options)
    if "target_prefix" in library:
        library["target_prefix"] = [library["target_prefix"]] * 2
    expected = translator.translate_batch(texts, **JOB, **library)
    found = translate(server, text=texts, **options)
    assert found["model"] == "demo"
    assert found["translations"] == json.loads(json.dumps([asdict(each) for each in expected]))


def test_split_translates_sentences(server: Server, translator: Translator) -> None:
    sentences = ["Open the file.", "The file could not be found."]
    expected = " ".join(translator.translate(sentences, **JOB))
    found = translate(server, text=" ".join(sentences), split=True)
    assert found["translations"] == [{"text": expected}]


@pytest.mark.parametrize("beam_size", [1, 5])
def test_a_stream_is_the_translation_in_pieces(
    server: Server, translator: Translator, beam_size: int
) -> None:
    *pieces, last = events(server, beam_size=beam_size)
    expected = translator.translate(TEXT, **JOB, beam_size=beam_size)
    assert "".join(piece["text"] for _, piece in pieces) == expected
    assert last == ("done", {"text": expected})
    assert len(pieces) > (1 if beam_size == 1 else 0)


def test_a_stream_of_sentences(server: Server, translator: Translator) -> None:
    expected = f"{translator.translate(TEXT, **JOB)}\n\n{translator.translate(TEXT, **JOB)}"
    assert events(server, text=f"{TEXT}\n\n{TEXT}", split=True)[-1] == ("done", {"text": expected})
    assert events(server, text="")[-1] == ("done", {"text": ""})


def test_what_is_wrong_with_a_stream_is_said_before_it_begins(server: Server) -> None:
    for given in ({"beam_size": 0}, {"target_lang": "xx"}, {"text": [TEXT, TEXT]}):
        answer = server.post("/v1/translations", {"text": TEXT, **JOB, "stream": True, **given})
        assert (answer.status, list(answer.json)) == (400, ["error"])


def send(server: Server, job: Any) -> socket.socket:
    """Asks, and does not wait for the answer."""
    body = json.dumps(job).encode()
    head = f"POST /v1/translations HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    one = server.raw()
    one.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    return one


def test_clients_that_go_away_end_their_work(server: Server) -> None:
    """The texts are long, and must be translated to long ones; the server is free at once."""
    options = {"min_length": 190, "num_hypotheses": 10, "beam_size": 10}
    sockets = [send(server, {"text": ["word " * 100] * 4, **JOB, **options}) for _ in range(6)]
    wait_for(lambda: is_counted(server, "m2m100_calls_running 6.0"))
    assert not is_counted(server, "m2m100_queue_depth 0.0")
    for one in sockets:
        one.close()
    wait_for(lambda: [line.get("status") for line in server.lines()].count(499) == 6)
    assert is_counted(server, "m2m100_calls_running 0.0")


def test_a_reader_of_a_stream_that_goes_away_ends_its_work(server: Server) -> None:
    text = "Open the file and save a copy of it. " * 200
    one = send(server, {"text": text, **JOB, "stream": True, "split": True, "min_length": 190})
    assert one.recv(1000).startswith(b"HTTP/1.1 200")
    assert is_counted(server, "m2m100_calls_running 1.0")
    one.close()
    began = time.monotonic()
    wait_for(lambda: is_counted(server, "m2m100_calls_running 0.0"))
    assert time.monotonic() - began < 3  # All of it takes more than the deadline of 20 s.


def is_counted(server: Server, line: str) -> bool:
    return line.encode() in server.get("/metrics").body


def wait_for(true: Callable[[], object]) -> None:
    end = time.monotonic() + 15
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_deadline(server: Server) -> None:
    answer = server.post("/v1/translations", {"text": TEXT, **JOB, "timeout": 0.0})
    assert (answer.status, answer.json["error"]["type"]) == (504, "DeadlineExceeded")
    job = {"text": "word " * 100, **JOB, "timeout": 0.02, "stream": True, "min_length": 190}
    answer = server.post("/v1/translations", job)
    assert b"DeadlineExceeded" in answer.body


def test_alternatives(server: Server, translator: Translator) -> None:
    expected = translator.alternatives(TEXT, **JOB, prefix="Die", count=3)
    answer = server.post("/v1/alternatives", {"text": TEXT, **JOB, "prefix": "Die", "count": 3})
    found = answer.json["alternatives"]
    assert [(row["piece"], row["translation"]["text"]) for row in found] == [
        (each.piece, each.translation.text) for each in expected
    ]


def test_scores(server: Server, translator: Translator) -> None:
    expected = translator.score([TEXT], ["Datei öffnen."], **JOB)[0]
    job = {"text": [TEXT], "target": ["Datei öffnen."], **JOB}
    (found,) = server.post("/v1/scores", job).json["scores"]
    assert found["sum"] == pytest.approx(expected.sum)
    (found,) = server.post("/v1/scores", {**job, "target": [""]}).json["scores"]
    assert found["sum"] < 0
    assert found["token_entropies"] == []


def test_entropies(server: Server, translator: Translator) -> None:
    expected = translator.score([TEXT], ["Datei öffnen."], **JOB, entropy=True)[0]
    job = {"text": TEXT, "target": "Datei öffnen.", **JOB, "entropy": True}
    (found,) = server.post("/v1/scores", job).json["scores"]
    assert found["token_entropies"] == pytest.approx(expected.token_entropies)
    assert len(found["token_entropies"]) == len(found["tokens"]) > 3
    answer = server.post("/v1/scores", {**job, "entropy": 1})
    assert answer.json["error"]["message"] == "entropy: expected true or false, found int"
    schema = server.get("/openapi.json").json
    body = schema["paths"]["/v1/scores"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["properties"]["entropy"]["type"] == "boolean"
    assert set(schema["components"]["schemas"]["Score"]["properties"]) == set(found)


def test_embeddings(server: Server, translator: Translator) -> None:
    expected = translator.embed([TEXT, ""], source_lang="en")
    found = server.post("/v1/embeddings", {"text": [TEXT, ""], "source_lang": "en"}).json
    assert np.allclose(found["embeddings"], expected, atol=1e-6)
    answer = server.post("/v1/embeddings", {"text": TEXT, "source_lang": "en", "beam_size": 2})
    assert answer.json["error"]["message"] == "unknown name: beam_size"


def test_errors_name_the_text(server: Server) -> None:
    answer = server.post("/v1/translations", {"text": [TEXT, "word " * 2000], **JOB})
    error = answer.json["error"]
    assert (answer.status, error["type"], error["position"]) == (400, "InputTooLongError", 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": 1}, "text: expected a string, or a list of strings that is not empty"),
        ({"text": []}, "text: expected a string, or a list of strings that is not empty"),
        ({"source_lang": 1}, "source_lang: expected a string, found int"),
        ({"source_lang": "xx"}, "xx is not supported"),
        ({"model": "other"}, "model: expected one of demo, found other"),
        ({"stream": 1}, "stream: expected true or false, found int"),
        ({"beam_size": "5"}, "beam_size: expected an int from 1 to 1,024, found '5'"),
        ({"beam_size": 11}, "beam_size: expected at most 10, found 11"),
        ({"timeout": -1}, "timeout: expected a number from 0 to 1e+08, or None, found -1"),
        ({"max_batch_tokens": 5}, "unknown name: max_batch_tokens"),
        ({"cancellation": None}, "unknown name: cancellation"),
        ({"text": ["a"] * 5}, "Invalid request: request (5) exceeds text limit (4)"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_errors(server: Server, given: dict[str, Any], message: str) -> None:
    answer = server.post("/v1/translations", {"text": TEXT, **JOB, **given})
    assert answer.status in (400, 413)
    assert answer.json["error"]["message"] == message


def test_lists(server: Server, translator: Translator) -> None:
    languages = server.get("/v1/languages").json["languages"]
    assert [row["code"] for row in languages] == list(translator.languages)
    facts = server.get("/v1/models").json
    assert facts["models"][0]["defaults"]["beam_size"] == 5
    assert facts["limits"]["texts"] == 4
    found = server.post("/v1/detections", {"text": "Откройте файл, пожалуйста."}).json
    assert found["detections"][0]["language"] == "ru"


def test_metrics_count_and_quote_nothing(server: Server) -> None:
    def numbers() -> dict[str, float]:
        lines = server.get("/metrics").body.decode().splitlines()
        return {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in lines
            if not line.startswith("#")
        }

    before = numbers()
    translate(server, text=[TEXT, TEXT])
    server.get("/nowhere/secret-path")
    after = numbers()
    assert after["m2m100_texts_total"] == before["m2m100_texts_total"] + 2
    name = 'm2m100_tokens_total{side="target"}'
    assert after[name] > before[name]
    assert after["m2m100_queue_depth"] == 0
    assert not any("secret" in name or "Open" in name for name in after)


def test_pages_need_nothing_from_elsewhere(server: Server) -> None:
    policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"
    for path, kind in (
        ("/", "text/html"),
        ("/docs", "text/html"),
        ("/docs.js", "text/javascript"),
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
        ("/page.svg", "image/svg+xml"),
    ):
        answer = server.get(path)
        assert answer.status == 200
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["content-security-policy"].startswith(policy)
        assert answer.headers["x-frame-options"] == "DENY"
        # Nothing is written in a page that the policy would stop, and no address is elsewhere.
        found = answer.body.replace(b"http://www.w3.org/2000/svg", b"")
        assert not re.search(rb"https?://|<script>|<style|style=| on[a-z]+=", found), path


def test_the_document_has_every_option_and_path() -> None:
    found = document(Limits(), ["en", "de"])
    body = found["paths"]["/v1/translations"]["post"]["requestBody"]
    names = set(body["content"]["application/json"]["schema"]["properties"])
    assert names >= {*CALL_OPTIONS, "timeout"}
    assert set(OPTIONS) - {*CALL_OPTIONS} == {"max_batch_tokens", "max_batch_bytes", "timeout"}
    # The protocol of KServe has a document of its own; files and the page need none.
    own = {route.path for route in _ROUTES if route.path.startswith("/v1/")}
    paths = {path for path in found["paths"] if path.startswith("/v1/")}
    assert paths == own
    assert set(found["paths"]) <= {route.path.replace(":path", "") for route in _ROUTES}
