"""Opens graphs with onnxruntime, once each, and runs them.

Knows session options and the weights cache; knows no tensors of a search.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Generic, TypeVar

from m2m100_onnx.bundle.folder import BundleFolder
from m2m100_onnx.bundle.graphs import FOUR_BITS
from m2m100_onnx.errors import BundleError, DependencyError, InferenceError, InvalidInputError
from m2m100_onnx.heap import trim_heap
from m2m100_onnx.model.memory import in_shared_arena, shrink_arena
from m2m100_onnx.model.operators import library
from m2m100_onnx.model.signatures import check_signature
from m2m100_onnx.model.support import (
    CPU,
    CUDA,
    Provider,
    adds_in_16_bits,
    choose_providers,
    ort,
    parse_device,
    prepare_cuda,
    raised_by_onnxruntime,
)
from m2m100_onnx.model.termination import TerminatedError, Termination
from m2m100_onnx.model.weights_cache import PackingError, WeightsCache
from m2m100_onnx.options import Option
from m2m100_onnx.process import (
    affine_cores,
    cores,
    finish_at_exit,
    leave_behind,
    native_call,
    raised_by_signal_handler,
    renew_in_children,
)

__all__ = ["SessionFactory", "Sessions", "run"]

_LOGGER = logging.getLogger("m2m100_onnx")

# These affect threads alone; graphs and packed weights do not depend on them.
_THREAD_OPTIONS = ("session.intra_op", "session.inter_op", "session.dynamic_block_base")
# onnxruntime's threads spin while they wait for work. By default they do so for so long that a busy
# neighbour doubles the time of a step. With this duration a step on an idle machine takes 4 %
# longer.
_WAITING = {"session.intra_op.spin_duration_us": "20"}
# On x86 without VNNI the fast 8-bit kernel adds pairs of products in 16 bits, which overflow. This
# selects another kernel, half as fast, with which translations equal those on VNNI.
_EXACT = {"session.x64quantprecision": "1"}
_UNPACKED = "session.disable_prepacking"
# At most more than the cores of any processor; with many more, onnxruntime dies without a message.
_THREADS = Option("intra_op_num_threads", "int | None", None, "Threads of an operator.", 1, 1024)
_SAVE_PACKED = "session.save_external_prepacked_constant_initializers"
_SAVED_WEIGHTS = "session.optimized_model_external_initializers_file_name"
finish_at_exit()  # onnxruntime is imported, so its own exit hooks run later.


_B = TypeVar("_B", bound=BundleFolder)


class Sessions(Generic[_B]):
    """The sessions of a bundle's graphs, each opened at its first use; for many threads."""

    def __init__(self, bundle: _B, shared: SessionFactory, serial: SessionFactory) -> None:
        """Opens nothing.

        Args:
            bundle: the bundle.
            shared: opens sessions that share each operator among all threads.
            serial: opens sessions whose runs stay in the caller's thread.
        """
        self.bundle = bundle
        self.factory = shared
        self._serial_factory = serial
        self._sessions: dict[str, ort.InferenceSession] = {}
        # One per graph, since onnxruntime can open several graphs at the same time.
        self._locks = defaultdict[str, threading.Lock](threading.Lock)
        renew_in_children(self)

    def renew(self) -> None:
        """Forgets all sessions, to be opened again: a forked process has none of their threads."""
        for session in self._sessions.values():
            leave_behind(session)
        self._sessions = {}
        self._locks.clear()

    def release(self) -> None:
        """Closes every session and gives memory back; the next `get` opens its graph again."""
        for key in list(self._locks):
            with self._locks[key]:
                self._sessions.pop(key, None)  # A run that has it keeps it open.
        shrink_arena()
        trim_heap()

    def get(self, file: str, *, serial: bool = False) -> ort.InferenceSession:
        """Returns the session of one graph, opened at the first call.

        Args:
            file: the graph.
            serial: whether runs stay in the caller's thread, so that several can run side by side.
                The bundle may have changed since; then the shared session serves, more slowly.

        Raises:
            BundleError: the graph is damaged, has another signature, or is no longer the one that
                the bundle had.
        """
        key = f"{file} serial" if serial else file
        with self._locks[key]:
            if key not in self._sessions:
                try:
                    self._sessions[key] = self._open(file, serial=serial)
                except BundleError as error:
                    if not serial:
                        raise
                    # This session is opened in the middle of work that can go on without it.
                    _LOGGER.warning("a part of the work gets no core of its own: %s", error)
                    self._sessions[key] = self.get(file)
            return self._sessions[key]

    def _open(self, file: str, *, serial: bool) -> ort.InferenceSession:
        path = self.bundle.directory / file
        # A graph that runs once per batch has the weights of another one. Unpacked, they stay
        # pages of the weights file, and not a second private copy (1.2 GB for the 418M shape in
        # fp32). Not so in four bits, where onnxruntime would widen every matrix to fp32 at every
        # run (4.5 s for that shape).
        four_bits = self.bundle.precision in FOUR_BITS
        defaults = {_UNPACKED: "1"} if file in self.bundle.rarely_run and not four_bits else {}
        factory = self._serial_factory if serial else self.factory
        native = (*self.bundle.native_files, *self.bundle.other_native_files)
        operators = library() if file in native else None
        self.bundle.check_unchanged()
        manifest = self.bundle.manifest
        hashes = {name: r.sha256 for name, r in manifest.files.items()} if manifest else {}
        session = factory.open(path, str(path), defaults, hashes, operators=operators)
        check_signature(path, session, self.bundle.signature(file))
        # The file that was read is the old one, if the bundle is still the old one now.
        self.bundle.check_unchanged()
        return session

    def gather(self, element_type: str) -> ort.InferenceSession:
        """Returns a session of the graph of one `Gather`, for tensors in device memory."""
        name = f"gather_{element_type}.onnx"
        with self._locks[name]:
            if name not in self._sessions:
                source = resources.files("m2m100_onnx") / "model" / "data" / name
                self._sessions[name] = self.factory.open(Path(name), source.read_bytes(), {})
            return self._sessions[name]

    def mapped(self, files: Sequence[str]) -> bool:
        """Says whether the weights of open graphs are mapped, so that a second session is cheap."""
        return all(self.bundle.directory / file in self.factory.mapped for file in files)


class SessionFactory:
    """Opens every graph of a model with the same device, threads and options.

    Attributes:
        device: `cpu` or `cuda`.
        device_id: the number of the device among those of its kind.
        cpu_only: whether the CPU's provider is the only one.
        fused_device: `cpu` or `cuda`, whose operators run the graphs; None where other providers
            may.
        threads: number of threads of a session's operators; the caller's is one of them.
        mapped: graphs whose weights are mapped from the weights cache; one more session of such a
            graph needs next to no memory.
    """

    def __init__(
        self,
        device: str,
        *,
        providers: Sequence[Provider] | None,
        intra_op_num_threads: int | None,
        session_options: Mapping[str, str] | None,
        cache: WeightsCache | None,
    ) -> None:
        """Checks the arguments, which are those of `Model`; `cache` holds packed weights.

        Raises:
            InvalidInputError: an argument is out of range.
            DependencyError: onnxruntime lacks one of the providers.
        """
        self.device, self.device_id = parse_device(device)
        self._providers = choose_providers(self.device, self.device_id, providers)
        number: int | None = _THREADS.check(intra_op_num_threads)
        self.threads: int = number or cores()
        # onnxruntime's own default heeds affinity, and no quota.
        limited = number is None and self.threads < affine_cores()
        self._intra_op_num_threads = self.threads if limited else number
        self.mapped: set[Path] = set()
        names = {entry if isinstance(entry, str) else entry[0] for entry in self._providers}
        self.cpu_only = names == {CPU}
        on_cuda = self.device == "cuda" and CUDA in names and names <= {CUDA, CPU}
        self.fused_device = "cpu" if self.cpu_only else "cuda" if on_cuda else None
        if CUDA in names:
            prepare_cuda()
        # Only the CPU's provider packs weights.
        self._cache = cache if self.cpu_only else None
        self._defaults = {**_WAITING, **(_EXACT if adds_in_16_bits() else {})}
        if not isinstance(session_options, (Mapping, NoneType)):
            kind = type(session_options).__name__
            raise InvalidInputError(f"session_options: expected a mapping, found {kind}")
        self._options = dict(session_options or {})
        try:
            for key, entry in self._options.items():
                ort.SessionOptions().add_session_config_entry(key, entry)
        except (TypeError, RuntimeError) as error:
            if raised_by_signal_handler(error):
                raise
            raise InvalidInputError(
                f"session_options: onnxruntime does not take {key!r}: {entry!r}: {error}"
            ) from None

    def open(
        self,
        name: Path,
        model: str | bytes,
        defaults: Mapping[str, str],
        hashes: Mapping[str, str] | None = None,
        *,
        operators: Path | None = None,
    ) -> ort.InferenceSession:
        """Opens a graph.

        Args:
            name: its name in error messages.
            model: its path or its bytes.
            defaults: session config entries, which those of the caller override.
            hashes: the SHA-256 of the bundle's files, by which the weights cache finds its entries.
            operators: the library of the graph's own operators. They map weights as they lie, so
                the graph has no entry in the weights cache.

        Raises:
            BundleError: onnxruntime cannot open it.
            DependencyError: CUDA is wanted and could not be started.
        """
        entries = {**self._defaults, **defaults, **self._options}
        packed = reason = None
        if operators is not None:
            entries = in_shared_arena(entries)
            self.mapped.add(name)
        elif self._cache and isinstance(model, str) and entries.get(_UNPACKED) != "1":
            packed = self._packed(self._cache, Path(model), entries, hashes)
        if packed is not None:
            try:
                session = self._open_packed(packed, entries)
                self.mapped.add(name)
                return session
            except Exception as error:
                if not raised_by_onnxruntime(error):
                    raise
                reason = str(error)
        try:
            options = self._session_options(entries)
            if operators is not None:
                options.register_custom_ops_library(os.fspath(operators))
            session = self._session(model, options)
        except Exception as error:
            if not raised_by_onnxruntime(error):
                raise
            if self.device == "cuda" and isinstance(error, RuntimeError):
                raise DependencyError(
                    f"device: expected cuda, which did not start: {error}"
                ) from error
            raise BundleError(
                f"{name}: onnxruntime {ort.__version__} cannot open it: {error}"
            ) from error
        if self._cache and packed is not None:
            # Not so where the graph itself cannot be opened either: memory or threads may be short,
            # and the entry sound.
            self._cache.reject(packed, reason)
        if self.device == "cuda" and CUDA not in session.get_providers():
            raise DependencyError(
                "device: expected cuda, but onnxruntime could not start CUDA and fell back to "
                f"{', '.join(session.get_providers())}; check that the CUDA and cuDNN libraries "
                f"that onnxruntime-gpu {ort.__version__} needs are installed"
            )
        return session

    def _session(self, model: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
        # With its fallback, onnxruntime tries again after some errors, even those of a signal's
        # handler, with other providers; and prints to stdout, which is the program's.
        with native_call():
            return ort.InferenceSession(
                model, options, providers=self._providers, enable_fallback=0
            )

    def _session_options(self, entries: Mapping[str, str]) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # The plan of which outputs may share a buffer is most of the work of opening a graph of
        # this size on a CPU. It saves neither memory nor time, since buffers go back to the arena.
        options.enable_mem_reuse = self.device != "cpu"
        # One block for all outputs of a run, kept beside those of other shapes, is no faster
        # either.
        options.enable_mem_pattern = self.device != "cpu"
        if self._intra_op_num_threads is not None:
            options.intra_op_num_threads = self._intra_op_num_threads
        for key, entry in entries.items():
            options.add_session_config_entry(key, entry)
        return options

    def _packed(
        self,
        cache: WeightsCache,
        source: Path,
        entries: Mapping[str, str],
        hashes: Mapping[str, str] | None,
    ) -> Path | None:
        """Returns the packed form of a graph in the cache; None where it cannot have one."""

        def write(graph: Path, weights: str) -> None:
            options = self._session_options({**entries, _SAVE_PACKED: "1", _SAVED_WEIGHTS: weights})
            options.optimized_model_filepath = str(graph)
            try:
                # This session's weights are in private memory, which is freed at once.
                self._session(str(source), options)
            except Exception as error:
                if not raised_by_onnxruntime(error):
                    raise
                raise PackingError(str(error)) from error

        facts = {
            "onnxruntime": ort.__version__,
            "build": ort.get_build_info(),
            "providers": [p if isinstance(p, str) else [p[0], dict(p[1])] for p in self._providers],
            "options": {k: v for k, v in entries.items() if not k.startswith(_THREAD_OPTIONS)},
        }
        return cache.graph(source, facts, write, hashes)

    def _open_packed(self, graph: Path, entries: Mapping[str, str]) -> ort.InferenceSession:
        """Returns a session whose packed weights are pages of the cache."""
        # An arena would keep packed weights, which are private memory, when the session is closed.
        # These weights are mapped, so these sessions need an arena for little.
        options = self._session_options(in_shared_arena(entries))
        # The graph was optimized before it was written.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = self._session(str(graph), options)
        trim_heap()
        return session


def run(session: ort.InferenceSession, binding: ort.IOBinding, *, only: bool = False) -> None:
    """Runs a graph on what is bound.

    Args:
        session: the graph.
        binding: its inputs and outputs.
        only: whether nodes are left out that no bound output needs.

    Raises:
        InferenceError: onnxruntime failed.
        TerminatedError: another thread ended the runs of this one.
    """
    termination = Termination.current()
    if termination is not None:
        options = [termination.options(only=only)]
    else:
        options = [_needed_only()] if only else []
    try:
        with native_call():
            session.run_with_iobinding(binding, *options)
    except Exception as error:
        if not raised_by_onnxruntime(error):
            raise
        if termination is not None and termination.ended:
            raise TerminatedError from None
        raise InferenceError(f"onnxruntime {ort.__version__}: {error}") from error


@functools.cache
def _needed_only() -> ort.RunOptions:
    options = ort.RunOptions()
    options.only_execute_path_to_fetches = True
    return options
