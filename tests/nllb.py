"""Makes tokenizer files and checkpoints of NLLB-200 in little, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import M2M100Config, M2M100ForConditionalGeneration
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from checkpoints import randomise
from tokenization import sentences

PIECES = 3000
CODES = tuple(FAIRSEQ_LANGUAGE_CODES)


def write_files(
    folder: Path, codes: tuple[str, ...] = CODES, more: tuple[str, ...] = (), **config: Any
) -> int:
    """Writes files as transformers 4 saves them; returns the number of embedding rows.

    Args:
        folder: takes the files.
        codes: the languages.
        more: tokens of text that fine-tuning added.
        config: further settings of tokenizer_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences()]),
        model_prefix=str(folder / "sentencepiece.bpe"),
        model_type="bpe",
        vocab_size=PIECES,
        character_coverage=0.999,
        minloglevel=2,
    )
    (folder / "sentencepiece.bpe.vocab").unlink()
    start = PIECES + 1
    tokens = [*enumerate(["<s>", "<pad>", "</s>", "<unk>"])]
    tokens += [(start + n, code) for n, code in enumerate((*codes, "<mask>"))]
    decoder: dict[str, Any] = {
        str(index): {
            "content": token,
            "lstrip": token == "<mask>",
            "normalized": token == "<mask>",
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for index, token in tokens
    }
    start += len(codes) + 1
    for n, token in enumerate(more):
        decoder[str(start + n)] = {"content": token, "special": False, "normalized": False}
    settings = {
        "tokenizer_class": "NllbTokenizer",
        "additional_special_tokens": [*codes],
        "added_tokens_decoder": decoder,
        "mask_token": "<mask>",
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return start + len(more)


def make_checkpoint(folder: Path, **files: Any) -> Path:
    """Makes a tiny random checkpoint of NLLB's shape; `files` goes to `write_files`."""
    rows = write_files(folder, **files)
    torch.manual_seed(7)
    config = M2M100Config(
        vocab_size=rows,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=1024,
        init_std=0.3,
        max_length=200,
    )
    model = randomise(M2M100ForConditionalGeneration(config))
    model.save_pretrained(folder)
    generation = {"num_beams": 2, "max_length": 16, "decoder_start_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
