"""The files that hold a checkpoint's weights: which of them count, and how each kind is read.

Refuses to know tensors' names, except those that only quantized weights have.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from m2m100_onnx.bundle.config import CONFIG_FILE, is_inside, read_json, refuse_pointer
from m2m100_onnx.bundle.hub import first_names
from m2m100_onnx.errors import BundleError
from m2m100_onnx.process import raised_by_signal_handler

__all__ = [
    "TensorFiles",
    "listing",
    "preferred",
    "refuse_quantized",
    "weight_files",
]

_SAFETENSORS = "model.safetensors"
_PICKLE = "pytorch_model.bin"
# The order in which transformers looks for weights. A folder may hold several: `save_pretrained`
# leaves an index behind when it replaces shards by one file.
_ORDER = (_SAFETENSORS, f"{_SAFETENSORS}.index.json", _PICKLE, f"{_PICKLE}.index.json")
# Types of weights that are no rounded form of others, as safetensors names them and as torch does.
_REAL = {"F64", "F32", "F16", "BF16"}
_REAL_TORCH = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# The ends of names that bitsandbytes, GPTQ, AWQ, compressed-tensors and torch give to what belongs
# to a quantized weight.
_QUANTIZED_NAME = re.compile(
    r"\.(SCB|weight_format|absmax|nested_absmax|quant_map|nested_quant_map|quant_state\..*"
    r"|qweight|qzeros|scales|g_idx|weight_(scale|scale_inv|scale_2|zero_point|packed|shape|g_idx)"
    r"|input_(scale|zero_point)|_packed_params.*|scale|zero_point)$"
)
_PICKLE_ERRORS = (
    *(pickle.UnpicklingError, EOFError, OSError, RuntimeError, struct.error, MemoryError),
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError),
)


class TensorFiles:
    """The tensors of some weight files, each read when it is asked for.

    Attributes:
        shapes: the shape of each tensor, by name.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """Reads the names and shapes.

        Args:
            paths: safetensors files and pickles.

        Raises:
            BundleError: a file is damaged or unsafe, or its weights are quantized.
        """
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._paths: dict[str, Path] = {}
        self._pickles: dict[Path, dict[str, torch.Tensor]] = {}
        for path in paths:
            if path.suffix == ".safetensors":
                shapes = _read_shapes(path)
            else:
                self._pickles[path] = _load_pickle(path)
                shapes = {name: tuple(tensor.shape) for name, tensor in self._pickles[path].items()}
            self.shapes.update(shapes)
            self._paths.update(dict.fromkeys(shapes, path))

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Returns rows `[start, stop)` of a tensor, in the file's type.

        Raises:
            BundleError: the file is damaged.
        """
        path = self._paths[name]
        if path in self._pickles:
            return self._pickles[path][name][start:stop]
        try:
            # Closing the file unmaps its pages. Kept open, the whole file would end up in memory.
            with safe_open(path, framework="pt") as file:
                rows: torch.Tensor = file.get_slice(name)[start:stop]
                return rows.clone()
        except SafetensorError as error:
            raise BundleError(f"{path}: damaged safetensors file: {error}") from None


def preferred(names: Collection[str]) -> str | None:
    """Returns the file that transformers would start from, of a checkpoint's files."""
    return next((name for name in _ORDER if name in names), None)


def weight_files(directory: Path) -> list[Path]:
    """Returns the files that hold the tensors.

    Raises:
        BundleError: there are none, or an index names other files than those of the folder.
    """
    name = preferred([path.name for path in directory.iterdir() if path.is_file()])
    if name is None:
        raise BundleError(
            f"{directory}: expected weights as {_SAFETENSORS} or {_PICKLE} (or their shards), "
            f"found {listing(directory)}"
        )
    if not name.endswith(".index.json"):
        return [directory / name]
    index = directory / name
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise BundleError(f"{index}: expected a weight_map, found {type(shards).__name__}")
    suffix = Path(name.removesuffix(".index.json")).suffix
    for shard in shards.values():
        if not is_inside(shard) or not shard.endswith(suffix):
            raise BundleError(
                f"{index}: expected {suffix} files of the checkpoint's folder, found {shard!r}"
            )
    paths = [directory / shard for shard in sorted(set(shards.values()))]
    for path in paths:
        if not path.is_file():
            raise BundleError(f"{path} is missing, though {index.name} names it")
    return paths


def listing(directory: Path) -> str:
    """Returns the names of a folder's first files, for an error message."""
    return first_names([path.name for path in directory.iterdir()])


def refuse_quantized(directory: Path) -> None:
    """Raises `BundleError` if config.json says that the weights are quantized."""
    config = read_json(directory / CONFIG_FILE)
    for key in ("quantization_config", "compression_config"):
        if (found := config.get(key)) is not None:
            method = found.get("quant_method", found) if isinstance(found, dict) else found
            raise _quantized(directory / CONFIG_FILE, f"{key} of {method!r}")


def _quantized(path: Path, found: str) -> BundleError:
    return BundleError(
        f"{path}: expected weights that are not quantized, found {found}; export the checkpoint "
        "that they were made from, with --precision int8 or int4 for fewer bits"
    )


def _check_pointer(path: Path) -> None:
    try:
        with path.open("rb") as file:
            refuse_pointer(path, file.read(64))
    except OSError as error:
        if raised_by_signal_handler(error):
            raise
        raise BundleError(f"{path} is unreadable: {error.strerror}") from None


def _check_tensor(path: Path, name: str, dtype: str, real: bool) -> None:
    """Raises `BundleError` if a tensor is a quantized weight or belongs to one."""
    weight = name.endswith((".weight", ".bias"))
    if _QUANTIZED_NAME.search(name) or (weight and not real):
        raise _quantized(path, f"tensor {name!r} of type {dtype}")


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor of a safetensors file.

    Raises:
        BundleError: the file is damaged, or its weights are quantized.
    """
    _check_pointer(path)
    shapes = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                dtype = tensor.get_dtype()
                _check_tensor(path, name, dtype, dtype in _REAL)
                shapes[name] = tuple(tensor.get_shape())
    except SafetensorError as error:
        raise BundleError(f"{path}: damaged safetensors file: {error}") from None
    except OSError as error:
        if raised_by_signal_handler(error):
            raise
        raise BundleError(f"{path}: damaged safetensors file: {error}") from None
    return shapes


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Opens a pickled state dict, memory-mapped if possible, and runs no code from it.

    Raises:
        BundleError: the file is damaged or unsafe, or its weights are quantized.
    """
    _check_pointer(path)
    try:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            # Files of torch before 1.6 are no zip archives, and torch cannot map them.
            state = torch.load(path, map_location="cpu", weights_only=True)
    except _PICKLE_ERRORS as error:
        if raised_by_signal_handler(error):
            raise
        raise BundleError(f"{path}: damaged, or unsafe to open: {_without_advice(error)}") from None
    if not isinstance(state, dict):
        raise BundleError(f"{path}: expected a state dict, found a {type(state).__name__}")
    for name, value in state.items():
        dtype = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        real = not isinstance(value, torch.Tensor) or value.dtype in _REAL_TORCH
        _check_tensor(path, str(name), str(dtype).removeprefix("torch."), real)
    return {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}


def _without_advice(error: BaseException) -> str:
    """Returns the cause without torch's advice, which is to run the file's code."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [
        line for line in lines if line and "weights_only" not in line and "safe_globals" not in line
    ]
    return " ".join(kept) or type(error).__name__
