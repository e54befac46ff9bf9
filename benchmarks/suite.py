"""What every part of the benchmark uses: engines in processes, their models, and result files."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import m2m100_onnx
import m2m100_onnx_export
from m2m100_onnx.cli.benchmark.client import Worker
from m2m100_onnx.cli.benchmark.measure import environment

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = (
    *("onnxruntime", "m2m100-onnx-kernels", "numpy", "torch", "transformers", "ctranslate2"),
    *("optimum-onnx", "optimum-intel", "openvino"),
)
# Engine to the precision of the bundle it opens.
BUNDLES = {
    "ours int8": "int8",
    "ours int4": "int4",
    "ours int4-int8": "int4-int8",
    "ours int8 without kernels": "int8",
    "ours int4 without kernels": "int4",
    "ours fp32": "fp32",
    "ours fp32 mapped": "fp32",
    "ours fp16": "fp16",
    "optimum fp32": "fp32",
    "optimum int8": "int8",
}
# Engine to CTranslate2's compute type.
CONVERTED = {"ctranslate2 int8": "int8", "ctranslate2 float32": "float32"}
OPENVINO = "openvino int8"
QUANTIZED = ("ours int8", "ours int4", "ours int4-int8", "ctranslate2 int8")
CORE = (*QUANTIZED, "ours fp32")
# One call of these takes up to half a minute, so they have fewer repetitions.
SLOW = (
    "ctranslate2 float32",
    "transformers fp32",
    "transformers bf16",
    "optimum fp32",
    "optimum int8",
)
SLOW_REPETITIONS = 2
# What shapes a bundle: the exporter, and of the runtime its contract with the exporter.
SHAPING = (Path(m2m100_onnx.__path__[0], "bundle"), Path(m2m100_onnx_export.__path__[0]))
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
        """Returns the request to an engine. Sources are: language token, pieces, `</s>`."""
        ids = random.Random(0)
        pieces = range(self.source_length - 2)
        source = [
            [10501, *(ids.randrange(4, 10000) for _ in pieces), 2] for _ in range(self.batch_size)
        ]
        options = {"beam_size": self.beam_size, "tokens": self.target_length}
        return {"do": "translate", "batches": [source], "options": options}


def variables(cache: Path) -> dict[str, str]:
    """Returns the variables that engines run with.

    Args:
        cache: folder of the weights cache.
    """
    runtime = str(Path(m2m100_onnx.__path__[0]).parent)
    found = {
        **os.environ,
        "M2M100_ONNX_CACHE": str(cache),
        "ORT_DISABLE_TELEMETRY": "1",
        # The other engines' environment has no m2m100_onnx, whose loop serves them.
        "PYTHONPATH": runtime,
    }
    # Installed packages are compiled, and so is ours from the second process on.
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


def seconds(engine: Worker, cell: Cell) -> float:
    """Returns how long an engine takes for a cell; it must give as many tokens as asked for."""
    engine.send(**cell.request())
    return seconds_of(engine.receive(), cell)


def seconds_of(answer: Row, cell: Cell) -> float:
    """Returns the seconds of the one call in an answer."""
    ((began, ended, tokens),) = answer["calls"]
    if tokens != cell.batch_size * cell.target_length:
        raise RuntimeError(f"found {tokens} tokens for {cell}")
    return float(ended - began)


@dataclass(frozen=True)
class Suite:
    """What is measured, where, and how often.

    Attributes:
        work: gets checkpoints, bundles and the weights cache as they are needed.
        peers: the Python of the environment with the other engines, if there is one.
        environments: the Python of an engine's own environment, by the first word of its name.
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
    environments: Mapping[str, str] = field(default_factory=dict)

    def chosen(self, names: tuple[str, ...]) -> list[str]:
        """Returns those of the engines that may take part and can run here."""
        able = [name for name in names if self.peers or name.startswith("ours")]
        return [name for name in able if self.engines is None or name in self.engines]

    def repetitions_of(self, name: str) -> int:
        """Returns how often an engine is measured."""
        return min(self.repetitions, SLOW_REPETITIONS) if name in SLOW else self.repetitions

    def python(self, name: str) -> str:
        """Returns the interpreter that an engine runs in."""
        if name.startswith("ours"):
            return sys.executable
        return self.environments.get(name.split()[0]) or self.peers or sys.executable

    def folder(self, name: str) -> Path:
        """Returns the model that an engine opens; makes it if it is missing."""
        if name in BUNDLES:
            return self.bundle(BUNDLES[name])
        source = self.checkpoint(self.shape)
        if name == OPENVINO:
            folder = self.work / f"openvino-{self.shape}"
            if not (folder / "config.json").exists():
                convert_for_openvino(self.python(name), source, folder)
            return folder
        if name not in CONVERTED:
            return source
        folder = self.work / f"ctranslate2-{CONVERTED[name]}"
        if not folder.exists():
            convert_for_ctranslate2(self.python(name), source, folder, CONVERTED[name])
        return folder

    def checkpoint(self, shape: str) -> Path:
        """Returns the random-weight checkpoint of a shape; makes it if it is missing."""
        folder = self.work / f"checkpoint-{shape}"
        if not (folder / "model.safetensors").exists():
            maker = [sys.executable, str(HERE / "make_checkpoint.py"), shape, str(folder)]
            subprocess.run(maker, check=True)
        return folder

    def bundle(self, precision: str) -> Path:
        """Returns the exported bundle; makes it again if the exporter has changed."""
        folder = self.work / f"bundle-{self.shape}-{precision}"
        stamp = self.work / f"{folder.name}.exporter"
        if not stamp.exists() or stamp.read_text() != exporter_digest():
            print(f"exporting {folder.name}", flush=True)
            self.export(self.shape, precision)
        return folder

    def export(self, shape: str, precision: str) -> Row:
        """Exports, and returns what it cost."""
        folder = self.work / f"bundle-{shape}-{precision}"
        found = export_once(self.checkpoint(shape), folder, precision)
        (self.work / f"{folder.name}.exporter").write_text(exporter_digest())
        return found

    @contextmanager
    def start(
        self, name: str, more: Mapping[str, str] | None = None, script: str = "engines.py"
    ) -> Iterator[Worker]:
        """Starts an engine's process with nothing loaded; it is gone afterwards.

        Args:
            name: of the engine.
            more: variables of the process beside the usual ones.
            script: serves the engine.
        """
        command = [self.python(name), str(HERE / script), name]
        with Worker(name, command, variables(self.work / "cache") | {**(more or {})}) as engine:
            yield engine

    def load(self, name: str, engine: Worker, threads: int | None = None) -> float:
        """Opens an engine's model in its process; returns the seconds that it took."""
        answer = engine.ask("load", folder=str(self.folder(name)), threads=threads)
        return float(answer["seconds"])

    @contextmanager
    def running(self, names: list[str], threads: int | None = None) -> Iterator[dict[str, Worker]]:
        """Starts engines with their models loaded, each in its own process."""
        with ExitStack() as stack:
            found = {}
            for name in names:
                found[name] = stack.enter_context(self.start(name))
                self.load(name, found[name], threads)
            yield found

    @contextmanager
    def crowd(self, name: str, count: int) -> Iterator[list[Worker]]:
        """Starts several processes of one engine, with its model loaded."""
        with ExitStack() as stack:
            found = [stack.enter_context(self.start(name)) for _ in range(count)]
            for engine in found:
                self.load(name, engine)
            yield found

    def forked(self, name: str, count: int, cell: Cell) -> list[Row]:
        """Returns the memory of a process and of the workers that it forked."""
        command = [sys.executable, str(HERE / "forked.py"), str(self.folder(name)), str(count)]
        request, where = json.dumps(cell.request()), variables(self.work / "cache")
        answer = subprocess.run(
            command, input=request, stdout=subprocess.PIPE, text=True, check=True, env=where
        )
        found: list[Row] = json.loads(answer.stdout)
        return found

    def in_turn(self, running: dict[str, Worker], cell: Cell) -> dict[str, list[float]]:
        """Returns each engine's seconds for a cell, without one warm-up.

        The engines take turns within each repetition. So a change of the machine's speed hits all
        of them alike, and the i-th numbers of two engines are a pair. A turn begins with one token
        that is not timed: it brings back pages that a machine with little memory took away during
        the other engines' turns.
        """
        first = replace(cell, target_length=1)
        taken: dict[str, list[float]] = {name: [] for name in running}
        for repetition in range(self.repetitions + 1):
            for name, engine in running.items():
                if repetition <= self.repetitions_of(name):
                    seconds(engine, first)
                    sample = seconds(engine, cell)
                    if repetition:
                        taken[name].append(sample)
        return taken

    def versions(self) -> dict[str, dict[str, str]]:
        """Returns the package versions of each environment that takes part."""
        found = all_versions(self.peers)
        for name, python in self.environments.items():
            found[name] = versions(python)
        return found


@cache
def exporter_digest() -> str:
    """Returns a hash of the code that shapes a bundle."""
    found = hashlib.sha256()
    for folder in SHAPING:
        for path in sorted(folder.rglob("*.py")):
            found.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return found.hexdigest()


def export_once(source: Path, folder: Path, precision: str) -> Row:
    """Exports in a process of its own, and returns what it cost."""
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


def convert_for_openvino(python: str, source: Path, folder: Path) -> None:
    """Converts the checkpoint to weights of eight bits with optimum-intel."""
    code = (
        "import sys; from optimum.intel import OVModelForSeq2SeqLM, OVWeightQuantizationConfig\n"
        "source, folder = sys.argv[1:]\n"
        "eight = OVWeightQuantizationConfig(bits=8)\n"
        "model = OVModelForSeq2SeqLM.from_pretrained(\n"
        "    source, export=True, quantization_config=eight, compile=False)\n"
        "model.save_pretrained(folder)"
    )
    made = folder.with_name(f"{folder.name}.part")
    subprocess.run([python, "-c", code, str(source), str(made)], check=True, capture_output=True)
    # A folder that is there is whole.
    made.rename(folder)


def size_of(folder: Path) -> int:
    """Returns the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


@cache
def versions(python: str) -> dict[str, str]:
    """Returns the versions of `PACKAGES` in the environment of `python`."""
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
    """Returns the package versions of our environment and the peers'."""
    ours = {"m2m100-onnx": metadata.version("m2m100-onnx"), **versions(sys.executable)}
    return {"ours": ours, **({"peers": versions(peers)} if peers else {})}


def machine(load_average: float) -> Row:
    """Returns processor and cores, and the load at the start of the run and of the measurement.

    The load at the start of the measurement includes the part before it.
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
