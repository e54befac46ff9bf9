"""The families of M2M100 checkpoints: one row a family.

Knows each family's language codes, the spelling of its language tokens and the places of control
tokens in a sequence. Refuses to know ids, files and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["FAMILIES", "Family", "first_position"]


@dataclass(frozen=True)
class Family:
    """The facts in which families differ.

    Attributes:
        languages: the language codes that have a token where a checkpoint's files name none, in the
            order of their ids.
        language_codes: transformers' name of that list.
        tokenizer_classes: the classes of transformers' tokenizers that read this family.
        language_token: the spelling of a language's token, with `{}` for its code.
        madeup_words: embedding rows after the language tokens that no token uses, where
            tokenizer_config.json does not give their number.
        source_frame: what the encoder reads, in order. `text` stands for the pieces of the text,
            the other names for one token each.
        prompt: the decoder's first tokens, in order; the search continues after them.
    """

    languages: tuple[str, ...]
    language_codes: str = "m2m100"
    tokenizer_classes: tuple[str, ...] = ("M2M100Tokenizer",)
    language_token: str = "__{}__"
    madeup_words: int = 8
    source_frame: tuple[Literal["source_lang", "target_lang", "text", "eos"], ...] = (
        "source_lang",
        "text",
        "eos",
    )
    prompt: tuple[Literal["decoder_start", "target_lang"], ...] = ("decoder_start", "target_lang")


_M2M100: Final = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu "
    "ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr "
    "ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk "
    "ur uz vi wo xh yi yo zh zu"
)

FAMILIES: Final[Mapping[str, Family]] = {
    "m2m100": Family(tuple(_M2M100.split())),
    "wmt21": Family(("en", "ha", "is", "ja", "cs", "ru", "zh", "de"), language_codes="wmt21"),
    # Its encoder reads the target language, and its decoder starts with no language at all. Its own
    # tokenizer is code beside the checkpoint, which may also come with M2M100's.
    "small100": Family(
        tuple(_M2M100.split()),
        tokenizer_classes=("SMALL100Tokenizer", "Small100Tokenizer", "M2M100Tokenizer"),
        source_frame=("target_lang", "text", "eos"),
        prompt=("decoder_start",),
    ),
}
"""Each family by name. Of families that share their files, the first is the one they stand for."""


def first_position(pad_token_id: int) -> int:
    """Returns the row of the position table that a sequence's first token reads.

    All families have the same sinusoidal table, and the rows before this one belong to no token.
    Source: `create_position_ids_from_input_ids` in transformers' `modeling_m2m_100.py`.
    """
    return pad_token_id + 1
