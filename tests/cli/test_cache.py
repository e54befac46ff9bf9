"""`m2m100 cache`, and the options of `m2m100 translate` that are about the weights cache."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx.bundle.graphs import FUSED_SOURCE_FILE
from m2m100_onnx.bundle.manifest import MANIFEST_FILE
from m2m100_onnx.cli.main import main
from m2m100_onnx.model.support import onnxruntime_version
from m2m100_onnx.model.weights_cache import CACHE_VARIABLE, WEIGHTS, WeightsCache
from manifests import edit
from packing import entries, overwrite, tokens


def forget_hashes(manifest: dict[str, Any]) -> None:
    """As another export would have it."""
    for record in manifest["files"].values():
        record["sha256"] = "0" * 64


def test_translate_flags(
    packed_bundle: Path,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "cache"
    command = [
        "translate",
        "--model",
        str(packed_bundle),
        "--source-lang",
        "en",
        "--target-lang",
        "de",
    ]
    command.append("--no-kernels")  # Native graphs need no cache.
    assert main([*command, "--no-cache", "Delete"]) == 0
    plain = capfdbinary.readouterr().out
    assert main([*command, "--cache-dir", str(cache), "Delete"]) == 0
    assert capfdbinary.readouterr().out == plain
    assert set(entries(cache)) >= {FUSED_SOURCE_FILE}
    monkeypatch.setenv("M2M100_ONNX_CACHE", str(tmp_path / "variable"))
    assert main([*command, "--no-cache", "Delete"]) == 0
    assert not (tmp_path / "variable").exists()


def test_help_names_the_variable_of_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cache", "--help"])
    assert CACHE_VARIABLE in capsys.readouterr().out


def cli(capfdbinary: pytest.CaptureFixture[bytes], *arguments: object) -> tuple[int, str]:
    status = main(["cache", *map(str, arguments)])
    return status, capfdbinary.readouterr().out.decode()


def test_cache_list_and_clear(
    packed_bundle: Path, packed_cache: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    where = ("--cache-dir", packed_cache)
    found = entries(packed_cache)
    status, out = cli(capfdbinary, "list", *where)
    assert status == 0
    for graph, entry in found.items():
        assert f"{packed_bundle}/{graph}" in out
        assert f"{entry.size:,}" in out
    assert f"onnxruntime {onnxruntime_version()}" in out
    assert f"{len(found)} entries" in out

    facts = json.loads(cli(capfdbinary, "list", "--json", *where)[1])
    assert {fact["graph"] for fact in facts} == set(found)
    size = sum(path.stat().st_size for path in Path(facts[0]["directory"]).iterdir())
    assert facts[0]["size"] == size
    assert facts[0]["stale"] is facts[0]["damaged"] is False

    keep = packed_cache / "somebody's folder"
    keep.mkdir()
    old = found[FUSED_SOURCE_FILE]
    os.utime(old.directory / "entry.json", (old.used - 10 * 86400,) * 2)
    assert "0 entries" in cli(capfdbinary, "clear", "--stale", *where)[1]
    assert "1 entry cleared" in cli(capfdbinary, "clear", "--older-than", 9, *where)[1]
    assert not old.directory.exists()
    assert len(entries(packed_cache)) == len(found) - 1
    assert cli(capfdbinary, "clear", *where)[0] == 0
    assert list(packed_cache.iterdir()) == [keep]


def test_cache_clear_stale_and_damaged(
    packed_bundle: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    filled_cache: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    mine, cache = Path(shutil.copytree(tiny_bundle, tmp_path / "mine")), tmp_path / "cache"
    tokens(mine, cache)
    tokens(packed_bundle, cache)
    assert "  stale" not in cli(capfdbinary, "list", "--cache-dir", cache)[1]
    edit(mine / MANIFEST_FILE, forget_hashes)
    out = cli(capfdbinary, "list", "--cache-dir", cache)[1]
    assert out.count("  stale") == len(entries(filled_cache))
    damaged = next(e for e in WeightsCache(cache).entries() if e.bundle == str(packed_bundle))
    (damaged.directory / "entry.json").write_text("{}")
    assert "no readable record" in cli(capfdbinary, "list", "--cache-dir", cache)[1]
    cli(capfdbinary, "clear", "--stale", "--cache-dir", cache)
    left = list(WeightsCache(cache).entries())
    assert len(left) == len(entries(filled_cache)) - 1
    assert {entry.bundle for entry in left} == {str(packed_bundle)}


def test_a_bundle_out_of_sight_is_not_stale(
    packed_bundle: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """It may be another container's, or lie on a disk that is not mounted now."""
    mine, cache = Path(shutil.copytree(packed_bundle, tmp_path / "mine")), tmp_path / "cache"
    tokens(mine, cache)
    before = entries(cache)
    shutil.rmtree(mine)
    assert "  stale" not in cli(capfdbinary, "list", "--cache-dir", cache)[1]
    assert "0 entries cleared" in cli(capfdbinary, "clear", "--stale", "--cache-dir", cache)[1]
    assert entries(cache) == before


def test_cache_verify(packed_cache: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    where = ("--cache-dir", packed_cache)
    assert cli(capfdbinary, "verify", *where)[0] == 0
    weights = entries(packed_cache)[FUSED_SOURCE_FILE].directory / WEIGHTS
    overwrite(weights, b"\x5a", weights.stat().st_size // 2, stealthy=True)
    status, out = cli(capfdbinary, "verify", *where)
    assert status == 1
    assert [FUSED_SOURCE_FILE in line for line in out.splitlines() if "damaged" in line] == [True]


def test_cache_needs_a_folder(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "0 entries" in cli(capfdbinary, "list", "--cache-dir", tmp_path / "none")[1]
    (tmp_path / "file").touch()
    assert main(["cache", "clear", "--cache-dir", str(tmp_path / "file")]) == 2
    assert b"file: expected the folder of a cache" in capfdbinary.readouterr().err
    assert main(["cache", "list", "--older-than", "-1", "--cache-dir", str(tmp_path)]) == 2
    for word in ("off", "False"):
        monkeypatch.setenv("M2M100_ONNX_CACHE", word)
        assert main(["cache", "list"]) == 2
        assert f"switched off (M2M100_ONNX_CACHE={word})" in capfdbinary.readouterr().err.decode()
