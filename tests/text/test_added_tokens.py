"""Tokens that the files add or declare: the ids are transformers', or the files are refused."""

from __future__ import annotations

import json
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
    "new": ({ADDED: {"<br>": 10609}}, ADDED, "<br>"),
    "new-at-the-end": ({ADDED: {"<br>": 10601}}, ADDED, "<br>"),
    "one-of-many": ({ADDED: {"__en__": 10519, "{name}": 10610}}, ADDED, "{name}"),
    "a-piece": ({ADDED: {"▁file": None}}, ADDED, "▁file"),
    "another-id": ({ADDED: {"__en__": 10520}}, ADDED, "__en__"),
    "no-id": ({ADDED: {"__en__": "10519"}}, ADDED, "__en__"),
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
}


@pytest.mark.parametrize("name", REFUSED)
def test_tokens_that_would_be_lost_are_refused(tokenizer_folder: Path, name: str) -> None:
    files, file, token = REFUSED[name]
    if name == "a-piece":
        index = json.loads((tokenizer_folder / "vocab.json").read_text("utf-8"))[token]
        files = {ADDED: {token: index}}
    write(tokenizer_folder, {CONFIG: PLAIN, **files})
    with pytest.raises(BundleError) as caught:
        Tokenizer(tokenizer_folder)
    assert str(caught.value).startswith(f"{tokenizer_folder / file}: ")
    assert repr(token) in str(caught.value)


@pytest.mark.parametrize("name", ["new", "a-piece", "mask", "additional"])
def test_what_is_refused_changes_ids(tokenizer_folder: Path, name: str) -> None:
    """Transformers reads the same files, and finds the token in a text."""
    files, _, token = REFUSED[name]
    if name == "a-piece":
        index = json.loads((tokenizer_folder / "vocab.json").read_text("utf-8"))[token]
        files = {ADDED: {token: index}}
    write(tokenizer_folder, {CONFIG: PLAIN})
    plain = Tokenizer(tokenizer_folder)
    write(tokenizer_folder, files)
    text = f"Open {token}file"
    reference = M2M100Tokenizer.from_pretrained(tokenizer_folder, src_lang="en")
    assert reference(text).input_ids != plain.encode(text, "en")


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
