"""The tokenizer of NLLB-200 has the ids and texts of transformers' NllbTokenizer.

Its files are a SentencePiece model, as transformers 4 saves it, or tokenizer.json alone, as 5 does.
"""

from __future__ import annotations

import json
import pickle
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers

from m2m100_onnx import Translator
from m2m100_onnx.bundle.families import FAMILIES
from m2m100_onnx.errors import (
    BundleError,
    DependencyError,
    InvalidInputError,
    UnknownLanguageError,
)
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx_export import export
from nllb import CODES, PIECES, make_checkpoint, write_files
from tokenization import REAL, rewrite, sentences

# transformers 4 drops a blank at the end of a text and before an added token.
FIVE = int(transformers.__version__.split(".")[0]) >= 5
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


@pytest.fixture(scope="module")
def json_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer without its SentencePiece model."""
    path = tmp_path_factory.mktemp("nllb") / "json"
    Reference.from_pretrained(folder, src_lang="eng_Latn").save_pretrained(path)
    (path / "sentencepiece.bpe.model").unlink(missing_ok=True)  # transformers 4 saves it as well
    return path


@pytest.fixture(params=["model", "json"])
def either(request: pytest.FixtureRequest) -> Path:
    """Both kinds of files, one after the other."""
    found: Path = request.getfixturevalue("folder" if request.param == "model" else "json_folder")
    return found


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
    every = [*lines, *spaced, *REAL, *ODD]
    return every if FIVE else [text for text in every if text == text.rstrip("\u200b \t\n\u3000▁")]


def test_the_codes_are_transformers() -> None:
    assert FAMILIES["nllb"].languages == FAMILIES["nllb-legacy"].languages == CODES


@pytest.mark.parametrize("legacy", [False, True])
def test_ids_and_texts_equal_transformers(
    either: Path, tmp_path: Path, texts: list[str], legacy: bool
) -> None:
    copy = Path(shutil.copytree(either, tmp_path / "files"))
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


def test_every_language_has_the_id_of_transformers(either: Path) -> None:
    ours, theirs = Tokenizer(either), Reference.from_pretrained(either)
    assert ours.languages == CODES
    for code in CODES:
        theirs.src_lang = code
        assert ours.encode("Open.", code) == theirs("Open.").input_ids
        assert ours.build_prompt(code, 2) == [2, theirs.convert_tokens_to_ids(code)]
    with pytest.raises(UnknownLanguageError):
        ours.language_id("eng_Cyrl")


def test_text_never_becomes_a_control_or_language_token(either: Path) -> None:
    ours = Tokenizer(either)
    control = {*range(3), *range(PIECES + 1, ours.vocab_size)}
    for text in ("eng_Latn", "a</s>b", "<mask>", "x <pad> deu_Latn", "<unk>"):
        assert not control & set(ours.encode(text, "eng_Latn")[1:-1]), text


def test_files_with_other_languages(tmp_path: Path) -> None:
    """Fewer, and some that the published list lacks; tokens of text beside them."""
    rows = write_files(tmp_path, ("eng_Latn", "tyv_Cyrl", "rus_Cyrl"), ("<br>", "{name}"))
    ours, theirs = Tokenizer(tmp_path, embedding_rows=rows), Reference.from_pretrained(tmp_path)
    assert ours.languages == ("eng_Latn", "tyv_Cyrl", "rus_Cyrl")
    for code in ours.languages:
        theirs.src_lang = code
        for text in ("Hello{name}<br>Open", "<br>", *(("a <br> b",) if FIVE else ())):
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


def test_a_pickled_copy(either: Path) -> None:
    ours = Tokenizer(either)
    again = pickle.loads(pickle.dumps(ours))
    assert again.encode("Open  it ", "eng_Latn") == ours.encode("Open  it ", "eng_Latn")


# --- tokenizer.json alone ------------------------------------------------------------------------


def test_tokenizer_json_has_the_ids_of_the_model(
    folder: Path, json_folder: Path, texts: list[str]
) -> None:
    ours, other = Tokenizer(json_folder), Tokenizer(folder)
    assert ours.all_languages == other.all_languages
    assert (len(ours), ours.vocab_size) == (len(other), other.vocab_size)
    for text in texts:
        assert ours.encode(text, "deu_Latn") == other.encode(text, "deu_Latn"), text
    every = range(ours.vocab_size)
    assert ours.ids_to_pieces(every) == other.ids_to_pieces(every)
    assert ours.pieces_to_ids(["no such piece", "\ud800", "</s>"]) == [3, 3, 2]


def test_tokens_that_were_added_to_tokenizer_json(json_folder: Path, tmp_path: Path) -> None:
    """There transformers saves them, new languages too."""
    theirs = Reference.from_pretrained(json_folder)
    theirs.add_tokens(["<br>", "{name}"])
    theirs.add_tokens(["tyv_Cyrl"], special_tokens=True)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "sentencepiece.bpe.model").unlink(missing_ok=True)
    ours = Tokenizer(tmp_path)
    assert ours.languages == (*CODES, "tyv_Cyrl")
    assert len(ours) == len(theirs)
    theirs.src_lang = "tyv_Cyrl"
    for text in ("Hello {name}<br>Open", "<br>", "a <br> b", "x<br>"):
        ids = theirs(text).input_ids
        assert ours.encode(text, "tyv") == ids
        assert ours.decode(ids) == theirs.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def test_merges_of_older_files(json_folder: Path, tmp_path: Path, texts: list[str]) -> None:
    """They were strings, and languages had places in the vocabulary."""
    copy = Path(shutil.copytree(json_folder, tmp_path / "files"))
    contents = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    model = contents["model"]
    model["merges"] = [" ".join(pair) for pair in model["merges"]]
    model["vocab"] |= {e["content"]: e["id"] for e in contents["added_tokens"]}
    contents["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "WhitespaceSplit"}, contents["pre_tokenizer"]],
    }
    (copy / "tokenizer.json").write_text(json.dumps(contents), "utf-8")
    ours, theirs = Tokenizer(copy), Reference.from_pretrained(copy, src_lang="fra_Latn")
    assert ours.languages == CODES
    for text in texts[::20]:
        assert ours.encode(text, "fra_Latn") == theirs(text).input_ids


def test_without_the_package(json_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DependencyError, match=r"pip install 'm2m100-onnx\[nllb\]'"):
        Tokenizer(json_folder)


def test_sampling_needs_the_model(json_folder: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no sampling, which needs sentencepiece\.bpe"):
        Tokenizer(json_folder, sp_model_kwargs={"enable_sampling": True})
    Tokenizer(json_folder, sp_model_kwargs={"enable_sampling": False})


@pytest.mark.parametrize(
    ("part", "value", "expected"),
    [
        ("model", 3, "expected a model, found int"),
        ("type", "Unigram", "expected type of 'BPE', found 'Unigram'"),
        ("byte_fallback", True, "byte_fallback of None, found True"),
        ("vocab", {"<unk>": 1}, "ids 0 to 0, each once"),
        ("vocab", [], "expected a vocab, found list"),
        ("merges", [["a"]], r"merges of two pieces, found \['a'\]"),
        ("merges", [["a", "no piece"]], "tokenizers refuses it: .*no piece"),
        ("unk_token", "<none>", "an unk_token of the vocab, found '<none>'"),
        ("normalizer", {"type": "Lowercase"}, "Precompiled or .*, found 'Lowercase'"),
        ("normalizer", {"type": "Sequence", "normalizers": 5}, "Precompiled or .*, found 5"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "?"}, "in base64"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "anVuaw=="}, "refuses it"),
        ("pre_tokenizer", {"type": "ByteLevel"}, "Metaspace or .*, found 'ByteLevel'"),
    ],
    ids=[
        *("no-model", "unigram", "bytes", "ids", "vocab", "merge", "stray-merge", "unknown"),
        *("lowercase", "sequence", "base64", "charsmap", "byte-level"),
    ],
)
def test_tokenizer_json_of_others(
    json_folder: Path, tmp_path: Path, part: str, value: Any, expected: str
) -> None:
    copy = Path(shutil.copytree(json_folder, tmp_path / "files"))
    contents = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    (contents if part in contents else contents["model"])[part] = value
    (copy / "tokenizer.json").write_text(json.dumps(contents), "utf-8")
    with pytest.raises(BundleError, match=rf"tokenizer\.json: expected the tokenizer.*{expected}"):
        Tokenizer(copy)


def test_a_folder_without_either_file(json_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(json_folder, tmp_path / "files"))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"sentencepiece\.bpe\.model: expected a tokenizer file"):
        Tokenizer(copy)


def test_a_checkpoint_with_tokenizer_json_alone(json_folder: Path, tmp_path: Path) -> None:
    """Verification compares tokens and translations with transformers."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    (checkpoint / "sentencepiece.bpe.model").unlink()
    for file in json_folder.iterdir():
        shutil.copyfile(file, checkpoint / file.name)
    done = export(checkpoint, tmp_path / "bundle")
    assert done.report is not None
    assert not (done.bundle / "sentencepiece.bpe.model").exists()
    with Translator(done.bundle, intra_op_num_threads=1) as translator:
        text = translator.translate("Open the file.", source_lang="en", target_lang="German")
        assert isinstance(text, str)
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"needs sentencepiece\.bpe\.model or tokenizer\.json"):
        export(checkpoint, tmp_path / "other")


def test_two_files_that_contradict(json_folder: Path, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    contents = json.loads((json_folder / "tokenizer.json").read_text("utf-8"))
    shutil.copyfile(json_folder / "tokenizer.json", checkpoint / "tokenizer.json")
    export(checkpoint, tmp_path / "bundle", verify_outputs=False)
    vocab = contents["model"]["vocab"]
    vocab |= {"en": vocab["er"], "er": vocab["en"]}
    (checkpoint / "tokenizer.json").write_text(json.dumps(contents), "utf-8")
    with pytest.raises(BundleError, match=r"expected the ids of sentencepiece\.bpe\.model, found"):
        export(checkpoint, tmp_path / "other")


# --- Files that are wrong ------------------------------------------------------------------------


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
