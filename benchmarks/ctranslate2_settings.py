"""The settings of CTranslate2, and the search for the best one of a cell.

CTranslate2 shares its threads between workers, which translate parts of a batch side by side, and
the operators of a worker. It multiplies by oneDNN or by MKL, whose weights may be packed, and has
small operators for several instruction sets. Which of these is fastest depends on the batch. Knows
no engine's process: it is given what measures a setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PRODUCTS = {
    "its default": {},
    "MKL": {"CT2_USE_MKL": "1", "CT2_PACKED_GEMM": "0"},
    "MKL packed": {"CT2_USE_MKL": "1", "CT2_PACKED_GEMM": "1"},
}
"""How products are computed, and the variables that ask for it.

The default is MKL on Intel's processors, packed since 4.8, and oneDNN on others.
"""


@dataclass(frozen=True)
class Setting:
    """One setting of CTranslate2.

    Attributes:
        workers: translate side by side.
        threads: of each worker.
        parts: into which a batch is cut; 0 leaves it whole.
        products: a key of `PRODUCTS`.
        wide: whether AVX-512 is asked for, which CTranslate2 chooses on Intel's processors alone.
    """

    workers: int = 1
    threads: int = 1
    parts: int = 0
    products: str = "its default"
    wide: bool = False

    @property
    def label(self) -> str:
        """Returns the setting in words."""
        found = f"{self.workers} x {self.threads}"
        found += f", {self.parts} part{'s' * (self.parts > 1)}" if self.parts else ""
        found += f", {self.products}" if self.products != "its default" else ""
        return found + (", AVX-512" if self.wide else "")

    @property
    def variables(self) -> dict[str, str]:
        """Returns the variables that CTranslate2 reads when it is imported."""
        found = dict(PRODUCTS[self.products])
        return {**found, "CT2_FORCE_CPU_ISA": "AVX512"} if self.wide else found

    @property
    def loading(self) -> dict[str, int]:
        """Returns what its `Translator` is opened with."""
        return {"workers": self.workers, "threads": self.threads}

    @property
    def process(self) -> Setting:
        """Returns the part of the setting that a process is started with."""
        return replace(self, parts=0)

    def most(self, sentences: int) -> int:
        """Returns `max_batch_size` for a batch, 0 for a whole one."""
        return -(-sentences // self.parts) if self.parts else 0


def thread_settings(sentences: int, cores: int) -> Iterator[Setting]:
    """Yields the ways to share the cores, with one or two parts for each of several workers."""
    for workers in range(1, cores + 1):
        if cores % workers or workers > sentences:
            continue
        for parts in (workers, 2 * workers):
            if workers == 1:
                yield Setting(1, cores)
                break
            if parts <= sentences:
                yield Setting(workers, cores // workers, parts)


def has_avx512() -> bool:
    """Returns whether this processor has AVX-512."""
    try:
        return " avx512f " in Path("/proc/cpuinfo").read_text(encoding="ascii")
    except OSError:
        return False


def search(
    candidates: Iterable[Setting], measure: Callable[[Setting], float], *, wide: bool
) -> dict[Setting, float]:
    """Returns the seconds of each setting that was tried, the fastest first.

    One dimension follows the other: threads, products, instruction set. The best so far is varied.

    Args:
        candidates: for the threads.
        measure: returns a setting's seconds.
        wide: whether the processor has AVX-512.
    """
    found = {setting: measure(setting) for setting in candidates}
    for name, values in (("products", list(PRODUCTS)[1:]), ("wide", [True] if wide else [])):
        best = min(found, key=found.__getitem__)
        varied: list[Any] = [replace(best, **{name: value}) for value in values]
        found.update((setting, measure(setting)) for setting in varied)
    return dict(sorted(found.items(), key=lambda pair: pair[1]))
