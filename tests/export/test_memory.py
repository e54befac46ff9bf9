"""Memory of an export: one tensor at a time, however many layers a checkpoint has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import PICKLE, SAFETENSORS, copied, write_sharded

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# Exports one checkpoint after the other and prints the largest private memory during each, in
# bytes. Pages of mapped files do not count: the system takes them back when it needs them.
SCRIPT = r"""
import json, re, sys, threading
from pathlib import Path

import torch
from m2m100_onnx_export import export

torch.set_num_threads(1)


def private():
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def peak_of(job, bundle):
    peak, done = private(), threading.Event()

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, private())

    thread = threading.Thread(target=watch)
    thread.start()
    checkpoint, precision, adapter = job
    export(checkpoint, bundle, precision=precision, adapter=adapter, verify_outputs=False)
    done.set()
    thread.join()
    return peak


jobs, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
peak_of(jobs[0], folder / "first")  # the first export also imports
print(json.dumps([peak_of(job, folder / str(number)) for number, job in enumerate(jobs)]))
"""
FEW, MANY = 2, 14
WIDTH, FFN = 192, 768
# What the deeper checkpoint has more in float32: 48 MB.
MORE = (MANY - FEW) * 4 * (12 * WIDTH * WIDTH + 4 * WIDTH * FFN)
KINDS = {
    "safetensors": ("safetensors", "fp32"),
    "int8": ("safetensors", "int8"),
    "pickles": ("pickles", "fp32"),
    "pickles-int4": ("pickles", "int4"),
    "adapter": ("adapter", "fp32"),
}


def in_pickles(checkpoint: Path, folder: Path) -> Path:
    copied(checkpoint, folder)
    write_sharded(folder, PICKLE, load_file(folder / SAFETENSORS), torch.save)
    (folder / SAFETENSORS).unlink()
    return folder


def large_adapter(checkpoint: Path, folder: Path) -> Path:
    """An adapter that has whole layers, as `modules_to_save` makes them."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "modules_to_save": ["fc1", "fc2"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    state = {
        f"base_model.model.{name}": tensor
        for name, tensor in load_file(checkpoint / SAFETENSORS).items()
        if ".fc" in name
    }
    save_file(state, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def peaks(
    make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[int]]:
    """The largest private memory for few and for many layers, by kind."""
    folder = tmp_path_factory.mktemp("memory")
    width = {"d_model": WIDTH, "encoder_ffn_dim": FFN, "decoder_ffn_dim": FFN, "init_std": 0.02}
    jobs = []
    for count in (FEW, MANY):
        checkpoint = make_checkpoint(encoder_layers=count, decoder_layers=count, **width)
        pickles = in_pickles(checkpoint, folder / f"pickles-{count}")
        adapter = large_adapter(checkpoint, folder / f"adapter-{count}")
        for kind, precision in KINDS.values():
            source = pickles if kind == "pickles" else checkpoint
            jobs.append((str(source), precision, str(adapter) if kind == "adapter" else None))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(jobs), str(folder)],
        # Without these, glibc keeps as freed what a thread or a heap once held: noise of 20 MB.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "65536",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return dict(
        zip(KINDS, zip(*(found[: len(KINDS)], found[len(KINDS) :]), strict=True), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_layers(peaks: dict[str, list[int]], kind: str) -> None:
    """More layers cost a fraction of their size at most: names, nodes and what malloc keeps."""
    few, many = peaks[kind]
    assert many - few < MORE / 4
