"""The server's application in replicas of Ray Serve, on a cluster of two nodes."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import workers

from m2m100_onnx import InvalidInputError, Translator
from m2m100_onnx.jobs.ray_serve import application, make_application

pytestmark = pytest.mark.long
PORT = 8123


@pytest.fixture(scope="module")
def serve() -> Iterator[Any]:
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    yield serve
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text[:1] in b"{[" else text
    finally:
        connection.close()


def job(text: str) -> dict[str, Any]:
    return {"text": [text], "source_lang": "en", "target_lang": "de", "beam_size": 1}


def processes() -> set[int]:
    return workers("ray::ServeReplica:m2m100")


def test_the_application_is_the_servers(
    serve: Any, bundle: Path, translator: Translator, sentences: list[str]
) -> None:
    serve.run(make_application([str(bundle)]), name="m2m100")
    texts = sentences[:20]
    body = {**job(""), "text": texts}
    status, found = ask("POST", "/v1/translations", body)
    assert status == 200
    wanted = translator.translate(texts, source_lang="en", target_lang="de", beam_size=1)
    assert [each["text"] for each in found["translations"]] == wanted
    status, found = ask("POST", "/translate", {"q": texts[0], "source": "en", "target": "de"})
    assert (status, [*found]) == (200, ["translatedText"])
    assert ask("GET", "/v2/models/test/ready")[0] == 200
    status, found = ask("POST", "/v1/translations", {**body, "target_lang": "xx"})
    assert status == 400
    assert ask("GET", "/health/ready") == (200, {"status": "ready"})


def hammer(stop: threading.Event, text: str, answers: list[tuple[int, str]]) -> None:
    while not stop.is_set():
        status, found = ask("POST", "/v1/translations", job(text))
        answers.append((status, found["translations"][0]["text"] if status == 200 else str(found)))


def test_a_bundle_is_replaced_without_a_failed_request(
    serve: Any, bundle: Path, translator: Translator, sentences: list[str], tmp_path: Path
) -> None:
    """Two replicas; the new bundle has another name, by which its answers are known."""
    text = sentences[5]
    two = {"min_replicas": 2, "max_replicas": 2}
    serve.run(make_application([str(bundle)], **two), name="m2m100")
    fresh = shutil.copytree(bundle, tmp_path / "fresh")
    stop, answers = threading.Event(), []
    threads = [threading.Thread(target=hammer, args=(stop, text, answers)) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    before = processes()
    assert len(before) == 2
    serve.run(make_application([str(fresh)], **two), name="m2m100")
    deadline = time.monotonic() + 120
    while processes() & before:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert ask("GET", "/v2/models/fresh/ready")[0] == 200
    assert ask("GET", "/v2/models/test/ready")[0] == 404
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    wanted = translator.translate(text, source_lang="en", target_lang="de", beam_size=1)
    assert len(answers) > 20
    assert set(answers) == {(200, wanted)}


def test_a_killed_replica_is_replaced(serve: Any, bundle: Path) -> None:
    two = {"min_replicas": 2, "max_replicas": 2}
    serve.run(make_application([str(bundle)], **two), name="m2m100")
    before = processes()
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while len(processes() - {victim}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    while ask("POST", "/v1/translations", job("Open the file."))[0] != 200:
        assert time.monotonic() < deadline


def test_replicas_are_added_when_requests_wait(
    serve: Any, bundle: Path, sentences: list[str]
) -> None:
    scaled = make_application([str(bundle)], max_replicas=2, queue=1)
    serve.delete("m2m100")  # What has two replicas would keep them for ten minutes.
    serve.run(scaled, name="m2m100")
    deadline = time.monotonic() + 60
    while len(processes()) != 1:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    stop, answers = threading.Event(), []
    threads = [
        threading.Thread(target=hammer, args=(stop, sentences[-1], answers)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 150
    try:
        while len(processes()) < 2:
            assert time.monotonic() < deadline, serve.status()
            time.sleep(0.5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert {status for status, _ in answers} == {200}


def test_what_is_refused(bundle: Path) -> None:
    with pytest.raises(InvalidInputError, match="bundle: expected a folder"):
        application({})
    with pytest.raises(InvalidInputError, match=r"serve: expected bundle, cpus, .* found 'beams'"):
        application({"bundle": str(bundle), "beams": "2"})
    with pytest.raises(InvalidInputError, match="serve: expected numbers"):
        application({"bundle": str(bundle), "cpus": "two"})
    with pytest.raises(InvalidInputError, match="cpus: expected an int"):
        application({"bundle": str(bundle), "cpus": "0"})
    with pytest.raises(InvalidInputError, match="min_replicas: expected at most max_replicas = 1"):
        application({"bundle": str(bundle), "min_replicas": "2"})
    assert application({"bundle": str(bundle), "max_replicas": "2"}) is not None
