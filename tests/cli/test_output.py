"""What `m2m100 translate` writes to: files that change whole, devices, pipes, closed streams."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from m2m100_onnx import Translator
from shell import LINES, Shell, arguments, expected, run


def test_files_are_read_and_written(
    demo_bundle: Path, translator: Translator, shell: Shell, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_text("\n".join(LINES), encoding="utf-8", newline="")
    # In place, since the input is not touched before all of it is done.
    status, output, errors = shell(
        *arguments(demo_bundle, "--input", str(text), "--output", str(text))
    )
    assert (status, output, errors) == (0, b"", "")
    found = text.read_bytes().decode().split("\n")
    assert found == [*(t.text for t in expected(translator, LINES)), ""]
    assert list(tmp_path.iterdir()) == [text]


def test_a_dash_is_a_standard_stream(answer: str, demo_bundle: Path, shell: Shell) -> None:
    argv = arguments(demo_bundle, "--input", "-", "--output", "-")
    assert shell(*argv, stdin=b"Open the file.") == (0, f"{answer}\n".encode(), "")


def test_a_failed_run_leaves_the_output_as_it_was(
    demo_bundle: Path, shell: Shell, tmp_path: Path
) -> None:
    for name in ("new", "old"):
        path = tmp_path / name
        if name == "old":
            path.write_bytes(b"precious")
        argv = arguments(demo_bundle, "--read-ahead", "1", "--output", str(path))
        assert shell(*argv, stdin=b"Delete\n\xff\n")[0] == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old": b"precious"}


def test_an_output_file_keeps_its_permissions_and_links(
    demo_bundle: Path, shell: Shell, tmp_path: Path
) -> None:
    old, link, new = tmp_path / "old", tmp_path / "link", tmp_path / "new"
    old.touch(mode=0o640)
    link.symlink_to(old)
    mask = os.umask(0o027)
    try:
        for path in (link, new):
            assert shell(*arguments(demo_bundle, "--output", str(path), "Delete"))[0] == 0
    finally:
        os.umask(mask)
    assert link.is_symlink()
    assert old.read_bytes() == new.read_bytes() != b""
    assert [stat.S_IMODE(path.stat().st_mode) for path in (old, new)] == [0o640, 0o640]


def test_a_device_is_written_and_not_replaced(demo_bundle: Path, shell: Shell) -> None:
    assert shell(*arguments(demo_bundle, "--output", os.devnull, "Delete"))[0] == 0
    assert Path(os.devnull).is_char_device()


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="a system without names of descriptors")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/stderr"])
def test_descriptors_names_are_written_and_not_replaced(
    command: list[str], environment: dict[str, str], answer: str, tmp_path: Path, name: str
) -> None:
    stream = "stderr" if name.endswith("err") else "stdout"
    argv = [*command, "--output", name, "Open the file."]
    done = run(argv, environment)
    assert (done.returncode, getattr(done, stream)) == (0, f"{answer}\n".encode())
    # As `>> kept` and `2>> kept` of a shell, where the name leads to the file.
    kept = tmp_path / "kept"
    kept.write_text("before\n")
    with kept.open("ab") as file:
        done = subprocess.run(argv, env=environment, check=False, **{stream: file})
    assert (done.returncode, kept.read_text()) == (0, f"before\n{answer}\n")
    assert list(tmp_path.iterdir()) == [kept]


def test_a_named_pipe_is_written(
    command: list[str], environment: dict[str, str], answer: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        argv = [*command, "--output", str(tmp_path / "pipe"), "Open the file."]
        assert run(argv, environment).returncode == 0
        assert reader.communicate(timeout=60)[0] == f"{answer}\n".encode()


def test_a_descriptor_that_is_not_open(demo_bundle: Path, shell: Shell) -> None:
    status, output, errors = shell(*arguments(demo_bundle, "--output", "/dev/fd/987", "Delete"))
    assert (status, output) == (2, b"")
    assert errors == "m2m100: error: cannot write /dev/fd/987: Bad file descriptor\n"


def test_without_standard_error_nothing_goes_to_standard_output(
    command: list[str], environment: dict[str, str]
) -> None:
    argv = [*command, "--beam-size", "0", "Open the file."]
    done = run(["sh", "-c", 'exec "$@" 2>&-', "sh", *argv], environment)
    assert (done.returncode, done.stdout) == (2, b"")
