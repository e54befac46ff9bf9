"""Measures export cost, memory and speed, and writes results/*.json; `report.py` makes the tables.

    python benchmarks/run.py WORK [--peers PYTHON] [--only export,memory,speed]

WORK holds the random-weight checkpoints and bundles (about 12 GB) and is filled as needed. PEERS is
the Python of an environment with transformers and ctranslate2. Run it on an idle machine: results
carry the load average they began with.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
REPETITIONS = 5
SOURCE_LENGTH, TARGET_TOKENS = 32, 48
PACKAGES = ("onnxruntime", "numpy", "torch", "transformers", "ctranslate2")


class Worker:
    """An engine in a process of its own."""

    def __init__(self, python: str, engine: str, folder: Path) -> None:
        self.process = subprocess.Popen(
            [python, str(HERE / "engines.py"), engine, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} died")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def worker(python: str, engine: str, folder: Path) -> Iterator[Worker]:
    """A worker that is gone afterwards."""
    found = Worker(python, engine, folder)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def versions(python: str) -> dict[str, str]:
    """What the environment of `python` has of the packages that matter."""
    code = (
        "import json, sys; from importlib import metadata as m\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: found[n] for n in sys.argv[1:] if n in found}))"
    )
    done = subprocess.run(
        [python, "-c", code, *PACKAGES], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


LOAD_AT_START = os.getloadavg()[0]


def machine() -> dict[str, Any]:
    """Processor and cores, and the load when the run began."""
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
    return {
        "processor": cpu,
        "cores": os.cpu_count(),
        "load_average": LOAD_AT_START,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def save(name: str, rows: Any, **more: Any) -> None:
    """Writes one result file."""
    RESULTS.mkdir(exist_ok=True)
    data = {"machine": machine(), **more, "rows": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


def checkpoint(work: Path, shape: str) -> Path:
    """The random-weight checkpoint of a shape, made if it is missing."""
    folder = work / f"checkpoint-{shape}"
    if not (folder / "model.safetensors").exists():
        subprocess.run(
            [sys.executable, str(HERE / "make_checkpoint.py"), shape, str(folder)], check=True
        )
    return folder


def bundle(work: Path, shape: str, precision: str) -> Path:
    """The exported bundle of a shape, made if it is missing."""
    folder = work / f"bundle-{shape}-{precision}"
    if not folder.exists():
        export_once(checkpoint(work, shape), folder, precision)
    return folder


def export_once(source: Path, folder: Path, precision: str) -> dict[str, float]:
    """Exports in a process of its own and says what it cost."""
    code = (
        "import json, resource, sys; from m2m100_onnx_export import export\n"
        "source, folder, precision = sys.argv[1:]\n"
        "done = export(source, folder, precision=precision, overwrite=True, verify_outputs=False)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "print(json.dumps({'seconds': done.seconds, 'peak': peak, 'weights': done.weight_bytes}))"
    )
    command = [sys.executable, "-c", code, str(source), str(folder), precision]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    found["process_seconds"] = time.perf_counter() - started
    found["bundle"] = sum(path.stat().st_size for path in folder.iterdir())
    return found


def measure_export(work: Path, shapes: list[str]) -> None:
    """Time, peak memory and size of exports."""
    rows = []
    for shape in shapes:
        source = checkpoint(work, shape)
        for precision in ("fp32", "fp16", "int8"):
            found = export_once(source, work / f"bundle-{shape}-{precision}", precision)
            size = (source / "model.safetensors").stat().st_size
            rows.append({"shape": shape, "precision": precision, "checkpoint": size, **found})
            print(rows[-1], flush=True)
    save("export", rows, versions={"ours": versions(sys.executable)})


def engines(work: Path, peers: str | None) -> dict[str, tuple[str, Path]]:
    """Every engine that can run here: its Python and its folder."""
    fp32 = bundle(work, "418M", "fp32")
    found = {
        "ours fp32": (sys.executable, fp32),
        "ours fp32 mapped": (sys.executable, fp32),
        "ours fp16": (sys.executable, bundle(work, "418M", "fp16")),
        "ours int8": (sys.executable, bundle(work, "418M", "int8")),
    }
    if peers:
        source = checkpoint(work, "418M")
        found["transformers fp32"] = (peers, source)
        for compute_type in ("float32", "int8"):
            folder = work / f"ctranslate2-{compute_type}"
            if not folder.exists():
                convert_for_ctranslate2(peers, source, folder, compute_type)
            found[f"ctranslate2 {compute_type}"] = (peers, folder)
    return found


def convert_for_ctranslate2(python: str, source: Path, folder: Path, compute_type: str) -> None:
    """Converts the checkpoint with CTranslate2's own converter."""
    command = [str(Path(python).with_name("ct2-transformers-converter")), "--model", str(source)]
    command += ["--output_dir", str(folder), "--quantization", compute_type]
    subprocess.run(command, check=True, capture_output=True)


def source_ids(batch_size: int) -> list[list[int]]:
    """Random sources of the fixed length: language token, pieces, `</s>`."""
    random_ids = random.Random(0)
    return [
        [10501, *(random_ids.randrange(4, 10000) for _ in range(SOURCE_LENGTH - 2)), 2]
        for _ in range(batch_size)
    ]


def measure_memory(found: dict[str, tuple[str, Path]]) -> None:
    """Load time and memory after a beam-5 translation, each engine in a fresh process."""
    rows = []
    for name, (python, folder) in found.items():
        with worker(python, name, folder) as engine:
            load = engine.ask(do="load")["seconds"]
            loaded = engine.ask(do="memory")
            request = {"source": source_ids(1), "beam_size": 5, "tokens": TARGET_TOKENS}
            engine.ask(do="translate", **request)
            used = engine.ask(do="memory")
        rows.append({"engine": name, "load": load, "loaded": loaded, "used": used})
        print(name, round(load, 2), {k: v // 2**20 for k, v in used.items()}, flush=True)
    save("memory", rows, versions=all_versions(found))


def measure_speed(found: dict[str, tuple[str, Path]], cells: list[tuple[int, int]]) -> None:
    """Seconds a batch, the engines in turn within each repetition, so that drift hits all alike.

    Cells that are not asked for stay as the last run left them.
    """
    path = RESULTS / "speed.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in before if (row["batch_size"], row["beam_size"]) not in cells]
    # On a CPU an fp16 bundle is widened and only slower; mapped weights are for memory.
    names = [name for name in found if name not in ("ours fp16", "ours fp32 mapped")]
    workers = {name: Worker(found[name][0], name, found[name][1]) for name in names}
    try:
        for engine in workers.values():
            engine.ask(do="load")
        for batch_size, beam_size in cells:
            request = {"source": source_ids(batch_size), "beam_size": beam_size}
            request["tokens"] = TARGET_TOKENS
            taken: dict[str, list[float]] = {name: [] for name in names}
            for repetition in range(REPETITIONS + 1):
                for name, engine in workers.items():
                    answer = engine.ask(do="translate", **request)
                    assert answer["tokens"] == TARGET_TOKENS, (name, answer)
                    if repetition:
                        taken[name].append(answer["seconds"])
            base = taken["ours fp32"]
            for name in names:
                ratios = [a / b for a, b in zip(taken[name], base, strict=True)]
                row = {"engine": name, "batch_size": batch_size, "beam_size": beam_size}
                rows.append({**row, "seconds": spread(taken[name]), "ratio": spread(ratios)})
                print(rows[-1], flush=True)
    finally:
        for engine in workers.values():
            engine.process.kill()
    rows.sort(key=lambda row: (row["batch_size"], row["beam_size"]))
    settings = {"source_length": SOURCE_LENGTH, "target_tokens": TARGET_TOKENS}
    save("speed", rows, versions=all_versions(found), settings=settings, repetitions=REPETITIONS)


def all_versions(found: dict[str, tuple[str, Path]]) -> dict[str, dict[str, str]]:
    """Package versions of each environment that takes part."""
    ours = metadata.version("m2m100-onnx")
    table = {"ours": {"m2m100-onnx": ours, **versions(sys.executable)}}
    for python, _ in found.values():
        if python != sys.executable:
            table["peers"] = versions(python)
    return table


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peers", help="python of the environment with the peers")
    parser.add_argument("--only", default="export,memory,speed")
    parser.add_argument("--cells", default="1x1,1x5,8x1,8x5", help="batch and beam sizes")
    parser.add_argument("--shapes", default="418M", help="shapes to export, such as 418M,1.2B")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    arguments.work.mkdir(parents=True, exist_ok=True)
    if "export" in parts:
        measure_export(arguments.work, arguments.shapes.split(","))
    if {"memory", "speed"} & set(parts):
        found = engines(arguments.work, arguments.peers)
        if "memory" in parts:
            measure_memory(found)
        if "speed" in parts:
            cells = [tuple(map(int, cell.split("x"))) for cell in arguments.cells.split(",")]
            measure_speed(found, cells)


if __name__ == "__main__":
    main()
