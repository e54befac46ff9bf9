"""The engines that are measured, behind one small protocol; each runs in a process of its own.

    python benchmarks/engines.py ENGINE FOLDER [THREADS]

reads one JSON request a line on stdin and answers one JSON line on stdout:

    {"do": "load"}                    -> {"seconds": ...}
    {"do": "translate", "source": [[ids]], "beam_size": n, "tokens": n}
                                      -> {"seconds": ..., "tokens": n}
    {"do": "memory"}                  -> {"resident": bytes, "private": bytes, ...}

Timed is the decoding of token ids to exactly `tokens` tokens a sentence; tokenization is not.
THREADS is for all of the engine's work; without it ours chooses, and the others use every core.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

START, LANGUAGE = 2, 10501


class Engine(Protocol):
    """One way to run a model."""

    def load(self, folder: Path, threads: int | None) -> None:
        """Opens the model."""

    def translate(self, source: list[list[int]], beam_size: int, tokens: int) -> int:
        """Decodes exactly `tokens` tokens a sentence after the language token."""


class Ours:
    """This project's runtime; whether it keeps packed graphs is said by its options."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def load(self, folder: Path, threads: int | None) -> None:
        """Opens the bundle."""
        from m2m100_onnx import Translator

        self.translator = Translator(folder, intra_op_num_threads=threads, **self.options)

    def translate(self, source: list[list[int]], beam_size: int, tokens: int) -> int:
        """Runs the model and the search, without the tokenizer."""
        import numpy as np

        from m2m100_onnx.decoding import SearchOptions

        ids = np.array(source, np.int64)
        prompt = np.array([[START, LANGUAGE]] * len(ids), np.int64)
        length = tokens + 2
        options = SearchOptions(beam_size=beam_size, max_length=length, min_length=length)
        found = self.translator.generator.generate(ids, np.ones_like(ids), prompt, options)
        return len(found[0][0].tokens) - 2


def pytorch(dtype: str) -> Callable[[Path, int], Any]:
    """Opens the checkpoint as transformers' own model."""

    def open_model(folder: Path, threads: int) -> Any:
        import torch
        from transformers import M2M100ForConditionalGeneration

        torch.set_num_threads(threads)
        return M2M100ForConditionalGeneration.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        ).eval()

    return open_model


def optimum(folder: Path, threads: int) -> Any:
    """Opens the portable graphs of OUR bundle, which have Optimum's names, with Optimum."""
    import onnxruntime
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return ORTModelForSeq2SeqLM.from_pretrained(folder, session_options=options)


class Generate:
    """transformers' `generate`, on its own model or on Optimum's."""

    def __init__(self, open_model: Callable[[Path, int], Any]) -> None:
        self.open_model = open_model

    def load(self, folder: Path, threads: int | None) -> None:
        """Opens the model."""
        import torch

        self.torch = torch
        self.model = self.open_model(folder, threads or os.cpu_count() or 1)

    def translate(self, source: list[list[int]], beam_size: int, tokens: int) -> int:
        """Calls `generate` with the length fixed."""
        ids = self.torch.tensor(source)
        with self.torch.inference_mode():
            found = self.model.generate(
                ids,
                attention_mask=self.torch.ones_like(ids),
                forced_bos_token_id=LANGUAGE,
                num_beams=beam_size,
                do_sample=False,
                max_length=tokens + 2,
                min_length=tokens + 2,
                early_stopping=False,
            )
        return len(found[0]) - 2


class CTranslate2:
    """CTranslate2's Translator on a converted model."""

    def __init__(self, compute_type: str) -> None:
        self.compute_type = compute_type

    def load(self, folder: Path, threads: int | None) -> None:
        """Opens the converted model."""
        import ctranslate2

        self.translator = ctranslate2.Translator(
            str(folder),
            device="cpu",
            compute_type=self.compute_type,
            intra_threads=threads or os.cpu_count() or 1,
        )
        self.vocabulary = json.loads((folder / "shared_vocabulary.json").read_text())

    def translate(self, source: list[list[int]], beam_size: int, tokens: int) -> int:
        """Translates pieces with the length fixed."""
        pieces = [[self.vocabulary[i] for i in row] for row in source]
        prefix = [[self.vocabulary[LANGUAGE]]] * len(pieces)
        # The language token counts towards CTranslate2's decoding length.
        found = self.translator.translate_batch(
            pieces,
            target_prefix=prefix,
            beam_size=beam_size,
            max_decoding_length=tokens + 1,
            min_decoding_length=tokens + 1,
            max_batch_size=0,
        )
        return len(found[0].hypotheses[0]) - 1


# As they are by default: int8 and four bits with the packed cache, in the folder that
# M2M100_ONNX_CACHE names, fp32 without it.
ENGINES: dict[str, Callable[[], Engine]] = {
    "ours int8": lambda: Ours(),
    "ours int4": lambda: Ours(),
    "ours int4-int8": lambda: Ours(),
    "ours fp32": lambda: Ours(cache_dir=False),
    "ours fp32 mapped": lambda: Ours(
        cache_dir=False, session_options={"session.disable_prepacking": "1"}
    ),
    "ours fp16": lambda: Ours(cache_dir=False),
    "ctranslate2 int8": lambda: CTranslate2("int8"),
    "ctranslate2 float32": lambda: CTranslate2("float32"),
    "transformers fp32": lambda: Generate(pytorch("float32")),
    "transformers bf16": lambda: Generate(pytorch("bfloat16")),
    "optimum fp32": lambda: Generate(optimum),
    "optimum int8": lambda: Generate(optimum),
}


def memory(process: int | str = "self") -> dict[str, int]:
    """Bytes of a process by kind; `private` is what no process that it did not fork could share.

    Pages of a mapped file count as `mapped` and once in `resident`; the page cache holds them and
    gives them back under pressure.
    """
    found: dict[str, int] = {}
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
        name, number, *_ = line.split()
        found[name.rstrip(":")] = int(number) * 1024
    status = Path(f"/proc/{process}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "resident": found["Rss"],
        "proportional": found["Pss"],
        "private": found["Anonymous"],
        "mapped": found["Rss"] - found["Anonymous"],
        "peak": int(peak.split()[1]) * 1024,
    }


def main() -> None:
    """Answers requests until stdin ends."""
    engine = ENGINES[sys.argv[1]]()
    answers = sys.stdout
    # A library that prints would break the protocol.
    sys.stdout = sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        answer: dict[str, Any] = {}
        if request["do"] == "load":
            engine.load(Path(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else None)
        elif request["do"] == "translate":
            source, beam_size = request["source"], request["beam_size"]
            answer["tokens"] = engine.translate(source, beam_size, request["tokens"])
        answer["seconds"] = time.perf_counter() - started
        if request["do"] == "memory":
            answer = memory()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
