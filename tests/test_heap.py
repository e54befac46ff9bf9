"""What glibc keeps of freed memory: as it is, and where a server has it return large blocks."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

# A large block is freed first: from then on, glibc by default takes smaller ones from its heap.
# Prints how many blocks more are mapped with one of 4 MiB.
MAPPED = """
import ctypes

class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.free(libc.malloc(16 << 20))
before = libc.mallinfo2().hblks
assert libc.malloc(4 << 20)
print(libc.mallinfo2().hblks - before)
"""
SERVE = """
from m2m100_onnx import M2M100Error
from m2m100_onnx.jobs.ray_serve import _build
from m2m100_onnx.server.run import serve, serve_by_workers
from m2m100_onnx.server.settings import Limits, Settings

def failing(**_):
    raise KeyError("no bundle")

try:
    {}
except (KeyError, M2M100Error):
    pass
"""
CALL = "from m2m100_onnx.heap import return_large_blocks; return_large_blocks()"
ONE = SERVE.format('serve(failing, Settings(Limits()), 1, "127.0.0.1", 0, "")')
REPLICA = SERVE.format('_build(["/nowhere"], {}, Settings(Limits()), 1)')
SEVERAL = SERVE.format('serve_by_workers(failing, Settings(Limits()), 2, 1, "127.0.0.1", 0, "")')

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="knows the numbers of glibc"
)


def mapped(before: str, **more: str) -> int:
    """Returns the blocks that are mapped after `before` has run, in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | more
    done = subprocess.run(
        [sys.executable, "-c", before + "\n" + MAPPED],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_by_default_a_large_block_lies_in_the_heap() -> None:
    """What the other tests change."""
    assert mapped("") == 0


@pytest.mark.parametrize(
    "program", [CALL, ONE, SEVERAL, REPLICA], ids=["call", "server", "workers", "replica"]
)
def test_a_server_maps_every_large_block(program: str) -> None:
    assert mapped(program) == 1


def test_the_operators_choice_stays() -> None:
    assert mapped(CALL, MALLOC_MMAP_THRESHOLD_=str(8 << 20)) == 0
