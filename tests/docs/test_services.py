"""The files of docs/examples run, each with the real server or library, as the manual says."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import Translator

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "docs" / "examples"
JOB = {"source_lang": "en", "target_lang": "de"}
TEXTS = ["Open the file.", "The file could not be found."]

# The wrapper that a deployment's own settings are: a broker of files in place of a server.
BROKER = """
import celery_app

celery_app.app.conf.update(
    broker_url="filesystem://",
    broker_transport_options={"data_folder_in": "queue", "data_folder_out": "queue"},
    result_backend="file://results",
    worker_hijack_root_logger=False,
)
app = celery_app.app
"""
# A client: its own process, as in life.
CLIENT = """
import json, sys
import deployment
from celery_app import translate
from m2m100_onnx import UnknownLanguageError

texts = json.loads(sys.argv[1])
found = translate.delay(texts, "en", "de").get(timeout=60)
try:
    translate.delay(texts, "en", "xx").get(timeout=60)
except UnknownLanguageError as error:
    print(json.dumps([found, error.code]))
"""


@pytest.fixture
def surroundings(demo_bundle: Path, repository: Path) -> dict[str, str]:
    """The environment of a process that runs an example."""
    path = os.pathsep.join([str(EXAMPLES), str(repository / "runtime"), "."])
    return {
        **os.environ,
        "BUNDLE": str(demo_bundle),
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@pytest.fixture
def expected(translator: Translator) -> list[str]:
    return translator.translate(TEXTS, source_lang="en", target_lang="de")


@contextmanager
def process(
    arguments: list[str], folder: Path, surroundings: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server, and ends it."""
    log = folder / "log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=folder,
            env=surroundings,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield running
        except BaseException:
            print(log.read_text(encoding="utf-8", errors="replace"))
            raise
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
                raise


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def post(url: str, job: Any) -> tuple[int, Any]:
    """Sends JSON as soon as somebody listens; returns the status and the answer."""
    request = urllib.request.Request(
        url, json.dumps(job).encode(), {"Content-Type": "application/json"}
    )
    wait_for(urllib.parse.urlsplit(url).port)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait_for(port: int | None) -> None:
    end = time.monotonic() + 30
    while True:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < end, "nobody listens"
        time.sleep(0.1)


def test_fastapi(tmp_path: Path, surroundings: dict[str, str], expected: list[str]) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/translate"
    with process(["uvicorn", "fastapi_app:app", f"--port={port}"], tmp_path, surroundings):
        assert post(url, {**JOB, "texts": TEXTS}) == (200, expected)
        status, answer = post(url, {**JOB, "texts": ["Open the file.", "word " * 1000]})
        assert (status, answer["position"]) == (422, 1)
        assert "tokens" in answer["error"]
        assert post(url, {"texts": TEXTS})[0] == 422


def test_gunicorn(tmp_path: Path, surroundings: dict[str, str], expected: list[str]) -> None:
    port = free_port()
    settings = ["--config", str(EXAMPLES / "gunicorn_conf.py"), f"--bind=127.0.0.1:{port}"]
    url = f"http://127.0.0.1:{port}/"
    with process(["gunicorn", *settings, "wsgi_app:app"], tmp_path, surroundings) as server:
        # Several, so that both workers answer.
        for _ in range(4):
            assert post(url, {**JOB, "text": TEXTS}) == (200, {"text": expected})
        assert post(url, {"text": TEXTS, "source_lang": "en", "target_lang": "xx"})[0] == 422
        assert post(url, [])[0] == 422
    assert server.returncode == 0


def test_fastapi_in_gunicorn(
    tmp_path: Path, surroundings: dict[str, str], expected: list[str]
) -> None:
    """The translator is open when gunicorn forks."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/translate"
    settings = ["--preload", "--workers=2", "--worker-class=asgi", f"--bind=127.0.0.1:{port}"]
    with process(["gunicorn", *settings, "fastapi_app:app"], tmp_path, surroundings) as server:
        for _ in range(4):
            assert post(url, {**JOB, "texts": TEXTS}) == (200, expected)
    assert server.returncode == 0


def test_celery(tmp_path: Path, surroundings: dict[str, str], expected: list[str]) -> None:
    for name in ("queue", "results"):
        (tmp_path / name).mkdir()
    (tmp_path / "deployment.py").write_text(BROKER)
    worker = ["celery", "--app=deployment", "worker", "--concurrency=2", "--without-gossip"]
    with process([*worker, "--without-mingle"], tmp_path, surroundings):
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, json.dumps(TEXTS)],
            cwd=tmp_path,
            env=surroundings,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
            check=True,
        )
    assert json.loads(done.stdout) == [expected, "xx"]


def test_multiprocessing(
    tmp_path: Path, surroundings: dict[str, str], sentences: list[str], translator: Translator
) -> None:
    lines = sentences[:20]
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "pool.py"), "lines.txt"],
        cwd=tmp_path,
        env={**surroundings, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    expected = translator.translate(lines, source_lang="en", target_lang="de")
    assert done.stdout.splitlines() == expected


def test_every_example_is_shown_and_run() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    page = (EXAMPLES.parent / "services.md").read_text(encoding="utf-8")
    assert {name for name in names if f'--8<-- "{name}"' not in page} == set()
    tests = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in names if name.removesuffix(".py") not in tests} == set()
