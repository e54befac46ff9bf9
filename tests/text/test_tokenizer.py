"""The tokenizer against the M2M100Tokenizer of transformers 5, and where it differs on purpose."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from transformers import M2M100Tokenizer

from m2m100_onnx.bundle.families import FAMILIES
from m2m100_onnx.errors import UnknownLanguageError
from m2m100_onnx.text.tokenizer import Tokenizer
from tokenization import MODEL, REAL, rewrite, sentences

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


def random_texts(count: int = 60) -> Iterator[str]:
    rng = random.Random(0)
    for low, high in SCRIPTS.values():
        for _ in range(count):
            letters = (chr(rng.randint(low, high)) for _ in range(rng.randint(1, 60)))
            yield "".join(" " if rng.random() < 0.15 else letter for letter in letters)


TEXTS = (*REAL, *AWKWARD, *random_texts())


# --- the same ids and text as transformers -------------------------------------------------------


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


def test_every_language_frames_source_and_prompt_as_the_reference(
    tokenizer: Tokenizer, reference: M2M100Tokenizer
) -> None:
    text = "One sentence, in any language."
    for code in tokenizer.all_languages:
        assert tokenizer.language_id(code) == reference.get_lang_id(code)
        reference.src_lang = code
        assert tokenizer.encode(text, code) == reference(text).input_ids
        # `generate` starts with decoder_start_token_id and forces the language's token next.
        assert tokenizer.build_prompt(code, 17) == [17, reference.get_lang_id(code)]
    assert tokenizer.languages == tokenizer.all_languages


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


def test_the_wmt21_family_equals_the_reference(tokenizer_folder: Path) -> None:
    (tokenizer_folder / "tokenizer_config.json").unlink()
    reference = M2M100Tokenizer.from_pretrained(tokenizer_folder, language_codes="wmt21")
    (tokenizer_folder / "tokenizer_config.json").write_text('{"language_codes": "wmt21"}')
    tokenizer = Tokenizer(tokenizer_folder, num_madeup_words=0)
    assert tokenizer.family == "wmt21"
    for code in FAMILIES["wmt21"].languages:
        reference.src_lang = code
        assert tokenizer.encode("Guten Tag.", code) == reference("Guten Tag.").input_ids
        assert tokenizer.build_prompt(code, 2) == [2, reference.get_lang_id(code)]
    assert tokenizer.vocab_size == 10_501 + 8
    with pytest.raises(UnknownLanguageError):
        tokenizer.language_id("fr")


@pytest.mark.parametrize("clean", [True, False])
def test_clean_up_of_spaces_follows_the_file(tokenizer_folder: Path, clean: bool) -> None:
    rewrite(tokenizer_folder / "tokenizer_config.json", clean_up_tokenization_spaces=clean)
    reference, tokenizer = (
        M2M100Tokenizer.from_pretrained(tokenizer_folder),
        Tokenizer(tokenizer_folder),
    )
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
    tokenizer_folder: Path, tokenizer: Tokenizer
) -> None:
    text = "International cooperation is possible."
    assert len({tuple(tokenizer.encode(text, "en")) for _ in range(30)}) == 1
    kwargs = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    rewrite(tokenizer_folder / "tokenizer_config.json", sp_model_kwargs=kwargs)
    assert len({tuple(Tokenizer(tokenizer_folder).encode(text, "en")) for _ in range(30)}) > 1
    off = Tokenizer(tokenizer_folder, sp_model_kwargs={})
    assert off.encode(text, "en") == tokenizer.encode(text, "en")


# --- sharing -------------------------------------------------------------------------------------


def test_a_pickled_copy_needs_no_folder(tokenizer_folder: Path, tokenizer: Tokenizer) -> None:
    data = pickle.dumps(Tokenizer(tokenizer_folder, trained_languages=["en", "de"]))
    shutil.rmtree(tokenizer_folder)
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
