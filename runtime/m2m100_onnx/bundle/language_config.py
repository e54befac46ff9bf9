"""The facts of an XLM checkpoint's config.json, under one name each.

Knows XLM's names in config.json. Refuses to know graphs and tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2m100_onnx.bundle.config import kinds_of, read_facts, read_json
from m2m100_onnx.errors import BundleError

__all__ = ["LanguageModelConfig"]

# transformers' `attribute_map` and XLM's own names of the same facts.
_ALIASES = {
    "vocab_size": ("n_words",),
    "d_model": ("emb_dim", "hidden_size"),
    "layers": ("n_layers", "num_hidden_layers"),
    "heads": ("n_heads", "num_attention_heads"),
    "bos_token_id": ("bos_index",),
    "eos_token_id": ("eos_index",),
    "pad_token_id": ("pad_index",),
}


@dataclass(frozen=True)
class LanguageModelConfig:
    """The facts of an XLM checkpoint's config.json that graphs and scores depend on.

    Attributes:
        vocab_size: V, the number of tokens.
        d_model: D, the width.
        layers: the number of layers.
        heads: attention heads of a layer.
        max_position_embeddings: the most tokens of a text, control tokens included.
        languages: rows of the language embedding; 0 where the model has none.
        causal: whether a token sees earlier tokens alone.
        sinusoidal_embeddings: whether positions were set rather than learned; their table is in
            the checkpoint in either case.
        gelu_activation: GELU, or else ReLU.
        layer_norm_eps: the epsilon of every layer normalization.
        bos_token_id: the token before a text.
        eos_token_id: the token after a text.
        pad_token_id: the token of padding.
        unk_index: the token of what the vocabulary lacks.
        mask_index: the token that stands for a masked one.
        has_head: whether there is an LM head, which a checkpoint of `XLMModel` lacks.
    """

    vocab_size: int
    d_model: int
    layers: int
    heads: int
    max_position_embeddings: int = 512
    languages: int = 0
    causal: bool = False
    sinusoidal_embeddings: bool = False
    gelu_activation: bool = True
    layer_norm_eps: float = 1e-12
    bos_token_id: int = 0
    eos_token_id: int = 1
    pad_token_id: int = 2
    unk_index: int = 3
    mask_index: int = 5
    has_head: bool = True

    @classmethod
    def from_json(cls, path: Path) -> LanguageModelConfig:
        """Reads config.json.

        Raises:
            BundleError: the file is missing or broken, or describes another architecture, an
                adaptive softmax, or a decoder, which transformers has no code for.
        """
        raw = read_json(path)
        if raw.get("model_type") != "xlm":
            raise BundleError(
                f"{path}: expected model_type 'xlm', found {raw.get('model_type')!r}: "
                "this is a checkpoint of another architecture"
            )
        if raw.get("asm"):
            raise BundleError(f"{path}: expected a linear LM head, found asm, an adaptive softmax")
        if raw.get("is_encoder") is False:
            raise BundleError(
                f"{path}: expected is_encoder true, found false: transformers runs no such XLM"
            )
        given = {**raw, **_renamed(raw)}
        # transformers has embeddings for two languages and more.
        count = read_facts(path, given, _LANGUAGES)
        uses = count["use_lang_emb"] and count["n_langs"] > 1
        given["languages"] = count["n_langs"] if uses else 0
        given.setdefault("has_head", "XLMModel" not in (raw.get("architectures") or []))
        config = cls(**read_facts(path, given, kinds_of(cls)))
        if config.heads < 1 or config.d_model % config.heads:
            raise BundleError(
                f"{path}: expected emb_dim to be a multiple of n_heads, "
                f"found {config.d_model} and {config.heads}"
            )
        return config

    @property
    def activation_function(self) -> str:
        """The activation function, under transformers' name."""
        return "gelu" if self.gelu_activation else "relu"

    @property
    def can_generate(self) -> bool:
        """Whether there are graphs with a cache: the model is causal and has an LM head."""
        return self.causal and self.has_head


_LANGUAGES: dict[str, tuple[type, Any]] = {"n_langs": (int, 1), "use_lang_emb": (bool, True)}


def _renamed(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {ours: raw[name] for ours, names in _ALIASES.items() for name in names if name in raw}
