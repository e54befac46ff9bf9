"""The files of docs/examples run, each with the real server or library, as the manual says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from m2m100_onnx import Translator
from services import EXAMPLES, TEXTS, free_port, post, process

JOB = {"source_lang": "en", "target_lang": "de"}

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
from celery.exceptions import SoftTimeLimitExceeded
from celery_app import translate
from m2m100_onnx import UnknownLanguageError

texts = json.loads(sys.argv[1])
found = translate.delay(texts, "en", "de").get(timeout=60)
try:
    translate.delay(texts, "en", "xx").get(timeout=60)
except UnknownLanguageError as error:
    code = error.code
try:
    translate.apply_async((texts * 2000, "en", "de"), soft_time_limit=1).get(timeout=60)
except SoftTimeLimitExceeded as error:
    limit = type(error).__module__
# The same worker is as good as before.
again = [translate.delay(texts, "en", "de").get(timeout=60) for _ in range(4)]
print(json.dumps([found, code, limit, again]))
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
    found, code, limit, again = json.loads(done.stdout)
    assert (found, code, again) == (expected, "xx", [expected] * 4)
    # Celery's own, raised in the middle of the call.
    assert limit.startswith(("billiard.", "celery."))


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
    names = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    page = (EXAMPLES.parent / "services.md").read_text(encoding="utf-8")
    assert {name for name in names if f'--8<-- "{name}"' not in page} == set()
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    assert {name for name in names if name.removesuffix(".py") not in tests} == set()
