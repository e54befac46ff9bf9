#!/usr/bin/env python3
"""Turns a training checkpoint into a Hugging Face folder with fp16 weights.

    export_checkpoint.py demo/build/ckpt/best.pt OUT --tokenizer demo/model

If --tokenizer has all tokenizer files (a checkpoint folder), they are copied. If it has only the
vocabulary (WORK/tok), they are made from it. At the end the folder is loaded again and checked.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from checkpoint import SHIPPED_HELD_OUT, Checkpoint, read_lines
from network import EMBEDDING, make_config
from safetensors.torch import load_file, save_file
from sources import DEFAULT_WORK
from transformers import GenerationConfig, M2M100Tokenizer
from vocabulary import BOS, EOS, PAD, SPM_FILE, VOCAB_FILE, Vocabulary

TOKENIZER_FILES = (
    VOCAB_FILE,
    SPM_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def write_tokenizer(source: Path, out: Path) -> None:
    """Copies a checkpoint's tokenizer files, or makes them from the vocabulary alone."""
    if (source / "tokenizer_config.json").exists():
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, out / name)
        return
    tokenizer = M2M100Tokenizer(
        str(source / VOCAB_FILE),
        str(source / SPM_FILE),
        src_lang="en",
        tgt_lang="de",
        # Without this, language tokens are not special tokens and appear in decoded text.
        additional_special_tokens=[f"__{code}__" for code in Vocabulary(source).lang_ids],
    )
    tokenizer.save_pretrained(str(out))
    # transformers 5 writes the language tokens under a key that transformers 4 rejects as a list.
    # Both versions read the older key.
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
        path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_config(shape: dict[str, Any], out: Path) -> None:
    """Writes config.json and generation_config.json."""
    config = make_config(shape)
    config.architectures = ["M2M100ForConditionalGeneration"]
    config.dtype = "float16"
    config.save_pretrained(str(out))
    GenerationConfig(
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        max_length=200,
        num_beams=5,
        early_stopping=True,
    ).save_pretrained(str(out))


def write_weights(state: dict[str, torch.Tensor], out: Path, dtype: torch.dtype) -> None:
    """Writes the weights under their transformers names; tied weights are stored once."""
    named = {EMBEDDING if name == "shared" else name: w.to(dtype) for name, w in state.items()}
    path = out / "model.safetensors"
    save_file(named, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable only by its owner


def check(state: dict[str, torch.Tensor], out: Path, lines: int, heldout: Path) -> None:
    """Loads the folder again and compares it with the fp32 weights.

    Raises:
        SystemExit: a stored weight is not the fp32 weight rounded to fp16, or not finite, or the
            model in the folder does not use it.
    """
    stored = load_file(out / "model.safetensors")
    loaded = Checkpoint(out)
    used = dict(loaded.model.named_parameters())
    largest = 0.0
    for name, weight in state.items():
        full_name = EMBEDDING if name == "shared" else name
        if not torch.equal(stored[full_name], weight.half()):
            raise SystemExit(f"{full_name}: not what the checkpoint holds")
        if not torch.isfinite(stored[full_name]).all():
            raise SystemExit(f"{full_name}: out of fp16's range")
        if not torch.equal(used[full_name].data, stored[full_name].float()):
            raise SystemExit(f"{full_name}: stored, but not what the model loads")
        largest = max(largest, (weight - stored[full_name].float()).abs().max().item())
    if loaded.model.lm_head.weight.data_ptr() != loaded.model.model.shared.weight.data_ptr():
        raise SystemExit("the output layer is not tied to the embedding")
    count = sum(weight.numel() for weight in state.values())
    print(f"{count} parameters; largest rounding error {largest:.1e}")

    texts = read_lines(heldout / "test.en", lines)
    from_fp16 = loaded.translate(texts, "en", "fr", 1)
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder)
        for path in out.iterdir():
            if path.name != "model.safetensors":
                shutil.copyfile(path, exact / path.name)
        write_weights(state, exact, torch.float32)
        from_fp32 = Checkpoint(exact).translate(texts, "en", "fr", 1)
    same = sum(a == b for a, b in zip(from_fp16, from_fp32, strict=True))
    print(f"greedy en-fr: {same} of {len(texts)} test lines as with the fp32 weights")


def main() -> None:
    """Exports a checkpoint and checks the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="best.pt or last.pt")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--tokenizer", type=Path, default=DEFAULT_WORK / "tok")
    parser.add_argument("--heldout", type=Path, default=SHIPPED_HELD_OUT)
    parser.add_argument("--check-lines", type=int, default=100, help="test lines to translate")
    parser.add_argument("--nice", type=int, default=10, help="give way to other programs, 0 to 19")
    args = parser.parse_args()
    os.nice(args.nice)
    torch.set_num_threads(1)
    saved = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    size = Vocabulary(args.tokenizer).size
    if saved["config"]["vocab_size"] != size:
        raise SystemExit(f"{args.tokenizer} has {size} tokens: not this checkpoint's tokenizer")
    args.out.mkdir(parents=True, exist_ok=True)
    write_config(saved["config"], args.out)
    write_weights(saved["model"], args.out, torch.float16)
    write_tokenizer(args.tokenizer, args.out)
    print(f"step {saved['step']}, dev loss {saved.get('dev', math.nan):.4f}, {args.out}")
    check(saved["model"], args.out, args.check_lines, args.heldout)


if __name__ == "__main__":
    main()
