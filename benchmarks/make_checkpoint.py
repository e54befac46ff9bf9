"""Makes a checkpoint of a real M2M100's shape with random weights, for speed and memory alone.

Weights are written tensor by tensor, so the 1.2B shape needs little memory. The tokenizer is the
demo checkpoint's, padded to the real vocabulary with made-up words.

    python benchmarks/make_checkpoint.py 418M OUTPUT
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DEMO = Path(__file__).resolve().parent.parent / "demo" / "model"
VOCABULARY = 128_112
# d_model, layers on each side, feed-forward width, heads: as facebook/m2m100_418M and _1.2B.
SHAPES = {"418M": (1024, 12, 4096, 16), "1.2B": (1024, 24, 8192, 16)}
LANGUAGE_CODES = 100


def tensors(width: int, layers: int, ffn: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter's name and shape."""
    yield "model.shared.weight", (VOCABULARY, width)
    for side in ("encoder", "decoder"):
        attentions = ("self_attn",) if side == "encoder" else ("self_attn", "encoder_attn")
        for index in range(layers):
            layer = f"model.{side}.layers.{index}"
            for attention in attentions:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    yield f"{layer}.{attention}.{part}.weight", (width, width)
                    yield f"{layer}.{attention}.{part}.bias", (width,)
            yield f"{layer}.fc1.weight", (ffn, width)
            yield f"{layer}.fc1.bias", (ffn,)
            yield f"{layer}.fc2.weight", (width, ffn)
            yield f"{layer}.fc2.bias", (width,)
            for norm in (*(f"{a}_layer_norm" for a in attentions), "final_layer_norm"):
                yield f"{layer}.{norm}.weight", (width,)
                yield f"{layer}.{norm}.bias", (width,)
        yield f"model.{side}.layer_norm.weight", (width,)
        yield f"model.{side}.layer_norm.bias", (width,)


def values(name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Numbers of the size an untrained model starts with."""
    if len(shape) == 1:
        return np.full(shape, float(name.endswith("norm.weight")), np.float32)
    scale = shape[1] ** -0.5 if name == "model.shared.weight" else (2 / sum(shape)) ** 0.5
    return random.standard_normal(shape, np.float32) * np.float32(scale)


def write_safetensors(path: Path, width: int, layers: int, ffn: int, seed: int) -> None:
    """Writes the file in one pass: a JSON header of offsets, then the numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors(width, layers, ffn):
        size = 4 * int(np.prod(shape))
        span = [offset, offset + size]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": span}
        offset += size
    text = json.dumps(header).encode()
    random = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors(width, layers, ffn):
            file.write(values(name, shape, random).data)


def make(shape: str, output: Path, seed: int = 0) -> None:
    """Makes the checkpoint folder."""
    width, layers, ffn, heads = SHAPES[shape]
    output.mkdir(parents=True, exist_ok=True)
    for name in ("vocab.json", "sentencepiece.bpe.model", "generation_config.json"):
        shutil.copyfile(DEMO / name, output / name)
    pieces = len(json.loads((output / "vocab.json").read_text(encoding="utf-8")))
    tokenizer = json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer["num_madeup_words"] = VOCABULARY - pieces - LANGUAGE_CODES
    (output / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=1))
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    config.update(vocab_size=VOCABULARY, d_model=width, max_position_embeddings=1024)
    config.update(num_hidden_layers=layers, dtype="float32")
    for side in ("encoder", "decoder"):
        config[f"{side}_layers"] = layers
        config[f"{side}_ffn_dim"] = ffn
        config[f"{side}_attention_heads"] = heads
    (output / "config.json").write_text(json.dumps(config, indent=1))
    write_safetensors(output / "model.safetensors", width, layers, ffn, seed)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.shape, arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
