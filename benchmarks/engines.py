"""The engines that are measured; `python engines.py ENGINE` serves one.

An engine opens a folder with `{"do": "load", "folder": ..., "threads": n or null}` and translates
batches of token ids with `{"do": "translate", "options": {"beam_size": n, "tokens": n}, ...}`; see
`m2m100_onnx.cli.benchmark.worker`, whose loop answers. Timed is the decoding to exactly `tokens`
tokens a sentence; tokenization is not. `threads` is for all of an engine's work. Without it ours
chooses, and the others use every core.

An environment of other engines has no m2m100_onnx installed: PYTHONPATH names `runtime`, and this
file imports what an engine needs when it opens.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m2m100_onnx.cli.benchmark.worker import GIVEN_TOKENS, Open, Translate, serve

START, LANGUAGE = 2, 10501

Ids = list[list[int]]


def ours(**options: Any) -> Open:
    """Returns this project's runtime without its tokenizer; the options go to `Translator`."""

    def open_model(folder: str, threads: int | None) -> Translate:
        from m2m100_onnx import Translator

        translator = Translator(folder, intra_op_num_threads=threads, **options)

        def translate(source: Ids, beam_size: int, tokens: int) -> int:
            import numpy as np

            from m2m100_onnx.engine.batches import Batch
            from m2m100_onnx.engine.stopping import Stop
            from m2m100_onnx.options import SearchOptions

            ids = np.array(source, np.int64)
            prompt = np.array([[START, LANGUAGE]] * len(ids), np.int64)
            length = tokens + GIVEN_TOKENS
            search = SearchOptions(beam_size=beam_size, max_length=length, min_length=length)
            batch = Batch(ids, np.ones_like(ids), prompt)
            found = translator.generator.run(batch, search, Stop())
            return sum(len(sentence[0].tokens) - GIVEN_TOKENS for sentence in found if sentence)

        return translate

    return open_model


def generate(open_generator: Callable[[str, int], Any], device: str = "cpu") -> Open:
    """Returns transformers' `generate`, on its own model or on Optimum's."""

    def open_model(folder: str, threads: int | None) -> Translate:
        import torch

        model = open_generator(folder, threads or os.cpu_count() or 1)

        def translate(source: Ids, beam_size: int, tokens: int) -> int:
            ids = torch.tensor(source).to(device)
            with torch.inference_mode():
                found = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    forced_bos_token_id=LANGUAGE,
                    num_beams=beam_size,
                    do_sample=False,
                    max_length=tokens + GIVEN_TOKENS,
                    min_length=tokens + GIVEN_TOKENS,
                    early_stopping=False,
                )
            return sum(len(row) - GIVEN_TOKENS for row in found)

        return translate

    return open_model


def pytorch(dtype: str) -> Callable[[str, int], Any]:
    """Returns what opens the checkpoint as transformers' own model."""

    def open_generator(folder: str, threads: int) -> Any:
        import torch
        from transformers import M2M100ForConditionalGeneration

        torch.set_num_threads(threads)
        return M2M100ForConditionalGeneration.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        ).eval()

    return open_generator


def optimum(folder: str, threads: int) -> Any:
    """Opens the portable graphs of OUR bundle, which have Optimum's names, with Optimum."""
    import onnxruntime
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return ORTModelForSeq2SeqLM.from_pretrained(folder, session_options=options)


def openvino(folder: str, threads: int) -> Any:
    """Opens a model that optimum-intel has converted, tuned for one call at a time."""
    from optimum.intel import OVModelForSeq2SeqLM

    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(threads)}
    # With beams, keys and values of eight bits at times gave NaN, or equal sentences other scores.
    config["KV_CACHE_PRECISION"] = "f32"
    return OVModelForSeq2SeqLM.from_pretrained(folder, ov_config=config)


def ctranslate2(compute_type: str, device: str = "cpu") -> Open:
    """Returns CTranslate2's Translator on a converted model.

    `workers` translate parts of a batch side by side, each with `threads`. Parts have at most
    `max_batch_size` sentences; 0 leaves the batch whole.
    """

    def open_model(folder: str, threads: int | None, workers: int = 1) -> Translate:
        import ctranslate2

        translator = ctranslate2.Translator(
            folder,
            device=device,
            compute_type=compute_type,
            inter_threads=workers,
            intra_threads=threads or os.cpu_count() or 1,
        )
        vocabulary = json.loads((Path(folder) / "shared_vocabulary.json").read_text())

        def translate(source: Ids, beam_size: int, tokens: int, max_batch_size: int = 0) -> int:
            found = translator.translate_batch(
                [[vocabulary[i] for i in row] for row in source],
                target_prefix=[[vocabulary[LANGUAGE]]] * len(source),
                beam_size=beam_size,
                # The language token counts.
                max_decoding_length=tokens + 1,
                min_decoding_length=tokens + 1,
                max_batch_size=max_batch_size,
            )
            return sum(len(row.hypotheses[0]) - 1 for row in found)

        return translate

    return open_model


# As they are by default: int8 and four bits with the weights cache, in the folder that
# M2M100_ONNX_CACHE names, fp32 without it.
ENGINES: dict[str, Open] = {
    "ours int8": ours(),
    "ours int4": ours(),
    "ours int4-int8": ours(),
    "ours int8 without kernels": ours(kernels=False),
    "ours int4 without kernels": ours(kernels=False),
    "ours fp32": ours(cache_dir=False),
    "ours fp32 mapped": ours(cache_dir=False, session_options={"session.disable_prepacking": "1"}),
    "ours fp16": ours(cache_dir=False),
    "ctranslate2 int8": ctranslate2("int8"),
    "ctranslate2 float32": ctranslate2("float32"),
    "transformers fp32": generate(pytorch("float32")),
    "transformers bf16": generate(pytorch("bfloat16")),
    "optimum fp32": generate(optimum),
    "optimum int8": generate(optimum),
    "openvino int8": generate(openvino),
}


if __name__ == "__main__":
    serve(ENGINES[sys.argv[1]])
