"""Tests that Optimum opens our bundle and produces our tokens.

    PYTHONPATH=tests python tests/interop/optimum_bundle.py BUNDLE

Run it in the environment of Optimum, which pins an older transformers. So this file imports nothing
of ours except the reader of the golden data.
"""

from __future__ import annotations

import sys
from pathlib import Path

from optimum.onnxruntime import ORTModelForSeq2SeqLM
from transformers import M2M100Tokenizer

import golden


def main() -> None:
    """Compares greedy and beam translations with the golden translations."""
    bundle = Path(sys.argv[1])
    tokenizer = M2M100Tokenizer.from_pretrained(bundle)
    model = ORTModelForSeq2SeqLM.from_pretrained(bundle, use_cache=True, use_merged=False)
    expected = golden.load_golden()
    compared = 0
    for case in golden.whole_cases():
        source, target = case.direction.split("-")
        if case.options["beam_size"] not in (1, 5) or case.direction not in ("en-de", "zh-de"):
            continue
        tokenizer.src_lang = source
        inputs = tokenizer(case.texts()[:40], return_tensors="pt", padding=True)
        options = {"max_length": 200, **case.options}
        beam_size = options.pop("beam_size")
        found = model.generate(
            **inputs,
            forced_bos_token_id=tokenizer.get_lang_id(target),
            num_beams=beam_size,
            **options,
        )
        pad = tokenizer.pad_token_id
        for row, wanted in zip(found.tolist(), expected[case.key], strict=False):
            tokens = [t for t in row if t != pad]
            assert tokens == wanted[0][0], f"{case.key}: found {tokens}, expected {wanted[0][0]}"
            compared += 1
    assert compared == 160, compared
    print(f"Optimum opened {bundle} and gave the same tokens for {compared} translations")


if __name__ == "__main__":
    main()
