"""What every part of the benchmark stands on: engines in processes, their models, and results."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import m2m100_onnx
import m2m100_onnx_export
from m2m100_onnx.benchmark import environment

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = ("onnxruntime", "numpy", "torch", "transformers", "ctranslate2", "optimum-onnx")
# Engine to the precision of the bundle it opens.
BUNDLES = {
    "ours int8": "int8",
    "ours int4": "int4",
    "ours int4-int8": "int4-int8",
    "ours fp32": "fp32",
    "ours fp32 mapped": "fp32",
    "ours fp16": "fp16",
    "optimum fp32": "fp32",
    "optimum int8": "int8",
}
# Engine to CTranslate2's compute type.
CONVERTED = {"ctranslate2 int8": "int8", "ctranslate2 float32": "float32"}
QUANTIZED = ("ours int8", "ours int4", "ours int4-int8", "ctranslate2 int8")
CORE = (*QUANTIZED, "ours fp32")
# A call of these takes up to half a minute, so they are repeated less often.
SLOW = (
    "ctranslate2 float32",
    "transformers fp32",
    "transformers bf16",
    "optimum fp32",
    "optimum int8",
)
SLOW_REPETITIONS = 2
# Of the runtime, only its contract with the exporter shapes a bundle.
CONTRACT = ("bundle.py", "config.py", "signatures.py")
LOAD_AT_START = os.getloadavg()[0]

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One thing to translate: a batch of random sources, to exactly so many tokens."""

    batch_size: int = 1
    beam_size: int = 1
    source_length: int = 32
    target_length: int = 48

    def request(self) -> Row:
        """The request to an engine. Sources are: language token, pieces, `</s>`."""
        ids = random.Random(0)
        pieces = range(self.source_length - 2)
        source = [
            [10501, *(ids.randrange(4, 10000) for _ in pieces), 2] for _ in range(self.batch_size)
        ]
        settings = {"beam_size": self.beam_size, "tokens": self.target_length}
        return {"do": "translate", "source": source, **settings}


def variables(cache: Path) -> dict[str, str]:
    """The environment that engines run in, with a folder for the packed cache."""
    found = {**os.environ, "M2M100_ONNX_CACHE": str(cache), "ORT_DISABLE_TELEMETRY": "1"}
    # Installed packages come compiled, and so do ours from the second process on.
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


class Worker:
    """An engine in a process of its own."""

    def __init__(self, python: str, arguments: list[str], cache: Path, errors: TextIO) -> None:
        self.errors = errors
        self.process = subprocess.Popen(
            [python, str(HERE / "engines.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=variables(cache),
        )

    def send(self, **request: Any) -> None:
        """Sends a request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def receive(self) -> Row:
        """Waits for the answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"{self.process.args} died:\n{self.errors.read()[-2000:]}")
        answer: Row = json.loads(line)
        return answer

    def ask(self, **request: Any) -> Row:
        """Sends a request and waits for its answer."""
        self.send(**request)
        return self.receive()

    def seconds(self, cell: Cell) -> float:
        """How long the engine takes for a cell, having given as many tokens as asked for."""
        answer = self.ask(**cell.request())
        if answer["tokens"] != cell.target_length:
            raise RuntimeError(f"{self.process.args}: {answer} for {cell}")
        return float(answer["seconds"])


@dataclass(frozen=True)
class Suite:
    """What is measured, where, and how often.

    Attributes:
        work: holds checkpoints, bundles and the packed cache; filled as needed.
        peers: the Python of the environment with the other engines, if there is one.
        shape: of the checkpoint.
        engines: which may take part, or None for all.
        repetitions: after one warm-up; the slow engines' are fewer.
        results: where the result files go.
    """

    work: Path
    peers: str | None = None
    shape: str = "418M"
    engines: tuple[str, ...] | None = None
    repetitions: int = 5
    results: Path = RESULTS

    def chosen(self, names: tuple[str, ...]) -> list[str]:
        """Those of the engines that may take part and can run here."""
        able = [name for name in names if self.peers or name.startswith("ours")]
        return [name for name in able if self.engines is None or name in self.engines]

    def repetitions_of(self, name: str) -> int:
        """How often an engine is measured."""
        return min(self.repetitions, SLOW_REPETITIONS) if name in SLOW else self.repetitions

    def python(self, name: str) -> str:
        """The interpreter an engine runs in."""
        return sys.executable if name.startswith("ours") or not self.peers else self.peers

    def folder(self, name: str) -> Path:
        """The model an engine opens, made if it is missing."""
        if name in BUNDLES:
            return self.bundle(BUNDLES[name])
        source = self.checkpoint(self.shape)
        if name not in CONVERTED:
            return source
        folder = self.work / f"ctranslate2-{CONVERTED[name]}"
        if not folder.exists():
            convert_for_ctranslate2(self.python(name), source, folder, CONVERTED[name])
        return folder

    def checkpoint(self, shape: str) -> Path:
        """The random-weight checkpoint of a shape."""
        folder = self.work / f"checkpoint-{shape}"
        if not (folder / "model.safetensors").exists():
            maker = [sys.executable, str(HERE / "make_checkpoint.py"), shape, str(folder)]
            subprocess.run(maker, check=True)
        return folder

    def bundle(self, precision: str) -> Path:
        """The exported bundle, made anew when the exporter has changed since."""
        folder = self.work / f"bundle-{self.shape}-{precision}"
        stamp = self.work / f"{folder.name}.exporter"
        if not stamp.exists() or stamp.read_text() != exporter_digest():
            print(f"exporting {folder.name}", flush=True)
            self.export(self.shape, precision)
        return folder

    def export(self, shape: str, precision: str) -> Row:
        """Exports and says what it cost."""
        folder = self.work / f"bundle-{shape}-{precision}"
        found = export_once(self.checkpoint(shape), folder, precision)
        (self.work / f"{folder.name}.exporter").write_text(exporter_digest())
        return found

    @contextmanager
    def start(self, name: str, threads: int | None = None) -> Iterator[Worker]:
        """An engine's process, with nothing loaded, that is gone afterwards."""
        arguments = [name, str(self.folder(name)), *([] if threads is None else [str(threads)])]
        with tempfile.TemporaryFile("w+") as errors:
            found = Worker(self.python(name), arguments, self.work / "cache", errors)
            try:
                yield found
            finally:
                found.process.kill()
                found.process.communicate()

    @contextmanager
    def running(self, names: list[str], threads: int | None = None) -> Iterator[dict[str, Worker]]:
        """Loaded engines, each in its own process."""
        with ExitStack() as stack:
            found = {}
            for name in names:
                found[name] = stack.enter_context(self.start(name, threads))
                found[name].ask(do="load")
            yield found

    @contextmanager
    def crowd(self, name: str, count: int) -> Iterator[list[Worker]]:
        """Loaded processes of one engine."""
        with ExitStack() as stack:
            found = [stack.enter_context(self.start(name)) for _ in range(count)]
            for engine in found:
                engine.ask(do="load")
            yield found

    def forked(self, name: str, count: int, cell: Cell) -> list[Row]:
        """Memory of a process and of the workers that it forked."""
        command = [sys.executable, str(HERE / "forked.py"), str(self.folder(name)), str(count)]
        request, where = json.dumps(cell.request()), variables(self.work / "cache")
        answer = subprocess.run(
            command, input=request, stdout=subprocess.PIPE, text=True, check=True, env=where
        )
        found: list[Row] = json.loads(answer.stdout)
        return found

    def in_turn(self, running: dict[str, Worker], cell: Cell) -> dict[str, list[float]]:
        """Seconds for a cell by engine, one warm-up each left out.

        The engines take turns within each repetition, so that a change of the machine's speed
        hits all alike, and the i-th numbers of two engines make a pair. An engine's turn begins
        with one token that is not timed: while the others had theirs, a machine with little memory
        to spare may have taken away pages that it now fetches again.
        """
        first = replace(cell, target_length=1)
        taken: dict[str, list[float]] = {name: [] for name in running}
        for repetition in range(self.repetitions + 1):
            for name, engine in running.items():
                if repetition <= self.repetitions_of(name):
                    engine.seconds(first)
                    seconds = engine.seconds(cell)
                    if repetition:
                        taken[name].append(seconds)
        return taken

    def versions(self) -> dict[str, dict[str, str]]:
        """Package versions of each environment that takes part."""
        return all_versions(self.peers)


@cache
def exporter_digest() -> str:
    """What the exporter is made of, in 64 digits."""
    found = hashlib.sha256()
    for package in (m2m100_onnx, m2m100_onnx_export):
        for path in sorted(Path(package.__path__[0]).glob("*.py")):
            if package is m2m100_onnx_export or path.name in CONTRACT:
                found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def export_once(source: Path, folder: Path, precision: str) -> Row:
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
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    found["process_seconds"] = time.perf_counter() - started
    found["bundle"] = size_of(folder)
    return found


def convert_for_ctranslate2(python: str, source: Path, folder: Path, compute_type: str) -> None:
    """Converts the checkpoint with CTranslate2's own converter."""
    command = [str(Path(python).with_name("ct2-transformers-converter")), "--model", str(source)]
    command += ["--output_dir", str(folder), "--quantization", compute_type]
    subprocess.run(command, check=True, capture_output=True)


def size_of(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


@cache
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


def all_versions(peers: str | None) -> dict[str, dict[str, str]]:
    """Package versions of our environment and the peers'."""
    ours = {"m2m100-onnx": metadata.version("m2m100-onnx"), **versions(sys.executable)}
    return {"ours": ours, **({"peers": versions(peers)} if peers else {})}


def machine(load_average: float) -> Row:
    """Processor and cores, and the load when the run and when the measurement began.

    The second has the part before in it, which the run itself was.
    """
    return {
        "processor": environment()["processor"],
        "cores": os.cpu_count(),
        "load_average_of_run": LOAD_AT_START,
        "load_average": load_average,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def save(path: Path, rows: list[Row], load_average: float, **more: Any) -> None:
    """Writes one result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"machine": machine(load_average), **more, "rows": rows}
    path.write_text(json.dumps(data, indent=1) + "\n")
