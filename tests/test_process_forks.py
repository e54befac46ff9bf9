"""Forked processes: they translate as the one they come from, end as they should, and share."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from m2m100_onnx import Translator
from packing import TEXTS
from shell import run
from translations import need_kernels

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

# Forks a child, which forks another, and says what each found and how it ended. A process that
# waits for threads it has not is killed by its alarm, and that is how it ended.
PARENT = """
import json, os, signal, sys
from m2m100_onnx import Translator
bundle, cache, mode, kernels, *texts = sys.argv[1:]
translator = Translator(
    bundle, lazy=mode == "lazy", cache_dir=cache or False, kernels=kernels == "native"
)

def translate():
    found = translator.translate_batch(texts, source_lang="en", target_lang="de", beam_size=2)
    return [[result.tokens, result.score] for result in found]

def fork(generations):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        found = [translate()]
        if generations > 1:
            found += fork(generations - 1)
        os.write(writing, json.dumps(found).encode())
        sys.exit(0)
    os.close(writing)
    with open(reading) as answer:
        found = json.load(answer)
    return [*found, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]

before = [translate()] if mode == "used" else []
print(json.dumps(before + fork(2) + [translate()]))
"""


def output_of(code: str, environment: dict[str, str], *arguments: str) -> str:
    """What a program prints that has not been told to do without telemetry."""
    done = run(
        [sys.executable, "-c", code, *arguments],
        {name: value for name, value in environment.items() if name != "ORT_DISABLE_TELEMETRY"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.mark.parametrize("mode", ["lazy", "opened", "used"])
@pytest.mark.parametrize("weights", ["mapped", "private", "native"])
def test_children_translate_and_end(
    packed_bundle: Path,
    filled_cache: Path,
    environment: dict[str, str],
    mode: str,
    weights: str,
) -> None:
    native = weights == "native"
    if native:
        need_kernels()
    options: Any = {"cache_dir": False, "intra_op_num_threads": 1, "kernels": native}
    plain = Translator(packed_bundle, **options)
    results = plain.translate_batch(TEXTS, source_lang="en", target_lang="de", beam_size=2)
    expected = [[list(result.tokens), result.score] for result in results]
    cache = str(filled_cache) if weights == "mapped" else ""
    arguments = (str(packed_bundle), cache, mode, weights, *TEXTS)
    found = json.loads(output_of(PARENT, environment, *arguments))
    child, grandchild, *ended, parent = found[1:] if mode == "used" else found
    assert ended == [0, 0]
    assert child == grandchild == parent == expected
    assert found[0] == expected


def test_a_child_has_none_of_its_parents_calls_to_wait_for(
    packed_bundle: Path, environment: dict[str, str]
) -> None:
    """A call beside others keeps to one core; those that run in the parent are no others."""
    code = """if True:
        import os, sys
        from m2m100_onnx import Translator
        generator = Translator(sys.argv[1], lazy=True, cache_dir=False).generator
        with generator._counted(), generator._counted() as others:
            assert others == 1
            generator._lock.acquire()  # As another thread may at that moment.
            if os.fork() == 0:
                with generator._counted() as others:
                    os.write(1, b"%d others" % others)
                os._exit(0)
            generator._lock.release()
            os.wait()
    """
    assert output_of(code, environment, str(packed_bundle)) == "0 others"


def test_nothing_is_kept_or_sent_by_others(
    packed_bundle: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """Such as the device id and the events that onnxruntime would leave in the user's folders."""
    code = """if True:
        import sys
        from m2m100_onnx import Translator
        translator = Translator(sys.argv[1], cache_dir=False)
        print(translator.translate(sys.argv[2], source_lang="en", target_lang="de"))
    """
    variables = ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "TMPDIR")
    folders = {name: tmp_path / name for name in variables}
    for folder in folders.values():
        folder.mkdir()
    given = environment | {name: str(folder) for name, folder in folders.items()}
    assert output_of(code, given, str(packed_bundle), TEXTS[0]).strip()
    assert [str(path) for path in tmp_path.rglob("*")] == [str(path) for path in tmp_path.iterdir()]
