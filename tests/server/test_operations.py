"""Starting, ending and opening anew; signals come while requests run."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from m2m100_onnx import Translator
from serving import Server, refused_start, serving

JOB = {"source_lang": "en", "target_lang": "de"}
TEXT = "Open the file."
SLOW = {"text": ["word " * 60] * 2, **JOB, "min_length": 190, "num_hypotheses": 10, "beam_size": 10}


def test_sigterm_lets_requests_end(demo_bundle: Path, tmp_path: Path) -> None:
    answers = []
    with serving(demo_bundle, tmp_path) as server:
        threads = [
            threading.Thread(target=lambda: answers.append(server.post("/v1/translations", SLOW)))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        running(server)
        server.running.send_signal(signal.SIGTERM)
        assert server.running.wait(30) == 0
        for thread in threads:
            thread.join()
        with pytest.raises(OSError, match="refused"):
            server.get("/health")
    assert [answer.status for answer in answers] == [200] * 3
    assert [line for line in server.lines() if line["level"] == "error"] == []


def running(server: Server) -> None:
    """Waits for calls that run."""
    end = time.monotonic() + 20
    while b"m2m100_calls_running 0" in server.get("/metrics").body:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_takes_too_long_is_cut(demo_bundle: Path, tmp_path: Path) -> None:
    def ask() -> None:
        with server.raw() as one:
            one.sendall(b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
            one.recv(1000)

    with serving(demo_bundle, tmp_path, "--drain-seconds", "1") as server:
        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.3)
        began = time.monotonic()
        server.running.send_signal(signal.SIGTERM)
        assert server.running.wait(30) == 0
        assert time.monotonic() - began < 9  # The body would be waited for until then.
        thread.join()


def test_sighup_opens_a_new_bundle_under_load(
    demo_bundle: Path, tiny_bundle: Path, translator: Translator, tmp_path: Path
) -> None:
    """Every answer is that of one bundle or of the other, and none fails."""
    with Translator(tiny_bundle, intra_op_num_threads=1) as other:
        expected = {
            translator.translate(TEXT, **JOB),
            after := other.translate(TEXT, **JOB),
        }
    assert len(expected) == 2
    link = tmp_path / "bundle"
    link.symlink_to(demo_bundle)
    stop, answers, streams = threading.Event(), [], []

    def ask() -> None:
        while not stop.is_set():
            answers.append(server.post("/v1/translations", {"text": TEXT, **JOB}))

    def read_streams() -> None:
        job = {"text": f"{TEXT} " * 10, **JOB, "stream": True, "split": True}
        while not stop.is_set():
            streams.append(server.post("/v1/translations", job).body)

    def score() -> None:
        while not stop.is_set():
            answers.append(server.post("/v1/scores", {"text": TEXT, "target": TEXT, **JOB}))

    with serving(link, tmp_path) as server:
        work = (ask, ask, ask, read_streams, score)
        threads = [threading.Thread(target=each) for each in work]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        fresh = tmp_path / "fresh"
        fresh.symlink_to(tiny_bundle)
        fresh.replace(link)
        server.running.send_signal(signal.SIGHUP)
        wait_for(server, 'm2m100_reloads_total{result="done"} 1.0')
        time.sleep(0.3)
        # A bundle that does not open changes nothing.
        link.unlink()
        link.mkdir()
        server.running.send_signal(signal.SIGHUP)
        wait_for(server, 'm2m100_reloads_total{result="failed"} 1.0')
        stop.set()
        for thread in threads:
            thread.join()
        last = server.post("/v1/translations", {"text": TEXT, **JOB}).json
    assert {answer.status for answer in answers} == {200}
    translated = [answer.json for answer in answers if "translations" in answer.json]
    assert {each["translations"][0]["text"] for each in translated} == expected
    assert all(b"event: done" in stream for stream in streams)
    assert streams
    assert last["translations"][0]["text"] == after
    failure = next(line for line in server.lines() if line["level"] == "error")
    assert failure["message"].startswith("the bundles stay as they were: ")


def wait_for(server: Server, line: str) -> None:
    end = time.monotonic() + 20
    while line.encode() not in server.get("/metrics").body:
        assert time.monotonic() < end, line
        time.sleep(0.05)


def test_several_bundles(
    demo_bundle: Path, tiny_bundle: Path, translator: Translator, tmp_path: Path
) -> None:
    with serving([demo_bundle, tiny_bundle], tmp_path) as server:
        facts = server.get("/v1/models").json["models"]
        assert [row["name"] for row in facts] == ["demo", "tiny"]
        # The first that has the languages; the demo has no Japanese.
        found = server.post("/v1/translations", {"text": TEXT, **JOB}).json
        assert found["model"] == "demo"
        assert found["translations"][0]["text"] == translator.translate(TEXT, **JOB)
        job = {"text": TEXT, "source_lang": "en", "target_lang": "ja"}
        assert server.post("/v1/translations", job).json["model"] == "tiny"
        assert server.post("/v1/translations", {**job, "model": "demo"}).status == 400
        assert server.get("/v2/models/tiny/ready").json == {"name": "tiny", "ready": True}


def test_what_keeps_a_server_from_starting(demo_bundle: Path, tmp_path: Path) -> None:
    model = ("--model", str(demo_bundle))
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        taken = str(one.getsockname()[1])
        for flags, expected, words in (
            (("--model", "nowhere"), 2, "nowhere"),
            ((*model, *model), 2, "different names"),
            ((*model, "--api-keys", "none"), 1, "none"),
            ((*model, "--texts", "0"), 2, "texts: expected an int"),
            ((*model, "--port", "70000"), 2, "port: expected an int"),
            ((*model, "--port", taken), 1, "address already in use"),
        ):
            status, message = refused_start(tmp_path, *flags)
            assert (status, words in message) == (expected, True), (flags, status, message)
            assert "Traceback" not in message


def test_a_broken_bundle_keeps_it_from_starting(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "broken"))
    next(bundle.glob("*.onnx")).write_bytes(b"nothing")
    status, message = refused_start(tmp_path, "--model", str(bundle))
    assert status == 2
    assert str(bundle) in message


def test_the_extra_is_named(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ImportError(name='starlette')")
    runtime = Path(__file__).resolve().parent.parent.parent / "runtime"
    done = subprocess.run(
        [sys.executable, "-m", "m2m100_onnx", "serve", "-m", str(demo_bundle)],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{runtime}"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'm2m100-onnx[server]'" in done.stderr
