"""`--output` where no other file can take the file's place: mounted files, folders of others."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx.cli import files
from m2m100_onnx.cli.files import open_output
from m2m100_onnx.errors import InvalidInputError
from shell import Shell, arguments

REASONS = pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM])


def fail(number: int) -> Any:
    """What the system does in a place that a test cannot make."""

    def refuse(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


def write(target: Path, text: bytes) -> None:
    with open_output(str(target)) as file:
        file.write(text)


@REASONS
@pytest.mark.parametrize("before", [b"", b"short", b"much longer than what comes" * 1000])
def test_a_file_that_cannot_be_replaced_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, before: bytes
) -> None:
    target = tmp_path / "out"
    target.write_bytes(before)
    target.chmod(0o640)
    node = target.stat().st_ino
    monkeypatch.setattr(Path, "replace", fail(number))
    write(target, b"one\ntwo\n")
    assert target.read_bytes() == b"one\ntwo\n"
    # The same file, as whoever mounted it sees it.
    assert (target.stat().st_ino, target.stat().st_mode & 0o777) == (node, 0o640)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_file_in_a_folder_that_takes_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As a file that is mounted into a container whose own file system is read-only."""
    folder, temporary = tmp_path / "read-only", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()
    target = folder / "out"
    target.write_bytes(b"precious")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    real = Path.open

    def open_(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if path.parent == folder and "x" in mode:
            fail(number)()
        return real(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(Path, "replace", fail(errno.EXDEV))
    with pytest.raises(TypeError), open_output(str(target)) as file:
        file.writelines([b"unfinished", None])  # type: ignore[list-item]
    assert target.read_bytes() == b"precious"
    write(target, b"done\n")
    assert target.read_bytes() == b"done\n"
    assert list(temporary.iterdir()) == []
    # A new file cannot be made there; that is said before the work.
    with (
        pytest.raises(InvalidInputError, match=r"cannot write .*new"),
        open_output(str(folder / "new")),
    ):
        pytest.fail("it was opened")


def test_a_file_that_cannot_be_written_either_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.touch()
    monkeypatch.setattr(Path, "open", fail(errno.EROFS))
    with pytest.raises(InvalidInputError, match="Read-only"), open_output(str(target)):
        pytest.fail("it was opened")


def test_lines_that_cannot_be_copied_are_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_bundle: Path, shell: Shell
) -> None:
    target = tmp_path / "out"
    target.touch()
    monkeypatch.setattr(Path, "replace", fail(errno.EBUSY))
    monkeypatch.setattr(shutil, "copyfileobj", fail(errno.ENOSPC))
    status, output, errors = shell(*arguments(demo_bundle, "--output", str(target), "Delete"))
    assert (status, output) == (1, b"")
    (kept,) = set(tmp_path.iterdir()) - {target}
    assert errors == (
        f"m2m100: error: cannot write {target}: No space left on device; all lines are in {kept}\n"
    )
    assert kept.read_text().count("\n") == 1
    # The next run removes what dead processes left, and not this.
    monkeypatch.undo()
    os.utime(kept, (1e9, 1e9))
    write(target, b"done\n")
    assert kept.exists()


def test_other_failures_are_not_covered_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"precious")
    monkeypatch.setattr(Path, "replace", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write(target, b"done\n")
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


MOUNTED = """
set -e
mount --bind out.txt mounted/out.txt
"$@"
cat mounted/out.txt
"""


def test_a_file_that_is_really_mounted(
    command: list[str], environment: dict[str, str], answer: str, tmp_path: Path
) -> None:
    """In a mount namespace of its own, where the system lets us make one."""
    (tmp_path / "mounted").mkdir()
    for path in (tmp_path / "out.txt", tmp_path / "mounted" / "out.txt"):
        path.touch()
    script = MOUNTED
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        script = MOUNTED.replace("mount --bind out.txt mounted/out.txt", "")
    argv = [*command, "--output", "mounted/out.txt", "Open the file."]
    start = ["unshare", "-rm"] if script == MOUNTED else []
    done = subprocess.run(
        [*start, "sh", "-c", script, "sh", *argv],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == f"{answer}\n"
    if script == MOUNTED:
        assert (tmp_path / "out.txt").read_text() == f"{answer}\n"
    assert [path.name for path in (tmp_path / "mounted").iterdir()] == ["out.txt"]


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On file systems and systems that have none, nobody knows whose a hidden file is."""
    left = tmp_path / ".m2m100-output.5"
    left.touch()
    os.utime(left, (1e9, 1e9))
    monkeypatch.setattr(files.fcntl, "flock", fail(errno.ENOLCK))
    write(tmp_path / "out", b"")
    assert left.exists()
    monkeypatch.setattr(files, "fcntl", None)
    write(tmp_path / "out", b"")
    assert left.exists()
    monkeypatch.undo()
    write(tmp_path / "out", b"")
    assert not left.exists()
