"""The tokenizer against the M2M100Tokenizer of transformers 5, and where it differs on purpose."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from transformers import M2M100Tokenizer
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

from m2m100_onnx.errors import BundleError, InvalidInputError, UnknownLanguageError
from m2m100_onnx.tokenizer import LANGUAGE_CODES, Tokenizer

DEMO = Path(__file__).resolve().parent.parent / "demo"
MODEL = DEMO / "model"
FILES = ("vocab.json", "sentencepiece.bpe.model", "tokenizer_config.json")

SCRIPTS = {
    "arabic": (0x600, 0x6FF),
    "armenian": (0x531, 0x587),
    "ascii": (0x20, 0x7E),
    "cjk": (0x4E00, 0x9FFF),
    "combining": (0x300, 0x36F),
    "control": (0x00, 0x1F),
    "cyrillic": (0x400, 0x4FF),
    "devanagari": (0x900, 0x97F),
    "emoji": (0x1F300, 0x1F6FF),
    "greek": (0x370, 0x3FF),
    "hangul": (0xAC00, 0xD7A3),
    "hebrew": (0x590, 0x5FF),
    "kana": (0x3040, 0x30FF),
    "khmer": (0x1780, 0x17FF),
    "private": (0xE000, 0xF8FF),
    "punctuation": (0x2000, 0x206F),
    "tamil": (0xB80, 0xBFF),
    "thai": (0xE00, 0xE7F),
    "astral": (0x10000, 0x10FFFF),
}

REAL = (
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "สวัสดีชาวโลก วันนี้เป็นอย่างไรบ้าง",
    "안녕하세요, 오늘 날씨가 좋네요.",
    "こんにちは世界。今日はいい天気ですね。",
    "Γειά σου Κόσμε, τι κάνεις;",
    "שלום עולם, מה שלומך היום?",
    "გამარჯობა მსოფლიო",
    "Բարեւ աշխարհ",
    "வணக்கம் உலகம்",
    "សួស្តី​ពិភពលោក",
    "ሰላም ለዓለም",
    "İstanbul'da ılık bir gün, GROẞ und groß",
)

AWKWARD = (
    "",
    " ",
    "     ",
    " leading",
    "trailing ",
    "double  blank   triple",
    "\t",
    "\n\n",
    "tab\there\r\nnewline\x0bvertical\x0cform",
    "\x00",
    "nul\x00inside",
    "\x01\x02\x1b\x7f\x80\x85\x9f",
    "👩‍👩‍👧‍👦 family, 👍🏽 skin, 🇫🇷 flag, ❤️ variation",
    unicodedata.normalize("NFD", "déjà vu, Ångström, 각, ệ"),
    unicodedata.normalize("NFC", "déjà vu, Ångström, 각, ệ"),
    "a" + "\u0301" * 500,
    "x" * 20_000,
    "Donaudampfschifffahrtsgesellschaftskapitän" * 100,
    "word " * 3_000,
    "ＦＵＬＬ　ｗｉｄｔｈ １２３ ｶﾀｶﾅ",
    "ﬁ ﬂ ½ ™ ㎏ ① Ⅳ ㍿",
    "\u200emarks\u200f \u202aembedded\u202c \u2066isolate\u2069 שלום",
    "\ufeffbyte order mark",
    "\u00a0no\u00a0break\u3000ideographic\u2028line\u2029paragraph",
    "soft\u00adhyphen zero\u200bwidth\u2060joiner",
    "\ue000\uf8ff\U000f0000\U0010fffd",
    "\ufffd\ufffe\uffff\U0010ffff",
    "▁ ▁already ▁▁ marked",
    "< / s > </ s> <|endoftext|> [MASK] <0x41> {0} %s \\n",
    "__",
    "__xx__",
    "__ fr __",
    "_fr_",
    "<b>bold</b> &amp; https://example.org/?q=a%20b#c user@example.org",
)

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


def sentences() -> Iterator[str]:
    for path in sorted((DEMO / "heldout").glob("*.??")):
        yield from path.read_text(encoding="utf-8").split("\n")


def random_texts(count: int = 60) -> Iterator[str]:
    rng = random.Random(0)
    for low, high in SCRIPTS.values():
        for _ in range(count):
            letters = (chr(rng.randint(low, high)) for _ in range(rng.randint(1, 60)))
            yield "".join(" " if rng.random() < 0.15 else letter for letter in letters)


TEXTS = (*REAL, *AWKWARD, *random_texts())


@pytest.fixture(scope="module")
def reference() -> M2M100Tokenizer:
    return M2M100Tokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tokenizer files that a test may break."""
    for name in FILES:
        shutil.copy(MODEL / name, tmp_path)
    return tmp_path


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


# --- the same ids and text as transformers -------------------------------------------------------


def test_language_codes_equal_the_reference() -> None:
    assert {
        family: list(codes) for family, codes in LANGUAGE_CODES.items()
    } == FAIRSEQ_LANGUAGE_CODES


def test_sizes_and_special_ids_equal_the_reference(
    tokenizer: Tokenizer, reference: M2M100Tokenizer
) -> None:
    assert len(tokenizer) == len(reference) == 10_601
    assert tokenizer.vocab_size == len(reference) + reference.num_madeup_words == 10_609
    assert tokenizer.vocab_size == json.loads((MODEL / "config.json").read_text())["vocab_size"]
    names = ("bos", "pad", "eos", "unk")
    assert [getattr(tokenizer, f"{n}_id") for n in names] == [
        getattr(reference, f"{n}_token_id") for n in names
    ]


def test_every_language_frames_source_and_target_as_the_reference(
    tokenizer: Tokenizer, reference: M2M100Tokenizer
) -> None:
    text = "One sentence, in any language."
    for code in tokenizer.all_languages:
        assert tokenizer.language_id(code) == reference.get_lang_id(code)
        assert tokenizer.language_of(tokenizer.language_id(code)) == code
        reference.src_lang = reference.tgt_lang = code
        assert tokenizer.encode(text, code) == reference(text).input_ids
        assert tokenizer.encode_target(text, code) == reference(text_target=text).input_ids
    assert tokenizer.languages == tokenizer.all_languages
    assert tokenizer.language_of(tokenizer.eos_id) is None


def test_heldout_sentences_encode_and_decode_as_the_reference(
    tokenizer: Tokenizer, reference: M2M100Tokenizer
) -> None:
    reference.src_lang = "en"
    lines = list(sentences())
    assert len(lines) > 4_800
    for line in lines:
        ids = tokenizer.encode(line, "en")
        assert ids == reference(line).input_ids
        assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("skip", [True, False])
def test_awkward_and_random_texts_equal_the_reference(
    tokenizer: Tokenizer, reference: M2M100Tokenizer, skip: bool
) -> None:
    reference.src_lang = "en"
    for text in TEXTS:
        ids = tokenizer.encode(text, "en")
        assert ids == reference(text).input_ids, ascii(text)
        assert tokenizer.tokenize(text) == reference.tokenize(text), ascii(text)
        expected = reference.decode(ids, skip_special_tokens=skip)
        assert tokenizer.decode(ids, skip_special_tokens=skip) == expected, ascii(text)


def test_random_ids_equal_the_reference(tokenizer: Tokenizer, reference: M2M100Tokenizer) -> None:
    rng = random.Random(1)
    whole, special = range(tokenizer.vocab_size), range(4)
    names = range(len(json.loads((MODEL / "vocab.json").read_text("utf-8"))), tokenizer.vocab_size)
    for length in range(1_500):
        ids = [rng.choice(rng.choice((whole, special, names))) for _ in range(length % 30)]
        pieces = tokenizer.ids_to_pieces(ids)
        assert pieces == reference.convert_ids_to_tokens(ids)
        assert tokenizer.pieces_to_ids(pieces) == reference.convert_tokens_to_ids(pieces)
        assert tokenizer.special_tokens_mask(ids) == reference.get_special_tokens_mask(
            ids, already_has_special_tokens=True
        )
        for skip in (True, False):
            expected = reference.decode(ids, skip_special_tokens=skip)
            assert tokenizer.decode(ids, skip_special_tokens=skip) == expected


def test_every_id_names_the_same_piece(tokenizer: Tokenizer, reference: M2M100Tokenizer) -> None:
    ids = range(tokenizer.vocab_size)
    assert tokenizer.ids_to_pieces(ids) == reference.convert_ids_to_tokens(list(ids))
    assert tokenizer.ids_to_pieces(ids, skip_special_tokens=True) == (
        reference.convert_ids_to_tokens(list(ids), skip_special_tokens=True)
    )
    assert tokenizer.pieces_to_ids(["no such piece", "▁the", "__fr__"]) == (
        reference.convert_tokens_to_ids(["no such piece", "▁the", "__fr__"])
    )


def test_masks_and_frames_of_ids_without_special_tokens(
    tokenizer: Tokenizer, reference: M2M100Tokenizer
) -> None:
    reference.src_lang = "fr"
    for ids in ([], [5], [5, 6, 7]):
        framed = tokenizer.build_inputs(ids, "fr")
        assert framed == reference.build_inputs_with_special_tokens(ids)
        mask = tokenizer.special_tokens_mask(ids, already_has_special_tokens=False)
        assert (
            mask == reference.get_special_tokens_mask(ids) == tokenizer.special_tokens_mask(framed)
        )


def test_the_wmt21_family_equals_the_reference(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    reference = M2M100Tokenizer.from_pretrained(folder, language_codes="wmt21")
    tokenizer = Tokenizer(folder, language_codes="wmt21", num_madeup_words=0)
    for code in LANGUAGE_CODES["wmt21"]:
        reference.src_lang = code
        assert tokenizer.encode("Guten Tag.", code) == reference("Guten Tag.").input_ids
    assert tokenizer.vocab_size == 10_501 + 8
    with pytest.raises(UnknownLanguageError):
        tokenizer.language_id("fr")


@pytest.mark.parametrize("clean", [True, False])
def test_clean_up_of_spaces_follows_the_file(folder: Path, clean: bool) -> None:
    rewrite(folder / "tokenizer_config.json", clean_up_tokenization_spaces=clean)
    reference, tokenizer = M2M100Tokenizer.from_pretrained(folder), Tokenizer(folder)
    text = "It 's « fine » ! I do n't know , do you ? He 've , we 're ' quoted ' ."
    ids = tokenizer.encode(text, "en")
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert (tokenizer.decode(ids) == text) != clean


def test_files_written_by_the_reference_load_the_same(
    reference: M2M100Tokenizer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    reference.save_pretrained(tmp_path)
    again = Tokenizer(tmp_path)
    for text in REAL:
        assert again.encode(text, "zu") == tokenizer.encode(text, "zu")


@pytest.mark.parametrize("prefix", [None, "demo"])
def test_save_vocabulary_writes_the_bytes_of_the_reference(
    reference: M2M100Tokenizer, tokenizer: Tokenizer, tmp_path: Path, prefix: str | None
) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    expected = [Path(path) for path in reference.save_vocabulary(str(theirs), prefix)]
    saved = tokenizer.save_vocabulary(ours, prefix)
    assert [path.name for path in saved] == [path.name for path in expected]
    assert [path.read_bytes() for path in saved] == [path.read_bytes() for path in expected]
    with pytest.raises(InvalidInputError, match="existing folder"):
        tokenizer.save_vocabulary(tmp_path / "absent")


# --- user text never becomes a control token -----------------------------------------------------


@pytest.mark.parametrize("text", CONTROL_TEXTS)
def test_control_tokens_in_text_stay_text(
    tokenizer: Tokenizer, reference: M2M100Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text, "en")
    assert all(tokenizer.language_of(i) is None for i in ids[1:])
    assert not {tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id}.intersection(ids[1:-1])
    assert tokenizer.decode(ids) == text
    reference.src_lang = "en"
    assert reference(text).input_ids != ids  # the difference this library makes on purpose
    assert reference(text, split_special_tokens=True).input_ids == ids


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer that knows few letters, and lists a language token among its pieces."""
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
    return Tokenizer(folder)


@pytest.mark.parametrize("text", [*CONTROL_TEXTS, "__de__", "你__de__好"])
def test_a_piece_that_spells_a_control_token_is_taken_apart(hostile: Tokenizer, text: str) -> None:
    # SentencePiece returns a run of unknown characters as one piece: "<pad>" itself, here.
    pieces = hostile.tokenize(text)
    assert "".join(pieces).replace("▁", " ").strip() == text
    ids = hostile.encode(text, "en")
    assert hostile.pieces_to_ids(pieces) == ids[1:-1]
    controls = {hostile.bos_id, hostile.pad_id, hostile.eos_id}
    assert not controls.intersection(ids[1:-1])
    assert all(hostile.language_of(i) is None for i in ids[1:])


def test_the_hostile_model_would_give_control_pieces(hostile: Tokenizer) -> None:
    raw = hostile._vocabulary.split("<pad>") + hostile._vocabulary.split("你__de__好")
    assert {"<pad>", "__de__"} <= set(raw)


# --- sampling ------------------------------------------------------------------------------------


def test_sampling_varies_the_pieces_and_keeps_the_text() -> None:
    sampled = Tokenizer(
        MODEL, sp_model_kwargs={"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    )
    text = "International cooperation is possible."
    drawn = [sampled.encode(text, "en") for _ in range(30)]
    assert len({tuple(ids) for ids in drawn}) > 5
    assert {sampled.decode(ids) for ids in drawn} == {text}
    restored = pickle.loads(pickle.dumps(sampled))
    assert len({tuple(restored.encode(text, "en")) for _ in range(30)}) > 5


def test_sampling_is_read_from_the_file_and_off_by_default(
    folder: Path, tokenizer: Tokenizer
) -> None:
    text = "International cooperation is possible."
    assert len({tuple(tokenizer.encode(text, "en")) for _ in range(30)}) == 1
    kwargs = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    rewrite(folder / "tokenizer_config.json", sp_model_kwargs=kwargs)
    assert len({tuple(Tokenizer(folder).encode(text, "en")) for _ in range(30)}) > 1
    off = Tokenizer(folder, sp_model_kwargs={})
    assert off.encode(text, "en") == tokenizer.encode(text, "en")


# --- sharing -------------------------------------------------------------------------------------


def test_a_pickled_copy_needs_no_folder(folder: Path, tokenizer: Tokenizer) -> None:
    data = pickle.dumps(Tokenizer(folder, trained_languages=["en", "de"]))
    shutil.rmtree(folder)
    restored = pickle.loads(data)
    assert restored.languages == ("en", "de")
    for text in REAL:
        assert restored.encode(text, "de") == tokenizer.encode(text, "de")
        assert restored.decode(restored.encode(text, "de")) == tokenizer.decode(
            tokenizer.encode(text, "de")
        )


def encode_elsewhere(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(REAL[0], "ar")


def test_another_process_can_use_a_copy(tokenizer: Tokenizer) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(encode_elsewhere, tokenizer).result() == tokenizer.encode(REAL[0], "ar")


def test_many_threads_share_one_instance(tokenizer: Tokenizer) -> None:
    texts = list(sentences())[:500]

    def work(code: str) -> list[tuple[list[int], str]]:
        encoded = [tokenizer.encode(text, code) for text in texts]
        return [(ids, tokenizer.decode(ids)) for ids in encoded]

    codes = ["en", "de", "fr", "zh", "ru", "es", "ja", "ar"]
    with ThreadPoolExecutor(len(codes)) as pool:
        together = list(pool.map(work, codes))
    assert together == [work(code) for code in codes]


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
    for call in (tokenizer.language_id, lambda c: tokenizer.encode("text", c)):
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
    assert tokenizer.language_of(Tokenizer(MODEL).language_id("sv")) == "sv"


@pytest.mark.parametrize("ids", [[-1], [10_609], [5, 10**12], [1.5], ["5"], [None], 5, [[5, 6]]])
def test_ids_that_cannot_be_are_refused(tokenizer: Tokenizer, ids: Any) -> None:
    calls = (
        tokenizer.decode,
        tokenizer.ids_to_pieces,
        tokenizer.special_tokens_mask,
        lambda i: tokenizer.build_inputs(i, "en"),
    )
    for call in calls:
        with pytest.raises(InvalidInputError):
            call(ids)


def test_ids_may_be_numpy_or_a_generator(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("One sentence.", "en")
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(i for i in ids) == "One sentence."
    framed = tokenizer.build_inputs(np.array(ids[1:-1]), "en")
    assert framed == ids
    assert {type(i) for i in framed} == {int}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"language_codes": "nllb"}, "wmt21"),
        ({"language_codes": ""}, "wmt21"),
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
def test_a_file_that_is_missing_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}.*(missing|expected.*found)") as caught:
        Tokenizer(folder)
    assert str(folder) in str(caught.value)


def test_the_config_may_be_missing(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert Tokenizer(folder).encode(REAL[0], "ar") == tokenizer.encode(REAL[0], "ar")
    assert Tokenizer(folder).vocab_size == tokenizer.vocab_size


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
def test_a_broken_vocabulary_is_described(folder: Path, content: bytes, found: str) -> None:
    (folder / "vocab.json").write_bytes(content)
    with pytest.raises(BundleError, match=f"vocab.json.*expected.*{found}"):
        Tokenizer(folder)


@pytest.mark.parametrize("keep", [0, 7, 1_000, 5_540, 89_139, 120_000, 170_000])
def test_a_truncated_piece_model_is_refused(folder: Path, keep: int) -> None:
    path = folder / "sentencepiece.bpe.model"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"expected .*sentencepiece|sentencepiece.*expected"):
        Tokenizer(folder)


def test_files_of_two_checkpoints_are_refused(folder: Path, hostile: Tokenizer) -> None:
    hostile.save_vocabulary(folder, "other")
    shutil.move(folder / "other-sentencepiece.bpe.model", folder / "sentencepiece.bpe.model")
    with pytest.raises(BundleError, match=r"vocab.json: expected .* no piece, such as"):
        Tokenizer(folder)


def test_files_that_differ_by_a_few_pieces_are_accepted_as_the_reference_does(folder: Path) -> None:
    # The published 418M files are like this: some pieces of the model have no entry.
    vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
    kept = [piece for n, piece in enumerate(vocab) if n < 4 or n % 100]
    names = [*kept, "madeupword0000", "madeupword0001"]
    (folder / "vocab.json").write_text(json.dumps({p: n for n, p in enumerate(names)}), "utf-8")
    (folder / "tokenizer_config.json").unlink()
    reference, tokenizer = M2M100Tokenizer.from_pretrained(folder), Tokenizer(folder)
    texts = list(sentences())[:300]
    encoded = [tokenizer.encode(text, "en") for text in texts]
    assert encoded == [reference(text).input_ids for text in texts]
    assert sum(ids.count(tokenizer.unk_id) for ids in encoded) > 10
    half = {piece: n for n, piece in enumerate(names[: len(names) // 2])}
    (folder / "vocab.json").write_text(json.dumps(half), "utf-8")
    with pytest.raises(BundleError, match="pieces have no entry"):
        Tokenizer(folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tokenizer_class": "NllbTokenizer"}, "'M2M100Tokenizer', found 'NllbTokenizer'"),
        ({"language_codes": "nllb"}, "wmt21"),
        ({"num_madeup_words": "8"}, "0 or more"),
        ({"sp_model_kwargs": {"add_bos": True}}, "enable_sampling"),
        ({"eos_token": "<end>"}, "eos token '<end>'"),
        ({"unk_token": {"content": "s"}}, "unk token 's'"),
        ({"added_tokens_decoder": {"10601": {"content": "__tlh__", "special": True}}}, "__tlh__"),
        ({"added_tokens_decoder": {"7": {"content": "▁de", "special": False}}}, "▁de"),
        ({"added_tokens_decoder": {"10525": {"content": "__de__", "special": True}}}, "__de__"),
        ({"added_tokens_decoder": {"0": "<s>"}}, "with id 0"),
        ({"added_tokens_decoder": ["<s>"]}, "an object"),
    ],
)
def test_a_config_for_another_tokenizer_is_refused(
    folder: Path, changes: dict[str, Any], expected: str
) -> None:
    rewrite(folder / "tokenizer_config.json", **changes)
    with pytest.raises(BundleError, match=expected) as caught:
        Tokenizer(folder)
    assert str(folder) in str(caught.value)


def test_special_tokens_may_be_written_as_objects(folder: Path, tokenizer: Tokenizer) -> None:
    written = {"__type": "AddedToken", "content": "</s>", "lstrip": False}
    rewrite(folder / "tokenizer_config.json", eos_token=written, tokenizer_class=None)
    assert Tokenizer(folder).eos_id == tokenizer.eos_id
