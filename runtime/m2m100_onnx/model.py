"""A bundle's graphs at work: encoding, stepping, and the key/value cache.

Knows tensors and devices; knows no text and no search. Shapes: B sentences, R decoder rows (R = B,
later B times the beams), S source length, P prompt length, T target tokens so far, V vocabulary,
L decoder layers, H heads, E head size.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from m2m100_onnx.bundle import (
    DECODER_FILE,
    DECODER_WITH_PAST_FILE,
    ENCODER_FILE,
    FOUR_BITS,
    FUSED_FILES,
    FUSED_RANK_FILE,
    FUSED_SOURCE_FILE,
    FUSED_STEP_FILE,
    GRAPH_FILES,
    Bundle,
)
from m2m100_onnx.errors import BundleError, DependencyError, InvalidInputError
from m2m100_onnx.forking import leave_behind, renew_in_children
from m2m100_onnx.fused import FusedCache
from m2m100_onnx.packed import PackedCache, cache_directory
from m2m100_onnx.ranking import Float32Array, Int64Array, LogitsState
from m2m100_onnx.sessions import (
    Provider,
    SessionFactory,
    check_signature,
    ort,
    run,
)
from m2m100_onnx.threads import side_by_side
from m2m100_onnx.versions import check_fused, check_precision, stores_packed

if TYPE_CHECKING:
    from m2m100_onnx.decoding import DecoderState

__all__ = ["DecoderCache", "Model"]

_LOGGER = logging.getLogger("m2m100_onnx")

# The second graph runs once a batch and has the third one's weights. Unpacked, they stay pages of
# the weights file instead of a second private copy (1.2 GB for the 418M shape in fp32). Not so in
# four bits, where onnxruntime would widen every matrix to fp32 at every run (4.5 s for that shape).
_UNPACKED = {"session.disable_prepacking": "1"}
_EACH_STEP = (FUSED_STEP_FILE, FUSED_RANK_FILE)


class Model:
    """A bundle's three graphs, ready to run; safe to use from many threads at once."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        providers: Sequence[Provider] | None = None,
        intra_op_num_threads: int | None = None,
        inter_op_num_threads: int | None = None,
        session_options: Mapping[str, str] | None = None,
        fused: bool | None = None,
        cache_dir: str | os.PathLike[str] | Literal[False] | None = None,
    ) -> None:
        """Chooses the device; a graph is opened when it is first needed, or by `load`.

        Args:
            bundle: the opened bundle.
            device: `cpu`, `cuda`, `cuda:N`, or `auto` (CUDA where it is available).
            providers: onnxruntime's execution providers with their options, in place of those that
                `device` stands for; the cache still lives on `device`.
            intra_op_num_threads: threads inside an operator; onnxruntime's default is one a core.
            inter_op_num_threads: threads across operators; these chains of operators gain nothing.
            session_options: onnxruntime session config entries, such as
                `{"session.intra_op.allow_spinning": "0"}`.
            fused: whether to use the fused graphs; None is wherever the bundle has them and they
                run, which is on a CPU.
            cache_dir: where packed graphs are kept for later loads to map, see `cache_directory`;
                False for nowhere.

        Raises:
            InvalidInputError: an argument is out of range, or `fused` cannot be had.
            DependencyError: CUDA was asked for and onnxruntime has no CUDA provider, or onnxruntime
                is too old for four bits or for `fused`.
        """
        self.bundle = bundle
        directory = cache_directory(cache_dir, bundle.precision)
        factory = partial(
            SessionFactory,
            device,
            providers=providers,
            inter_op_num_threads=inter_op_num_threads,
            session_options=session_options,
            cache=PackedCache(directory) if directory and stores_packed(bundle.precision) else None,
        )
        self._factory = factory(intra_op_num_threads=intra_op_num_threads)
        self._serial_factory = factory(intra_op_num_threads=1)
        self.device, self.device_id = self._factory.device, self._factory.device_id
        if not isinstance(fused, (bool, NoneType)):
            raise InvalidInputError(f"fused: expected True, False or None, found {fused!r}")
        self.fused = fused is not False
        if self.fused:
            try:
                check_fused(bundle, cpu_only=self._factory.cpu_only)
            except (DependencyError, InvalidInputError):
                if fused:
                    raise
                self.fused = False
        check_precision(bundle.precision, self.device)
        self._sessions: dict[str, ort.InferenceSession] = {}
        # One for each graph, as onnxruntime can open several at once.
        self._locks = defaultdict[str, threading.Lock](threading.Lock)
        renew_in_children(self)
        if bundle.precision == "fp16" and self.device == "cpu":
            _LOGGER.warning(
                "%s is an fp16 bundle: on a CPU onnxruntime widens it to float32 when it opens, "
                "which is slow and saves no memory; export with --precision fp32 for CPUs",
                bundle.directory,
            )
        self.real = np.dtype(np.float16 if bundle.precision == "fp16" else np.float32)
        # Folders that Optimum exported repeat the source's keys and values for every beam.
        self.beams_share_source = bundle.manifest is not None

    def load(self) -> None:
        """Opens every graph now, so that no later call pays for it.

        Raises:
            BundleError: a graph is damaged or takes other inputs than it must.
        """
        files = FUSED_FILES if self.fused else GRAPH_FILES
        # onnxruntime packs weights with one thread for each graph.
        side_by_side(*(partial(self.session, file) for file in files))

    def session(self, file: str, *, serial: bool = False) -> ort.InferenceSession:
        """The session of one graph, opened at the first call.

        Args:
            file: the graph.
            serial: whether its runs are to stay in the thread that calls, for several to run side
                by side; a session of its own, which costs memory unless `can_run_serially`. Where
                the bundle is no longer what it was, the other session, as good and slower.

        Raises:
            BundleError: the graph is damaged, takes other inputs than it must, or is no longer the
                one that the bundle had.
        """
        key = f"{file} serial" if serial else file
        with self._locks[key]:
            if key not in self._sessions:
                try:
                    self._sessions[key] = self._open(file, serial=serial)
                except BundleError as error:
                    if not serial:
                        raise
                    # This one is opened in the middle of work that goes on without it.
                    _LOGGER.warning("no core of its own for a part of the work: %s", error)
                    self._sessions[key] = self.session(file)
            return self._sessions[key]

    def _open(self, file: str, *, serial: bool) -> ort.InferenceSession:
        path = self.bundle.directory / file
        four_bits = self.bundle.precision in FOUR_BITS
        defaults = _UNPACKED if file == DECODER_FILE and not four_bits else {}
        factory = self._serial_factory if serial else self._factory
        self.bundle.check_unchanged()
        session = factory.open(path, str(path), defaults)
        check_signature(path, session, self.bundle.signature(file))
        # Then it was still the old one that was read.
        self.bundle.check_unchanged()
        return session

    def renew(self) -> None:
        """Forgets all sessions, to be opened again: a forked process has none of their threads."""
        for session in self._sessions.values():
            leave_behind(session)
        self._sessions = {}
        self._locks.clear()

    @property
    def threads(self) -> int:
        """That one run uses, the caller's included."""
        return self._factory.threads

    @property
    def can_run_serially(self) -> bool:
        """Whether there are sessions, or could be for next to no memory, for runs side by side."""
        if not self.fused or self.threads == 1:
            return False
        for file in FUSED_FILES:
            self.session(file)  # Where its weights are is known when it is open.
        return all(self.bundle.directory / file in self._factory.mapped for file in FUSED_FILES)

    def start(
        self, input_ids: Int64Array, attention_mask: Int64Array, prompt: Int64Array
    ) -> tuple[DecoderCache, Float32Array]:
        """Encodes the source and feeds the prompt.

        Args:
            input_ids: `(B, S)` source tokens, padded at the end.
            attention_mask: `(B, S)`, 1 at tokens and 0 at padding.
            prompt: `(B, P)` first decoder tokens: the start token and the target language.

        Returns:
            The cache, with one row a sentence, and the `(B, V)` logits of the next token.
        """
        # A binding keeps no reference to what it binds, so every OrtValue stays in a variable.
        ids, mask, first = map(self.to_device, (input_ids, attention_mask, prompt))
        encoder = self.session(ENCODER_FILE).io_binding()
        encoder.bind_ortvalue_input("input_ids", ids)
        encoder.bind_ortvalue_input("attention_mask", mask)
        encoder.bind_output("last_hidden_state", self.device, self.device_id)
        run(self.session(ENCODER_FILE), encoder)
        (hidden,) = encoder.get_outputs()

        session = self.session(DECODER_FILE)
        binding = session.io_binding()
        binding.bind_ortvalue_input("encoder_attention_mask", mask)
        binding.bind_ortvalue_input("input_ids", first)
        binding.bind_ortvalue_input("encoder_hidden_states", hidden)
        logits = np.empty((*prompt.shape, self.bundle.config.vocab_size), self.real)
        _bind_numpy(binding, "logits", logits)
        names = [output.name for output in session.get_outputs()][1:]
        for name in names:
            binding.bind_output(name, self.device, self.device_id)
        run(session, binding)
        present = dict(zip(names, binding.get_outputs()[1:], strict=True))
        cache = DecoderCache(self, present, mask, sentences=len(prompt))
        return cache, logits[:, -1].astype(np.float32)

    def begin(
        self,
        input_ids: Int64Array,
        attention_mask: Int64Array,
        prompt: Int64Array,
        *,
        serial: bool | Callable[[], bool] = False,
    ) -> DecoderState:
        """Encodes the source and feeds the prompt, ready for a search.

        Arguments are those of `start`; `serial`, for fused graphs alone, is that of `session`, or a
        function that is asked for it before each step.
        """
        if not self.fused:
            return LogitsState(*self.start(input_ids, attention_mask, prompt))

        def sessions() -> dict[str, ort.InferenceSession]:
            alone = serial() if callable(serial) else serial
            return {file: self.session(file, serial=alone) for file in _EACH_STEP}

        source = self.session(FUSED_SOURCE_FILE, serial=serial is True)
        return FusedCache(source, sessions, self.bundle.config, input_ids, attention_mask, prompt)

    def to_device(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        """An array where the graphs run; on the CPU it is shared, not copied."""
        contiguous = np.ascontiguousarray(array)
        return ort.OrtValue.ortvalue_from_numpy(contiguous, self.device, self.device_id)

    def gather(self, value: ort.OrtValue, rows: ort.OrtValue) -> ort.OrtValue:
        """`value[rows]` along the first axis, on the device."""
        session = self._gather_session()
        binding = session.io_binding()
        binding.bind_ortvalue_input("data", value)
        binding.bind_ortvalue_input("rows", rows)
        binding.bind_output("gathered", self.device, self.device_id)
        run(session, binding)
        gathered: ort.OrtValue = binding.get_outputs()[0]
        return gathered

    def _gather_session(self) -> ort.InferenceSession:
        # numpy cannot reach into device memory, so the cache is gathered by a graph of one node.
        name = f"gather_{self.real.name}.onnx"
        with self._locks[name]:
            if name not in self._sessions:
                source = resources.files("m2m100_onnx") / "data" / name
                self._sessions[name] = self._factory.open(Path(name), source.read_bytes(), {})
            return self._sessions[name]


class DecoderCache:
    """Keys and values of the target so far and of the source, for R rows.

    Size in bytes, with 4 or 2 bytes a number: `2 * L * H * E * (R * T + B * S)`, where the first
    term grows with every token. While a step runs, the cache before it and the one after it exist
    side by side, since a portable graph joins old and new into one tensor. The source's part is
    computed once and shared by a sentence's beams.
    """

    def __init__(
        self, model: Model, present: dict[str, ort.OrtValue], mask: ort.OrtValue, *, sentences: int
    ) -> None:
        self._model = model
        self._session = model.session(DECODER_WITH_PAST_FILE)
        self._binding = self._session.io_binding()
        self._present_names = [output.name for output in self._session.get_outputs()][1:]
        past = {name.replace("present", "past_key_values"): v for name, v in present.items()}
        self._own = {name: v for name, v in past.items() if ".decoder." in name}
        self._source = {name: v for name, v in past.items() if ".encoder." in name}
        self._mask = mask
        self._sentence_of_row = np.arange(sentences)
        self._logits = np.empty((0, 1, model.bundle.config.vocab_size), model.real)
        self._bind_source()

    @property
    def rows(self) -> int:
        """R, the rows a step takes and gives."""
        return len(self._sentence_of_row)

    def step(self, tokens: Int64Array) -> Float32Array:
        """Feeds one more token a row.

        Args:
            tokens: `(R, 1)` the tokens chosen last.

        Returns:
            The `(R, V)` logits of the next token, in a buffer that the next step reuses.
        """
        if len(self._logits) != self.rows:
            self._logits = np.empty((self.rows, *self._logits.shape[1:]), self._logits.dtype)
        binding = self._binding
        ids = self._model.to_device(tokens)
        binding.bind_ortvalue_input("input_ids", ids)
        for name, value in self._own.items():
            binding.bind_ortvalue_input(name, value)
        binding.clear_binding_outputs()
        _bind_numpy(binding, "logits", self._logits)
        for name in self._present_names:
            binding.bind_output(name, self._model.device, self._model.device_id)
        run(self._session, binding)
        grown = binding.get_outputs()[1:]
        self._own = {
            name.replace("present", "past_key_values"): value
            for name, value in zip(self._present_names, grown, strict=True)
        }
        logits: Float32Array = self._logits[:, -1].astype(np.float32, copy=False)
        return logits

    def select(self, rows: Int64Array) -> None:
        """Make row i of every cached tensor a copy of old row `rows[i]`.

        Covers beam expansion, beam reordering and dropping finished sentences. The rows of a
        sentence must stay side by side, as many for each sentence.

        Args:
            rows: `(R',)` indices into the current R rows.
        """
        if not np.array_equal(rows, np.arange(self.rows)):
            index = self._model.to_device(rows)
            self._own = {n: self._model.gather(v, index) for n, v in self._own.items()}
        sentence_of_row = self._sentence_of_row[rows]
        if self._model.beams_share_source:
            kept, sentence_of_row = _sentences(sentence_of_row)
            changed = not np.array_equal(kept, np.arange(self._mask.shape()[0]))
        else:
            # One copy a row; those of a sentence are alike, so reordering them changes nothing.
            kept, changed = rows, not np.array_equal(sentence_of_row, self._sentence_of_row)
        if changed:
            index = self._model.to_device(kept)
            self._source = {n: self._model.gather(v, index) for n, v in self._source.items()}
            self._mask = self._model.to_device(self._mask.numpy()[kept])
            self._bind_source()
        self._sentence_of_row = sentence_of_row

    def _bind_source(self) -> None:
        self._binding.bind_ortvalue_input("encoder_attention_mask", self._mask)
        for name, value in self._source.items():
            self._binding.bind_ortvalue_input(name, value)


def _sentences(sentence_of_row: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The sentences that are left, in order, and each row's place among them."""
    starts = np.flatnonzero(np.diff(sentence_of_row, prepend=-1))
    kept = sentence_of_row[starts]
    per_sentence = len(sentence_of_row) // len(kept)
    assert np.array_equal(np.repeat(kept, per_sentence), sentence_of_row), "rows lie scattered"
    return kept, np.repeat(np.arange(len(kept)), per_sentence)


def _bind_numpy(binding: ort.IOBinding, name: str, array: npt.NDArray[Any]) -> None:
    """Lets onnxruntime write an output straight into `array`, from whatever device."""
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
