"""The commands with a bundle's name on the hub, in processes of their own."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_server import Hub, Pause, connect, contents, serving, variables
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from shell import QUICK, Shell, arguments

NAME = "acme/tiny"


@pytest.fixture
def hub(tiny_bundle: Path) -> Iterator[Hub]:
    with serving() as server:
        server.add(NAME, contents(tiny_bundle)).commit(contents(tiny_bundle), "v1")
        yield server


def command(hub: Hub, home: Path, *argv: str, largest_file: int = -1) -> subprocess.Popen[bytes]:
    """Starts the command. No file that it writes may be larger than `largest_file` bytes."""

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.Popen(
        [sys.executable, "-m", "m2m100_onnx", *argv],
        env=variables(hub.url, home, HF_HUB_DISABLE_PROGRESS_BARS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=prepare,
    )


def translate(*more: str) -> list[str]:
    return [*arguments(Path(NAME), *more), "Open the file."]


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["KILL", "INT", "TERM"]
)
def test_a_download_that_is_killed_is_not_taken_for_whole(
    hub: Hub, tiny_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    pause = hub.pauses[WEIGHTS_FILE] = Pause(500_000)
    with command(hub, tmp_path, *translate("--revision", "v1")) as process:
        assert pause.reached.wait(60)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -9)
    assert not errors
    assert not [*tmp_path.rglob(f"snapshots/*/{WEIGHTS_FILE}")]
    pause.over.set()
    hub.take()
    with command(hub, tmp_path, *translate("--revision", "v1")) as process:
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    (weights,) = tmp_path.rglob(f"snapshots/*/{WEIGHTS_FILE}")
    assert weights.read_bytes() == (tiny_bundle / WEIGHTS_FILE).read_bytes()
    assert output.strip()
    # What was there was not sent again.
    assert "config.json" not in hub.take()[0]


def test_a_disk_without_space(hub: Hub, tmp_path: Path) -> None:
    with command(hub, tmp_path, *translate(), largest_file=500_000) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"File too large" in errors
    assert not [*tmp_path.rglob(f"snapshots/*/{WEIGHTS_FILE}")]


def test_every_command_takes_a_name(
    hub: Hub, shell: Shell, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(hub.url, tmp_path / "hub", monkeypatch)
    commit = hub.repositories[NAME].names["v1"]
    assert shell(*translate())[:2] == shell(*arguments(tiny_bundle, "Open the file."))[:2]
    assert shell("languages", "-m", NAME)[:2] == shell("languages", "-m", str(tiny_bundle))[:2]
    status, output, _ = shell("info", NAME, "--revision", "v1", "--verify", "--json")
    facts = json.loads(output)
    assert (status, facts["verified"]) == (0, True)
    assert facts["bundle"].endswith(f"/{commit}")
    lengths = ("--source-length", "4", "--target-length", "2", "--beam-size", "1")
    argv = ("benchmark", NAME, *lengths, *QUICK, "--repetitions", "1", "--output", "json")
    status, output, errors = shell(*argv)
    assert status == 0, errors
    # A folder of the hub's cache has a commit's name, which says nothing.
    assert {row["bundle"] for row in json.loads(output)["results"]} == {NAME}


def test_errors(
    hub: Hub, shell: Shell, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(hub.url, tmp_path / "hub", monkeypatch)
    for argv, message in (
        (translate("--revision", "v9"), "acme/tiny: .* 'v9': the repository has no such revision"),
        (translate("--revision", ""), "--revision: expected a branch, tag or commit, found ''"),
        (["info", "acme/none"], "acme/none: .*there is no such repository"),
        (["languages", "-m", str(tiny_bundle), "--revision", "v1"], "a folder has no revisions"),
    ):
        status, output, errors = shell(*argv)
        assert (status, output) == (2, b"")
        (line,) = errors.splitlines()
        assert line.startswith("m2m100: ")
        assert re.search(message, line)
