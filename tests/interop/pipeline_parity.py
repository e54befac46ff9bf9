"""Compares our pipeline with that of transformers 4.57; run in an environment that has both.

python tests/interop/pipeline_parity.py CHECKPOINT BUNDLE HELDOUT [LINES]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers

import m2m100_onnx

PAIRS = (("en", "de"), ("de", "en"), ("zh", "en"), ("en", "ru"), ("fr", "es"))
CALLS: tuple[dict[str, Any], ...] = (
    {},
    {"num_beams": 1},
    {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 20},
    {"num_beams": 2, "length_penalty": 0.5, "no_repeat_ngram_size": 2, "max_length": 40},
)


def main(checkpoint: str, bundle: str, heldout: str, lines: int) -> None:
    """Compares the results of whole calls, and exits with 1 where one differs."""
    # In float32, theirs depends on the batch where two logits are 6e-6 apart: test.fr, line 53.
    options: dict[str, Any] = {"model": checkpoint, "device": -1, "dtype": torch.float64}
    theirs = transformers.pipeline("translation", **options)
    ours = m2m100_onnx.pipeline("translation", model=bundle, device=-1)
    compared = differing = 0
    for source, target in PAIRS:
        file = Path(heldout) / f"test.{source}"
        texts = file.read_text(encoding="utf-8").splitlines()[:lines]
        for call in CALLS:
            languages = {"src_lang": source, "tgt_lang": target}
            wanted = theirs(texts, batch_size=16, **languages, **call)
            found = ours(texts, batch_size=16, **languages, **call)
            pairs = list(zip(found, wanted, strict=True))
            wrong = [pair for pair in pairs if pair[0] != pair[1]]
            compared, differing = compared + len(pairs), differing + len(wrong)
            for pair in wrong[:3]:
                print(source, target, call, *pair, sep="\n    ")
    text = "Open the file."
    languages = {"src_lang": "en", "tgt_lang": "fr"}
    for call in ({}, {"num_return_sequences": 2, "num_beams": 2}):
        assert ours(text, **languages, **call) == theirs(text, **languages, **call)
        several = ours([text, "Quit"], **languages, **call)
        assert several == theirs([text, "Quit"], **languages, **call)
    found, wanted = (
        list(each((one for one in (text, "Quit")), **languages)) for each in (ours, theirs)
    )
    assert found == wanted
    named = m2m100_onnx.pipeline("translation_en_to_fr", model=bundle)
    assert named(text) == transformers.pipeline("translation_en_to_fr", **options)(text)
    version = transformers.__version__
    print(f"{compared - differing} of {compared} results equal transformers {version}'s")
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]) if len(sys.argv) > 4 else 1000)
