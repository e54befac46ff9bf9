"""`patience` against CTranslate2 4.8.5, whose translations are in tests/data/patience.json.gz.

They are those of the demo checkpoint in float32, from English to German, of the lines whose
translation depends on `patience`, and of some others:

    translate_batch(tokens, target_prefix=[["__de__"]] * len(tokens), beam_size=..., patience=...,
                    max_decoding_length=198, length_penalty=1)
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from m2m100_onnx import Translator
from translations import EN_DE

FILE = Path(__file__).resolve().parent.parent / "data" / "patience.json.gz"
EXPECTED = json.loads(gzip.decompress(FILE.read_bytes()))


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("beams", [2, 4])
def test_tokens_are_those_of_ctranslate2(
    translator: Translator, repository: Path, beams: int, patience: int
) -> None:
    text = (repository / "demo" / "heldout" / "test.en").read_text(encoding="utf-8")
    lines = text.rstrip("\n").split("\n")
    found = translator.translate_batch(
        [lines[n] for n in EXPECTED["lines"]],
        **EN_DE,
        beam_size=beams,
        patience=float(patience),
        early_stopping=True,
        length_penalty=1.0,
        max_length=200,
    )
    pieces = [translator.tokenizer.ids_to_pieces(translation.tokens[1:-1]) for translation in found]
    assert pieces == EXPECTED["pieces"][f"{beams} {patience}"]
    if patience > 1:
        assert pieces != EXPECTED["pieces"][f"{beams} 1"]
