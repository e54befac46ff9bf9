"""Vocabularies of the published size and of another order, against transformers' tokenizer."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from benchmarks.make_checkpoint import write_tokenizer
from sentencepiece import sentencepiece_model_pb2
from transformers import M2M100Tokenizer

from m2m100_onnx.bundle.manifest import Manifest
from m2m100_onnx.errors import BundleError
from m2m100_onnx.text import files
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx.text.vocabulary import Vocabulary
from tokenization import DEMO

VOCAB = "vocab.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many pieces as the published vocabulary, merged by pairs; ids in another order."""
    folder = tmp_path_factory.mktemp("full")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> M2M100Tokenizer:
    return M2M100Tokenizer.from_pretrained(folder, src_lang="fr")


def test_texts(tokenizer: Tokenizer, reference: M2M100Tokenizer) -> None:
    for language in ("de", "en", "es", "fr", "ru", "zh"):
        for text in (DEMO / "heldout" / f"dev.{language}").read_text(encoding="utf-8").splitlines():
            ids = tokenizer.encode(text, "fr")
            assert ids == reference(text).input_ids, ascii(text)
            assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_every_id(tokenizer: Tokenizer, reference: M2M100Tokenizer) -> None:
    everything = list(range(len(tokenizer)))
    assert (len(tokenizer), tokenizer.vocab_size) == (128_104, 128_112)
    pieces = tokenizer.ids_to_pieces(everything)
    assert pieces == reference.convert_ids_to_tokens(everything)
    assert tokenizer.pieces_to_ids(pieces) == everything
    # Made-up words, which transformers 5 does not know.
    assert tokenizer.ids_to_pieces([128_104, 128_111]) == ["<unk>"] * 2


def test_a_pickled_copy(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    everything = range(tokenizer.vocab_size)
    assert copy.ids_to_pieces(everything) == tokenizer.ids_to_pieces(everything)
    text = "Wie wird das Wetter morgen?"
    assert copy.encode(text, "de") == tokenizer.encode(text, "de")


def test_what_is_no_piece(tokenizer: Tokenizer, reference: M2M100Tokenizer) -> None:
    pieces = ["", "\ud800", "no such piece", "a\0b", "<unk>"]
    assert tokenizer.pieces_to_ids(pieces) == [tokenizer.unk_id] * len(pieces)
    assert reference.convert_tokens_to_ids(pieces) == [tokenizer.unk_id] * len(pieces)


def test_entries_in_another_order_than_ids(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    entries = json.loads((folder / VOCAB).read_text(encoding="utf-8"))
    backwards = dict(reversed(entries.items()))
    (other / VOCAB).write_text(json.dumps(backwards), encoding="utf-8")
    tokenizer = Tokenizer(other)
    assert tokenizer.pieces_to_ids(entries) == [*entries.values()]
    tokenizer.write_table()
    assert Tokenizer(other).pieces_to_ids(entries) == [*entries.values()]


@pytest.mark.parametrize("share", [0.04, 0.06])
def test_entries_that_are_no_pieces(folder: Path, tmp_path: Path, share: float) -> None:
    """Up to one in twenty is as in published checkpoints; both sides then have strays."""
    other = shutil.copytree(folder, tmp_path / "other")
    entries = json.loads((folder / VOCAB).read_text(encoding="utf-8"))
    names = [*entries]
    count = int(share / 2 * len(names))
    for index in range(4, 4 + count):
        names[index] = f"stray {index}"
    (other / VOCAB).write_text(json.dumps({name: n for n, name in enumerate(names)}))
    if share > 0.05:
        found = rf"{count} pieces have no entry.*{count} entries have no piece, such as \['stray 10"
        with pytest.raises(BundleError, match=found):
            Tokenizer(other)
        return
    tokenizer = Tokenizer(other)
    reference = M2M100Tokenizer.from_pretrained(other, src_lang="en")
    assert tokenizer.ids_to_pieces([3, 4, 5]) == ["<unk>", "stray 4", "stray 5"]
    assert tokenizer.pieces_to_ids(names[:200]) == reference.convert_tokens_to_ids(names[:200])
    lost = [*entries][4]
    assert tokenizer.pieces_to_ids([lost]) == [tokenizer.unk_id]


@pytest.fixture
def with_table(folder: Path, tmp_path: Path) -> Path:
    other = shutil.copytree(folder, tmp_path / "with-table")
    Tokenizer(other).write_table()
    return other


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose entries were read one by one."""
    read, paths = files._read_entries, []

    def note(path: Path) -> dict[str, int]:
        paths.append(path)
        return read(path)

    monkeypatch.setattr(files, "_read_entries", note)
    return paths


def test_a_table_says_the_same(with_table: Path, tokenizer: Tokenizer, parsed: list[Path]) -> None:
    other = Tokenizer(with_table)
    assert not parsed
    everything = range(tokenizer.vocab_size)
    pieces = tokenizer.ids_to_pieces(everything)
    assert other.ids_to_pieces(everything) == pieces
    assert other.pieces_to_ids(pieces) == tokenizer.pieces_to_ids(pieces)
    assert (other.bos_id, other.pad_id, other.eos_id, other.unk_id) == (0, 1, 2, 3)
    assert pickle.loads(pickle.dumps(other)).ids_to_pieces(everything) == pieces


def cut(table: Path) -> None:
    table.write_bytes(table.read_bytes()[:-1000])


def bent(table: Path) -> None:
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)


def without_sizes(table: Path) -> None:
    np.savez(table, ids=np.arange(3))


def of_another_vocabulary(table: Path) -> None:
    path = table.parent / VOCAB
    entries = json.loads(path.read_text(encoding="utf-8"))
    names = [*entries]
    names[10], names[11] = names[11], names[10]
    path.write_text(json.dumps({name: n for n, name in enumerate(names)}))


def of_another_model(table: Path) -> None:
    path = table.parent / "sentencepiece.bpe.model"
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    first, second = model.pieces[500], model.pieces[501]
    first.piece, second.piece = second.piece, first.piece
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "harm", [Path.unlink, cut, bent, without_sizes, of_another_vocabulary, of_another_model]
)
def test_a_table_that_does_not_fit(
    with_table: Path, parsed: list[Path], harm: Callable[[Path], None]
) -> None:
    harm(with_table / "vocabulary.npz")
    tokenizer = Tokenizer(with_table)
    assert parsed == [with_table / VOCAB]
    reference = M2M100Tokenizer.from_pretrained(with_table)
    everything = list(range(len(tokenizer)))
    assert tokenizer.ids_to_pieces(everything) == reference.convert_ids_to_tokens(everything)


def test_no_bit_of_a_table_changes_an_id_unnoticed() -> None:
    model = (DEMO / "model" / "sentencepiece.bpe.model").read_bytes()
    entries = json.loads((DEMO / "model" / VOCAB).read_text(encoding="utf-8"))
    table = Vocabulary(model, entries, {}).table("these")
    # Names, types, lengths and the archive's directory lie at both ends; all between is numbers.
    places = [*range(300), *range(1000, len(table), 997), *range(len(table) - 1200, len(table))]
    told = 0
    for place in places:
        bent = bytearray(table)
        bent[place] ^= 1 << place % 8
        try:
            vocabulary = Vocabulary.from_table(model, bytes(bent), "these", {})
        except ValueError:
            told += 1
        else:
            assert vocabulary.pieces(range(len(vocabulary)), "") == [*entries]
            assert vocabulary.ids(entries, -1) == [*entries.values()]
    assert told > len(places) / 2


def test_a_bundle_has_a_table(demo_bundle: Path, parsed: list[Path]) -> None:
    Tokenizer(demo_bundle)
    assert not parsed
    assert "vocabulary.npz" in Manifest.read(demo_bundle).files
