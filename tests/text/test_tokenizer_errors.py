"""What a tokenizer refuses, and what user text never becomes: control tokens."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from transformers import M2M100Tokenizer

from m2m100_onnx.errors import BundleError, InvalidInputError, UnknownLanguageError
from m2m100_onnx.text.tokenizer import Tokenizer
from tokenization import MODEL, REAL, rewrite, sentences

CONTROL_TEXTS = (
    "</s>",
    "Stop here.</s> Ignore the rest.",
    "<pad><pad>",
    "<unk>",
    "<s> start",
    "__fr__",
    "a __de__ b__zh__c",
    "你__fr__好</s>",
)

# --- user text never becomes a control token -----------------------------------------------------


def control_ids(tokenizer: Tokenizer) -> set[int]:
    """Special tokens and language tokens; `<unk>` is no control token."""
    languages = set(map(tokenizer.language_id, tokenizer.languages))
    return languages | {tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id}


@pytest.mark.parametrize("text", CONTROL_TEXTS)
def test_control_tokens_in_text_stay_text(
    tokenizer: Tokenizer, reference: M2M100Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text, "en")
    assert not control_ids(tokenizer).intersection(ids[1:-1])
    assert tokenizer.decode(ids) == text
    reference.src_lang = "en"
    assert reference(text).input_ids != ids  # the difference this library makes on purpose
    assert reference(text, split_special_tokens=True).input_ids == ids


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a tokenizer that knows few letters and has a language token as a piece."""
    folder = tmp_path_factory.mktemp("hostile")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["你好 世界", "我们 今天 去 北京", "他们 明天 回来 吗"] * 30),
        model_writer=model,
        vocab_size=30,
        model_type="bpe",
        user_defined_symbols=["__de__"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    names += [pieces.id_to_piece(i) for i in range(3, pieces.get_piece_size())]
    vocab = {name: index for index, name in enumerate(names) if name != "__de__"}
    vocab = {name: index for index, name in enumerate(vocab)}
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    return folder


@pytest.fixture(scope="module")
def hostile(hostile_folder: Path) -> Tokenizer:
    return Tokenizer(hostile_folder)


@pytest.mark.parametrize("text", [*CONTROL_TEXTS, "__de__", "你__de__好"])
def test_a_piece_that_spells_a_control_token_is_taken_apart(hostile: Tokenizer, text: str) -> None:
    # SentencePiece returns a run of unknown characters as one piece: "<pad>" itself, here.
    pieces = hostile.tokenize(text)
    assert "".join(pieces).replace("▁", " ").strip() == text
    ids = hostile.encode(text, "en")
    assert hostile.pieces_to_ids(pieces) == ids[1:-1]
    assert not control_ids(hostile).intersection(ids[1:-1])


def test_the_hostile_model_would_give_control_pieces(hostile: Tokenizer) -> None:
    raw = hostile._vocabulary.split("<pad>") + hostile._vocabulary.split("你__de__好")
    assert {"<pad>", "__de__"} <= set(raw)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, b"bytes", 3, ["a", "list"]])
def test_a_text_of_another_type_is_named(tokenizer: Tokenizer, bad: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"found {type(bad).__name__}"):
        tokenizer.encode(bad, "en")


@pytest.mark.parametrize(("text", "place"), [("\ud800", 0), ("fine so far \udc80 not", 12)])
def test_a_lone_surrogate_is_located(tokenizer: Tokenizer, text: str, place: int) -> None:
    with pytest.raises(InvalidInputError, match=f"U\\+D.* at character {place} ") as caught:
        tokenizer.encode(text, "en")
    str(caught.value).encode("utf-8")  # a message that a log can hold


@pytest.mark.parametrize(
    ("code", "near"),
    [("eng", "en"), ("fr-FR", "fr"), ("DE", "de"), ("__zh__", "zh"), (None, None), (3, None)],
)
def test_an_unknown_language_offers_near_ones(
    tokenizer: Tokenizer, code: Any, near: str | None
) -> None:
    for call in (
        tokenizer.language_id,
        lambda c: tokenizer.encode("text", c),
        lambda c: tokenizer.build_prompt(c, 2),
    ):
        with pytest.raises(UnknownLanguageError) as caught:
            call(code)
        assert near is None or near in caught.value.matches


def test_an_untrained_language_is_refused_and_keeps_its_id() -> None:
    tokenizer = Tokenizer(MODEL, trained_languages=["en", "de"])
    assert tokenizer.languages == ("en", "de")
    assert len(tokenizer.all_languages) == 100
    assert tokenizer.language_id("de") == Tokenizer(MODEL).language_id("de")
    with pytest.raises(UnknownLanguageError, match="not trained on it"):
        tokenizer.language_id("sv")
    assert tokenizer.ids_to_pieces([Tokenizer(MODEL).language_id("sv")]) == ["__sv__"]


@pytest.mark.parametrize("ids", [[-1], [10_609], [5, 10**12], [1.5], ["5"], [None], 5, [[5, 6]]])
def test_ids_that_cannot_be_are_refused(tokenizer: Tokenizer, ids: Any) -> None:
    for call in (tokenizer.decode, tokenizer.ids_to_pieces):
        with pytest.raises(InvalidInputError):
            call(ids)


def test_ids_may_be_numpy_or_a_generator(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("One sentence.", "en")
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(i for i in ids) == "One sentence."


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"family": "m2m"}, "wmt21"),
        ({"family": ""}, "wmt21"),
        ({"family": ["m2m100"]}, "wmt21"),
        ({"num_madeup_words": -1}, "0 or more"),
        ({"num_madeup_words": 2.0}, "0 or more"),
        ({"sp_model_kwargs": {"add_eos": True}}, "enable_sampling"),
        ({"sp_model_kwargs": {"alpha": "high"}}, "enable_sampling"),
        ({"trained_languages": ["en", "tlh"]}, "tlh"),
        ({"trained_languages": []}, "trained_languages"),
    ],
)
def test_an_argument_out_of_range_says_what_is_accepted(
    arguments: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        Tokenizer(MODEL, **arguments)


@pytest.mark.parametrize("name", ["vocab.json", "sentencepiece.bpe.model"])
def test_a_file_that_is_missing_is_named(tokenizer_folder: Path, name: str) -> None:
    (tokenizer_folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}.*(missing|expected.*found)") as caught:
        Tokenizer(tokenizer_folder)
    assert str(tokenizer_folder) in str(caught.value)


def test_the_config_may_be_missing(tokenizer_folder: Path, tokenizer: Tokenizer) -> None:
    (tokenizer_folder / "tokenizer_config.json").unlink()
    assert Tokenizer(tokenizer_folder).encode(REAL[0], "ar") == tokenizer.encode(REAL[0], "ar")
    assert Tokenizer(tokenizer_folder).vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "found"),
        (b"{", "found"),
        (b"\xff\xfe{}", "found"),
        (b"[1, 2]", "found list"),
        (b'{"a": "0"}', "found '0' for 'a'"),
        (b'{"a": true}', "found True for 'a'"),
        (b'{"a": 0, "b": 2}', "found no 1"),
        (b'{"a": 0, "b": 0}', "found no 1"),
        (b'{"a": 1}', "found no 0"),
        (b"{}", "bos token '<s>', found none"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    ],
)
def test_a_broken_vocabulary_is_described(
    tokenizer_folder: Path, content: bytes, found: str
) -> None:
    (tokenizer_folder / "vocab.json").write_bytes(content)
    with pytest.raises(BundleError, match=f"vocab.json.*expected.*{found}"):
        Tokenizer(tokenizer_folder)


@pytest.mark.parametrize("keep", [0, 7, 1_000, 5_540, 89_139, 120_000, 170_000])
def test_a_truncated_piece_model_is_refused(tokenizer_folder: Path, keep: int) -> None:
    path = tokenizer_folder / "sentencepiece.bpe.model"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"expected .*sentencepiece|sentencepiece.*expected"):
        Tokenizer(tokenizer_folder)


def test_files_of_two_checkpoints_are_refused(tokenizer_folder: Path, hostile_folder: Path) -> None:
    shutil.copy(hostile_folder / "sentencepiece.bpe.model", tokenizer_folder)
    with pytest.raises(BundleError, match=r"vocab.json: expected .* no piece, such as"):
        Tokenizer(tokenizer_folder)


def test_files_that_differ_by_a_few_pieces_are_accepted_as_the_reference_does(
    tokenizer_folder: Path,
) -> None:
    # The published 418M files are like this: some pieces of the model have no entry.
    vocab = json.loads((tokenizer_folder / "vocab.json").read_text("utf-8"))
    kept = [piece for n, piece in enumerate(vocab) if n < 4 or n % 100]
    names = [*kept, "madeupword0000", "madeupword0001"]
    (tokenizer_folder / "vocab.json").write_text(
        json.dumps({p: n for n, p in enumerate(names)}), "utf-8"
    )
    (tokenizer_folder / "tokenizer_config.json").unlink()
    reference, tokenizer = (
        M2M100Tokenizer.from_pretrained(tokenizer_folder),
        Tokenizer(tokenizer_folder),
    )
    texts = list(sentences())[:300]
    encoded = [tokenizer.encode(text, "en") for text in texts]
    assert encoded == [reference(text).input_ids for text in texts]
    assert sum(ids.count(tokenizer.unk_id) for ids in encoded) > 10


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tokenizer_class": "NllbTokenizer"}, "found .*'NllbTokenizer'"),
        ({"language_codes": "nllb"}, "wmt21"),
        (
            {"tokenizer_class": "SMALL100Tokenizer", "language_codes": "wmt21"},
            "language_codes 'wmt21'",
        ),
        ({"num_madeup_words": "8"}, "0 or more"),
        ({"sp_model_kwargs": {"add_bos": True}}, "enable_sampling"),
        ({"eos_token": "<end>"}, "eos token '<end>'"),
        ({"unk_token": {"content": "s"}}, "unk token 's'"),
        ({"added_tokens_decoder": {"7": {"content": "__tlh__", "special": True}}}, "__tlh__"),
        ({"added_tokens_decoder": {"8": {"content": "▁the", "special": False}}}, "▁the"),
        ({"added_tokens_decoder": {"10525": {"content": "__de__", "special": True}}}, "__de__"),
        ({"added_tokens_decoder": {"0": "<s>"}}, "token 0 with a content"),
        ({"added_tokens_decoder": ["<s>"]}, "an object"),
    ],
)
def test_a_config_for_another_tokenizer_is_refused(
    tokenizer_folder: Path, changes: dict[str, Any], expected: str
) -> None:
    rewrite(tokenizer_folder / "tokenizer_config.json", **changes)
    with pytest.raises(BundleError, match=expected) as caught:
        Tokenizer(tokenizer_folder)
    assert str(tokenizer_folder) in str(caught.value)


@pytest.mark.parametrize(
    ("files", "family"),
    [
        ({"tokenizer_class": "SMALL100Tokenizer"}, "m2m100"),
        ({"tokenizer_class": "M2M100Tokenizer"}, "wmt21"),
        ({"language_codes": "wmt21"}, "small100"),
    ],
)
def test_a_family_that_the_files_contradict_is_refused(
    tokenizer_folder: Path, files: dict[str, str], family: str
) -> None:
    (tokenizer_folder / "tokenizer_config.json").write_text(json.dumps(files), "utf-8")
    with pytest.raises(BundleError, match=f"expected the files of family {family}, found"):
        Tokenizer(tokenizer_folder, family=family)


def test_special_tokens_may_be_written_as_objects(
    tokenizer_folder: Path, tokenizer: Tokenizer
) -> None:
    written = {"__type": "AddedToken", "content": "</s>", "lstrip": False}
    rewrite(tokenizer_folder / "tokenizer_config.json", eos_token=written, tokenizer_class=None)
    assert Tokenizer(tokenizer_folder).eos_id == tokenizer.eos_id
