"""What a container allows: cores by its quota, and memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from m2m100_onnx import Bundle, process
from m2m100_onnx.bundle.graphs import FUSED_FILES
from m2m100_onnx.model.model import Model

# As /proc/self/cgroup and /proc/self/mountinfo have them, with {0} for the folder of the test.
V1_CGROUP = """\
5:memory:/outer/inner
4:cpu,cpuacct:/outer/inner
0::/
"""
V1_MOUNTS = """\
22 1 0:20 / /proc rw - proc proc rw
32 31 0:29 {root} {0}/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 {root} {0}/memory rw,relatime - cgroup cgroup rw,memory
"""
V2_CGROUP = "0::/outer/inner\n"
V2_MOUNTS = "31 23 0:28 {root} {0} rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"

System = Callable[..., None]


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    """Makes a /proc and a /sys/fs/cgroup with the given files, on a machine of eight cores."""

    def make(cgroup: str, mounts: str, files: dict[str, str], root: str = "/") -> None:
        (tmp_path / "cgroup").write_text(cgroup)
        (tmp_path / "mountinfo").write_text(mounts.format(tmp_path, root=root))
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(process, "_PROC", tmp_path)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    return make


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("100000 100000", 1),
        ("200000 100000", 2),
        ("75000 50000", 1),  # One and a half: a second thread would stand still half of the time.
        ("299999 100000", 2),
        ("20000 100000", 1),
        ("1600000 100000", 8),
        ("max 100000", 8),
        ("nonsense", 8),
        ("100000 0", 8),
        ("", 8),
    ],
)
def test_a_quota_counts_as_affinity_does(system: System, quota: str, expected: int) -> None:
    system(V2_CGROUP, V2_MOUNTS, {"outer/inner/cpu.max": quota + "\n"})
    assert process.cores() == expected


@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("100000", "100000", 1), ("30000", "10000", 3), ("-1", "100000", 8), ("0", "100000", 8)],
)
def test_a_quota_of_version_1(system: System, quota: str, period: str, expected: int) -> None:
    folder = "cpu,cpuacct/outer/inner"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}
    system(V1_CGROUP, V1_MOUNTS, files)
    assert process.cores() == expected


@pytest.mark.parametrize("where", ["outer/inner", "outer", "."])
def test_the_smallest_quota_of_nested_cgroups_counts(system: System, where: str) -> None:
    files = {f"{name}/cpu.max": "400000 100000" for name in ("outer/inner", "outer", ".")}
    system(V2_CGROUP, V2_MOUNTS, {**files, f"{where}/cpu.max": "300000 100000"})
    assert process.cores() == 3


@pytest.mark.parametrize("root", ["/outer/inner", "/somewhere/else"])
def test_a_container_sees_its_own_cgroup_as_the_root(system: System, root: str) -> None:
    """As with Docker: the path is the host's, and the folder of the mount is the container's."""
    system(V2_CGROUP, V2_MOUNTS, {"cpu.max": "200000 100000"}, root=root)
    assert process.cores() == 2


def test_a_cgroup_below_that_of_its_container(system: System) -> None:
    files = {"inner/cpu.max": "200000 100000", "cpu.max": "600000 100000"}
    system(V2_CGROUP, V2_MOUNTS, files, root="/outer")
    assert process.cores() == 2


def test_without_cgroups_affinity_is_the_limit(system: System) -> None:
    system("", "", {})
    assert process.cores() == 8
    system("0::/outer\n", "nonsense\n1 2 - cgroup2\n", {})
    assert process.cores() == 8


def test_a_quota_reaches_onnxruntime(tiny_bundle: Path, system: System) -> None:
    """Whose own default is a thread for each core of the machine."""
    system(V2_CGROUP, V2_MOUNTS, {"outer/inner/cpu.max": "300000 100000"})
    model = Model(Bundle.open(tiny_bundle))
    assert model.threads == 3
    options = model.sessions.get(FUSED_FILES[0]).get_session_options()
    assert options.intra_op_num_threads == 3
    assert Model(Bundle.open(tiny_bundle), intra_op_num_threads=2).threads == 2
    system("", "", {})
    plain = Model(Bundle.open(tiny_bundle)).sessions.get(FUSED_FILES[0])
    assert plain.get_session_options().intra_op_num_threads == 0


@pytest.mark.parametrize(
    ("version", "files", "expected"),
    [
        (2, {"outer/inner/memory.max": "1073741824\n"}, 1 << 30),
        (2, {"outer/inner/memory.max": "1073741824", "outer/memory.max": "1048576"}, 1 << 20),
        (2, {"outer/inner/memory.max": "max", "memory.max": "1048576"}, 1 << 20),
        (2, {"outer/inner/memory.max": "max\n"}, None),
        (1, {"memory/outer/inner/memory.limit_in_bytes": "536870912\n"}, 1 << 29),
        (1, {"memory/outer/memory.limit_in_bytes": "536870912\n"}, 1 << 29),
        (1, {"memory/outer/inner/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        (2, {"outer/inner/memory.max": "nonsense"}, None),
        (2, {}, None),
    ],
    ids=str,
)
def test_a_containers_memory_is_the_limit(
    system: System, version: int, files: dict[str, str], expected: int | None
) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    system(*((V1_CGROUP, V1_MOUNTS) if version == 1 else (V2_CGROUP, V2_MOUNTS)), files)
    assert process.memory_limit() == (expected or machine)
