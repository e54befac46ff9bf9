"""Measures many callers: the queue beside calls of a thread each, and beside CTranslate2's queue.

    python benchmarks/queueing.py BUNDLE [--ctranslate2 FOLDER --interpreter PYTHON] [--only lone]

`callers` compares what 32 callers of single sentences get, by turns: with a thread each that calls
`translate`, and with `submit`. `lone` compares a lone request of the queue with a direct call.
`rates` lets sentences arrive at random (a Poisson process) and shows how long they take: with the
queue, with threads, and with CTranslate2's asynchronous calls at its best setting. Sources have 32
to 48 tokens, and so have translations. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from controls import summed_up
from m2m100_onnx import Translator
from plots import line_chart

CALLERS, ROUNDS = 32, 5
LENGTHS = (32, 48)
LANGUAGES: dict[str, Any] = {"source_lang": "en", "target_lang": "fr"}
RATES = {1: (1, 2, 4, 6, 8, 10), 5: (0.5, 1, 1.5, 2, 3, 4)}
BEHIND = 5.0
"""Median seconds at which an engine does not keep up with what arrives."""
# Reads jobs, and lets them arrive at their times; answers with the seconds of each.
CTRANSLATE2 = """
import json, sys, time
import ctranslate2
folder, workers, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = ctranslate2.Translator(folder, inter_threads=workers, intra_threads=threads)
for line in sys.stdin:
    jobs, beams = json.loads(line)
    began, running, found = time.perf_counter(), [], []
    for at, source, length in jobs:
        while (left := began + at - time.perf_counter()) > 0:
            time.sleep(min(left, 0.001))
            done = [job for job in running if job[1].done()]
            found += [time.perf_counter() - started for started, _ in done]
            running = [job for job in running if job not in done]
        (result,) = model.translate_batch([source], target_prefix=[["__fr__"]], beam_size=beams,
            min_decoding_length=length - 2, max_decoding_length=length - 2, asynchronous=True)
        running.append((began + at, result))
    while running:
        time.sleep(0.0005)
        done = [job for job in running if job[1].done()]
        found += [time.perf_counter() - started for started, _ in done]
        running = [job for job in running if job not in done]
    print(json.dumps(found), flush=True)
"""


@dataclass(frozen=True)
class Job:
    """A sentence, and how many tokens its translation has."""

    text: str
    tokens: int

    def options(self, beams: int) -> dict[str, Any]:
        """Returns the options of a call."""
        lengths = {"max_length": self.tokens, "min_length": self.tokens - 1}
        return {**LANGUAGES, "beam_size": beams, **lengths}


def jobs(translator: Translator, count: int, seed: int = 0) -> list[Job]:
    """Returns sentences whose sources have 32 to 48 tokens."""
    chance = random.Random(seed)
    words = ("file", "open", "window", "save", "name", "list", "menu", "error")
    found = []
    while len(found) < count:
        text, wanted = "", chance.randint(*LENGTHS)
        while len(translator.encode(text, "en")) < wanted:
            text += f" {chance.choice(words)}"
        found.append(Job(text.strip(), chance.randint(*LENGTHS)))
    return found


def directly(translator: Translator, beams: int) -> Callable[[Job], object]:
    """Returns a call as a thread makes it."""
    return lambda job: translator.translate(job.text, **job.options(beams))


def queued(translator: Translator, beams: int) -> Callable[[Job], object]:
    """Returns a call that waits for the queue."""
    return lambda job: translator.submit(job.text, **job.options(beams)).result()


def submitted(translator: Translator, beams: int, job: Job) -> Future[Any]:
    """Returns the future of a call."""
    return translator.submit(job.text, **job.options(beams))


def rate(call: Callable[[Job], object], some: Sequence[Job]) -> float:
    """Returns the sentences a second that callers get who wait for each answer."""
    with ThreadPoolExecutor(CALLERS) as pool:
        began = time.perf_counter()
        list(pool.map(call, some))
        return len(some) / (time.perf_counter() - began)


def seconds(call: Callable[[Job], object], some: Sequence[Job]) -> float:
    """Returns the seconds of calls, one after another."""
    began = time.perf_counter()
    for job in some:
        call(job)
    return time.perf_counter() - began


def measure_callers(translator: Translator, beams: int) -> dict[str, Any]:
    """Compares the queue with a thread for each caller."""
    some = jobs(translator, 2 * CALLERS)
    ways = [directly(translator, beams), queued(translator, beams)]
    found = [[rate(way, some) for way in ways] for _ in range(ROUNDS)]
    rates = [round(statistics.median(column), 2) for column in zip(*found, strict=True)]
    ratios = [after / before for before, after in found]
    return summed_up(f"callers, {beams} beams", ratios, threads=rates[0], queue=rates[1])


def measure_lone(translator: Translator, beams: int) -> dict[str, Any]:
    """Compares a lone request with a direct call."""
    some = jobs(translator, 4)
    ways = [directly(translator, beams), queued(translator, beams)]
    found = [[seconds(way, some) for way in ways] for _ in range(3 * ROUNDS)]
    return summed_up(f"lone, {beams} beams", [after / before for before, after in found])


def arrivals(some: Sequence[Job], a_second: float) -> list[tuple[float, Job]]:
    """Returns when each sentence arrives."""
    chance, at, found = random.Random(1), 0.0, []
    for job in some:
        at += chance.expovariate(a_second)
        found.append((at, job))
    return found


def latencies(start: Callable[[Job], Future[Any]], due: Sequence[tuple[float, Job]]) -> list[float]:
    """Returns the seconds from each arrival to its answer; nobody waits to arrive."""
    began, found, lock = time.perf_counter(), [], threading.Lock()
    futures = []
    for at, job in due:
        time.sleep(max(0.0, began + at - time.perf_counter()))

        def note(_: object, at: float = at) -> None:
            with lock:
                found.append(time.perf_counter() - began - at)

        future = start(job)
        future.add_done_callback(note)
        futures.append(future)
    for future in futures:
        future.result()
    return found


def in_threads(way: Callable[[Job], Any], due: Sequence[tuple[float, Job]]) -> list[float]:
    """Returns the same with a thread for each sentence."""
    with ThreadPoolExecutor(256) as pool:
        return latencies(partial(pool.submit, way), due)


def measure_rates(
    translator: Translator, beams: int, folder: str | None, interpreter: str, span: float
) -> list[dict[str, Any]]:
    """Lets sentences arrive at several rates, the higher ones for engines that keep up alone."""
    rows: list[dict[str, Any]] = []
    for a_second in RATES[beams]:
        behind = {row["what"] for row in rows if row["p50"] > BEHIND}
        some = jobs(translator, max(20, round(a_second * span)), seed=2)
        due = arrivals(some, a_second)
        ways: dict[str, Callable[[], list[float]]] = {
            "threads": partial(in_threads, directly(translator, beams), due),
            "queue": partial(latencies, partial(submitted, translator, beams), due),
        }
        for setting in ((2, 1), (1, 2)) if folder else ():
            run = partial(peer, translator, interpreter, str(folder), setting, due, beams)
            ways["ctranslate2 {}x{}".format(*setting)] = run
        found = {name: way() for name, way in ways.items() if name not in behind}
        for name, values in found.items():
            cuts = statistics.quantiles(values, n=100, method="inclusive")
            row = {"what": name, "beams": beams, "rate": a_second, "count": len(values)}
            row |= {f"p{n}": round(cuts[n - 1], 3) for n in (50, 95, 99)}
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def peer(
    translator: Translator,
    interpreter: str,
    folder: str,
    setting: tuple[int, int],
    due: Sequence[tuple[float, Job]],
    beams: int,
) -> list[float]:
    """Returns CTranslate2's seconds for the same arrivals."""
    words = translator.tokenizer
    request = [(at, ["__en__", *words.tokenize(job.text), "</s>"], job.tokens) for at, job in due]
    command = [interpreter, "-c", CTRANSLATE2, folder, *map(str, setting)]
    warm = [(0.0, *request[0][1:])]
    lines = "".join(json.dumps([some, beams]) + "\n" for some in (warm, request))
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def draw(rows: Sequence[dict[str, Any]], beams: int) -> str:
    """Returns the chart of the 95th percentile over the rate."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["beams"] == beams:
            series.setdefault(row["what"], []).append((row["rate"], row["p95"]))
    return line_chart(
        f"95 % of sentences within, {beams} beam{'s' * (beams > 1)}",
        *("sentences that arrive in a second", "seconds"),
        series,
    )


def save(rows: Mapping[str, Sequence[dict[str, Any]]], folder: Path) -> None:
    """Writes the rows, and the charts of rates."""
    (folder / "queueing.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for beams in sorted({row["beams"] for row in rows["rates"]}):
        (folder / f"queueing-{beams}.svg").write_text(draw(rows["rates"], beams), encoding="utf-8")


def main() -> None:
    """Measures what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--ctranslate2", metavar="FOLDER")
    parser.add_argument("--interpreter", default=sys.executable)
    parser.add_argument("--only", choices=["callers", "lone", "rates"])
    parser.add_argument("--beams", type=int, nargs="*", default=[1, 5])
    parser.add_argument("--span", type=float, default=20, help="seconds of arrivals at each rate")
    parser.add_argument("--results", type=Path, help="folder for queueing.json and charts")
    arguments = parser.parse_args()
    translator = Translator(arguments.bundle)
    rows: dict[str, list[dict[str, Any]]] = {"callers": [], "lone": [], "rates": []}
    for beams in arguments.beams:
        queued(translator, beams)(jobs(translator, 1)[0])
        if arguments.only in (None, "lone"):
            rows["lone"].append(measure_lone(translator, beams))
        if arguments.only in (None, "callers"):
            rows["callers"].append(measure_callers(translator, beams))
        if arguments.only in (None, "rates"):
            peers = arguments.ctranslate2, arguments.interpreter, arguments.span
            rows["rates"] += measure_rates(translator, beams, *peers)
        if arguments.results:  # After each number of beams: the next may be interrupted.
            save(rows, arguments.results)


if __name__ == "__main__":
    main()
