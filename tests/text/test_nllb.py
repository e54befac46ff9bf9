"""The tokenizer of NLLB-200 has the ids and texts of transformers' NllbTokenizer."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers

from m2m100_onnx.bundle.families import FAMILIES
from m2m100_onnx.errors import BundleError, UnknownLanguageError
from m2m100_onnx.text.tokenizer import Tokenizer
from nllb import CODES, PIECES, write_files
from tokenization import REAL, rewrite, sentences

# The slow tokenizer of transformers 4 drops a blank at the end; the fast one is that of 5.
Reference = getattr(transformers, "NllbTokenizerFast", transformers.NllbTokenizer)
ODD = (
    *("", " ", "  ", "a", " a", "a ", "a  ", "  a  b  ", "a\tb\n", "\n", "a\u3000", "ﬁne", "½ ½"),
    *("😀x", "a\u200bb", "\u200b", "é e\u0301", "▁", "a▁b", "好好好", "x 鿿 y", "ABC" * 40),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nllb") / "files"
    write_files(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the files that a test may change."""
    return Path(shutil.copytree(folder, tmp_path / "files"))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    lines = [*sentences()]
    chance = random.Random(0)
    blanks = ["", " ", "  ", "\t"]
    spaced = [chance.choice(blanks) + line + chance.choice(blanks) for line in lines[::3]]
    return [*lines, *spaced, *REAL, *ODD]


def test_the_codes_are_transformers() -> None:
    assert FAMILIES["nllb"].languages == FAMILIES["nllb-legacy"].languages == CODES


@pytest.mark.parametrize("legacy", [False, True])
def test_ids_and_texts_equal_transformers(copy: Path, texts: list[str], legacy: bool) -> None:
    rewrite(copy / "tokenizer_config.json", legacy_behaviour=legacy)
    ours, theirs = Tokenizer(copy), Reference.from_pretrained(copy, src_lang="fra_Latn")
    assert ours.family == ("nllb-legacy" if legacy else "nllb")
    for text, ids in zip(texts, theirs(texts).input_ids, strict=True):
        assert ours.encode(text, "fra_Latn") == ids, text
        decoded = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.decode(ids) == decoded, text
    assert ours.truncate(ours.encode("a b c d", "fra_Latn"), 4)[-1] == (
        ours.language_id("fra_Latn") if legacy else ours.eos_id
    )
    assert len(ours) == len(theirs)


def test_every_language_has_the_id_of_transformers(folder: Path) -> None:
    ours, theirs = Tokenizer(folder), Reference.from_pretrained(folder)
    assert ours.languages == CODES
    for code in CODES:
        theirs.src_lang = code
        assert ours.encode("Open.", code) == theirs("Open.").input_ids
        assert ours.build_prompt(code, 2) == [2, theirs.convert_tokens_to_ids(code)]
    with pytest.raises(UnknownLanguageError):
        ours.language_id("eng_Cyrl")


def test_text_never_becomes_a_control_or_language_token(folder: Path) -> None:
    ours = Tokenizer(folder)
    control = {*range(3), *range(PIECES + 1, ours.vocab_size)}
    for text in ("eng_Latn", "a</s>b", "<mask>", "x <pad> deu_Latn"):
        assert not control & set(ours.encode(text, "eng_Latn")[1:-1]), text


def test_files_with_other_languages(tmp_path: Path) -> None:
    """Fewer, and some that the published list lacks; tokens of text beside them."""
    rows = write_files(tmp_path, ("eng_Latn", "tyv_Cyrl", "rus_Cyrl"), ("<br>", "{name}"))
    ours, theirs = Tokenizer(tmp_path, embedding_rows=rows), Reference.from_pretrained(tmp_path)
    assert ours.languages == ("eng_Latn", "tyv_Cyrl", "rus_Cyrl")
    for code in ours.languages:
        theirs.src_lang = code
        for text in ("Hello {name}<br>Open", "<br>", "a <br> b"):
            assert ours.encode(text, code) == theirs(text).input_ids
    with pytest.raises(BundleError, match="embedding row for each token"):
        Tokenizer(tmp_path, embedding_rows=rows - 1)


def test_the_ids_of_languages_may_stand_in_tokenizer_json(copy: Path, texts: list[str]) -> None:
    theirs = Reference.from_pretrained(copy, src_lang="deu_Latn")
    expected = Tokenizer(copy)
    theirs.save_pretrained(copy / "saved")
    shutil.copy(copy / "saved" / "tokenizer.json", copy)
    config = json.loads((copy / "tokenizer_config.json").read_text("utf-8"))
    del config["added_tokens_decoder"]
    (copy / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    ours = Tokenizer(copy)
    for text in texts[::20]:
        assert ours.encode(text, "deu_Latn") == expected.encode(text, "deu_Latn")
    (copy / "tokenizer.json").write_text('{"added_tokens": [1]}')
    with pytest.raises(BundleError, match=r"tokenizer\.json: expected added_tokens with an id"):
        Tokenizer(copy)


def test_where_no_file_has_ids_the_published_order_holds(folder: Path, copy: Path) -> None:
    (copy / "tokenizer_config.json").write_text('{"tokenizer_class": "NllbTokenizer"}')
    ours, named = Tokenizer(copy), Tokenizer(folder)
    assert [*map(ours.language_id, CODES)] == [*map(named.language_id, CODES)]
    assert ours.vocab_size == named.vocab_size


def test_a_pickled_copy(folder: Path) -> None:
    ours = Tokenizer(folder)
    again = pickle.loads(pickle.dumps(ours))
    assert again.encode("Open  it ", "eng_Latn") == ours.encode("Open  it ", "eng_Latn")


@pytest.mark.parametrize(
    ("config", "family", "expected"),
    [
        ({"legacy_behaviour": 1}, None, "legacy_behaviour to be a bool"),
        ({"language_codes": "wmt21"}, None, "language_codes 'wmt21'"),
        ({}, "nllb-legacy", "expected the files of family nllb-legacy"),
        ({}, "m2m100", "expected the files of family m2m100"),
    ],
)
def test_files_that_contradict(
    copy: Path, config: dict[str, Any], family: str | None, expected: str
) -> None:
    rewrite(copy / "tokenizer_config.json", **config)
    with pytest.raises(BundleError, match=expected):
        Tokenizer(copy, family=family)


def test_files_of_m2m100_with_the_class_of_nllb(copy: Path, tokenizer_folder: Path) -> None:
    rewrite(copy / "tokenizer_config.json", tokenizer_class="M2M100Tokenizer")
    with pytest.raises(BundleError, match=r"vocab\.json"):
        Tokenizer(copy)
    (tokenizer_folder / "tokenizer_config.json").write_text('{"tokenizer_class": "NllbTokenizer"}')
    with pytest.raises(BundleError, match=r"'M2M100Tokenizer', since vocab\.json is here"):
        Tokenizer(tokenizer_folder)
    (tokenizer_folder / "vocab.json").unlink()
    with pytest.raises(BundleError, match="embedding row for each token"):
        Tokenizer(tokenizer_folder, embedding_rows=10_609)


def test_a_model_with_other_numbers(copy: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Open the file and save a copy"] * 40),
        model_prefix=str(copy / "sentencepiece.bpe"),
        model_type="bpe",
        vocab_size=40,
        bos_id=0,
        unk_id=1,
        minloglevel=2,
    )
    with pytest.raises(BundleError, match=r"sentencepiece\.bpe\.model: .*to start with"):
        Tokenizer(copy)
