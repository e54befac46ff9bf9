"""A bundle's graphs, ready to run: chooses the device, the sessions, and the set of graphs.

Refuses to know what the graphs of a kind of bundle take.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from types import NoneType
from typing import Generic, Literal, TypeVar

from m2m100_onnx.bundle.folder import WEIGHTS_FILE, BundleFolder
from m2m100_onnx.errors import InvalidInputError
from m2m100_onnx.model.operators import are_fast, check_native
from m2m100_onnx.model.sessions import SessionFactory, Sessions
from m2m100_onnx.model.support import (
    Provider,
    check_fused,
    check_precision,
    check_version,
    stores_packed,
)
from m2m100_onnx.model.weights_cache import WeightsCache, cache_directory
from m2m100_onnx.process import side_by_side

__all__ = ["Graphs"]

_LOGGER = logging.getLogger("m2m100_onnx")

_SMALL = 32 << 20
"""Bytes of weights that a processor's caches hold, so that each thread may read all of them."""

_B = TypeVar("_B", bound=BundleFolder)


class Graphs(Generic[_B]):
    """A bundle's graphs, ready to run; many threads may use one at the same time.

    Attributes:
        bundle: the opened bundle.
        sessions: the sessions of its graphs.
        device: `cpu` or `cuda`.
        device_id: the number of the device among those of its kind.
        fused: whether fused or native graphs run, whose searches are alike.
        native: whether the native graphs run.
        files: the graphs that run.
    """

    def __init__(
        self,
        bundle: _B,
        *,
        device: str = "cpu",
        providers: Sequence[Provider] | None = None,
        intra_op_num_threads: int | None = None,
        session_options: Mapping[str, str] | None = None,
        fused: bool | None = None,
        kernels: bool | None = None,
        cache_dir: str | os.PathLike[str] | Literal[False] | None = None,
    ) -> None:
        """Chooses device and graphs; a graph is opened at its first use, or by `load`.

        `Translator` describes the arguments.

        Raises:
            InvalidInputError: an argument is out of range, or the graphs that `fused` or `kernels`
                asks for cannot run.
            DependencyError: onnxruntime has no CUDA provider and CUDA is wanted, or it is too old
                for four bits or for the fused graphs, or `kernels` is True and the package of
                operators is not installed.
        """
        check_version()
        self.bundle = bundle
        directory = cache_directory(cache_dir, bundle.precision)
        caches = directory is not None and stores_packed(bundle.precision)
        factory = partial(
            SessionFactory,
            device,
            providers=providers,
            session_options=session_options,
            cache=WeightsCache(directory) if directory and caches else None,
        )
        shared = factory(intra_op_num_threads=intra_op_num_threads)
        self.sessions: Sessions[_B] = Sessions(bundle, shared, factory(intra_op_num_threads=1))
        self.device, self.device_id = shared.device, shared.device_id
        self.native = self._choose_native(kernels, fused)
        self.fused = self.native or self._choose_fused(fused)
        self.files: tuple[str, ...] = {
            "native": bundle.native_files,
            "fused": bundle.fused_files,
            "portable": bundle.portable_files,
        }[self.kind]
        check_precision(bundle.precision, self.device)
        if bundle.precision == "fp16" and self.device == "cpu":
            _LOGGER.warning(
                "%s is an fp16 bundle: on a CPU onnxruntime widens it to float32 when it opens, "
                "which is slow and saves no memory; export with --precision fp32 for CPUs",
                bundle.directory,
            )

    def _choose_fused(self, wanted: bool | None) -> bool:
        if not isinstance(wanted, (bool, NoneType)):
            raise InvalidInputError(f"fused: expected True, False or None, found {wanted!r}")
        # On CUDA they run where they are asked for: no GPU has compared their translations yet.
        if wanted is False or (wanted is None and not self.sessions.factory.cpu_only):
            return False
        try:
            check_fused(self.bundle, self.sessions.factory.fused_device)
        except InvalidInputError:
            if wanted:
                raise
            return False
        return True

    def _choose_native(self, wanted: bool | None, fused: bool | None) -> bool:
        if not isinstance(wanted, (bool, NoneType)):
            raise InvalidInputError(f"kernels: expected True, False or None, found {wanted!r}")
        if wanted and fused is False:
            raise InvalidInputError(
                "kernels: expected fused to be True or None with it, found False"
            )
        if wanted is False or fused is False:
            return False
        refusal = check_native(self.bundle, cpu_only=self.sessions.factory.cpu_only)
        if refusal is not None and wanted:
            raise refusal
        return refusal is None and (bool(wanted) or are_fast())

    @property
    def kind(self) -> Literal["native", "fused", "portable"]:
        """The set of graphs that runs."""
        if self.native:
            return "native"
        return "fused" if self.fused else "portable"

    def load(self) -> None:
        """Opens every graph now, so that no later call has to.

        Raises:
            BundleError: a graph is damaged or has another signature than it must.
        """
        # onnxruntime packs the weights of each graph with one thread.
        side_by_side(*(partial(self.sessions.get, file) for file in self.files))

    def release(self) -> None:
        """Closes every graph and gives memory back to the system; the next run opens them again."""
        self.sessions.release()

    @property
    def threads(self) -> int:
        """Number of threads of a run; the caller's is one of them."""
        return self.sessions.factory.threads

    @property
    def rows_a_part(self) -> float:
        """Rows a thread from which on each thread computes a part of a batch on its own.

        onnxruntime shares a step badly: most operators are small, and each ends with one thread
        that waits for the other. With a part of its own, each thread reads all weights. Native
        graphs have few operators, and parts pay only where weights are few: what Python does for
        one part then takes as long as the graphs of the other. benchmarks/README.md has the
        measurements.
        """
        if not self.native:
            return 15
        manifest = self.bundle.manifest
        assert manifest is not None, "native graphs are this project's"
        return 32 if manifest.files[WEIGHTS_FILE].size <= _SMALL else math.inf

    @property
    def can_run_serially(self) -> bool:
        """Whether runs can stay in their callers' threads, at next to no memory."""
        if not self.fused or self.threads == 1 or not self.sessions.factory.cpu_only:
            return False
        for file in self.files:
            self.sessions.get(file)  # Only an open graph tells whether its weights are mapped.
        return self.sessions.mapped(self.files)
