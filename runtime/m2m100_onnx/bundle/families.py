"""The families of M2M100 checkpoints: one row a family.

Knows each family's language codes, the spelling of its language tokens and the places of control
tokens in a sequence. Refuses to know ids, files and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["DEFAULT_FAMILY", "FAMILIES", "Family", "first_position"]


@dataclass(frozen=True)
class Family:
    """The facts in which families differ.

    Attributes:
        languages: the language codes, in the order of their token ids.
        language_token: the spelling of a language's token, with `{}` for its code.
        madeup_words: embedding rows after the language tokens that no token uses, where
            tokenizer_config.json does not give their number.
        source_frame: what the encoder reads, in order. `text` stands for the pieces of the text,
            the other names for one token each.
        prompt: the decoder's first tokens, in order; the search continues after them.
    """

    languages: tuple[str, ...]
    language_token: str = "__{}__"
    madeup_words: int = 8
    source_frame: tuple[Literal["source_lang", "text", "eos"], ...] = ("source_lang", "text", "eos")
    prompt: tuple[Literal["decoder_start", "target_lang"], ...] = ("decoder_start", "target_lang")


_M2M100: Final = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu "
    "ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr "
    "ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk "
    "ur uz vi wo xh yi yo zh zu"
)

DEFAULT_FAMILY: Final = "m2m100"
"""The family of a checkpoint whose tokenizer_config.json names none."""

FAMILIES: Final[Mapping[str, Family]] = {
    "m2m100": Family(tuple(_M2M100.split())),
    "wmt21": Family(("en", "ha", "is", "ja", "cs", "ru", "zh", "de")),
}
"""Each family under the name that tokenizer_config.json gives it as `language_codes`."""


def first_position(pad_token_id: int) -> int:
    """Returns the row of the position table that a sequence's first token reads.

    All families have the same sinusoidal table, and the rows before this one belong to no token.
    Source: `create_position_ids_from_input_ids` in transformers' `modeling_m2m_100.py`.
    """
    return pad_token_id + 1
