"""What `m2m100 benchmark` measures: exact lengths, calls side by side, memory, real text."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from m2m100_onnx import InferenceError, Translator
from m2m100_onnx.cli.benchmark.client import Worker
from m2m100_onnx.cli.benchmark.plan import Grid, prepare, synthetic_text
from m2m100_onnx.cli.benchmark.worker import memory, timed_calls
from m2m100_onnx.cli.main import main
from m2m100_onnx.options import OPTIONS, SearchOptions
from m2m100_onnx.search.state import Float32Array, Int64Array
from searches import LogitsState, search
from shell import QUICK


def test_lengths_are_exact_and_may_fill_the_positions(tiny_bundle: Path) -> None:
    translator = Translator(tiny_bundle, intra_op_num_threads=1)
    grid = Grid((tiny_bundle,), batch_sizes=(2,), source_lengths=(3, 64), target_lengths=(1, 62))
    jobs = prepare(grid)
    assert len(jobs) == 8
    for job in jobs:
        languages, (texts,) = job.opening["languages"], job.batches
        lengths = {len(translator.encode(text, languages["source_lang"])) for text in texts}
        assert lengths == {job.configuration.source_length}
        for options, length in ((job.whole, job.configuration.target_length), (job.first_token, 1)):
            found = translator.translate_batch(texts, **languages, **options)
            # The start and the language token are not generated.
            assert [len(each.tokens) - 2 for each in found] == [length] * 2


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_lengths_are_exact_though_the_model_would_end(
    tiny_bundle: Path, beam_size: int, length: int
) -> None:
    class Ending:
        """A model that wants to end at every step."""

        def __init__(self) -> None:
            self.rows = 1

        def logits(self) -> Float32Array:
            return np.tile(np.array([0, 1, 9, 2, 3, 4], np.float32), (self.rows, 1))

        def step(self, _: Int64Array) -> Float32Array:
            return self.logits()

        def select(self, rows: Int64Array) -> None:
            self.rows = len(rows)

    (job,) = prepare(Grid((tiny_bundle,), beam_sizes=(beam_size,), target_lengths=(length,)))
    asked = {name: v for name, v in job.whole.items() if OPTIONS[name].scope == "search"}
    state, prompt = Ending(), np.array([[2, 5]])
    options = SearchOptions(**asked)
    ((best,),) = search(LogitsState(state, state.logits()), prompt, eos_id=2, options=options)
    assert len(best.tokens) == 2 + length
    assert 2 not in best.tokens[2:]


@pytest.mark.parametrize("length", [3, 4, 32, 200])
def test_synthetic_texts_are_words_of_the_vocabulary(translator: Translator, length: int) -> None:
    tokenizer = translator.tokenizer
    texts = [synthetic_text(tokenizer, "en", length, random.Random(seed)) for seed in (1, 1, 2)]
    for text in texts:
        ids = tokenizer.encode(text, "en")
        assert len(ids) == length
        assert tokenizer.unk_id not in ids
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_calls_run_at_once_and_all_are_counted() -> None:
    both = threading.Barrier(2, timeout=20)
    seen: list[list[int]] = []

    def translate(batch: list[int]) -> int:
        # Never passes unless a second thread is here too.
        both.wait()
        seen.append(batch)
        return sum(batch)

    calls = timed_calls(translate, [[3, 4], [5, 0]], passes=3, concurrency=2)
    assert sorted(seen) == [[3, 4]] * 6 + [[5, 0]] * 6
    assert [call.tokens for call in calls] == [7, 5] * 6
    assert all(call.began <= call.ended for call in calls)


def test_each_thread_has_its_share_however_fast_calls_are() -> None:
    threads: list[int] = []

    def translate(_: str) -> int:
        threads.append(threading.get_ident())
        return 0

    timed_calls(translate, ["text"], passes=2, concurrency=8)
    assert sorted(map(threads.count, set(threads))) == [2] * 8
    threads.clear()
    # Some libraries count threads for the thread that opened the model.
    timed_calls(translate, ["text"])
    assert threads == [threading.get_ident()]


# The protocol

_ENGINE = """
import sys
from m2m100_onnx.cli.benchmark.worker import serve
from m2m100_onnx.errors import InvalidInputError

heavy = {"numpy", "onnxruntime", "sentencepiece", "subprocess", "ctypes"} & set(sys.modules)

def open_model(factor):
    print("a library that prints")
    def translate(batch, plus):
        if batch == ["refuse"]:
            raise InvalidInputError("refused")
        return factor * len(batch) + plus + len(heavy)
    return translate

serve(open_model)
"""


def test_an_engine_is_served_without_the_runtimes_dependencies(
    environment: dict[str, str],
) -> None:
    command = [sys.executable, "-c", _ENGINE]
    with Worker("an engine", command, environment) as worker:
        with pytest.raises(InferenceError, match=r"an engine: expected load, translate .* found"):
            worker.ask("translate", batches=[["a"]], options={})
        assert worker.ask("load", factor=10)["seconds"] >= 0
        found = worker.ask("translate", batches=[["a", "b"], ["c"]], options={"plus": 1}, passes=2)
        assert [tokens for _, _, tokens in found["calls"]] == [21, 11, 21, 11]
        with pytest.raises(InferenceError, match="an engine: refused"):
            worker.ask("translate", batches=[["refuse"]], options={"plus": 1})
        # It goes on, and answers in order.
        worker.send("translate", batches=[["a"]], options={"plus": 2})
        worker.send("memory")
        assert worker.receive()["calls"][0][2] == 12
        assert set(worker.receive()) == set(memory())
        with pytest.raises(InferenceError, match="ended with status 1: TypeError"):
            worker.ask("translate", batches=[["a"]], options={"minus": 1})


# In a process of its own: what a whole test run holds may go back to the system at any time.
_GROWTH = """
import json, sys
import numpy as np
from m2m100_onnx.cli.benchmark.worker import memory

path, size = sys.argv[1], int(sys.argv[2])
found = [memory()]
private = np.ones(size, np.uint8)
found.append(memory())
shared = np.memmap(path, np.uint8, "r")
assert shared.sum() == 0
found.append(memory())
print(json.dumps([*found, private.nbytes]))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_tells_private_from_mapped(tmp_path: Path) -> None:
    size = 64 << 20
    (tmp_path / "pages").write_bytes(bytes(size))
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH, str(tmp_path / "pages"), str(size)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        check=True,
    )
    before, with_private, with_shared, nbytes = json.loads(done.stdout)
    slack = 8 << 20

    def grown(old: dict[str, int | None], new: dict[str, int | None], name: str) -> int:
        return (new[name] or 0) - (old[name] or 0)

    assert grown(before, with_private, "private") == pytest.approx(nbytes, abs=slack)
    assert grown(before, with_private, "mapped") == pytest.approx(0, abs=slack)
    assert grown(with_private, with_shared, "private") == pytest.approx(0, abs=slack)
    assert grown(with_private, with_shared, "mapped") == pytest.approx(size, abs=slack)
    resident = (with_shared["private"] or 0) + (with_shared["mapped"] or 0)
    assert with_shared["resident"] == resident
    assert (with_shared["peak"] or 0) >= resident - slack
    assert 0 < (with_shared["proportional"] or 0) <= resident


def test_memory_is_unknown_where_proc_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert memory()["private"] is memory()["mapped"] is memory()["peak"] is None


def test_real_text_ends_by_itself(
    tiny_bundle: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    lines = ["Open the file.", "Delete", "Save a copy before you close the window."]
    (tmp_path / "text").write_text("\n".join(lines) + "\n", encoding="utf-8")
    argv = ["--text", str(tmp_path / "text"), "--source-lang", "en", "--target-lang", "fr"]
    argv += ["--batch-size", "2", "--beam-size", "3", "--repetitions", "2", "--output", "json"]
    assert main(["benchmark", str(tiny_bundle), *argv, *QUICK]) == 0
    (row,) = json.loads(capfdbinary.readouterr().out)["results"]
    translator = Translator(tiny_bundle, intra_op_num_threads=1)
    expected = translator.translate_batch(lines, source_lang="en", target_lang="fr", beam_size=3)
    assert row["generated_tokens"] == 2 * sum(len(each.tokens) - 2 for each in expected)
    assert row["sentences"] == 2 * len(lines)
    # Two batches, of two lines and of one.
    assert row["latency_seconds"]["count"] == 4
    assert row["source_length"] is row["target_length"] is None
    assert (row["source_lang"], row["target_lang"]) == ("en", "fr")


def test_what_the_translator_takes_reaches_it(tiny_bundle: Path) -> None:
    entries = {"session.intra_op.allow_spinning": "0"}
    jobs = prepare(Grid((tiny_bundle,), threads=(None, 2), session_options=entries))
    assert [job.opening["translator"]["intra_op_num_threads"] for job in jobs] == [None] * 2 + [
        2
    ] * 2
    assert all(job.opening["translator"]["session_options"] == entries for job in jobs)


def test_bundles_of_one_name_are_told_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / tiny_bundle.name).symlink_to(tiny_bundle)
    other = tmp_path / "other" / tiny_bundle.name
    shutil.copytree(tiny_bundle, other)
    jobs = prepare(Grid((tiny_bundle, other), beam_sizes=(1,)))
    assert [job.configuration.bundle for job in jobs] == [str(tiny_bundle), str(other)]
    # The same one twice is a way to see the noise.
    jobs = prepare(Grid((tiny_bundle, tmp_path / tiny_bundle.name), beam_sizes=(1,)))
    assert [job.configuration.bundle for job in jobs] == [tiny_bundle.name] * 2
