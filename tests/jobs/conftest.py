"""Fixtures of the jobs' tests, which run in an environment without torch: see scripts/test.

They need `bundles/test`, which scripts/test exports.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
# Ray starts workers with this process's environment. Nothing is sent, nothing written to the home.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    M2M100_ONNX_CACHE="off",
    XDG_CACHE_HOME=tempfile.mkdtemp(prefix="m2m100-jobs-cache-"),
    PYTHONPATH=os.pathsep.join(map(str, (ROOT / "runtime", HERE.parent, HERE))),
)
sys.path.insert(0, str(HERE))

from m2m100_onnx import Translator  # noqa: E402 - the environment comes first


@pytest.fixture(scope="session", autouse=True)
def no_cache_is_left() -> Iterator[None]:
    """Removes the tests' cache folder at the end."""
    yield
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def bundle() -> Path:
    """The demo bundle; tests must not change it."""
    found = ROOT / "bundles" / "test"
    assert (found / "manifest.json").exists(), "run `m2m100 export demo/model bundles/test` first"
    return found


@pytest.fixture(scope="session")
def translator(bundle: Path) -> Translator:
    """The reference: one process, no cluster."""
    return Translator(bundle, intra_op_num_threads=1)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """English sentences of the demo's held-out set, the shortest first."""
    text = (ROOT / "demo" / "heldout" / "test.en").read_text(encoding="utf-8")
    return sorted(set(text.splitlines()), key=len)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes with one CPU each, and a head without any, on this machine."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        found.add_node(num_cpus=1)
    found.wait_for_nodes()
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def short(sentences: list[str]) -> list[str]:
    """Short texts, so that many rows take minutes and not hours."""
    return sentences[:120]


@pytest.fixture
def fresh() -> Iterator[Any]:
    """A cluster of its own for a test that breaks it: a head without CPUs and two nodes of one."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield found
    found.shutdown()
