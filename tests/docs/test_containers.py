"""The container of the manual: a CPU quota, a memory limit and a read-only file system.

The Dockerfile's own lines run, with this machine's folders in place of the image's: in a mount
namespace in which nothing can be written, and where the system allows none, without a home.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from m2m100_onnx import Translator
from services import EXAMPLES, TEXTS, free_port, post, process

READ_ONLY = 'mount -o remount,bind,ro / && exec "$@"'
# As a container sees itself under cgroup version 2.
FAKE = """
import sys
from pathlib import Path

sys.modules["m2m100_onnx_kernels"] = None  # The image has no kernels, and so a weights cache.
from m2m100_onnx import process

process._PROC = Path({proc!r})
"""
FACTS = """
import json, sys
from pathlib import Path
from fastapi_app import translator
from m2m100_onnx.process import memory_limit

translator.model.load()
try:
    Path({written!r}).touch()
    writable = True
except OSError:
    writable = False
mapped = len(translator.model.sessions.factory.mapped)
print(json.dumps([translator.model.threads, memory_limit(), mapped, writable]))
"""


@pytest.fixture(scope="module")
def namespace() -> list[str]:
    """What starts a command in which the file system is read-only; nothing where that cannot be."""
    start = ["unshare", "-rm", "sh", "-c", READ_ONLY, "sh"]
    if shutil.which("unshare") is None:
        return []
    return start if subprocess.run([*start, "true"], check=False).returncode == 0 else []


@pytest.fixture
def image(packed_bundle: Path, repository: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of the container, once the Dockerfile's `RUN` has filled its cache."""
    lines = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8").splitlines()
    (env,) = (line.removeprefix("ENV ") for line in lines if line.startswith("ENV "))
    (fill,) = (line.removeprefix("RUN ") for line in lines if "m2m100 translate" in line)
    folders = {"/bundle": str(packed_bundle), "/cache": str(tmp_path / "cache")}

    def here(text: str) -> str:
        return re.sub("/bundle|/cache", lambda found: folders[found[0]], text)

    cgroup = tmp_path / "cgroup"
    proc = tmp_path / "proc"
    for folder in (cgroup, proc):
        folder.mkdir()
    (cgroup / "cpu.max").write_text("150000 100000\n")
    (cgroup / "memory.max").write_text(f"{1 << 28}\n")
    (proc / "cgroup").write_text("0::/\n")
    (proc / "mountinfo").write_text(f"31 24 0:27 / {cgroup} ro - cgroup2 cgroup ro\n")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FAKE.format(proc=str(proc)))
    path = [str(tmp_path / "site"), str(EXAMPLES), str(repository / "runtime")]
    kept = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    surroundings = {
        **kept,
        **dict(pair.split("=", 1) for pair in shlex.split(here(env))),
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/proc/nowhere",
    }
    command = here(fill).replace("m2m100 ", f"{sys.executable} -m m2m100_onnx ", 1)
    subprocess.run(["sh", "-c", command], env=surroundings, check=True, capture_output=True)
    return surroundings


def test_the_service_translates(
    image: dict[str, str], packed_bundle: Path, namespace: list[str], tmp_path: Path
) -> None:
    (line,) = re.findall(
        r"^CMD (.*)$", (EXAMPLES / "Dockerfile").read_text(encoding="utf-8"), flags=re.M
    )
    port = free_port()
    module, *rest = json.loads(line)
    arguments = [module, *(part.replace("8000", str(port)) for part in rest)]
    job = {"texts": TEXTS, "source_lang": "en", "target_lang": "de"}
    with process(arguments, tmp_path, image, namespace) as server:
        status, answer = post(f"http://127.0.0.1:{port}/translate", job)
    assert server.returncode in (0, -15)
    with Translator(packed_bundle, cache_dir=False, intra_op_num_threads=1) as translator:
        expected = translator.translate(TEXTS, source_lang="en", target_lang="de")
    assert (status, answer) == (200, expected)
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert "warning" not in log.lower()


def test_quota_limit_and_cache_are_heeded(
    image: dict[str, str], namespace: list[str], tmp_path: Path
) -> None:
    code = FACTS.format(written=str(tmp_path / "written"))
    done = subprocess.run(
        [*namespace, sys.executable, "-c", code],
        env=image,
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    threads, memory, mapped, writable = json.loads(done.stdout)
    # One and a half core are one whole core.
    assert (threads, memory, mapped) == (1, 1 << 28, 3)
    assert writable == (not namespace)
    assert done.stderr == ""
