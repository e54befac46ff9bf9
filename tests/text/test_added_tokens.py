"""Tokens that the files add or declare: their ids are transformers', in files and in texts."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import M2M100Tokenizer

from m2m100_onnx.errors import BundleError
from m2m100_onnx.text.tokenizer import Tokenizer
from tokenization import REAL

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
PLAIN = {"tokenizer_class": "M2M100Tokenizer"}


def write(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), "utf-8")


def language_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    return {f"__{code}__": tokenizer.language_id(code) for code in tokenizer.languages}


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no-integer": ({ADDED: {"__en__": "10519"}}, ADDED, "__en__"),
    "negative": ({ADDED: {"<br>": -1}}, ADDED, "<br>"),
    "another-id": ({ADDED: {"__en__": 10520}}, ADDED, "__en__"),
    "the-id-of-a-piece": ({ADDED: {"<br>": 500}}, ADDED, "<br>"),
    "the-id-of-a-language": ({ADDED: {"<br>": 10519}}, ADDED, "<br>"),
    "one-id-for-two": ({ADDED: {"<br>": 10609, "{name}": 10609}}, ADDED, "{name}"),
    "additional": ({SPECIAL: {"additional_special_tokens": ["<sep>"]}}, CONFIG, "<sep>"),
    "additional-object": (
        {CONFIG: {**PLAIN, "additional_special_tokens": [{"content": "<sep>"}]}},
        CONFIG,
        "<sep>",
    ),
    "extra": ({CONFIG: {**PLAIN, "extra_special_tokens": {"image": "<image>"}}}, CONFIG, "<image>"),
    "mask": ({CONFIG: {**PLAIN, "mask_token": "<mask>"}}, CONFIG, "<mask>"),
    "mask-in-the-map": ({SPECIAL: {"mask_token": {"content": "<mask>"}}}, CONFIG, "<mask>"),
    "end-in-the-map": ({SPECIAL: {"eos_token": "<end>"}}, "vocab.json", "<end>"),
    "no-content": ({CONFIG: {**PLAIN, "added_tokens_decoder": {"10609": {}}}}, CONFIG, "10609"),
    "no-bool": (
        {CONFIG: {**PLAIN, "added_tokens_decoder": {"10609": {"content": "<a>", "lstrip": 1}}}},
        CONFIG,
        "<a>",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tokens_without_an_id_of_their_own_are_refused(tokenizer_folder: Path, name: str) -> None:
    files, file, token = REFUSED[name]
    write(tokenizer_folder, {CONFIG: PLAIN, **files})
    with pytest.raises(BundleError) as caught:
        Tokenizer(tokenizer_folder)
    assert str(caught.value).startswith(f"{tokenizer_folder / file}: ")
    assert token in str(caught.value)


def test_a_token_without_an_embedding_row_is_refused(tokenizer_folder: Path) -> None:
    write(tokenizer_folder, {CONFIG: PLAIN, ADDED: {"__tyv__": 10609}})
    assert Tokenizer(tokenizer_folder, embedding_rows=10610).language_id("tyv") == 10609
    with pytest.raises(BundleError, match="found 10609 rows and token '__tyv__' with id 10609"):
        Tokenizer(tokenizer_folder, embedding_rows=10609)


# Tokens that overlap, touch blanks and words, and lie inside each other.
TOKENS = {
    "<br>": {},
    "{name}": {"special": True},
    "{name} ": {"rstrip": True},
    "[L]": {"lstrip": True},
    "[R]": {"rstrip": True, "normalized": True},
    "[LR]": {"lstrip": True, "rstrip": True, "special": True},
    "word": {"single_word": True},
    "wordy": {"single_word": True, "lstrip": True, "rstrip": True},
    "<b": {},
    "▁file": {},
    "é": {},
}


@pytest.fixture
def with_tokens(tokenizer_folder: Path) -> Path:
    """Tokenizer files with `TOKENS`; one of them is a piece and keeps its id."""
    vocabulary = json.loads((tokenizer_folder / "vocab.json").read_text("utf-8"))
    ids = {token: vocabulary.get(token, 10609 + n) for n, token in enumerate(TOKENS)}
    entries = {str(ids[token]): {"content": token, **flags} for token, flags in TOKENS.items()}
    extra = [token for token, flags in TOKENS.items() if flags.get("special")]
    config = {**PLAIN, "added_tokens_decoder": entries, "additional_special_tokens": extra}
    write(tokenizer_folder, {CONFIG: config})
    return tokenizer_folder


def test_added_tokens_in_text_have_the_ids_of_transformers(with_tokens: Path) -> None:
    ours = Tokenizer(with_tokens)
    reference = M2M100Tokenizer.from_pretrained(with_tokens, src_lang="en")
    chance = random.Random(0)
    parts = [
        *TOKENS,
        *TOKENS,
        " ",
        "  ",
        "a",
        "words",
        "file",
        ".",
        "\t",
        "Open the",
        "\u2003",
        "好",
    ]
    for _ in range(3000):
        text = "".join(chance.choices(parts, k=chance.randint(1, 7)))
        ids = reference(text).input_ids
        assert ours.encode(text, "en") == ids, text
        assert ours.decode(ids[1:-1]) == reference.decode(ids[1:-1], skip_special_tokens=True), text
    assert pickle.loads(pickle.dumps(ours)).encode("a<br>b", "en") == ours.encode("a<br>b", "en")


def test_added_tokens_are_no_part_of_the_vocabulary_table(with_tokens: Path) -> None:
    slow = Tokenizer(with_tokens)
    slow.write_table()
    entries = json.loads((with_tokens / "vocab.json").read_text("utf-8"))
    (with_tokens / "added_tokens.json").write_text("{}")
    fast = Tokenizer(with_tokens)
    names = fast.ids_to_pieces(range(fast.vocab_size))
    assert names == slow.ids_to_pieces(range(slow.vocab_size))
    assert all(names[index] == entry for entry, index in entries.items())


@pytest.mark.parametrize("special", [True, False])
def test_text_never_becomes_an_added_language_or_role(
    tokenizer_folder: Path, special: bool
) -> None:
    entries = {
        "10609": {"content": "__tyv__", "special": special},
        "10610": {"content": "<mask>", "special": special},
        "10611": {"content": "__name__", "special": False},
    }
    config = {**PLAIN, "added_tokens_decoder": entries, "mask_token": "<mask>"}
    write(tokenizer_folder, {CONFIG: config})
    ours = Tokenizer(tokenizer_folder)
    found = ours.encode("__tyv__ <mask> __name__ __en__ </s>", "tyv")
    assert found[0] == 10609
    assert not {10609, 10610, ours.language_id("en"), ours.eos_id} & set(found[1:-1])
    assert 10611 in found
    assert ours.all_languages[-1] == "tyv"
    assert ours.languages == ours.all_languages
    assert ours.decode([10609, *ours.encode("Open", "tyv"), 10611]) == "Open__name__"


def test_languages_and_made_up_words_inside_the_vocabulary(tokenizer_folder: Path) -> None:
    """A new language of vocab.json has its id; a listed one has transformers' id."""
    path = tokenizer_folder / "vocab.json"
    entries = json.loads(path.read_text("utf-8"))
    size = len(entries)
    more = [*(f"madeupword{n:04}" for n in range(700)), "__tyv__", "__en__"]
    write(
        tokenizer_folder,
        {
            "vocab.json": {**entries, **{name: size + n for n, name in enumerate(more)}},
            CONFIG: {**PLAIN, "additional_special_tokens": ["__tyv__"]},
        },
    )
    ours = Tokenizer(tokenizer_folder)
    reference = M2M100Tokenizer.from_pretrained(tokenizer_folder, src_lang="en")
    assert ours.language_id("tyv") == reference.convert_tokens_to_ids("__tyv__") == size + 700
    assert ours.language_id("en") == reference.get_lang_id("en")
    for text in REAL:
        assert ours.encode(text, "en") == reference(text).input_ids


def test_a_trimmed_vocabulary(tokenizer_folder: Path) -> None:
    """Pieces without an entry become unknown, as in transformers."""
    path = tokenizer_folder / "vocab.json"
    entries = json.loads(path.read_text("utf-8"))
    kept = sorted(entries, key=lambda entry: entries[entry])[: len(entries) // 2]
    write(tokenizer_folder, {"vocab.json": {name: n for n, name in enumerate(kept)}, CONFIG: PLAIN})
    ours = Tokenizer(tokenizer_folder)
    reference = M2M100Tokenizer.from_pretrained(tokenizer_folder, src_lang="en")
    for text in REAL:
        assert ours.encode(text, "en") == reference(text).input_ids


def test_what_older_versions_wrote_is_read_as_the_reference_does(
    tokenizer_folder: Path, tokenizer: Tokenizer
) -> None:
    """Before 4.34, three files had what tokenizer_config.json has alone since."""
    languages = language_tokens(tokenizer)
    special = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "sep_token": "</s>"}
    files = {
        CONFIG: {**PLAIN, "add_bos_token": True, "src_lang": None, "mask_token": None},
        SPECIAL: {**special, "additional_special_tokens": [*languages]},
        ADDED: {**languages, "</s>": 2},
    }
    write(tokenizer_folder, files)
    ours = Tokenizer(tokenizer_folder)
    reference = M2M100Tokenizer.from_pretrained(tokenizer_folder, src_lang="zu")
    for text in REAL:
        ids = ours.encode(text, "zu")
        assert ids == tokenizer.encode(text, "zu") == reference(text).input_ids
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_files_that_transformers_ignores_are_ignored(
    tokenizer_folder: Path, tokenizer: Tokenizer
) -> None:
    """Where tokenizer_config.json lists the added tokens, the older files are left from before."""
    write(tokenizer_folder, {ADDED: {"<br>": 10609}, SPECIAL: {"eos_token": "<end>"}})
    reference = M2M100Tokenizer.from_pretrained(tokenizer_folder, src_lang="en")
    text = "Open<br>file"
    ids = Tokenizer(tokenizer_folder).encode(text, "en")
    assert ids == tokenizer.encode(text, "en") == reference(text).input_ids


@pytest.mark.parametrize("name", [CONFIG, SPECIAL, ADDED])
def test_a_broken_file_is_named(tokenizer_folder: Path, name: str) -> None:
    write(tokenizer_folder, {CONFIG: PLAIN})
    (tokenizer_folder / name).write_text("[")
    with pytest.raises(BundleError, match=rf"^{tokenizer_folder / name}: expected a JSON object"):
        Tokenizer(tokenizer_folder)
