"""The Ray cluster: connecting to it, its room, and its errors as ours."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from m2m100_onnx.errors import DependencyError, InvalidInputError, JobError, M2M100Error

__all__ = ["actors_for", "connected", "remote_cause"]

_PATIENCE = 5.0
"""Seconds in which a cluster must take a connection; Ray itself would try for a minute."""


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connects to a cluster while the block runs; keeps a connection that the process has already.

    Args:
        address: `auto`, `HOST:PORT` or `ray://HOST:PORT`; None for a cluster of this machine alone,
            which ends with the block.

    Raises:
        DependencyError: Ray is not installed.
        JobError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Nothing is sent to Ray's makers.
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DependencyError(
            f"jobs need {error.name}; run `pip install 'm2m100-onnx[ray]'`"
        ) from error
    if ray.is_initialized():
        _quiet()
        yield
        return
    if address is not None and address != "auto":
        _knock(address)
    try:
        with _own_handler():
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                logging_level=logging.ERROR,
                log_to_driver=False,  # What fails comes back as a value.
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise JobError(f"address: {address}: found no Ray cluster there: {reason}") from error
    _quiet()
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_handler() -> Iterator[None]:
    """Keeps the program's handler of SIGTERM, in whose place Ray puts one that ends the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:  # It is not Python's.
            signal.signal(signal.SIGTERM, before)


def _quiet() -> None:
    """Switches Ray Data's own bars and logs off; the command shows progress itself."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _knock(address: str) -> None:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        raise InvalidInputError(
            f"address: expected auto, HOST:PORT or ray://HOST:PORT, found {address!r}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise JobError(f"address: {address}: found no Ray cluster there: {error}") from error


def actors_for(wanted: int | None, cpus: int, gpus: float) -> int:
    """Returns how many actors are started.

    Args:
        wanted: how many are asked for; None for as many as the nodes have room for.
        cpus: CPUs of each.
        gpus: GPUs of each.

    Raises:
        InvalidInputError: no node has room for one: Ray would wait for such a node for ever.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_room(node, cpus, gpus) for node in nodes)
    if not room:
        found = "; ".join(f"{n.get('CPU', 0):g} CPUs, {n.get('GPU', 0):g} GPUs" for n in nodes)
        raise InvalidInputError(
            f"cpus: expected a node with {cpus} CPUs and {gpus:g} GPUs for an actor, found {found}"
        )
    return wanted or room


def _room(node: dict[str, Any], cpus: int, gpus: float) -> int:
    by_cpus = int(node.get("CPU", 0) // cpus)
    return min(by_cpus, int(node.get("GPU", 0) / gpus)) if gpus else by_cpus


@contextlib.contextmanager
def remote_cause() -> Iterator[None]:
    """Raises what a worker raised as it was, and a failure of Ray's as a `JobError`.

    Raises:
        JobError: Ray gave up, for instance since a shard's actors died again and again.
        M2M100Error: what a worker raised.
        OSError: what a worker raised.
    """
    import ray.exceptions

    try:
        yield
    except (ray.exceptions.RayError, ray.exceptions.UserCodeException) as error:
        cause: Any = error
        while isinstance(cause, ray.exceptions.UserCodeException) and cause.__cause__ is not None:
            cause = cause.__cause__
        found = getattr(cause, "cause", None)
        if isinstance(found, (M2M100Error, OSError)):
            raise found from None
        reason = str(cause).strip().split("\n")
        lines = [reason[0], reason[-1]] if len(reason) > 1 else reason
        raise JobError(f"Ray: {type(cause).__name__}: {' ... '.join(lines)}") from error
