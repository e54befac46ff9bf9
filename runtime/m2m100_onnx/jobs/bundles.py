"""A bundle on the node that needs it: fetched once a node from an object store, checked, kept.

Knows URIs and the node's own folder. Folders, and names on the hub, which has a cache of its own,
pass as they are.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from m2m100_onnx.bundle.manifest import MANIFEST_FILE, Manifest, sha256_of
from m2m100_onnx.errors import BundleError, DependencyError, InvalidInputError
from m2m100_onnx.model.weights_cache_lock import LOCK, file_lock
from m2m100_onnx.process import raised_by_signal_handler

__all__ = ["absolute", "bundle_folder", "file_system", "is_uri", "node_name", "on_this_node"]

_PATIENCE = 3600.0
"""Seconds to wait for another process of the node that fetches the same bundle."""


def node_name() -> str:
    """Returns what errors call this machine: its host name and, where Ray knows it, its address."""
    name = socket.gethostname()
    try:
        import ray.util
    except ImportError:
        return name
    if not ray.is_initialized():
        return name
    node = ray.get_runtime_context().get_node_id()[:8]
    return f"{name} ({ray.util.get_node_ip_address()}, {node})"


def is_uri(place: str) -> bool:
    """Says whether a place is a URI such as `s3://bucket/folder`, and no local path."""
    return "://" in place


def absolute(place: str) -> str:
    """Returns a place as other processes find it: a relative path becomes an absolute one."""
    return place if is_uri(place) else str(Path(place).expanduser().absolute())


def file_system(place: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a path or a URI, and the path in it.

    Raises:
        DependencyError: fsspec, or the package for the kind of URI, is not installed.
        InvalidInputError: nothing knows this kind of URI.
    """
    try:
        import fsspec.core
    except ImportError as error:
        raise DependencyError(
            f"jobs need {error.name}; run `pip install 'm2m100-onnx[ray]'`"
        ) from error
    try:
        system, path = fsspec.core.url_to_fs(place)
    except ImportError as error:
        raise DependencyError(f"{place}: {error}") from error
    except ValueError as error:
        raise InvalidInputError(f"{place}: {error}") from None
    return system, path


def bundle_folder() -> Path:
    """Returns the node's folder of fetched bundles: `m2m100-onnx-bundles` in the cache folder."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(root) if Path(root).is_absolute() else Path("~/.cache").expanduser()
    return base / "m2m100-onnx-bundles"


def on_this_node(bundle: str, folder: Path | None = None) -> str:
    """Returns a bundle's place on this node; fetches it if it is a URI that no process fetched yet.

    A fetched bundle is known by its URI and its manifest, so another bundle at the same URI is
    fetched anew. It appears whole, by a rename, after every file's size and SHA-256 were compared.

    Args:
        bundle: a folder, a name on the hub, or a URI of fsspec's.
        folder: where fetched bundles are kept, `bundle_folder()` by default.

    Raises:
        BundleError: the bundle cannot be fetched, or is damaged.
        DependencyError: a package for the URI is missing.
        OSError: the node's disk takes no more.
    """
    if not is_uri(bundle):
        return bundle
    system, root = file_system(bundle)
    manifest = _read(system, f"{root.rstrip('/')}/{MANIFEST_FILE}", bundle)
    name = hashlib.sha256(bundle.encode() + b"\0" + manifest).hexdigest()[:32]
    folder = folder or bundle_folder()
    target = folder / name
    if target.is_dir():
        return str(target)
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / f"{LOCK}{name}", _PATIENCE):
        if not target.is_dir():
            _fetch(system, root.rstrip("/"), bundle, manifest, target)
    return str(target)


def _read(system: Any, path: str, bundle: str) -> bytes:
    try:
        data: bytes = system.cat_file(path)
    except Exception as error:  # Each kind of store has errors of its own.
        if raised_by_signal_handler(error):
            raise
        raise BundleError(f"{bundle}: cannot read {MANIFEST_FILE}: {error!r}") from error
    return data


def _fetch(system: Any, root: str, bundle: str, manifest: bytes, target: Path) -> None:
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        (partial / MANIFEST_FILE).write_bytes(manifest)
        for name, record in Manifest.read(partial).files.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                system.get_file(f"{root}/{name}", str(path))
            except Exception as error:
                if raised_by_signal_handler(error) or _is_local(error):
                    raise
                raise BundleError(f"{bundle}: cannot fetch {name}: {error!r}") from error
            if (size := path.stat().st_size) != record.size:
                raise BundleError(f"{bundle}: {name}: expected {record.size} bytes, fetched {size}")
            if sha256_of(path) != record.sha256:
                raise BundleError(f"{bundle}: {name}: the fetched bytes have another SHA-256")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_local(error: Exception) -> bool:
    """Whether the node's own disk is the reason, and not the store."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
