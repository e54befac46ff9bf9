"""An XLM checkpoint: its config, its tokenizer's files, and the parameters that its tensors become.

Knows transformers' names of XLM's tensors. Refuses to know graphs and the formats of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from m2m100_onnx.bundle.config import CONFIG_FILE
from m2m100_onnx.bundle.language_config import LanguageModelConfig
from m2m100_onnx.bundle.language_model import XLM_TOKENIZER_FILES
from m2m100_onnx.errors import BundleError
from m2m100_onnx_export.parameters import Parameter, embedding, linear, norm, stored
from m2m100_onnx_export.tensors import Source, Tensors

__all__ = ["XLMCheckpoint"]

_PREFIX = "transformer."
_BARE = (
    *("embeddings.", "position_embeddings.", "lang_embeddings.", "layer_norm_emb."),
    *("attentions.", "layer_norm1.", "ffns.", "layer_norm2."),
)
_EMBEDDING = "transformer.embeddings.weight"
_POSITIONS = "transformer.position_embeddings.weight"
_HEAD, _HEAD_BIAS = "pred_layer.proj.weight", "pred_layer.proj.bias"
_LAYER = re.compile(r"transformer\.(attentions|layer_norm1|ffns|layer_norm2)\.(\d+)\.")
# Old versions of transformers saved this buffer of 0, 1, 2, ...
_BUFFER = "transformer.position_ids"
_NEEDED_FILES = ("vocab.json", "merges.txt")


class XLMCheckpoint(Tensors):
    """An XLM checkpoint, which reads a tensor when it is asked for.

    Attributes:
        config: the facts of config.json.
    """

    def __init__(self, source: Source, *, causal: bool | None = None) -> None:
        """Reads the config, and names and shapes of the tensors.

        Args:
            source: where the checkpoint lies.
            causal: whether a token sees earlier tokens alone; None takes what config.json says.

        Raises:
            BundleError: the checkpoint has another architecture, or is broken.
        """
        super().__init__(source.directory, prefix=_PREFIX, bare=_BARE)
        config = LanguageModelConfig.from_json(source.directory / CONFIG_FILE)
        config = replace(config, has_head=not self.is_bare)
        self.config = config if causal is None else replace(config, causal=causal)

    def tokenizer_files(self) -> list[Path]:
        """Returns the tokenizer's files.

        Raises:
            BundleError: vocab.json or merges.txt is missing.
        """
        for name in _NEEDED_FILES:
            if not (self.directory / name).is_file():
                raise BundleError(
                    f"{self.directory / name} is missing; XLM's tokenizer needs "
                    f"{' and '.join(_NEEDED_FILES)}"
                )
        return [p for name in XLM_TOKENIZER_FILES if (p := self.directory / name).is_file()]

    def parameters(self) -> list[Parameter]:
        """Returns every parameter of the model, under the names of the graphs.

        Raises:
            BundleError: a tensor is missing, is not known, or has another shape than config.json
                says.
        """
        config, width = self.config, self.config.d_model
        size = (config.vocab_size, width)
        found = [embedding(self, "shared.weight", _EMBEDDING, size), self._positions()]
        if config.languages:
            found.append(self._languages())
        found += norm(self, "layer_norm_emb", f"{_PREFIX}layer_norm_emb", width)
        for index in range(config.layers):
            found += self._layer(index)
        self._check_all_read()
        if config.has_head:
            if _HEAD in self and not self.equal(_EMBEDDING, _HEAD):
                found.append(embedding(self, "lm_head.weight", _HEAD, size))
            found.append(stored(self, "lm_head.bias", _HEAD_BIAS, (config.vocab_size,)))
        return found

    def _layer(self, index: int) -> list[Parameter]:
        width, layer = self.config.d_model, f"layers.{index}"
        attention, ffn = f"{_PREFIX}attentions.{index}", f"{_PREFIX}ffns.{index}"
        joined = [f"{attention}.{part}_lin" for part in "qkv"]
        wide = 4 * width  # Source: `XLMModel.hidden_dim`.
        return [
            *linear(self, f"{layer}.self_attn.qkv", joined, width, width),
            *linear(self, f"{layer}.self_attn.out_proj", [f"{attention}.out_lin"], width, width),
            *linear(self, f"{layer}.fc1", [f"{ffn}.lin1"], width, wide),
            *linear(self, f"{layer}.fc2", [f"{ffn}.lin2"], wide, width),
            *norm(self, f"{layer}.self_attn_layer_norm", f"{_PREFIX}layer_norm1.{index}", width),
            *norm(self, f"{layer}.final_layer_norm", f"{_PREFIX}layer_norm2.{index}", width),
        ]

    def _positions(self) -> Parameter:
        shape = (self.config.max_position_embeddings, self.config.d_model)
        if _POSITIONS in self or not self.config.sinusoidal_embeddings:
            return stored(self, "positions.weight", _POSITIONS, shape)
        return Parameter("positions.weight", shape, lambda: iter([_sinusoidal(*shape)]))

    def _languages(self) -> Parameter:
        """Returns the language embedding, with a row of zeros at the end, for no language."""
        count, width = self.config.languages, self.config.d_model
        name = f"{_PREFIX}lang_embeddings.weight"
        table = stored(self, "languages.weight", name, (count, width))

        def chunks() -> Iterator[torch.Tensor]:
            yield from table.chunks()
            yield torch.zeros(1, width)

        return replace(table, shape=(count + 1, width), chunks=chunks)

    def _check_all_read(self) -> None:
        """Raises `BundleError` if there is a tensor that the graphs lack."""
        left = [name for name in self.unread() if name not in (_HEAD, _HEAD_BIAS, _BUFFER)]
        unknown = [name for name in left if not self._is_beyond(name)]
        if unknown:
            raise BundleError(
                f"{self.directory}: expected the tensors of XLMModel or XLMWithLMHeadModel, found "
                f"{len(unknown)} others, such as {', '.join(unknown[:3])}"
            )

    def _is_beyond(self, name: str) -> bool:
        match = _LAYER.match(name)
        return match is not None and int(match[2]) >= self.config.layers


def _sinusoidal(count: int, width: int) -> torch.Tensor:
    """Returns the position table `(count, width)`, sines and cosines in turns.

    Source: section 3.5 of "Attention Is All You Need", as `create_sinusoidal_embeddings` of
    transformers' `modeling_xlm.py` computes it.
    """
    rate = 10000.0 ** -(2 * (torch.arange(width, dtype=torch.float64) // 2) / width)
    angle = torch.arange(count, dtype=torch.float64).unsqueeze(1) * rate
    table = torch.empty(count, width)
    table[:, 0::2] = torch.sin(angle[:, 0::2])
    table[:, 1::2] = torch.cos(angle[:, 1::2])
    return table
