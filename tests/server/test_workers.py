"""Several processes: one that dies, signals, what they share."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import deepl
import pytest

from m2m100_onnx import Translator
from m2m100_onnx.cli import serve
from m2m100_onnx.server import run
from m2m100_onnx.server.limits import SharedRate
from serving import Server, refused_start, serving

JOB = {"source_lang": "en", "target_lang": "de"}
TEXT = "Open the file."
LT = {"q": TEXT, "source": "en", "target": "de"}
SLOW = {"text": ["word " * 60] * 2, **JOB, "min_length": 190, "num_hypotheses": 10, "beam_size": 10}
TWO = ("--workers", "2")


def workers_of(server: Server) -> list[int]:
    """The process ids of the workers, and of nothing else that the supervisor has started."""
    children = Path(f"/proc/{server.running.pid}/task/{server.running.pid}/children").read_text()
    return [int(child) for child in children.split()]


def number(server: Server, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.get("/metrics").body.decode(), re.M)
    return float(found[1]) if found else 0.0


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def in_threads(count: int, work: Callable[[], None]) -> list[threading.Thread]:
    """Starts threads, which do not keep a test that fails from ending."""
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def answering(server: Server) -> set[int]:
    """The workers that have answered."""
    return {line["worker"] for line in server.lines() if line["message"] == "request"}


def test_a_killed_worker_loses_its_own_requests_alone(
    demo_bundle: Path, translator: Translator, tmp_path: Path
) -> None:
    expected = translator.translate(TEXT, **JOB)
    stop, lost, answers = threading.Event(), [], []

    def ask() -> None:
        while not stop.is_set():
            began = time.monotonic()
            try:
                answers.append((began, server.post("/v1/translations", {"text": TEXT, **JOB})))
            except OSError:
                lost.append(began)

    with serving(demo_bundle, tmp_path, *TWO) as server:
        threads = in_threads(4, ask)
        deaths, away = [], []
        for restarts in (1, 2, 3):
            until(lambda: len(answers) > 10)
            os.kill(workers_of(server)[0], signal.SIGKILL)
            deaths.append(time.monotonic())
            until(lambda wanted=restarts: number(server, "m2m100_worker_restarts_total") == wanted)
            away.append(time.monotonic() - deaths[-1])
            assert number(server, "m2m100_workers") == 2
        stop.set()
        for thread in threads:
            thread.join()
        counted = number(
            server,
            'm2m100_http_requests_total{method="POST",route="/v1/translations",status="200"}',
        )
        died = [line for line in server.lines() if line["message"] == "a worker has ended"]
    assert min(away) < 2  # Of three, since other programs may have the cores.
    # Each was with the worker when it died: it had begun, and no thread has two at a time.
    assert all(any(began <= death for death in deaths) for began in lost)
    assert len(lost) <= 4 * len(deaths)
    assert {answer.status for _, answer in answers} == {200}
    assert {a.json["translations"][0]["text"] for _, a in answers} == {expected}
    # What the dead had counted is not lost; an answer may be sent and its worker die before.
    assert len(answers) - 4 * len(deaths) <= counted <= len(answers) + len(lost)
    assert [line["status"] for line in died] == [-signal.SIGKILL] * 3


def test_sigterm_drains_all(demo_bundle: Path, tmp_path: Path) -> None:
    answers: list[Any] = []
    (tmp_path / "tmp").mkdir()
    with serving(demo_bundle, tmp_path, *TWO, start=["env", f"TMPDIR={tmp_path}/tmp"]) as server:
        assert list((tmp_path / "tmp").iterdir())
        threads = in_threads(4, lambda: answers.append(server.post("/v1/translations", SLOW)))
        until(lambda: number(server, "m2m100_calls_running") > 0)
        until(lambda: number(server, "m2m100_http_requests_in_flight") == 5)
        workers = workers_of(server)
        assert len(workers) == 2
        server.running.send_signal(signal.SIGTERM)
        assert server.running.wait(30) == 0
        for thread in threads:
            thread.join()
        with pytest.raises(OSError, match="refused"):
            server.get("/health")
    assert [answer.status for answer in answers] == [200] * 4
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert [line for line in server.lines() if line["level"] == "error"] == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_second_sigint_ends_at_once(demo_bundle: Path, tmp_path: Path) -> None:
    with serving(demo_bundle, tmp_path, *TWO) as server:
        lost: list[Exception] = []

        def ask() -> None:
            try:
                server.post("/v1/translations", {**SLOW, "text": ["word " * 60] * 60})
            except OSError as error:
                lost.append(error)

        threads = in_threads(1, ask)
        until(lambda: number(server, "m2m100_calls_running") > 0)
        server.running.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert server.running.poll() is None
        server.running.send_signal(signal.SIGINT)
        assert server.running.wait(5) == 0
        for thread in threads:
            thread.join()
    assert len(lost) == 1


def test_sighup_switches_all(
    demo_bundle: Path, tiny_bundle: Path, translator: Translator, tmp_path: Path
) -> None:
    with Translator(tiny_bundle, intra_op_num_threads=1) as other:
        before, after = translator.translate(TEXT, **JOB), other.translate(TEXT, **JOB)
    link = tmp_path / "bundle"
    link.symlink_to(demo_bundle)
    stop, answers = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            answers.append(server.post("/v1/translations", {"text": TEXT, **JOB}))

    def each_answers(expected: str) -> None:
        """Asks until both workers have answered a few times."""
        seen: dict[int, int] = {}
        while len(seen) < 2 or min(seen.values()) < 3:
            name = f"r{time.monotonic()}"
            found = server.post("/v1/translations", {"text": TEXT, **JOB}, **{"X-Request-ID": name})
            assert found.json["translations"][0]["text"] == expected
            worker = server.logged(name)["worker"]
            seen[worker] = seen.get(worker, 0) + 1

    with serving(link, tmp_path, *TWO) as server:
        threads = in_threads(3, ask)
        time.sleep(0.3)
        fresh = tmp_path / "fresh"
        fresh.symlink_to(tiny_bundle)
        fresh.replace(link)
        server.running.send_signal(signal.SIGHUP)
        until(lambda: number(server, 'm2m100_reloads_total{result="done"}') == 2)
        each_answers(after)
        stop.set()
        for thread in threads:
            thread.join()
        # The one that takes a place has the new bundle.
        os.kill(workers_of(server)[0], signal.SIGKILL)
        until(lambda: number(server, "m2m100_worker_restarts_total") == 1)
        each_answers(after)
        # A bundle whose graphs do not open changes nothing.
        broken = Path(shutil.copytree(demo_bundle, tmp_path / "broken"))
        for graph in broken.glob("*.onnx"):
            graph.write_bytes(b"nothing")
        fresh.symlink_to(broken)
        fresh.replace(link)
        server.running.send_signal(signal.SIGHUP)
        until(lambda: number(server, 'm2m100_reloads_total{result="failed"}') == 1)
        each_answers(after)
    assert {answer.status for answer in answers} == {200}
    assert {each.json["translations"][0]["text"] for each in answers} == {before, after}
    failure = [line["message"] for line in server.lines() if line["level"] == "error"]
    assert any(message.startswith("the bundles stay as they were: ") for message in failure)


def test_workers_end_with_their_supervisor(demo_bundle: Path, tmp_path: Path) -> None:
    with serving(demo_bundle, tmp_path, *TWO) as server:
        workers = workers_of(server)
        server.running.kill()
        server.running.wait()
        until(lambda: not any(Path(f"/proc/{worker}/exe").exists() for worker in workers))


def test_what_all_workers_count_together(demo_bundle: Path, tmp_path: Path) -> None:
    with serving(demo_bundle, tmp_path, *TWO, "--requests-per-minute", "40") as server:
        statuses = [server.post("/translate", LT).status for _ in range(50)]
        # A fortieth of a minute gives one more.
        assert 40 <= statuses.count(200) <= 48
        assert set(statuses) == {200, 429}
        assert len(answering(server)) == 2
        time.sleep(3.2)
        text = server.get("/metrics").body.decode()
        assert f"m2m100_texts_total {float(statuses.count(200))}" in text
        assert "m2m100_http_requests_in_flight 1.0" in text
        assert "# HELP m2m100_workers Processes that answer." in text


def test_usage_is_that_of_all_workers(demo_bundle: Path, tmp_path: Path) -> None:
    with serving(demo_bundle, tmp_path, *TWO) as server:
        client = deepl.Translator("any", server_url=server.url)
        for _ in range(20):
            server.post("/translate", LT)
        until(lambda: len(answering(server)) == 2)
        assert client.get_usage().character.count == 20 * len(TEXT)


def test_a_shared_rate() -> None:
    rate, context = SharedRate(1000), get_context("fork")
    queue = context.SimpleQueue()

    def take() -> None:
        queue.put(sum(rate.take("one") == 0 for _ in range(500)))

    processes = [context.Process(target=take) for _ in range(4)]
    began = time.monotonic()
    for process in processes:
        process.start()
    taken = sum(queue.get() for _ in processes)
    grown = (time.monotonic() - began) * 1000 / 60
    assert 1000 <= taken <= 1000 + grown + 1
    assert rate.take("another") == 0.0
    assert rate.take("another", 10**6) > 0
    assert SharedRate(5).take("one", 10**6) == 0.0


def test_what_keeps_workers_from_starting(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "broken"))
    for graph in bundle.glob("*.onnx"):
        graph.write_bytes(b"nothing")
    for flags, expected, words in (
        (("--model", "nowhere"), 2, "nowhere"),
        (("--model", str(bundle)), 2, str(bundle)),
        (("--model", str(demo_bundle), "--api-keys", "none"), 1, "none"),
        (("--model", str(demo_bundle), "--workers", "0"), 2, "workers: expected an int"),
    ):
        status, message = refused_start(tmp_path, *TWO, *flags)
        assert (status, words in message) == (expected, True), (flags, status, message)
        assert "Traceback" not in message


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def ran(open_bundles: Any, _: Any, count: int, parallel: int, *__: Any) -> bool:
        seen.append((open_bundles.args[1]["intra_op_num_threads"], count, parallel))
        return True

    monkeypatch.setattr(run, "serve_by_workers", ran)
    monkeypatch.setattr("m2m100_onnx.process.cores", lambda: 8)
    parser = argparse.ArgumentParser()
    serve.add_parser(parser.add_subparsers())
    for flags in ([], ["--threads", "1"], ["--parallel", "9"]):
        given = parser.parse_args(["serve", "-m", "x", "--workers", "3", *flags])
        assert given.run(given) == 0
    assert seen == [(2, 3, 2), (1, 3, 2), (2, 3, 9)]
