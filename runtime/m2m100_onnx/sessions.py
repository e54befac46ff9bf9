"""Opens graphs with onnxruntime: devices, providers, threads, and what a graph must take and give.

Knows what onnxruntime calls things and which of its errors mean what; knows no cache and no search.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeAlias

from m2m100_onnx.bundle import Signature
from m2m100_onnx.errors import BundleError, DependencyError, InferenceError, InvalidInputError
from m2m100_onnx.packed import PackedCache

# Since 1.29 onnxruntime keeps a device id in the user's cache folder and events to send to its
# maker, unless told before it is imported; and with its thread for that, forked processes hang when
# they end. A program that wants it sets this itself.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime as ort
except ImportError as error:
    raise DependencyError(
        "onnxruntime is not installed; run `pip install 'm2m100-onnx[cpu]'`, "
        "or `pip install 'm2m100-onnx[gpu]'` on a machine with CUDA"
    ) from error

__all__ = [
    "CPU",
    "Provider",
    "SessionFactory",
    "check_signature",
    "cores",
    "ort",
    "run",
]

Provider: TypeAlias = str | tuple[str, Mapping[str, Any]]

_ORT_TYPE = {
    "bool": "tensor(bool)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
}
_CPUINFO = Path("/proc/cpuinfo")
_CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
# They steer threads; graphs and packed weights are the same whatever they are.
_THREAD_OPTIONS = ("session.intra_op", "session.inter_op", "session.dynamic_block_base")
# onnxruntime's threads wait for work spinning, by default so long that a busy neighbour, kept from
# its core, doubles the time of a step. This short it costs a step 4 % on an idle machine.
_WAITING = {"session.intra_op.spin_duration_us": "20"}
# On x86 without VNNI the fast 8-bit kernel adds pairs of products in 16 bits, which do not always
# hold them. This takes another, half as fast, with which translations are those of VNNI.
_EXACT = {"session.x64quantprecision": "1"}
_UNPACKED = "session.disable_prepacking"
_MOST_THREADS = 1024
"""More than any processor has cores; of many more onnxruntime dies without a word."""
_SAVE_PACKED = "session.save_external_prepacked_constant_initializers"
_SAVED_WEIGHTS = "session.optimized_model_external_initializers_file_name"
# Memory that operators work in comes from one arena for all sessions and not from one for each: a
# search on two cores and one on one core, of several models, use the same again.
_SHARED_ARENA = {"session.use_env_allocators": "1"}
_registering = threading.Lock()


class SessionFactory:
    """Opens every graph of a model with the same device, threads and options.

    Attributes:
        device: `cpu` or `cuda`.
        device_id: which of the devices of that kind.
        cpu_only: whether the CPU's provider is the only one.
        threads: that a session's operators use, the caller's included.
        mapped: graphs that were opened with their weights mapped from the packed cache, so that a
            further session of one costs next to no memory.
    """

    def __init__(
        self,
        device: str,
        *,
        providers: Sequence[Provider] | None,
        intra_op_num_threads: int | None,
        inter_op_num_threads: int | None,
        session_options: Mapping[str, str] | None,
        cache: PackedCache | None,
    ) -> None:
        """Checks the arguments, which are those of `Model`; `cache` is where packed graphs are.

        Raises:
            InvalidInputError: an argument is out of range.
            DependencyError: onnxruntime lacks a provider that was asked for.
        """
        self.device, self.device_id = _parse_device(device)
        self._providers = _providers(self.device, self.device_id, providers)
        self._threads = {
            "intra_op_num_threads": intra_op_num_threads,
            "inter_op_num_threads": inter_op_num_threads,
        }
        for name, value in self._threads.items():
            if value is not None and (type(value) is not int or not 1 <= value <= _MOST_THREADS):
                raise InvalidInputError(
                    f"{name}: expected a whole number from 1 to {_MOST_THREADS}, found {value!r}"
                )
        self.threads: int = intra_op_num_threads or cores()
        self.mapped: set[Path] = set()
        names = {entry if isinstance(entry, str) else entry[0] for entry in self._providers}
        self.cpu_only = names == {CPU}
        # Only on a CPU are weights packed by the one who reads them.
        self._cache = cache if self.cpu_only else None
        self._defaults = {**_WAITING, **(_EXACT if _adds_in_16_bits() else {})}
        if not isinstance(session_options, (Mapping, NoneType)):
            kind = type(session_options).__name__
            raise InvalidInputError(f"session_options: expected a mapping, found {kind}")
        self._options = dict(session_options or {})
        try:
            for key, entry in self._options.items():
                ort.SessionOptions().add_session_config_entry(key, entry)
        except (TypeError, RuntimeError) as error:
            raise InvalidInputError(
                f"session_options: onnxruntime does not take {key!r}: {entry!r}: {error}"
            ) from None

    def open(
        self, name: Path, model: str | bytes, defaults: Mapping[str, str]
    ) -> ort.InferenceSession:
        """Opens a graph.

        Args:
            name: what error messages call it.
            model: its path or its bytes.
            defaults: session config entries where the caller gave none.

        Raises:
            BundleError: onnxruntime cannot open it.
            DependencyError: CUDA was asked for and could not be started.
        """
        entries = {**self._defaults, **defaults, **self._options}
        if self._cache and isinstance(model, str) and entries.get(_UNPACKED) != "1":
            session = self._open_packed(self._cache, Path(model), entries)
            if session is not None:
                self.mapped.add(name)
                return session
        options = self._session_options(entries)
        try:
            session = ort.InferenceSession(model, options, providers=self._providers)
        # onnxruntime's errors share no base class but Exception.
        except Exception as error:
            raise BundleError(
                f"{name}: onnxruntime {ort.__version__} cannot open it: {error}"
            ) from error
        if self.device == "cuda" and _CUDA not in session.get_providers():
            raise DependencyError(
                "device='cuda' was asked for, but onnxruntime could not start CUDA and fell back "
                f"to {', '.join(session.get_providers())}; check that the CUDA and cuDNN libraries "
                f"that onnxruntime-gpu {ort.__version__} needs are installed"
            )
        return session

    def _session_options(self, entries: Mapping[str, str]) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Planning which outputs may share a buffer is most of the work of opening a graph of this
        # size on a CPU, and saves neither memory nor time: what was used goes back to the arena.
        options.enable_mem_reuse = self.device != "cpu"
        # A block for all of a run's outputs, kept beside those of other shapes: no faster either.
        options.enable_mem_pattern = self.device != "cpu"
        for attribute, value in self._threads.items():
            if value is not None:
                setattr(options, attribute, value)
        for key, entry in entries.items():
            options.add_session_config_entry(key, entry)
        return options

    def _open_packed(
        self, cache: PackedCache, source: Path, entries: Mapping[str, str]
    ) -> ort.InferenceSession | None:
        """A session whose packed weights are pages of the cache, or None if that cannot be had."""

        def write(graph: Path, weights: str) -> None:
            options = self._session_options({**entries, _SAVE_PACKED: "1", _SAVED_WEIGHTS: weights})
            options.optimized_model_filepath = str(graph)
            # Not used further: its weights are in private memory, which is given back here.
            ort.InferenceSession(str(source), options, providers=self._providers)

        steering = {k: v for k, v in entries.items() if not k.startswith(_THREAD_OPTIONS)}
        facts = {
            "onnxruntime": ort.__version__,
            "build": ort.get_build_info(),
            "providers": [p if isinstance(p, str) else [p[0], dict(p[1])] for p in self._providers],
            "options": steering,
        }
        graph = cache.graph(source, facts, write)
        if graph is None:
            return None
        # Packed weights are private memory, which an arena would keep when the session is closed.
        # Mapped ones are not, so that these sessions need an arena for little.
        with _registering:
            _register_arena()
        options = self._session_options({**_SHARED_ARENA, **entries})
        # It was optimized before it was written.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = ort.InferenceSession(str(graph), options, providers=self._providers)
        # onnxruntime's errors share no base class but Exception.
        except Exception as error:
            cache.reject(graph, error)
            return None
        _give_back()
        return session


def run(session: ort.InferenceSession, binding: ort.IOBinding) -> None:
    """Runs a graph on what is bound.

    Raises:
        InferenceError: onnxruntime failed.
    """
    try:
        session.run_with_iobinding(binding)
    # onnxruntime's errors share no base class but Exception.
    except Exception as error:
        raise InferenceError(f"onnxruntime {ort.__version__}: {error}") from error


@functools.cache
def _register_arena() -> None:
    """Gives this process' onnxruntime an arena to share, once, where the program has not."""
    info = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    try:
        ort.create_and_register_allocator(info, ort.OrtArenaCfg({}))
    except RuntimeError:  # The program's own serves as well; only old onnxruntimes refuse a second.
        return


def _give_back() -> None:
    """Has glibc return freed memory that it keeps: opening a model leaves up to 13 MB of that."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _adds_in_16_bits() -> bool:
    """Whether the processor may lack VNNI: an x86 that does not say it has it.

    Where nothing describes the processor as Linux does, exactness goes before speed.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return False
    try:
        with _CPUINFO.open() as lines:  # Many cores make it long, and they are alike.
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return True
    return "vnni" not in flags


def cores() -> int:
    """The processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _parse_device(device: str) -> tuple[str, int]:
    if device == "auto":
        device = "cuda" if _CUDA in ort.get_available_providers() else "cpu"
    kind, colon, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdecimal())):
        raise InvalidInputError(f"device: expected cpu, cuda, cuda:N or auto, found {device!r}")
    return kind, int(number or 0)


def _providers(device: str, device_id: int, given: Sequence[Provider] | None) -> list[Provider]:
    available = ort.get_available_providers()
    listed = isinstance(given, (list, tuple, NoneType))
    if not listed or not all(map(_is_provider, given or ())):
        raise InvalidInputError(
            f"providers: expected a list of names, or of names with a mapping each, found {given!r}"
        )
    chosen: list[Provider] = list(given) if given is not None else [CPU]
    if given is None and device == "cuda":
        chosen = [(_CUDA, {"device_id": str(device_id)}), CPU]
    for entry in chosen:
        name = entry if isinstance(entry, str) else entry[0]
        if name not in available:
            hint = "; run `pip install 'm2m100-onnx[gpu]'`" if name == _CUDA else ""
            raise DependencyError(
                f"this onnxruntime has no {name} (it has {', '.join(available)}){hint}"
            )
    return chosen


def _is_provider(entry: object) -> bool:
    if isinstance(entry, str):
        return True
    if not isinstance(entry, (tuple, list)) or len(entry) != 2:
        return False
    return isinstance(entry[0], str) and isinstance(entry[1], Mapping)


def check_signature(path: Path, session: ort.InferenceSession, expected: Signature) -> None:
    """Refuses a graph whose inputs or outputs are not those the runtime will bind.

    Raises:
        BundleError: names the graph, what was expected and what was found.
    """
    for kind, specs, found in (
        ("inputs", expected.inputs, session.get_inputs()),
        ("outputs", expected.outputs, session.get_outputs()),
    ):
        want = {spec.name: (_ORT_TYPE[spec.dtype], spec.shape) for spec in specs}
        have = {value.name: (value.type, tuple(value.shape)) for value in found}
        missing = [n for n in want if n not in have]
        extra = [n for n in have if n not in want]
        other = [
            f"{n} {have[n]} for {want[n]}"
            for n in want
            if n in have and not _takes(*have[n], *want[n])
        ]
        if not (missing or extra or other):
            continue
        details = [
            f"{label} {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            for label, names in (
                ("missing", missing),
                ("unexpected", extra),
                ("of another type or shape:", other),
            )
            if names
        ]
        raise BundleError(
            f"{path}: expected {len(want)} {kind} as config.json implies, found {len(have)}: "
            + "; ".join(details)
        )


def _takes(
    kind: str, axes: Sequence[object], wanted_kind: str, wanted_axes: Sequence[object]
) -> bool:
    """Whether a graph's tensor takes what is wanted; an axis it fixes must have that length."""
    return (
        kind == wanted_kind
        and len(axes) == len(wanted_axes)
        and all(not isinstance(a, int) or a == b for a, b in zip(axes, wanted_axes, strict=True))
    )
