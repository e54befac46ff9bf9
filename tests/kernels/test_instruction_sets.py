"""Every instruction set computes the same bits, on processors that this one is not, too.

The program `kernels_check` prints a hash of each function. Processors with other instructions are
those of QEMU.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from translations import need_compiler

ROOT = Path(__file__).parents[2]
ARM = "aarch64-linux-gnu"


# Of a run with sanitizers, whose libraries the compiler and QEMU do not want before their own.
SANITIZED = bool(os.environ.get("M2M100_SANITIZED"))
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "M2M100_KERNELS")}


def build(folder: str, *options: str) -> Path:
    """Returns the program; what is built is kept, so another run builds what has changed."""
    need_compiler()
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed: instruction sets are not compared")
    path = ROOT / "build" / folder
    source = ROOT / "runtime" / "kernels"
    jobs = str(min(4, os.cpu_count() or 1))
    for command in (
        ["cmake", "-S", str(source), "-B", str(path), "-DOPERATORS=OFF", *options],
        ["cmake", "--build", str(path), "--target", "kernels_check", "-j", jobs],
    ):
        run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
        assert run.returncode == 0, run.stdout + run.stderr
    return path / "kernels_check"


@pytest.fixture(scope="module")
def native() -> list[str]:
    if SANITIZED:
        return [str(build("kernels-check-sanitized", "-DSANITIZE=ON"))]
    return [str(build("kernels-check"))]


@pytest.fixture(scope="module")
def arm() -> list[str]:
    if SANITIZED:
        pytest.skip("Arm's instructions are compared without sanitizers")
    tools = (f"{ARM}-g++", "qemu-aarch64")
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: Arm's instructions are not compared")
    options = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": tools[0],
    }
    program = build(f"kernels-check-{ARM}", *(f"-D{name}={x}" for name, x in options.items()))
    return ["qemu-aarch64", "-L", f"/usr/{ARM}", "-cpu", "max", str(program)]


def run(command: list[str], *arguments: str, wanted: str = "") -> subprocess.CompletedProcess[str]:
    environment = ENVIRONMENT | ({"M2M100_KERNELS": wanted} if wanted else {})
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )


def hashes(command: list[str]) -> dict[str, dict[str, str]]:
    """Returns the hashes of every instruction set, by the names of the functions."""
    done = run(command)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for line in done.stdout.splitlines():
        instructions, function, value = line.split()
        found[instructions][function] = value
    return found


def assert_equal(found: dict[str, dict[str, str]], reference: dict[str, str]) -> None:
    assert reference, "the program prints no hash"
    for instructions, of_functions in found.items():
        assert of_functions == reference, instructions


def emulated(cpu: str, native: list[str]) -> list[str]:
    if SANITIZED or platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None:
        pytest.skip("older processors are emulated by qemu-x86_64, and without sanitizers")
    return ["qemu-x86_64", "-cpu", cpu, *native]


def test_instruction_sets_of_this_processor_are_plain_cs(native: list[str]) -> None:
    found = hashes(native)
    assert_equal(found, found["plain"])
    if platform.machine() == "x86_64" and "avx512_vnni" in Path("/proc/cpuinfo").read_text():
        assert set(found) >= {"avx512", "avx2", "avxvnni_evex", "plain"}
    if "amx_int8" in Path("/proc/cpuinfo").read_text():
        assert "amx" in found


def test_arm_computes_the_same_bits(native: list[str], arm: list[str]) -> None:
    found = hashes(arm)
    assert set(found) == {"i8mm", "neon", "plain"}
    assert_equal(found, hashes(native)["plain"])


@pytest.mark.parametrize(("cpu", "expected"), [("Nehalem", "plain"), ("Haswell", "avx2")])
def test_older_processors_run_what_they_have(native: list[str], cpu: str, expected: str) -> None:
    assert run(emulated(cpu, native), "chosen").stdout.split() == [expected]


@pytest.mark.parametrize(
    ("cpu", "expected"), [("cortex-a72", "plain"), ("neoverse-n1", "neon"), ("max", "i8mm")]
)
def test_arm_runs_what_it_has(arm: list[str], cpu: str, expected: str) -> None:
    command = [cpu if argument == "max" else argument for argument in arm]
    assert run(command, "chosen").stdout.split() == [expected]


def test_the_environment_chooses(native: list[str]) -> None:
    assert run(native, "chosen", wanted="plain").stdout.split() == ["plain"]


@pytest.mark.parametrize("name", ["sse9", "PLAIN", "neon,avx2"])
def test_an_unknown_instruction_set_is_refused(native: list[str], name: str) -> None:
    done = run(native, "chosen", wanted=name)
    assert done.returncode == 2
    assert "M2M100_KERNELS" in done.stderr
    assert "plain" in done.stderr, "what is expected"
    assert done.stderr.rstrip().endswith(f"found {name}")


def test_an_instruction_set_that_is_missing_is_refused(native: list[str]) -> None:
    done = run(emulated("Haswell", native), "chosen", wanted="avx512")
    assert (
        done.returncode,
        "expected one that this processor has: avx2, plain" in done.stderr,
    ) == (
        2,
        True,
    )


def test_no_function_is_shared_between_instruction_sets(native: list[str]) -> None:
    """The linker would choose one of them, and an older processor would meet its instructions."""
    if SANITIZED or shutil.which("nm") is None:
        pytest.skip("nm is not installed, or sanitizers add functions of their own")
    objects = sorted(Path(native[0]).parent.glob("CMakeFiles/check_*.dir/**/numbers.cpp.o"))
    assert objects
    for path in objects:
        lines = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
        shared = [line for line in lines.splitlines() if line.split()[-2] in "VWu"]
        assert not shared, path
