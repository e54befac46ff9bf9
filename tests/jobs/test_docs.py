"""The commands of the manual's page "More than one machine" run as they are written."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "cluster.md"
_BLOCK = re.compile(r'^```console title="not run: needs a cluster.*"\n((?:.*\n)*?)```$', re.M)


@pytest.mark.long
def test_commands_run_as_written(cluster: Any, bundle: Path, tmp_path: Path) -> None:
    desk = tmp_path / "desk"
    (desk / "bundles").mkdir(parents=True)
    (desk / "bundles" / "demo").symlink_to(bundle)
    (desk / "demo").symlink_to(ROOT / "demo")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, start in (("m2m100", "-m m2m100_onnx"), ("python", "")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {start} "$@"\n')
        (tools / name).chmod(0o755)
    # `ray start` would make this cluster known to `--address auto`; the tests' one has a name.
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "RAY_ADDRESS": cluster.address,
    }
    blocks = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 2
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for block in blocks:
        for part in filter(None, re.split(r"^\$ ", block, flags=re.M)):
            command, _, expected = part.partition("\n")
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=desk,
                env=environment,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                check=True,
            )
            assert doctest.OutputChecker().check_output(expected, done.stdout, flags), (
                command,
                done.stdout,
            )
