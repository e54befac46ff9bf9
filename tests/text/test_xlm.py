"""XLM's tokenizer against transformers' `XLMTokenizer`."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from transformers import AddedToken
from transformers import XLMTokenizer as Reference

import xlm
from m2m100_onnx import BundleError, DependencyError, InvalidInputError, UnknownLanguageError
from m2m100_onnx.text.xlm import XLMTokenizer
from tokenization import DEMO, rewrite

CODES = ("en", "de", "fr")
HARD = [
    "",
    " ",
    "Mr. Smith's dog isn't 3,000.50 kg -- it's 'small'...",
    "„Zitat“ ‚innen‘ «guillemets» “quotes” ‘single’",
    "Straße, ÄÖÜ äöü, façade, naïve, cœur, l’été, aujourd'hui, qu'est-ce que c'est ?",
    "https://example.org/a_b?c=d&e=f#g mail@example.org @user #tag",
    "。 full ．width，１２３４５６７８９０！？；：（）《》「」【】〈〉％～…━∶、",
    "tab\there\nnew line\r\nzero\u200bwidth\ufeff soft\u00adhyphen \u0007bell",
    "🙂 emoji 👩‍👩‍👧 é́ İı ﬁ ǅ ß ẞ",
    "a  b   c    ",
    "1/2 50% $5 €6 £7 A&B <tag> [x] {y} |z| \\ `code` ~",
    "x" * 300,
    "U.S. e.g. i.e. z.B. d.h. bzw. usw. M. Dupont",
    "Ж Привет 中文 日本語 العربية",
    "İstanbul ŞşŢţȘșȚțĂăÂâÎî",
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    files = [DEMO / "heldout" / f"{part}.{code}" for part in ("dev", "test") for code in CODES]
    return HARD + [text for path in files for text in path.read_text("utf-8").split("\n")]


@pytest.fixture(scope="module")
def folder(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary learned from half of the sentences, so that some words lack pieces."""
    folder = tmp_path_factory.mktemp("xlm")
    xlm.make_checkpoint(folder)
    xlm.write_vocabulary(folder, texts[::2], 2000)
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> XLMTokenizer:
    return XLMTokenizer(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return Reference.from_pretrained(folder)


@pytest.mark.parametrize("language", CODES)
def test_ids_and_texts_are_those_of_transformers(
    ours: XLMTokenizer, theirs: Any, texts: list[str], language: str
) -> None:
    assert len(texts) > 2000  # once for each language
    for text in texts:
        pieces = theirs._tokenize(text, lang=language)
        wanted = theirs.build_inputs_with_special_tokens(theirs.convert_tokens_to_ids(pieces))
        assert ours.encode(text, language) == wanted, text
        for skip in (True, False):
            assert ours.decode(wanted, skip_special_tokens=skip) == theirs.decode(
                wanted, skip_special_tokens=skip
            )


@pytest.mark.parametrize("language", ["ro", "ru", "el", "xx"])
def test_other_languages(ours: XLMTokenizer, theirs: Any, language: str) -> None:
    for text in HARD:
        assert ours.tokenize(text, language) == theirs._tokenize(text, lang=language)


def test_case_and_accents_are_kept_where_the_file_says_so(folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    settings = {"do_lowercase_and_remove_accent": False, "clean_up_tokenization_spaces": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    kept, reference = XLMTokenizer(tmp_path), Reference.from_pretrained(tmp_path)
    for text in HARD:
        pieces = reference._tokenize(text, lang="de")
        assert kept.tokenize(text, "de") == pieces
        ids = kept.encode(text, "de")
        assert kept.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert kept.tokenize("Äpfel", "de") != XLMTokenizer(folder).tokenize("Äpfel", "de")


def test_words_that_are_split_already(ours: XLMTokenizer, theirs: Any) -> None:
    text = "Dieser Satz ist schon zerlegt . don't"
    expected = theirs._tokenize(text, lang="de", bypass_tokenizer=True)
    assert ours.tokenize(text, "de", pretokenized=True) == expected


def test_text_becomes_no_control_token(ours: XLMTokenizer) -> None:
    control = {ours.bos_id, ours.eos_id, ours.pad_id, ours.mask_id}
    for text in ("<s> </s> <pad> <unk>", "<special1> <special2>", ours.mask_token):
        assert not control & {*ours.encode(text)[1:-1]}
        assert not control & {*ours.encode(text, pretokenized=True)[1:-1]}


def test_a_mask_counts_where_it_is_asked_for(ours: XLMTokenizer, theirs: Any) -> None:
    text = f"The {ours.mask_token} is open, {ours.mask_token}."
    assert ours.encode(text, mask=True) == theirs(text).input_ids
    assert ours.encode(text, mask=True).count(ours.mask_id) == 2


def test_added_tokens_keep_their_ids(folder: Path, tmp_path: Path) -> None:
    reference: Any = Reference.from_pretrained(folder)
    size = len(reference)
    reference.add_tokens(["{name}", "<br>", AddedToken("naïve", single_word=True, special=False)])
    reference.add_tokens([AddedToken("<sep>", lstrip=True, rstrip=True)], special_tokens=True)
    reference.add_special_tokens({"pad_token": "[PAD]"})
    reference.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    extended = XLMTokenizer(tmp_path)
    assert extended.pad_id == size + 4 == extended.vocab_size - 1
    for text in (
        "Dear {name},<br>open the  <sep>  file {Name}",
        "a naïve one, naïvely naïve",
        "<br>{name}<br>",
        *HARD,
    ):
        assert extended.encode(text) == reference(text).input_ids
        ids = extended.encode(text)
        for skip in (True, False):
            assert extended.decode(ids, skip_special_tokens=skip) == reference.decode(
                ids, skip_special_tokens=skip
            )
    assert extended.pad_id not in extended.encode("[PAD]")
    assert extended.encode("{name} <special1>", mask=True)[1:-1] == [size, extended.mask_id]


def test_tokens_of_older_files(folder: Path, tmp_path: Path) -> None:
    copy = broken(folder, tmp_path, additional_special_tokens=["<special0>", "<new>"])
    size = len(json.loads((copy / "vocab.json").read_text("utf-8")))
    (copy / "added_tokens.json").write_text(json.dumps({"<new>": size, "<br>": size + 1}), "utf-8")
    older, reference = XLMTokenizer(copy), Reference.from_pretrained(copy)
    text = "open <br> the <new> file"
    ids = older.encode(text)
    assert ids == reference(text).input_ids
    assert {size, size + 1} < {*ids}
    ids += [4, 6, 7]
    assert older.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_ids_without_a_token(ours: XLMTokenizer, theirs: Any, folder: Path) -> None:
    with pytest.raises(
        BundleError, match=r"expected an embedding row for each token, found 99 row"
    ):
        XLMTokenizer(folder, embedding_rows=99)
    rows = ours.vocab_size + 6
    padded = XLMTokenizer(folder, embedding_rows=rows)
    assert padded.decode([20, rows - 1, 21]) == theirs.decode([20, rows - 1, 21])
    assert padded.decode(np.array([20, 21])) == theirs.decode([20, 21])
    for wrong in ([rows], [-1], [1.0], [[1]], 1, "ab"):
        with pytest.raises(InvalidInputError, match=r"^ids: expected"):
            padded.decode(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [3, None, ["a", "b"], b"a", "a\ud800"])
def test_no_text(ours: XLMTokenizer, text: Any) -> None:
    for pretokenized in (True, False):
        with pytest.raises(InvalidInputError, match=r"^text: expected"):
            ours.encode(text, pretokenized=pretokenized)


def test_languages(ours: XLMTokenizer) -> None:
    assert {code: ours.language_id(code) for code in ours.languages} == xlm.LANGUAGES
    with pytest.raises(UnknownLanguageError, match="did you mean 'de'"):
        ours.language_id("German")


def test_a_pickled_copy_needs_no_folder(ours: XLMTokenizer, texts: list[str]) -> None:
    copy = pickle.loads(pickle.dumps(ours))
    assert [copy.encode(text, "de") for text in texts[:50]] == [
        ours.encode(text, "de") for text in texts[:50]
    ]


def test_without_sacremoses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    tokenizer = XLMTokenizer(folder)
    with pytest.raises(DependencyError, match=r"pip install 'm2m100-onnx\[xlm\]'"):
        tokenizer.encode("Open the file.")
    assert tokenizer.encode("open", pretokenized=True)


def split_in_pairs(text: str) -> list[str]:
    return re.findall("..?", text)


@pytest.mark.parametrize("lowercase", [True, False])
def test_segmenters(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lowercase: bool
) -> None:
    """The packages are stood in for; like PyThaiNLP, the stand-in returns blanks as words."""
    chinese, thai = ModuleType("rjieba"), ModuleType("pythainlp")
    words = ModuleType("pythainlp.tokenize")
    chinese.cut = split_in_pairs  # type: ignore[attr-defined]
    thai.tokenize = words  # type: ignore[attr-defined]
    thai.word_tokenize = words.word_tokenize = split_in_pairs  # type: ignore[attr-defined]
    for module in (chinese, thai, words):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    copy = broken(folder, tmp_path, do_lowercase_and_remove_accent=lowercase)
    reference, found = Reference.from_pretrained(copy), XLMTokenizer(copy)
    for text in ["请选择要打开的文件。Hello，世界…", "สวัสดี  ผมชื่อ ab c 12", *HARD]:
        for language in ("zh", "th"):
            assert found.tokenize(text, language) == reference._tokenize(text, lang=language)


@pytest.mark.parametrize(
    ("language", "named"), [("zh", "rjieba"), ("th", "pythainlp"), ("th", "pythainlp.tokenize")]
)
def test_without_a_segmenter(
    ours: XLMTokenizer, monkeypatch: pytest.MonkeyPatch, language: str, named: str
) -> None:
    monkeypatch.setitem(sys.modules, named, None)
    with pytest.raises(DependencyError, match=f"pip install {named.partition('.')[0]}`"):
        ours.encode("中文", language)


def test_japanese_is_refused(ours: XLMTokenizer) -> None:
    with pytest.raises(InvalidInputError, match=r"KyTea.*pretokenized=True"):
        ours.encode("日本語", "ja")


def broken(folder: Path, tmp_path: Path, **config: Any) -> Path:
    for path in folder.glob("*.*"):
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    if config:
        rewrite(tmp_path / "tokenizer_config.json", **config)
    return tmp_path


def test_files_that_are_broken(folder: Path, tmp_path: Path) -> None:
    copy = broken(folder, tmp_path)
    (copy / "merges.txt").write_text("a b\nc\n", "utf-8")
    with pytest.raises(BundleError, match=r"merges.txt: expected two pieces in line 2, found 'c'"):
        XLMTokenizer(copy)
    # transformers reads a piece that is a blank of another alphabet as no piece.
    (copy / "merges.txt").write_text("\u3000 a\nt h\n", "utf-8")
    reference = Reference.from_pretrained(copy)
    assert XLMTokenizer(copy).tokenize("a path") == reference.tokenize("a path")
    (copy / "merges.txt").unlink()
    with pytest.raises(BundleError, match=r"merges.txt: expected a tokenizer file"):
        XLMTokenizer(copy)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lang2id": {"de": 1, "en": 0}}, "expected the lang2id of config.json"),
        ({"lang2id": {"de": "x"}}, "expected lang2id as codes and ids"),
        ({"mask_token": "<mask>"}, "added token '<mask>': expected an id"),
        ({"mask_token": None}, "expected mask_token None as an entry"),
        ({"do_lowercase_and_remove_accent": "yes"}, "expected do_lowercase_and_remove_accent"),
    ],
)
def test_settings_that_are_wrong(
    folder: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        XLMTokenizer(broken(folder, tmp_path, **config))


def test_a_language_id_out_of_range(folder: Path, tmp_path: Path) -> None:
    copy = broken(folder, tmp_path, lang2id={"de": 0, "en": 7})
    rewrite(copy / "config.json", lang2id={"de": 0, "en": 7})
    with pytest.raises(BundleError, match=r"ids of languages from 0 to 2, found \{'en': 7\}"):
        XLMTokenizer(copy)
