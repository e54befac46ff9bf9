"""Compares ours with CTranslate2 and OpenVINO at their best settings; writes results/compare.json.

    python benchmarks/compare.py WORK [--quick] [--prepare] [--again] [--only CELLS]

`scripts/compare` makes the engines' environments and calls this. WORK gets the models as they are
needed (about 8 GB); --prepare makes them and measures nothing. A cell is kept once it is measured,
with the load average at its start, so a run that was interrupted goes on where it was. Cells are
measured again with --again, and after a change of the code, the packages or the plan. Run it on an
idle machine. `report.py` makes the tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import m2m100_onnx
import m2m100_onnx_export
from contest import PEER, Arena, Contestant, Effort, Task, run
from ctranslate2_settings import thread_settings
from native_limits import least_seconds, native_limits, step_costs
from suite import HERE, OPENVINO, RESULTS, Cell, Row, Suite, save, size_of

ROOT = HERE.parent
DEMO = ROOT / "demo"
KERNELS = ("ours int8", "ours int4")
WITHOUT = ("ours int8 without kernels", "ours int4 without kernels")
ENGINES = (*KERNELS, *WITHOUT, PEER, OPENVINO)
# Sentences that CTranslate2 translates at once, of real text.
TEXT_BATCHES = (16, 32, 64)
# The time of a step is the difference of two calls, in which encoder and prompt cancel out.
SHORT, LONG = 16, 48
STEPS = ("1x1", "1x5", "8x5", "32x5")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often.

    Attributes:
        speeds: cells of the random-weight model, `BATCHxBEAM[xSOURCExTARGET]`.
        texts: cells of the demo model, direction, beams and form.
        steps: of `STEPS`, and the engines whose steps are measured.
        effort: of a cell.
        slow: rows from which OpenVINO is left out.
        seconds: that each cell is estimated to take.
    """

    speeds: tuple[str, ...]
    texts: tuple[str, ...]
    steps: tuple[tuple[str, ...], tuple[str, ...]]
    effort: Effort
    slow: int
    seconds: Mapping[str, int]


FULL = Plan(
    speeds=("1x1", "1x5", "8x1", "8x5", "32x1", "32x5", "1x1x256x64", "1x5x256x64"),
    texts=(
        *("en-de 1 tokens", "en-de 5 tokens", "en-de 1 text", "en-de 5 text"),
        *("zh-en 1 text", "zh-en 5 text"),
    ),
    steps=(STEPS, KERNELS),
    effort=Effort(repetitions=5, budget=25, finalists=2),
    slow=1000,
    seconds={
        "1x1": 40,
        "1x5": 75,
        "8x1": 95,
        "8x5": 170,
        "32x1": 190,
        "32x5": 300,
        "1x1x256x64": 65,
        "1x5x256x64": 110,
        "steps": 130,
        "limits": 15,
        "start": 45,
    },
)
QUICK = Plan(
    speeds=("1x1", "1x5", "8x1", "8x5", "32x5"),
    texts=("en-de 1 text", "en-de 5 text"),
    steps=(("1x1", "32x5"), KERNELS[:1]),
    effort=Effort(repetitions=3, budget=10, finalists=1),
    slow=41,
    seconds={
        "1x1": 30,
        "1x5": 50,
        "8x1": 60,
        "8x5": 110,
        "32x5": 160,
        "steps": 45,
        "limits": 10,
        "start": 25,
    },
)
TEXT_SECONDS = 50


@dataclass
class Comparison:
    """A results file that grows by a cell at a time."""

    path: Path
    stamp: Mapping[str, Any]
    seconds: Mapping[str, int]
    only: tuple[str, ...] | None
    rows: dict[str, Row] = field(default_factory=dict)
    before: dict[str, Row] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def resume(self, again: bool) -> None:
        """Reads the cells that were measured before, and keeps those of the same stamp."""
        if self.path.exists():
            data = json.loads(self.path.read_text())
            self.before = {row["cell"]: row for row in data["rows"]}
            if not again and all(data.get(name) == value for name, value in self.stamp.items()):
                self.rows = dict(self.before)

    def wanted(self, name: str) -> bool:
        """Returns whether a cell is to be measured."""
        return name not in self.rows and (self.only is None or name in self.only)

    def estimate(self, names: list[str]) -> float:
        """Returns the seconds that cells will take, as they took or are thought to."""
        known = {name: row["took"] for name, row in self.before.items()}
        expected = {name: known.get(name, self.seconds.get(name, TEXT_SECONDS)) for name in names}
        return sum(seconds for name, seconds in expected.items() if self.wanted(name))

    def take(self, name: str, measure: Callable[[], Row]) -> None:
        """Measures a cell that is wanted, and writes the file."""
        if not self.wanted(name):
            return
        load_average, began = os.getloadavg()[0], time.perf_counter()
        print(f"== {name}: load {load_average:.2f}", flush=True)
        try:
            row = measure()
        except Exception:
            # A cell that fails must not cost the others theirs.
            traceback.print_exc()
            self.failed.append(name)
            return
        took = time.perf_counter() - began
        row = {"cell": name, **row, "load_average": load_average, "took": took}
        self.rows[name] = {**row, "date": time.strftime("%Y-%m-%d")}
        first = next(iter(self.rows.values()))["load_average"]
        save(self.path, list(self.rows.values()), first, **self.stamp)
        print(*_lines(row), sep="\n", flush=True)


def _lines(row: Row) -> Iterator[str]:
    """Yields what a cell found, for whoever watches."""
    for each in row.get("engines", ()):
        if "samples" in each:
            setting = f" ({each['setting']})" if "setting" in each else ""
            yield f"   {each['engine']}{setting}: {statistics.median(each['samples']):.3f} s"
    yield f"   took {row['took']:.0f} s"


def speed_task(name: str) -> Task:
    """Returns the task of a cell of the random-weight model."""
    cell = Cell(*map(int, name.split("x")))
    count = cell.batch_size
    settings = tuple(thread_settings(count, os.cpu_count() or 1))
    wake = replace(cell, batch_size=1, target_length=1).request()
    tokens = count * cell.target_length
    return Task(name, cell.request(), count, settings, tokens, wake)


def text_task(name: str, lines: int) -> Task:
    """Returns the task of a cell of the demo model."""
    _, beam_size, form = name.split()
    request = {"do": "translate", "batches": [form], "options": {"beam_size": int(beam_size)}}
    cores = os.cpu_count() or 1
    threads = dict.fromkeys(s.process for s in thread_settings(lines, cores))
    parts = [-(-lines // size) for size in TEXT_BATCHES]
    settings = tuple(replace(s, parts=count) for s in threads for count in parts)
    return Task(name, request, lines, settings, None, {**request, "batches": ["first"]})


def texts_of(direction: str, lines: int | None) -> dict[str, Any]:
    """Returns the arguments that open an engine on held-out lines of the demo."""
    source, target = direction.split("-")
    text = (DEMO / "heldout" / f"test.{source}").read_text("utf-8")
    return {"lines": text.rstrip("\n").split("\n")[:lines], "languages": [source, target]}


def measure_steps(arena: Arena, cells: tuple[str, ...], names: list[str], repetitions: int) -> Row:
    """Returns the seconds of a step with several numbers of rows."""
    found = []
    for text in cells:
        cell = Cell(*map(int, text.split("x")))
        pair = [replace(cell, target_length=length).request() for length in (SHORT, LONG)]
        taken: dict[str, list[float]] = {name: [] for name in names}
        for repetition in range(repetitions + 1):
            for name in names:
                asked = (pair[0],) if not repetition else pair
                times = [arena.ask(Contestant(name), one, cell.batch_size)[0] for one in asked]
                if repetition:
                    taken[name].append((times[1] - times[0]) / (LONG - SHORT))
        rows = cell.batch_size * cell.beam_size
        found += [{"engine": name, "rows": rows, "steps": taken[name]} for name in names]
    return {"engines": found}


def measure_limits(suite: Suite, names: list[str], repetitions: int) -> Row:
    """Returns the machine's limits, and the least time of each engine's steps."""
    found = native_limits(suite.work, repetitions)
    costs = {name: step_costs(suite, name) for name in names}
    rows = (1, 5, 40, 160)
    least = {n: {str(r): least_seconds(found, cost, r) for r in rows} for n, cost in costs.items()}
    return {**found, "costs": costs, "least": least}


def measure_start(suite: Suite, names: list[str], repetitions: int) -> Row:
    """Returns the time from a process's start to its first token, and memory and disk afterwards.

    `first` is the first process of all, which fills the weights cache if the engine has one; the
    page cache has the model already.
    """
    one, whole = Cell(target_length=1), Cell(beam_size=5)
    taken: dict[str, list[float]] = {name: [] for name in names}
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(dir=suite.work) as folder:
        where = {name: Path(folder, str(n)) for n, name in enumerate(names)}
        for repetition in range(repetitions + 1):
            for name in names:
                suite.folder(name)
                began = time.perf_counter()
                with suite.start(name, {"M2M100_ONNX_CACHE": str(where[name])}) as engine:
                    suite.load(name, engine)
                    engine.ask(**one.request())
                    seconds = time.perf_counter() - began
                    if repetition:
                        taken[name].append(seconds)
                    else:
                        rows[name] = {"engine": name, "first": seconds}
                    if repetition == repetitions:
                        engine.ask(**whole.request())
                        rows[name]["memory"] = engine.ask("memory")
        for name in names:
            files = [path for path in where[name].rglob("*") if path.is_file()]
            rows[name]["cache"] = sum(path.stat().st_size for path in files)
            rows[name]["disk"] = size_of(suite.folder(name))
    return {"engines": [{**rows[name], "starts": taken[name]} for name in names]}


def code_digest() -> str:
    """Returns a hash of the code that is measured and that measures."""
    found = hashlib.sha256()
    spec = find_spec("m2m100_onnx_kernels")
    places = [m2m100_onnx.__path__[0], m2m100_onnx_export.__path__[0], str(HERE)]
    for place in [*places, *(spec.submodule_search_locations or () if spec else ())]:
        for path in sorted(Path(place).rglob("*")):
            if path.suffix in (".py", ".cpp", ".so", ".dylib"):
                found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def chosen(suite: Suite, plan: Plan, rows: int = 1) -> list[str]:
    """Returns the engines of a cell, in the order of their turns."""
    kernels = find_spec("m2m100_onnx_kernels") is not None
    able = [name for name in ENGINES if kernels or name not in WITHOUT]
    able = [name for name in able if name.startswith("ours") or suite.environments]
    able = [name for name in able if name != OPENVINO or rows < plan.slow]
    return [name for name in able if suite.engines is None or name in suite.engines]


def measure(
    comparison: Comparison, suite: Suite, demo: Suite, plan: Plan, lines: int | None
) -> None:
    """Measures every cell of a plan that is wanted."""
    ours = [name for name in chosen(suite, plan) if name in plan.steps[1]]
    repetitions = plan.effort.repetitions
    with Arena(suite) as arena:
        for name in plan.speeds:
            task = speed_task(name)
            rows = task.sentences * task.request["options"]["beam_size"]
            names = chosen(suite, plan, rows)
            comparison.take(name, partial(run, arena, task, names, plan.effort))
        steps = partial(measure_steps, arena, plan.steps[0], ours, min(repetitions, 3))
        comparison.take("steps", steps)
    comparison.take("limits", partial(measure_limits, suite, ours, repetitions))
    names = [name for name in chosen(suite, plan) if name != OPENVINO]
    comparison.take("start", partial(measure_start, suite, names, repetitions))
    for direction in dict.fromkeys(name.split()[0] for name in plan.texts):
        given = texts_of(direction, lines)
        model = str(demo.checkpoint(demo.shape))

        def opening(name: str, given: Any = given, model: str = model) -> Row:
            return given if name.startswith("ours") else {**given, "model": model}

        with Arena(demo, "lines.py", opening) as arena:
            for name in plan.texts:
                if name.startswith(direction):
                    task = text_task(name, len(given["lines"]))
                    names = chosen(demo, plan)
                    comparison.take(name, partial(run, arena, task, names, plan.effort))


def prepare(suite: Suite, demo: Suite, plan: Plan) -> None:
    """Makes every model, and fills the weights cache."""
    shutil.copytree(DEMO / "model", demo.work / f"checkpoint-{demo.shape}", dirs_exist_ok=True)
    for each in (suite, demo):
        for name in chosen(suite, plan):
            print(f"model of {name}: {each.folder(name)}", flush=True)
    with Arena(suite) as arena:
        for name in chosen(suite, plan):
            if name.startswith("ours"):
                arena.ask(Contestant(name), Cell(target_length=1).request(), 1)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer cells, in a third of the time")
    parser.add_argument("--prepare", action="store_true", help="only make the models")
    parser.add_argument("--again", action="store_true", help="measure again what was measured")
    parser.add_argument("--only", help="cells, separated by commas")
    parser.add_argument("--engines", help="engines that may take part, separated by commas")
    parser.add_argument("--environments", type=Path, default=ROOT, help="folder of .venv-openvino")
    parser.add_argument("--shape", default="418M", help="of the random-weight checkpoint")
    parser.add_argument("--lines", type=int, help="of real text, in place of all")
    parser.add_argument("--repetitions", type=int, help="in place of the plan's")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    only = tuple(arguments.only.split(",")) if arguments.only else None
    names = [*plan.speeds, "steps", "limits", "start", *plan.texts]
    if only and not set(only) <= set(names):
        parser.error(f"--only: expected some of {', '.join(names)}")
    if arguments.repetitions:
        plan = replace(plan, effort=replace(plan.effort, repetitions=arguments.repetitions))
    pythons = {
        n: arguments.environments / f".venv-{n}/bin/python" for n in ("ctranslate2", "openvino")
    }
    suite = Suite(
        work=arguments.work.resolve(),
        shape=arguments.shape,
        engines=tuple(arguments.engines.split(",")) if arguments.engines else None,
        environments={n: str(path.absolute()) for n, path in pythons.items() if path.exists()},
        results=arguments.results,
    )
    suite.work.mkdir(parents=True, exist_ok=True)
    demo = replace(suite, work=suite.work / "demo", shape="demo")
    stamp: Row = {"plan": "quick" if arguments.quick else "full", "shape": suite.shape}
    stamp["versions"], stamp["code"] = suite.versions(), code_digest()
    stamp["repetitions"] = plan.effort.repetitions
    comparison = Comparison(suite.results / "compare.json", stamp, plan.seconds, only)
    comparison.resume(arguments.again)
    prepare(suite, demo, plan)
    if arguments.prepare:
        return
    print(f"about {comparison.estimate(names) / 60:.0f} minutes", flush=True)
    measure(comparison, suite, demo, plan, arguments.lines)
    if comparison.failed:
        sys.exit(f"failed: {', '.join(comparison.failed)}")


if __name__ == "__main__":
    main()
