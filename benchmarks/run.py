"""Measures everything and writes results/*.json; `report.py` makes the tables and the plots.

    python benchmarks/run.py WORK --peers PYTHON [--only PARTS] [--engines ENGINES]

WORK gets the random-weight checkpoints, the bundles and the weights cache as they are needed (about
12 GB). PEERS is the Python of an environment with transformers, ctranslate2 and optimum-onnx;
without it, only our engines are measured. Run it on an idle machine: each result file carries the
load average at the start of its part. A file is written after each row and holds one run alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from limits import measure_bandwidth, measure_busy
from scaling import CURVES, measure_curves
from suite import (
    CORE,
    QUANTIZED,
    RESULTS,
    SLOW,
    Cell,
    Row,
    Suite,
    save,
    seconds,
    seconds_of,
    size_of,
)

WORKERS = 4
PRECISIONS = "fp32,fp16,int8,int4,int4-int8"
CELLS = "1x1,1x5,8x1,8x5,1x5x256x64"


def measure_export(suite: Suite, shapes: list[str], precisions: list[str]) -> Iterator[Row]:
    """Yields time, peak memory and size of exports."""
    for shape in shapes:
        size = (suite.checkpoint(shape) / "model.safetensors").stat().st_size
        for precision in precisions:
            found = suite.export(shape, precision)
            yield {"shape": shape, "precision": precision, "checkpoint": size, **found}


def measure_memory(suite: Suite, cell: Cell) -> Iterator[Row]:
    """Yields the memory after a translation, each engine in a fresh process."""
    for name in suite.chosen((*CORE, "ours fp32 mapped", "ours fp16", *SLOW)):
        if name.startswith("ours int"):
            # Filling the weights cache happens once in a bundle's life, and is not measured.
            with suite.running([name]) as running:
                seconds(running[name], Cell(target_length=1))
        with suite.start(name) as engine:
            load = suite.load(name, engine)
            loaded = engine.ask("memory")
            seconds(engine, cell)
            used = engine.ask("memory")
        disk = size_of(suite.folder(name))
        yield {"engine": name, "load": load, "loaded": loaded, "used": used, "disk": disk}


def measure_load(suite: Suite, cell: Cell) -> Iterator[Row]:
    """Yields the time from the start of a process to its first token: imports, load, one step.

    The first round fills the page cache and the weights cache, and does not count.
    """
    names = suite.chosen((*CORE, "ours fp32 mapped", *SLOW))
    taken: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(suite.repetitions + 1):
        for name in names:
            if repetition > suite.repetitions_of(name):
                continue
            suite.folder(name)
            started = time.perf_counter()
            with suite.start(name) as engine:
                suite.load(name, engine)
                seconds(engine, cell)
                if repetition:
                    taken[name].append(time.perf_counter() - started)
    for name in names:
        yield {"engine": name, "samples": taken[name]}


def measure_workers(suite: Suite, cell: Cell) -> Iterator[Row]:
    """Yields the memory of one process, and of several that translate with the same model.

    `proportional` divides a page by the processes that share it, so that a sum counts it once.
    """
    for name in suite.chosen(("ours int8", "ours int4", "ctranslate2 int8")):
        for count in (1, WORKERS):
            with suite.crowd(name, count) as crowd:
                for _ in range(2):
                    for engine in crowd:
                        engine.send(**cell.request())
                    for engine in crowd:
                        seconds_of(engine.receive(), cell)
                found = [engine.ask("memory") for engine in crowd]
            yield {"engine": name, "processes": count, **added(found)}
        if name.startswith("ours"):
            found = suite.forked(name, WORKERS, cell)
            yield {"engine": name, "processes": WORKERS, "forked": True, **added(found)}


def added(found: list[Row]) -> Row:
    """Returns the sum of several processes' memory, kind by kind."""
    return {kind: sum(memory[kind] for memory in found) for kind in found[0]}


def measure_speed(suite: Suite, cells: list[Cell], names: tuple[str, ...]) -> Iterator[Row]:
    """Yields the seconds a batch; all engines are loaded and take turns."""
    with suite.running(suite.chosen(names)) as running:
        for cell in cells:
            for name, samples in suite.in_turn(running, cell).items():
                yield {"engine": name, **vars(cell), "samples": samples}


def take(suite: Suite, name: str, measure: Callable[[Suite], Iterator[Row]]) -> bool:
    """Measures one part and writes its file, row by row; returns whether all of it was measured."""
    load_average, started = os.getloadavg()[0], time.perf_counter()
    print(f"== {name}: load {load_average:.2f}", flush=True)
    more: dict[str, Any] = {"shape": suite.shape, "repetitions": suite.repetitions}
    more["versions"] = suite.versions()
    rows: list[Row] = []
    try:
        for row in measure(suite):
            rows.append(row)
            print(row, flush=True)
            more["seconds"] = round(time.perf_counter() - started)
            save(suite.results / f"{name}.json", rows, load_average, **more)
    except Exception:
        # An engine that fails must not cost the other parts their half hour.
        traceback.print_exc()
        return False
    print(f"== {name}: {time.perf_counter() - started:.0f} s", flush=True)
    return True


def parse_cell(text: str) -> Cell:
    """Reads `BATCHxBEAM` or `BATCHxBEAMxSOURCExTARGET`."""
    return Cell(*map(int, text.split("x")))


def parse_curve(text: str) -> tuple[str, list[int]]:
    """Reads `NAME=SIZE,SIZE,...`."""
    name, _, sizes = text.partition("=")
    if name not in CURVES:
        raise argparse.ArgumentTypeError(f"{name}: expected one of {', '.join(CURVES)}")
    return name, [int(size) for size in sizes.split(",")]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peers", help="python of the environment with the other engines")
    parser.add_argument("--only", help="parts, in this order (default: all)")
    parser.add_argument("--engines", help="engines that may take part (default: all)")
    parser.add_argument("--shape", default="418M", help="of the checkpoint that is measured")
    parser.add_argument("--shapes", help="shapes to export, such as 418M,1.2B (default: --shape)")
    parser.add_argument("--precisions", default=PRECISIONS, help="to export")
    parser.add_argument("--cells", default=CELLS, help="batch x beam [x source x target]")
    parser.add_argument(
        "--curves", nargs="+", type=parse_curve, default=list(CURVES.items()), metavar="NAME=SIZES"
    )
    parser.add_argument(
        "--longest", type=float, default=30, help="seconds a point of a curve may take"
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    suite = Suite(
        work=arguments.work.resolve(),
        peers=arguments.peers,
        shape=arguments.shape,
        engines=tuple(arguments.engines.split(",")) if arguments.engines else None,
        repetitions=arguments.repetitions,
        results=arguments.results,
    )
    cells = [parse_cell(cell) for cell in arguments.cells.split(",")]
    shapes = (arguments.shapes or arguments.shape).split(",")
    precisions = arguments.precisions.split(",")
    parts: dict[str, Callable[[Suite], Iterator[Row]]] = {
        "export": partial(measure_export, shapes=shapes, precisions=precisions),
        # Apart, since the large ones fill the memory of a small machine, and all are slower then.
        "speed": partial(measure_speed, cells=cells, names=QUANTIZED),
        "speed_fp32": partial(measure_speed, cells=cells, names=("ours fp32", *SLOW)),
        "busy": measure_busy,
        "bandwidth": measure_bandwidth,
        "load": partial(measure_load, cell=Cell(target_length=1)),
        "memory": partial(measure_memory, cell=Cell(beam_size=5)),
        "workers": partial(measure_workers, cell=Cell(beam_size=5)),
        "curves": partial(measure_curves, curves=dict(arguments.curves), longest=arguments.longest),
    }
    wanted = arguments.only.split(",") if arguments.only else list(parts)
    if not set(wanted) <= set(parts):
        parser.error(f"--only: expected some of {', '.join(parts)}")
    failed = [name for name in wanted if not take(suite, name, parts[name])]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
