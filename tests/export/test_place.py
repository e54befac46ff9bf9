"""How a bundle gets to its place: by a rename, or file by file, whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints import copied, tree
from interrupting import raise_in_handler
from m2m100_onnx import Bundle, ExportError
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx_export import export, place

# --- Folders that no rename replaces -------------------------------------------------------------


def empty(folder: Path, bundle: Path) -> None:
    folder.mkdir()
    assert bundle.is_dir()


def new_file_system(folder: Path, bundle: Path) -> None:
    (folder / "lost+found").mkdir(parents=True)
    assert bundle.is_dir()


def older_bundle(folder: Path, bundle: Path) -> None:
    copied(bundle, folder)
    (folder / "leftover.onnx").write_text("of an older version")
    os.truncate(folder / WEIGHTS_FILE, 10)


FILLS = (empty, new_file_system, older_bundle)
Fill = Callable[[Path, Path], None]


def without_renames(monkeypatch: pytest.MonkeyPatch, folder: Path, code: int) -> None:
    """Makes the system refuse to rename a folder, as it does a mount point."""
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if folder in (self, Path(target)):
            raise OSError(code, os.strerror(code))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)


def check(folder: Path, tiny_bundle: Path) -> None:
    """The bundle is there, and nothing else but what the file system has."""
    found = tree(folder)
    found.pop("lost+found", None)
    assert found == tree(tiny_bundle)
    Bundle.open(folder).verify()


@pytest.mark.parametrize("fill", FILLS)
def test_into_the_current_folder(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fill: Fill,
) -> None:
    folder = tmp_path / "here"
    fill(folder, tiny_bundle)
    monkeypatch.chdir(folder)
    inode = folder.stat().st_ino
    export(tiny_checkpoint, ".", overwrite=True, verify_outputs=False)
    check(folder, tiny_bundle)
    assert folder.stat().st_ino == inode
    assert [*tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("parent", ["writable", "read-only"])
def test_onto_a_mount_point(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fill: Fill,
    parent: str,
) -> None:
    """A mount point says EBUSY; a read-only parent has no room for a folder beside it."""
    folder = tmp_path / "volume"
    fill(folder, tiny_bundle)
    without_renames(monkeypatch, folder, errno.EBUSY)
    if parent == "writable":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    else:
        access = os.access
        monkeypatch.setattr(os, "access", lambda p, m: Path(p) != tmp_path and access(p, m))
    made: list[Path] = []
    export(
        tiny_checkpoint,
        folder,
        overwrite=True,
        verify_outputs=False,
        progress=lambda _: made.extend(tmp_path.iterdir()),
    )
    check(folder, tiny_bundle)
    assert set(made) == {folder}


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EXDEV])
def test_a_folder_that_turns_out_to_be_fixed(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
) -> None:
    """A folder of a container's image cannot be renamed, and nothing says so before."""
    folder = tmp_path / "image"
    older_bundle(folder, tiny_bundle)
    without_renames(monkeypatch, folder, code)
    export(tiny_checkpoint, folder, overwrite=True, verify_outputs=False)
    check(folder, tiny_bundle)
    assert [*tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 5, 17, 30])
def test_files_go_back_if_one_cannot_be_moved(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    after: int,
) -> None:
    """17 files leave, then 16 come."""
    folder = tmp_path / "here"
    older_bundle(folder, tiny_bundle)
    monkeypatch.chdir(folder)
    before = tree(folder)
    rename, move, count = Path.rename, place.shutil.move, 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def moved(source: Path, target: Path) -> Any:
            nonlocal count
            count += 1
            if count == after + 1:
                raise error
            return real(source, target)

        return moved

    monkeypatch.setattr(Path, "rename", counted(rename))
    monkeypatch.setattr(place.shutil, "move", counted(move))
    with pytest.raises((ExportError, KeyboardInterrupt)) as caught:
        export(tiny_checkpoint, ".", overwrite=True, verify_outputs=False)
    assert count > after
    left = {name: digest for name, digest in tree(folder).items() if name in before}
    assert left == before
    kept = [path for path in folder.iterdir() if path.is_dir()]
    if isinstance(error, KeyboardInterrupt):
        assert not kept
    else:
        assert f"it is complete in {kept[0]}" in str(caught.value)
        check(kept[0], tiny_bundle)


@pytest.mark.parametrize(
    "error", [OSError("device gone"), KeyboardInterrupt(), TimeoutError("of a signal handler")]
)
def test_old_bundle_comes_back_if_the_new_one_cannot_be_placed(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    copied(tiny_bundle, tmp_path / "bundle")
    before = tree(tmp_path / "bundle")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        # The old bundle is already out of the way.
        if Path(target) == tmp_path / "bundle" and self.parent == tmp_path:
            if isinstance(error, TimeoutError):
                raise_in_handler(error)
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    expected = ExportError if type(error) is OSError else type(error)
    with pytest.raises(expected) as caught:
        export(tiny_checkpoint, tmp_path / "bundle", overwrite=True, verify_outputs=False)
    assert tree(tmp_path / "bundle") == before
    others = [path for path in tmp_path.iterdir() if path.name != "bundle"]
    # The work of an hour is not thrown away because of its place.
    if expected is ExportError:
        assert f"it is complete in {others[0]}" in str(caught.value)
        check(others.pop(), tiny_bundle)
    assert not others


def test_mount_points_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder that is mounted elsewhere in its own file system looks like any other."""
    monkeypatch.setattr(os.path, "ismount", lambda _: False)
    monkeypatch.setattr(os, "access", lambda *_: True)
    assert place._is_fixed(Path("/proc"))
    assert not place._is_fixed(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"1 0 8:1 / /mnt/two\\040words rw - ext4 x\n")
    assert place._is_fixed(Path("/mnt/two words"))


@pytest.mark.parametrize("name", ["link", "no/permission"])
def test_what_cannot_be_written_is_refused_before_the_work(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    if name != "link":
        monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    before = tree(tmp_path)
    with pytest.raises(ExportError, match=f"{tmp_path / name}.*(no bundle|no permission)"):
        export(tiny_checkpoint, tmp_path / name, overwrite=True, progress=lambda s: pytest.fail(s))
    assert tree(tmp_path) == before


# --- Exports that were killed --------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from m2m100_onnx_export import export, place

checkpoint, target, moment = sys.argv[1:]

def kill(*_):
    print("now", flush=True)
    if moment == "wait":
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)

if moment in ("work", "wait"):
    export(checkpoint, target, overwrite=True, verify_outputs=False, progress=kill)
rename = Path.rename
count = 0

def renamed(self, other):
    global count
    count += 1
    if count == int(moment):
        kill()
    return rename(self, other)

Path.rename = renamed
place.shutil.move = renamed
export(checkpoint, target, overwrite=True, verify_outputs=False)
"""


def start(
    repository: Path, checkpoint: Path, target: Path, moment: str, cwd: Path | None = None
) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(repository / "runtime"), str(repository / "export")])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(checkpoint), str(target), moment],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )
    assert process.stdout
    assert process.stdout.readline() == "now\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_the_next_export_removes_what_a_killed_one_left(
    repository: Path, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    end(start(repository, tiny_checkpoint, target, "work"))
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".bundle.")
    assert (left / "vocab.json").is_file()
    export(tiny_checkpoint, target, verify_outputs=False)
    assert [*tmp_path.iterdir()] == [target]
    check(target, tiny_bundle)


def test_an_export_at_work_is_left_alone(
    repository: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    process = start(repository, tiny_checkpoint, tmp_path / "bundle", "wait")
    working = tree(tmp_path)
    export(tiny_checkpoint, tmp_path / "bundle", verify_outputs=False)
    left = {name: digest for name, digest in tree(tmp_path).items() if name in working}
    assert left == working
    end(process)


def test_what_may_be_of_another_machine_is_left_alone(
    repository: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    end(start(repository, tiny_checkpoint, tmp_path / "bundle", "work"))
    (left,) = tmp_path.iterdir()
    elsewhere = left.rename(tmp_path / left.name.replace(place._system(), "0123456789ab"))
    others = [tmp_path / ".bundle.12345678", tmp_path / left.name.replace(".bundle", ".bundle.2")]
    for other in others:
        other.mkdir()
    export(tiny_checkpoint, tmp_path / "bundle", verify_outputs=False)
    assert {*tmp_path.iterdir()} == {tmp_path / "bundle", elsewhere, *others}


@pytest.mark.parametrize("moment", ["1", "2"])
def test_an_old_bundle_comes_back_after_a_kill(
    repository: Path, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, moment: str
) -> None:
    """Between the two renames the old bundle lies in a hidden folder, and no other place."""
    target = copied(tiny_bundle, tmp_path / "bundle")
    end(start(repository, tiny_checkpoint, target, moment))
    assert target.exists() == (moment == "1")
    # Even an export that is refused brings it back.
    with pytest.raises(ExportError, match="exists"):
        export(tiny_checkpoint, target)
    assert [*tmp_path.iterdir()] == [target]
    check(target, tiny_bundle)


@pytest.mark.parametrize("moment", ["1", "10", "17", "25"])
def test_files_come_back_after_a_kill(
    repository: Path, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, moment: str
) -> None:
    """16 files leave, then 16 come; the last of them completes the bundle."""
    target = copied(tiny_bundle, tmp_path / "bundle")
    end(start(repository, tiny_checkpoint, Path(), moment, cwd=target))
    assert any(path.name.startswith(".") for path in target.iterdir())
    export(tiny_checkpoint, target, overwrite=True, verify_outputs=False)
    assert [*tmp_path.iterdir()] == [target]
    check(target, tiny_bundle)
