"""Disks and folders that a weights cache cannot use: full, read-only, or open to others."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from m2m100_onnx.bundle.graphs import FUSED_FILES, FUSED_SOURCE_FILE
from m2m100_onnx.model import weights_cache
from m2m100_onnx.model.weights_cache import WEIGHTS
from packing import entries, opened, overwrite, start, tokens, written


def test_full_disk(
    packed_bundle: Path, tmp_path: Path, unpacked_tokens: list[tuple[int, ...]], repository: Path
) -> None:
    """Files may grow to 100 kB in that process, which fails as a full disk does: in the middle."""
    cache = tmp_path / "cache"
    process = start(packed_bundle, cache, repository, limit=100_000)
    output, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert [tuple(row) for row in json.loads(output)] == unpacked_tokens
    assert errors.count(b"weights cache") == 1, errors.decode()
    assert list(cache.iterdir()) == []


def test_disk_nearly_full(
    packed_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    unpacked_tokens: list[tuple[int, ...]],
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert tokens(packed_bundle, tmp_path / "cache") == unpacked_tokens
    assert "found 1,000" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_entry_that_cannot_be_read_is_no_others_concern(
    packed_bundle: Path,
    tmp_path: Path,
    unpacked_tokens: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such as one that root has left behind; a file that is a link to itself refuses root too."""
    cache = tmp_path / "cache"
    alien = cache / f"packed-{'0' * 32}"
    alien.mkdir(parents=True)
    cache.chmod(0o700)
    (alien / WEIGHTS).symlink_to(WEIGHTS)
    with pytest.raises(OSError, match="symbolic links"):
        (alien / WEIGHTS).stat()
    assert tokens(packed_bundle, cache) == unpacked_tokens
    assert len(entries(cache)) == len(FUSED_FILES)
    assert not caplog.records
    used = opened(monkeypatch)
    assert tokens(packed_bundle, cache) == unpacked_tokens
    assert all(path.startswith(str(cache)) for path in used)


def test_folder_that_cannot_be_made(
    packed_bundle: Path,
    tmp_path: Path,
    unpacked_tokens: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    assert tokens(packed_bundle, tmp_path / "file" / "cache") == unpacked_tokens
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "weights cache" in warnings[0].message


def test_read_only_folder(
    packed_bundle: Path,
    packed_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    unpacked_tokens: list[tuple[int, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is there is used; what is missing is not written, and damage is not run."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    # Modes do not stop root, whom tests may run as.
    for module, name in (
        (weights_cache.tempfile, "mkdtemp"),
        (weights_cache.os, "utime"),
        (Path, "mkdir"),
        (Path, "rename"),
    ):
        monkeypatch.setattr(module, name, refuse)
    paths = opened(monkeypatch)
    assert tokens(packed_bundle, packed_cache) == unpacked_tokens
    assert sum(path.startswith(str(packed_cache)) for path in paths) == len(entries(packed_cache))
    assert caplog.text == ""

    damaged = entries(packed_cache)[FUSED_SOURCE_FILE].directory
    overwrite(damaged / WEIGHTS, b"damage", 0, stealthy=False)
    paths.clear()
    assert tokens(packed_bundle, packed_cache) == unpacked_tokens
    assert not any(path.startswith(str(damaged)) for path in paths)
    assert "Read-only" in caplog.text


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes are POSIX's")
@pytest.mark.parametrize("which", ["cache", "entry"])
@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_what_others_may_write_is_not_run(
    which: str,
    mode: int,
    packed_bundle: Path,
    packed_cache: Path,
    unpacked_tokens: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    entry = entries(packed_cache)[FUSED_SOURCE_FILE].directory
    before = written(entry)
    (packed_cache if which == "cache" else entry).chmod(mode)
    paths = opened(monkeypatch)
    assert tokens(packed_bundle, packed_cache) == unpacked_tokens
    assert "chmod go-w" in caplog.text
    if which == "cache":
        assert not any(path.startswith(str(packed_cache)) for path in paths)
    else:  # The entry is made anew, in a folder of our own.
        assert entry.stat().st_mode & 0o777 == 0o700
        assert not written(entry).items() & before.items()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes are POSIX's")
def test_what_belongs_to_others_is_not_run(
    packed_bundle: Path,
    packed_cache: Path,
    unpacked_tokens: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    owner = packed_cache.stat().st_uid
    # Root's folders are believed, so the folder must not look like root's either.
    if owner == 0:
        os.chown(packed_cache, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    paths = opened(monkeypatch)
    assert tokens(packed_bundle, packed_cache) == unpacked_tokens
    assert "belongs to user" in caplog.text
    assert not any(path.startswith(str(packed_cache)) for path in paths)
