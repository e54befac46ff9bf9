"""Diverse beam search as transformers up to 4.55 had it, and the making of its results.

    pip install 'transformers<4.56'
    python tests/diverse_golden.py      writes tests/data/diverse.json.gz

Later versions have no groups of beams of their own, so the tests compare with this file.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "demo" / "model"
GOLDEN = ROOT / "tests" / "data" / "diverse.json.gz"
DIRECTIONS = ("en-de", "ru-en", "de-fr")
SETTINGS: tuple[dict[str, Any], ...] = (
    {"beam_size": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "early_stopping": True},
    {"beam_size": 6, "num_beam_groups": 3, "diversity_penalty": 1.5, "early_stopping": False},
    {"beam_size": 4, "num_beam_groups": 4, "diversity_penalty": 2.0, "early_stopping": "never"},
    {
        "beam_size": 6,
        "num_beam_groups": 2,
        "diversity_penalty": 1.0,
        "early_stopping": True,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "length_penalty": 2.0,
    },
    {
        "beam_size": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 3.0,
        "early_stopping": False,
        "max_length": 8,
        "min_length": 6,
    },
)
MAX_LENGTH = 40


def texts(direction: str) -> list[str]:
    """Returns every sixteenth sentence of the test set."""
    language = direction.split("-")[0]
    path = ROOT / "demo" / "heldout" / f"test.{language}"
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")[::16]


def _write() -> None:
    import torch
    from transformers import M2M100ForConditionalGeneration, M2M100Tokenizer

    tokenizer = M2M100Tokenizer.from_pretrained(CHECKPOINT)
    model = M2M100ForConditionalGeneration.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)
    model.eval()
    found = []
    for settings in SETTINGS:
        theirs = {"max_length": MAX_LENGTH, **settings}
        theirs["num_beams"] = beams = theirs.pop("beam_size")
        for direction in DIRECTIONS:
            tokenizer.src_lang, target = direction.split("-")
            inputs = tokenizer(texts(direction), return_tensors="pt", padding=True)
            with torch.inference_mode():
                out = model.generate(
                    **inputs,
                    forced_bos_token_id=tokenizer.get_lang_id(target),
                    num_return_sequences=beams,
                    return_dict_in_generate=True,
                    output_scores=True,
                    **theirs,
                )
            pad = model.config.pad_token_id
            rows = [[t for t in row if t != pad] for row in out.sequences.tolist()]
            scores = [round(score, 5) for score in out.sequences_scores.tolist()]
            found.append({"tokens": rows, "scores": scores})
            print(direction, settings, flush=True)
    GOLDEN.write_bytes(gzip.compress(json.dumps(found).encode(), mtime=0))


if __name__ == "__main__":
    _write()
