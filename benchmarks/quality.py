"""Measures what each precision costs in translation quality, and writes results/quality.json.

    python benchmarks/quality.py WORK [--peers PYTHON] [--lines N] [--precisions fp32,int8,...]

Translates the demo model's held-out test set in all directions. Compares each precision, and
CTranslate2 if PEERS is given, with our fp32: the loss of chrF, and the share of sentences that stay
the same. WORK gets the exported bundles, which replace older ones. Takes half an hour on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sacrebleu

from m2m100_onnx import Translator
from m2m100_onnx.bundle.graphs import PRECISIONS
from suite import RESULTS, all_versions, convert_for_ctranslate2, export_once, save

DEMO = Path(__file__).resolve().parent.parent / "demo"
PIVOTS = ("de", "fr", "es", "ru", "zh")
DIRECTIONS = (
    *(direction for code in PIVOTS for direction in (f"en-{code}", f"{code}-en")),
    *("de-fr", "ru-es", "zh-de"),
)
# Runs in the peers' environment: ids in, ids out, between the converted model's pieces.
_CTRANSLATE2 = """
import ctranslate2, json, sys
folder, compute_type, beam_size = sys.argv[1:]
vocabulary = json.load(open(folder + "/shared_vocabulary.json"))
translator = ctranslate2.Translator(folder, compute_type=compute_type, intra_threads=1)
for line in sys.stdin:
    request = json.loads(line)
    found = translator.translate_batch(
        [[vocabulary[i] for i in row] for row in request["source"]],
        target_prefix=[[vocabulary[request["language"]]]] * len(request["source"]),
        beam_size=int(beam_size), max_decoding_length=request["length"], max_batch_size=32,
    )
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    print(json.dumps([[ids[p] for p in row.hypotheses[0]] for row in found]), flush=True)
"""

Translate = Callable[[list[str], str, str], list[str]]


def ours(bundle: Path, beam_size: int) -> Translate:
    """Returns this project's runtime on a bundle."""
    # The model is so small that a second thread costs more than it brings.
    translator = Translator(bundle, intra_op_num_threads=1)
    return lambda texts, source, target: translator.translate(
        texts, source_lang=source, target_lang=target, beam_size=beam_size
    )


def ctranslate2(python: str, model: Path, bundle: Path, compute: str, beam_size: int) -> Translate:
    """Returns CTranslate2 on a converted model, between our tokenizer's encoding and decoding."""
    tokenizer = Translator(bundle, intra_op_num_threads=1).tokenizer
    command = [python, "-c", _CTRANSLATE2, str(model), compute, str(beam_size)]

    def translate(texts: list[str], source: str, target: str) -> list[str]:
        rows = [tokenizer.encode(text, source) for text in texts]
        # M2M100's max_length of 200 counts the start token.
        request = {"source": rows, "language": tokenizer.language_id(target), "length": 199}
        given = json.dumps(request)
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
        return [tokenizer.decode(row) for row in json.loads(done.stdout)]

    return translate


def score(
    engine: str, translate: Translate, texts: dict[str, list[str]], base: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """Returns a row a direction; `base` keeps the first engine's translations."""
    rows = []
    for direction in DIRECTIONS:
        source, target = direction.split("-")
        found = translate(texts[source], source, target)
        reference = [texts[target]]
        before = base.setdefault(direction, found)
        chrf, chrf_before = (sacrebleu.corpus_chrf(h, reference).score for h in (found, before))
        same = sum(a == b for a, b in zip(found, before, strict=True)) / len(found)
        row = {"chrf": chrf, "lost": chrf_before - chrf, "identical": same}
        rows.append({"engine": engine, "direction": direction, **row})
        print(engine, direction, {k: round(v, 3) for k, v in row.items()}, flush=True)
    return rows


def summary(rows: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """Returns the means over an engine's directions, and its largest loss."""
    mean = {k: sum(row[k] for row in rows) / len(rows) for k in ("chrf", "lost", "identical")}
    most = max(row["lost"] for row in rows)
    return {"engine": rows[0]["engine"], **mean, "most_lost": most, "bytes": size}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peers", help="python of the environment with ctranslate2")
    parser.add_argument("--precisions", default=",".join(p for p in PRECISIONS if p != "fp16"))
    parser.add_argument("--lines", type=int, help="only the first lines (default: all)")
    parser.add_argument("--beam-size", type=int, default=5)
    arguments = parser.parse_args()
    load_average = os.getloadavg()[0]
    precisions = arguments.precisions.split(",")
    if precisions[0] != "fp32":
        parser.error("--precisions: expected fp32 first, which the others are compared with")
    texts = {
        code: text.rstrip("\n").split("\n")[: arguments.lines]
        for code in ("en", *PIVOTS)
        for text in [(DEMO / "heldout" / f"test.{code}").read_text("utf-8")]
    }
    model = DEMO / "model"
    base: dict[str, list[str]] = {}
    rows: list[dict[str, Any]] = []
    summaries = []

    def measure(engine: str, translate: Translate, weights: Path) -> None:
        found = score(engine, translate, texts, base)
        rows.extend(found)
        summaries.append(summary(found, weights.stat().st_size))
        print(summaries[-1], flush=True)

    arguments.work.mkdir(parents=True, exist_ok=True)
    bundles = {p: arguments.work / f"quality-{p}" for p in precisions}
    for precision, bundle in bundles.items():
        export_once(model, bundle, precision)
        engine = ours(bundle, arguments.beam_size)
        measure(f"ours {precision}", engine, bundle / "model.onnx_data")
    if arguments.peers:
        for compute in ("float32", "int8"):
            folder = arguments.work / f"quality-ctranslate2-{compute}"
            shutil.rmtree(folder, ignore_errors=True)
            convert_for_ctranslate2(arguments.peers, model, folder, compute)
            engine = ctranslate2(
                arguments.peers, folder, bundles["fp32"], compute, arguments.beam_size
            )
            measure(f"ctranslate2 {compute}", engine, folder / "model.bin")
    settings = {
        "lines": len(texts["en"]),
        "beam_size": arguments.beam_size,
        "checkpoint": hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest(),
    }
    versions = all_versions(arguments.peers)
    versions["ours"]["sacrebleu"] = sacrebleu.__version__
    more = {"summary": summaries, "settings": settings, "versions": versions}
    save(RESULTS / "quality.json", rows, load_average, **more)


if __name__ == "__main__":
    sys.exit(main())
