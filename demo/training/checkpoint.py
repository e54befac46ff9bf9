"""Translation with a checkpoint folder, and the shipped held-out sets.

Knows how transformers translates; knows nothing of scores and training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import M2M100ForConditionalGeneration, M2M100Tokenizer
from transformers.utils import logging

SHIPPED_HELD_OUT = Path(__file__).resolve().parent.parent / "heldout"
BATCH_SIZE = 64


class Checkpoint:
    """A checkpoint folder, loaded in fp32 on the CPU.

    Args:
        folder: what export_checkpoint.py writes.
    """

    def __init__(self, folder: Path) -> None:
        # transformers warns that max_new_tokens overrides the checkpoint's max_length, as intended.
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self.tokenizer = M2M100Tokenizer.from_pretrained(str(folder))
        self.model = M2M100ForConditionalGeneration.from_pretrained(
            str(folder), dtype=torch.float32
        ).eval()

    def translate(
        self, texts: Sequence[str], source_lang: str, target_lang: str, beam_size: int
    ) -> list[str]:
        """Returns the translations, in the order of the texts."""
        self.tokenizer.src_lang = source_lang
        translations = [""] * len(texts)
        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(texts), BATCH_SIZE):
            chosen = by_length[start : start + BATCH_SIZE]
            inputs = self.tokenizer(
                [texts[index] for index in chosen], return_tensors="pt", padding=True
            )
            with torch.no_grad():
                tokens = self.model.generate(
                    **inputs,
                    forced_bos_token_id=self.tokenizer.get_lang_id(target_lang),
                    num_beams=beam_size,
                    # The checkpoint sets it, but greedy search cannot stop early.
                    early_stopping=beam_size > 1,
                    do_sample=False,
                    max_new_tokens=128,
                )
            decoded = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            for index, text in zip(chosen, decoded, strict=True):
                translations[index] = text
        return translations


def read_lines(path: Path, limit: int | None = None) -> list[str]:
    """Returns the lines of a held-out file, or the first `limit` of them."""
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")[:limit]
