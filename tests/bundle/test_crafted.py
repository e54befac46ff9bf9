"""Bundles made to do harm: each is a `BundleError`, and nothing outside the folder is read."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interrupting import raise_in_handler
from m2m100_onnx import Bundle, BundleError, Translator
from m2m100_onnx.bundle.bundle import TABLE_FILE, WEIGHTS_FILE
from m2m100_onnx.bundle.config import is_inside, read_json
from m2m100_onnx.bundle.graphs import ENCODER_FILE
from m2m100_onnx.bundle.manifest import MANIFEST_FILE, sha256_of
from m2m100_onnx.text import files
from m2m100_onnx.text.tokenizer import Tokenizer
from manifests import accept, edit
from translations import EN_DE

# --- JSON ----------------------------------------------------------------------------------------

NUMBERS = "9" * 5000


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": ' * 100_000 + "1" + "}" * 100_000, "recursion"),
        ("[" * 100_000, "recursion"),
        (f'{{"opset": {NUMBERS}}}', "limit"),
    ],
    ids=["deep object", "deep list", "long number"],
)
@pytest.mark.parametrize("name", [MANIFEST_FILE, "config.json", "generation_config.json"])
def test_deep_json(bundle: Path, name: str, text: str, found: str) -> None:
    (bundle / name).write_text(text)
    if name != MANIFEST_FILE:
        accept(bundle)
    with pytest.raises(BundleError, match=rf"^{bundle / name}: expected a JSON object, .*{found}"):
        Bundle.open(bundle)


def test_huge_json(bundle: Path) -> None:
    """The size is looked at before the file is read: this one would be 1 TB of memory."""
    (bundle / MANIFEST_FILE).unlink()
    os.truncate(bundle / "config.json", 1 << 40)
    with pytest.raises(BundleError, match=r"config\.json: .*at most 67,108,864 bytes, found 1,099"):
        Bundle.open(bundle)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Reading a pipe would wait for ever."""
    make(tmp_path / "config.json")
    with pytest.raises(BundleError, match=r"config\.json: expected a file, found something else"):
        read_json(tmp_path / "config.json")


# --- The manifest --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Infinity", "-Infinity", "NaN", "1e999", "18.0", '"18"', "true"])
@pytest.mark.parametrize("key", ["opset", "format_version", "size"])
def test_numbers_that_are_no_counts(bundle: Path, key: str, name: str) -> None:
    text = (bundle / MANIFEST_FILE).read_text()
    text = re.sub(rf'"{key}": \d+', f'"{key}": {name}', text, count=1)
    assert name in text
    (bundle / MANIFEST_FILE).write_text(text)
    with pytest.raises(BundleError, match=MANIFEST_FILE):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"opset": None},
        {"source": 5},
        {"revision": ["main"]},
        {"exporter_version": None},
        {"files": {"config.json": {"size": -1, "sha256": "0" * 64}}},
        {"files": {"config.json": {"size": 5, "sha256": ""}}},
        {"files": {"config.json": {"size": 5, "sha256": 5}}},
        {"files": {"config.json": {"size": 5, "sha256": "Z" * 64}}},
        {"graphs": {ENCODER_FILE: {"inputs": [{"name": 5, "dtype": "x", "shape": []}]}}},
        {"graphs": {ENCODER_FILE: {"inputs": 5, "outputs": []}}},
    ],
    ids=repr,
)
def test_entries_of_another_kind(bundle: Path, change: dict[str, Any]) -> None:
    edit(bundle / MANIFEST_FILE, lambda m: m.update(change))
    with pytest.raises(BundleError, match=rf"{MANIFEST_FILE}: an entry is missing or of the wrong"):
        Bundle.open(bundle)


OUTSIDE = ("../secret", "/etc/hostname", "a/../../secret", "..", ".", "", "a\0b", "\ud800", "//x")


@pytest.mark.parametrize("section", ["files", "graphs"])
@pytest.mark.parametrize("name", OUTSIDE, ids=ascii)
def test_names_that_lead_out_of_the_folder(bundle: Path, section: str, name: str) -> None:
    secret = bundle.parent / "secret"
    secret.write_text("mine")
    record = {"size": 4, "sha256": sha256_of(secret)}
    value = record if section == "files" else {"inputs": [], "outputs": []}
    edit(bundle / MANIFEST_FILE, lambda m: m[section].update({name: value}))
    with pytest.raises(BundleError, match=rf"{MANIFEST_FILE}: .*file of the bundle"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["a", "a/b", "x..y", ".hidden", "ü.json"])
def test_names_of_the_folder(name: str) -> None:
    assert is_inside(name)


@pytest.mark.parametrize("name", [*OUTSIDE, None, 5, ["a"]], ids=ascii)
def test_other_names(name: object) -> None:
    assert not is_inside(name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, 10**9) for key in ("encoder_layers", "decoder_layers")],
        *[(key, 10**30) for key in ("vocab_size", "d_model", "max_position_embeddings")],
        ("eos_token_id", -1),
    ],
)
def test_sizes_beyond_any_model(bundle: Path, key: str, value: int) -> None:
    """A signature of a billion layers would claim all memory."""
    edit(bundle / "config.json", lambda c: c.update({key: value}))
    accept(bundle)
    with pytest.raises(BundleError, match=rf"config\.json: expected {key} as int, found {value}"):
        Bundle.open(bundle)


# --- The table of the vocabulary -----------------------------------------------------------------


def arrays_of(folder: Path) -> dict[str, Any]:
    with np.load(folder / TABLE_FILE) as found:
        return dict(found)


def rewritten(**changes: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        arrays = arrays_of(folder)
        for name, change in changes.items():
            arrays[name] = change(arrays[name])
        np.savez(folder / TABLE_FILE, **arrays)

    return write


def bytes_of(value: Any) -> Any:
    text = value if isinstance(value, str) else json.dumps(value)
    return np.frombuffer(text.encode(), np.uint8)


def with_value(index: int, value: int) -> Callable[[Any], Any]:
    def change(ids: Any) -> Any:
        ids[index] = value
        return ids

    return change


def compressed(folder: Path) -> None:
    np.savez_compressed(folder / TABLE_FILE, **arrays_of(folder))


def of_objects(folder: Path) -> None:
    """Needs pickle, which would run code."""
    arrays = {**arrays_of(folder), "size": np.array([{}], dtype=object)}
    np.savez(folder / TABLE_FILE, **arrays)


def claims_terabytes(folder: Path) -> None:
    """Has a header that asks for more memory than there is."""
    header = "{'descr': '<i4', 'fortran_order': False, 'shape': (999999999999,), }"
    padded = header.ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()
    arrays = arrays_of(folder)
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in arrays.items() if name != "ids"})
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("ids.npy", content + bytes(100))
    (folder / TABLE_FILE).write_bytes(buffer.getvalue())


TABLES: dict[str, Callable[[Path], None]] = {
    "too large": rewritten(ids=with_value(9, 1 << 30)),
    "negative": rewritten(ids=with_value(9, -5)),
    "twice": rewritten(ids=with_value(9, 100)),
    "short": rewritten(ids=lambda ids: ids[:-5]),
    "long": rewritten(ids=lambda ids: np.append(ids, np.int32(5))),
    "square": rewritten(ids=lambda ids: ids[:, None]),
    "floats": rewritten(ids=lambda ids: ids.astype(np.float32)),
    "texts": rewritten(ids=lambda ids: ids.astype(str)),
    "no size": rewritten(size=lambda _: np.array("x")),
    "sizes": rewritten(size=lambda _: np.arange(4)),
    "huge size": rewritten(size=lambda _: np.array(1 << 60)),
    "negative size": rewritten(size=lambda _: np.array(-1)),
    "list": rewritten(others=lambda _: bytes_of([1])),
    "texts for ids": rewritten(others=lambda _: bytes_of({"<s>": "0"})),
    "huge id": rewritten(others=lambda _: bytes_of({"<s>": 1 << 80})),
    "deep": rewritten(others=lambda _: bytes_of("[" * 100_000)),
    "no json": rewritten(others=lambda _: bytes_of("\ud800".encode("utf-8", "replace").decode())),
    "compressed": compressed,
    "objects": of_objects,
    "claims": claims_terabytes,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_crafted_table_is_not_used(
    bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The ids come from `vocab.json` then, which is what the table only repeats."""
    TABLES[name](bundle)
    accept(bundle)
    read, entries = files._read_entries, []
    monkeypatch.setattr(files, "_read_entries", lambda path: entries.append(path) or read(path))
    ours, plain = Tokenizer(bundle), Tokenizer(tiny_checkpoint)
    assert entries[0] == bundle / "vocab.json"
    everything = range(ours.vocab_size)
    assert ours.ids_to_pieces(everything) == plain.ids_to_pieces(everything)


def test_a_signal_handlers_exception_is_no_damage(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise_in_handler(TimeoutError("of a signal handler"))

    for owner, name in ((np, "load"), (Path, "read_bytes")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            with pytest.raises(TimeoutError, match="of a signal handler"):
                Tokenizer(bundle)


# --- Files without a hash ------------------------------------------------------------------------

READ = (
    *(WEIGHTS_FILE, ENCODER_FILE, "fused_step.onnx", "config.json", "generation_config.json"),
    *("vocab.json", "sentencepiece.bpe.model", "tokenizer_config.json", TABLE_FILE),
    *("added_tokens.json", "special_tokens_map.json"),
)


@pytest.mark.parametrize("name", READ)
def test_verify_wants_a_hash_of_every_file_that_is_read(bundle: Path, name: str) -> None:
    if not (bundle / name).exists():
        (bundle / name).write_text("{}")
    edit(bundle / MANIFEST_FILE, lambda m: m["files"].pop(name, None))
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match=rf"{MANIFEST_FILE}: expected a SHA-256 .*none of {name}"):
        opened.verify()


def test_verify_finds_weights_that_were_added(bundle: Path) -> None:
    (bundle / "other.onnx_data").write_bytes(b"for a graph that names it")
    with pytest.raises(BundleError, match=r"none of other\.onnx_data"):
        Bundle.open(bundle).verify()


def test_verify_lets_notes_be(bundle: Path) -> None:
    (bundle / "README.md").write_text("mine")
    Bundle.open(bundle).verify()
    assert Translator(bundle).translate("Quit", **EN_DE)
