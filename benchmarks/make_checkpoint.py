"""Makes a checkpoint of a real M2M100's shape with random weights, for speed and memory alone.

Weights are written tensor by tensor, so the 1.2B shape needs little memory. The tokenizer has as
many pieces as the published one, since it is a large part of what a process loads and holds, and
merges pairs (BPE) like that one. The demo checkpoint's pieces come first; the others are pairs of
them.

    python benchmarks/make_checkpoint.py 418M OUTPUT
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sentencepiece import sentencepiece_model_pb2

DEMO = Path(__file__).resolve().parent.parent / "demo" / "model"
VOCABULARY = 128_112
# d_model, layers on each side, feed-forward width, heads: as facebook/m2m100_418M and _1.2B.
SHAPES = {"418M": (1024, 12, 4096, 16), "1.2B": (1024, 24, 8192, 16)}
# vocab.json's entries; 100 language tokens and 8 made-up words make it VOCABULARY.
ENTRIES = 128_004
CONTROL = ("<s>", "<pad>", "</s>", "<unk>")
LONGEST_PIECE = 16


def tensors(width: int, layers: int, ffn: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the name and the shape of every parameter."""
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


def values(name: str, shape: tuple[int, ...], numbers: np.random.Generator) -> np.ndarray:
    """Returns numbers of the size that an untrained model starts with."""
    if len(shape) == 1:
        return np.full(shape, float(name.endswith("norm.weight")), np.float32)
    scale = shape[1] ** -0.5 if name == "model.shared.weight" else (2 / sum(shape)) ** 0.5
    return numbers.standard_normal(shape, np.float32) * np.float32(scale)


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
    numbers = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors(width, layers, ffn):
            file.write(values(name, shape, numbers).data)


def write_tokenizer(output: Path) -> None:
    """Writes the tokenizer's files: ENTRIES entries, in an order unlike SentencePiece's."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((DEMO / "sentencepiece.bpe.model").read_bytes())
    model.trainer_spec.model_type = model.trainer_spec.BPE
    chance = random.Random(0)
    normal = [entry.piece for entry in model.pieces if entry.type == entry.NORMAL]
    seen, pieces = {entry.piece for entry in model.pieces}, [*normal]
    while len(pieces) < ENTRIES - len(CONTROL):
        piece = chance.choice(normal) + chance.choice(normal).lstrip("▁")
        if piece not in seen and len(piece) <= LONGEST_PIECE:
            seen.add(piece)
            pieces.append(piece)
            model.pieces.add(piece=piece)
    for rank, entry in enumerate(model.pieces):
        entry.score = -rank  # the earlier, the sooner merged
    (output / "sentencepiece.bpe.model").write_bytes(model.SerializeToString())
    chance.shuffle(pieces)
    vocabulary = {piece: index for index, piece in enumerate([*CONTROL, *pieces])}
    (output / "vocab.json").write_text(json.dumps(vocabulary, indent=2), encoding="ascii")
    config = json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("added_tokens_decoder", None)
    config["num_madeup_words"] = 8
    (output / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def make(shape: str, output: Path, seed: int = 0) -> None:
    """Makes the checkpoint folder."""
    width, layers, ffn, heads = SHAPES[shape]
    output.mkdir(parents=True, exist_ok=True)
    write_tokenizer(output)
    shutil.copyfile(DEMO / "generation_config.json", output / "generation_config.json")
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
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.shape, arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
