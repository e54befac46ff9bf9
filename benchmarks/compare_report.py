"""The tables of results/compare.json: ours beside CTranslate2 and OpenVINO at their best.

Knows the rows that `compare.py` writes, and measures nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from targets import PEER, Data, Target, speed_ratio

MIB = 2**20
# Cell to its name and the least ratios to CTranslate2, of ours int8 and of ours int4.
CELLS = {
    "1x1": ("B=1 greedy", 3.5, 4.5),
    "1x5": ("B=1 beam 5", 4.0, None),
    "8x1": ("B=8 greedy", 2.2, None),
    "8x5": ("B=8 beam 5", 2.0, None),
    "32x1": ("B=32 greedy", 1.8, None),
    "32x5": ("B=32 beam 5", 1.7, None),
    "1x1x256x64": ("B=1 greedy, 256 to 64", None, None),
    "1x5x256x64": ("B=1 beam 5, 256 to 64", None, None),
}
TEXT_TARGET = 1.5
# Rows of a step, the limit that bounds it, and the least share of it.
SHARES = ((1, "reading", 0.85), (160, "products", 0.75))

Rows = Mapping[str, Data]


def by_cell(data: Data) -> Rows:
    """Returns the cells of the file by name."""
    return {row["cell"]: row for row in data["rows"]}


def is_text(name: str) -> bool:
    """Returns whether a cell is one of real text."""
    return " " in name


def best(row: Data) -> dict[str, Data]:
    """Returns each engine's row in a cell; the fastest setting of CTranslate2 that took turns."""
    found: dict[str, Data] = {}
    for each in row["engines"]:
        other = found.get(each["engine"])
        if other is None or middle(each) < middle(other):
            found[each["engine"]] = each
    return found


def middle(row: Data) -> float:
    """Returns the median of an engine's samples."""
    return float(statistics.median(row["samples"]))


def ratio(row: Data, name: str) -> float | None:
    """Returns how many times as fast as CTranslate2 at its best an engine is in a cell."""
    found = best(row)
    if name not in found or PEER not in found:
        return None
    return speed_ratio(found[name]["samples"], found[PEER]["samples"])


def names_of(rows: list[Data]) -> list[str]:
    """Returns the engines of cells, in the order of their first turns."""
    found = (
        name for row in rows for name in (*(e["engine"] for e in row["engines"]), *row["failed"])
    )
    return list(dict.fromkeys(found))


def heading(name: str) -> str:
    """Returns the heading of a cell's column."""
    if not is_text(name):
        return CELLS[name][0] if name in CELLS else name
    direction, beam_size, form = name.split()
    search = "greedy" if beam_size == "1" else f"beam {beam_size}"
    return f"{direction} {search}, {form}"


def speed_table(rows: list[Data]) -> Iterator[list[str]]:
    """Yields the lines of a table of seconds and ratios, the header first."""
    yield ["", *(heading(row["cell"]) for row in rows)]
    for name in names_of(rows):
        cells = []
        for row in rows:
            found, times = best(row).get(name), ratio(row, name)
            shown = f", {times:.2f} x" if times is not None and name != PEER else ""
            failed = "failed" if name in row["failed"] else ""
            cells.append(f"{middle(found):.2f} s{shown}" if found else failed)
        yield [name, *cells]
    if any(PEER in best(row) for row in rows):
        settings = [best(row).get(PEER, {}).get("setting", "") for row in rows]
        yield [f"setting of {PEER}", *settings]


def spread_table(rows: list[Data]) -> Iterator[list[str]]:
    """Yields what CTranslate2's settings took, the header first."""
    yield ["", "best", "2nd", "slowest", "settings tried"]
    for row in rows:
        if probes := sorted(row["probes"].items(), key=lambda pair: pair[1]):
            shown = [f"{label}: {seconds:.2f} s" for label, seconds in probes]
            yield [heading(row["cell"]), shown[0], *shown[1:2], shown[-1], str(len(shown))]


def limit_table(rows: Rows) -> Iterator[list[str]]:
    """Yields the time of steps beside the least that the machine allows, the header first."""
    yield ["", "rows", "step", "least", "share", "bounded by"]
    for each in rows["steps"]["engines"]:
        found = share(rows, each["engine"], each["rows"])
        if found:
            step, least, bound = found
            shown = [f"{step * 1e3:.1f} ms", f"{least * 1e3:.1f} ms", f"{least / step * 100:.0f} %"]
            yield [each["engine"], str(each["rows"]), *shown, bound]


def share(rows: Rows, name: str, count: int) -> tuple[float, float, str] | None:
    """Returns the seconds of a step, the least seconds, and what bounds them."""
    limits, steps = rows.get("limits"), rows.get("steps")
    if not limits or not steps or name not in limits["least"]:
        return None
    for each in steps["engines"]:
        if (each["engine"], each["rows"]) == (name, count):
            least = limits["least"][name][str(count)]
            reading = limits["costs"][name]["bytes"] / max(limits["read"])
            bound = "reading" if least <= reading else "products"
            return float(statistics.median(each["steps"])), least, bound
    return None


def start_table(row: Data) -> Iterator[list[str]]:
    """Yields the starts of processes, the header first."""
    yield ["", "to the first token", "first process ever", "private", "bundle", "beside it"]
    for each in row["engines"]:
        private = each["memory"]["private"]
        yield [
            each["engine"],
            f"{statistics.median(each['starts']):.2f} s",
            f"{each['first']:.2f} s",
            f"{private / MIB:,.0f} MiB" if private is not None else "",
            f"{each['disk'] / 1e6:,.0f} MB",
            f"{each['cache'] / 1e6:,.0f} MB",
        ]


def compared_targets(data: Data) -> Iterator[Target]:
    """Yields the targets that need CTranslate2 at its best."""
    rows = by_cell(data)
    for cell, (what, *bounds) in CELLS.items():
        for name, least in zip(("ours int8", "ours int4"), bounds, strict=True):
            if least:
                yield _ratio_target(rows, cell, f"{what}: {name}", name, least)
    for cell in rows:
        if is_text(cell):
            name = f"demo model, {heading(cell)}: ours int8"
            yield _ratio_target(rows, cell, name, "ours int8", TEXT_TARGET)
    for count, what, least in SHARES:
        name, bound = (
            f"share of the limit ({what}), B x beam {count}: ours int8",
            f"{least * 100:.0f} %",
        )
        if found := share(rows, "ours int8", count):
            reached = found[1] / found[0]
            yield Target(name, bound, f"{reached * 100:.0f} %", reached >= least)
        else:
            yield Target(name, bound)
    yield from _int4(rows)
    yield from _start(rows)


def _ratio_target(rows: Rows, cell: str, what: str, name: str, least: float) -> Target:
    bound = f"{least} x the speed of CTranslate2 int8 at its best"
    found = ratio(rows[cell], name) if cell in rows else None
    return (
        Target(what, bound)
        if found is None
        else Target(what, bound, f"{found:.2f} x", found >= least)
    )


def _int4(rows: Rows) -> Iterator[Target]:
    """Yields whether int4 is as fast as int8 everywhere."""
    what, bound = "ours int4 against ours int8, every cell", "at least 1.0 x its speed"
    ratios = []
    for row in rows.values():
        found = best(row) if "probes" in row else {}
        if {"ours int4", "ours int8"} <= set(found):
            pair = found["ours int4"]["samples"], found["ours int8"]["samples"]
            ratios.append((speed_ratio(*pair), heading(row["cell"])))
    if not ratios:
        yield Target(what, bound)
        return
    (least, where), most = min(ratios), max(ratios)[0]
    yield Target(what, bound, f"{least:.2f} x ({where}) to {most:.2f} x", least >= 1)


def _start(rows: Rows) -> Iterator[Target]:
    """Yields the targets of a process's start and of what it leaves."""
    engines: dict[str, Any] = {}
    if "start" in rows:
        engines = {each["engine"]: each for each in rows["start"]["engines"]}
    ours = engines.get("ours int8")
    lines = (
        (
            "a fresh process to its first token",
            0.3,
            "s",
            lambda row: statistics.median(row["starts"]),
        ),
        ("the first process ever to its first token", 0.6, "s", lambda row: row["first"]),
        ("private memory after beam 5", 60, "MB", lambda row: row["memory"]["private"] / 1e6),
        ("on disk beside the bundle", 0, "MB", lambda row: row["cache"] / 1e6),
    )
    for what, most, unit, measured in lines:
        name, bound = f"{what}: ours int8", f"at most {most} {unit}"
        if not ours:
            yield Target(name, bound)
            continue
        found = measured(ours)
        shown = f"{found:.2f} s" if unit == "s" else f"{found:.0f} MB"
        yield Target(name, bound, shown, found <= most)


def conditions(data: Data) -> str:
    """Returns where and with which versions the cells were measured."""
    machine, loads = data["machine"], [row["load_average"] for row in data["rows"]]
    packages: dict[str, str] = {}
    for found in reversed(list(data["versions"].values())):
        packages.update(found)
    wanted = ("ctranslate2", "m2m100-onnx", "m2m100-onnx-kernels", "onnxruntime", "openvino")
    listed = [f"{name} {packages[name]}" for name in (*wanted, "optimum-intel") if name in packages]
    kernels = "" if "m2m100-onnx-kernels" in packages else " Without the kernels' package."
    dates = sorted({row["date"] for row in data["rows"]})
    return (
        f"{machine['processor']}, {machine['cores']} cores, {' and '.join(dates)}, plan "
        f"{data['plan']}, at most {data['repetitions']} repetitions; load {loads[0]:.1f} before "
        f"the first cell, {min(loads):.1f} to {max(loads):.1f} before the others, which includes "
        f"the cell before; {', '.join(listed)}.{kernels}"
    )


def parts(data: Data) -> Iterator[tuple[str, str, list[list[str]]]]:
    """Yields the title, the explanation and the lines of each table."""
    rows = by_cell(data)
    targets = [target.cells() for target in compared_targets(data)]
    yield (
        "Targets against peers at their best",
        "",
        [["418M shape", "target", "measured", ""], *targets],
    )
    cells = [row for name, row in rows.items() if "probes" in row]
    speeds = [row for row in cells if not is_text(row["cell"])]
    texts = [row for row in cells if is_text(row["cell"])]
    if speeds:
        yield (
            "Speed of the 418M shape, every engine at its best",
            "Random weights, 32 source tokens and exactly 48 target tokens unless the heading says "
            "others, token ids in and out. Median seconds a batch, and how many times as fast as "
            f"{PEER}, the median of pairs. A setting of CTranslate2 is workers x threads, the "
            "parts that the batch is cut into, how products are computed, and the instruction set.",
            list(speed_table(speeds)),
        )
        spread = list(spread_table(speeds))
        if len(spread) > 1:
            yield (
                "What CTranslate2's settings take",
                "Tried once for each cell, or twice where that takes less than three seconds.",
                spread,
            )
    if texts:
        yield (
            "Real text at natural lengths",
            "The demo model on held-out lines. `text` is text in and out, with SentencePiece alone "
            "for CTranslate2 and transformers' tokenizer for OpenVINO; `tokens` is without any "
            "tokenizer. Median seconds for all lines.",
            list(speed_table(texts)),
        )
    if "limits" in rows and "steps" in rows:
        found = rows["limits"]
        yield (
            "A step beside the machine's limits",
            f"{found['threads']} threads read {max(found['read']) / 1e9:.1f} GB/s and compute "
            f"{max(found['products']) / 1e9:,.0f} G multiply-adds a second ({found['isa']}), the "
            f"best of {len(found['read'])} measurements with the kernels' own loops. The "
            "least time of a step is that of its weights or of its products, whichever is longer.",
            list(limit_table(rows)),
        )
    if "start" in rows:
        yield (
            "Start of a process, memory and disk",
            "From the start to the first token with the model in the page cache; the first process "
            "ever fills the weights cache. Private memory is that after a translation with beam 5.",
            list(start_table(rows["start"])),
        )
