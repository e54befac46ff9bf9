"""Running batches: sentences that join and leave are as searches of their own, to the last bit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2m100_onnx import InvalidInputError, Translator
from m2m100_onnx.engine.batches import Sentence
from m2m100_onnx.engine.running import Running
from m2m100_onnx.inputs import Row
from m2m100_onnx.model.joint import JointState
from m2m100_onnx.search.hypothesis import Hypothesis
from translations import need_kernels

TEXTS = (
    "Open the file.",
    "Quit",
    "Do you want to save a copy of this document before you close the window?",
    "The file could not be found.",
    "You do not have permission to open this file.",
    "Good morning.",
)
BEAMS: tuple[dict[str, Any], ...] = (
    {},
    {"num_hypotheses": 3, "length_penalty": 2.0},
    {"max_new_tokens": 6, "target_prefix": ["Die Datei"]},
    {"no_repeat_ngram_size": 2, "max_length": 30, "early_stopping": False},
    {"terms": {"file": "Dokument"}},
    {"suppress_tokens": [5, 6, 7], "min_length": 12},
    {"num_beam_groups": 2, "diversity_penalty": 0.7},
    {"stop_sequences": ["."], "max_length_ratio": 1.5},
)
KINDS: dict[str, tuple[dict[str, Any], ...]] = {
    "greedy": ({"beam_size": 1}, {"beam_size": 1, "max_length": 12, "suppress_tokens": [5]}),
    "beams": tuple({"beam_size": 4, **options} for options in BEAMS),
    "penalty": tuple(
        {"beam_size": 2, "repetition_penalty": 1.3, **more} for more in ({}, {"min_length": 9})
    ),
    "samples": (
        {"do_sample": True, "beam_size": 1, "seed": 3, "top_k": 20, "num_hypotheses": 3},
        {"do_sample": True, "beam_size": 1, "seed": 4, "top_k": 20, "num_hypotheses": 3},
    ),
}


def sentence_of(translator: Translator, text: str, **options: Any) -> tuple[Sentence, Any]:
    """A text as the queue has it, and its options."""
    call = translator._worker.begin(options, None, "raise", None, None)
    prefix = None if call.targets.prefixes is None else call.targets.prefixes[0]  # type: ignore[index]
    row = Row(text, "en", "de", prefix)
    return translator._worker.sentence(0, row, call), call.settings.search


def serial(translator: Translator, text: str, **options: Any) -> list[Hypothesis]:
    (found,) = translator.translate_batch([text], source_lang="en", target_lang="de", **options)
    return [Hypothesis(h.tokens, h.score, h.token_log_probs) for h in found.hypotheses]


class Batch:
    """A running batch, and what should come of it."""

    def __init__(self, translator: Translator) -> None:
        self.translator = translator
        self.running = Running[int](translator.model)
        self.wanted: dict[int, list[Hypothesis]] = {}
        self.found: dict[int, list[Hypothesis]] = {}

    def join(self, *some: tuple[str, dict[str, Any]], serial_run: bool = False) -> list[int]:
        joiners = []
        for text, options in some:
            ticket = len(self.wanted)
            self.wanted[ticket] = serial(self.translator, text, **options)
            joiners.append((ticket, *sentence_of(self.translator, text, **options)))
        self.running.join(joiners, serial=serial_run)
        return [ticket for ticket, *_ in joiners]

    def step(self, *, serial_run: bool = False) -> None:
        self.found.update(self.running.step(serial=serial_run))

    def finish(self) -> None:
        while self.running.count:
            self.step()


@pytest.fixture
def native(native_bundle: Path) -> Translator:
    need_kernels()
    return Translator(native_bundle, intra_op_num_threads=2)


@pytest.mark.parametrize("kind", KINDS)
def test_sentences_join_at_any_step(native: Translator, kind: str) -> None:
    """At random steps, with options that may share a run; each is as if it were alone."""
    chance = random.Random(kind)
    batch, most = Batch(native), 0
    for _ in range(25):
        some = [
            (chance.choice(TEXTS), dict(chance.choice(KINDS[kind])))
            for _ in range(chance.randint(0, 2))
        ]
        if some:
            batch.join(*some, serial_run=chance.random() < 0.5)
        most = max(most, batch.running.count)
        for _ in range(chance.randint(0, 4)):
            if batch.running.count:
                batch.step(serial_run=chance.random() < 0.5)
    batch.finish()
    assert most > 1
    assert batch.found == batch.wanted
    assert batch.running._joint is None


def test_who_leaves_changes_nothing_for_others(native: Translator) -> None:
    batch = Batch(native)
    first = batch.join((TEXTS[2], {"beam_size": 4}), (TEXTS[0], {"beam_size": 4}))
    for _ in range(3):
        batch.step()
    second = batch.join((TEXTS[3], {"beam_size": 4}), (TEXTS[4], {"beam_size": 4}))
    batch.running.drop({second[0]}.__contains__)  # Before its first step.
    for _ in range(3):
        batch.step()
    batch.running.drop({first[0]}.__contains__)  # The first place, which the last one takes.
    batch.finish()
    gone = {first[0], second[0]}
    assert batch.found.keys() == batch.wanted.keys() - gone
    assert batch.found == {t: w for t, w in batch.wanted.items() if t not in gone}
    batch.join((TEXTS[1], {"beam_size": 4}))
    batch.running.drop(lambda _: True)
    assert batch.running.count == 0
    assert batch.running._joint is None


def test_one_run_a_step(native: Translator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentences that joined at different steps are fed together."""
    runs: list[int] = []
    real = JointState.feed

    def feed(self: JointState, *, serial: bool) -> None:
        runs.append(self.count)
        real(self, serial=serial)

    monkeypatch.setattr(JointState, "feed", feed)
    batch = Batch(native)
    for expected in ([], [1], [1, 3], [1, 3, 4]):
        batch.join((TEXTS[2], {"beam_size": 2}))
        batch.step()
        # The first two make their first step on states of their own: there are no others yet.
        assert runs == expected
    batch.finish()
    assert batch.found == batch.wanted


def test_who_joins_may_leave_before_its_prompt_is_fed(native: Translator) -> None:
    batch = Batch(native)
    batch.join((TEXTS[2], {"beam_size": 2}))
    batch.step()
    batch.step()
    joined = batch.join((TEXTS[0], {"beam_size": 2}), (TEXTS[1], {"beam_size": 2}))
    batch.running.drop({joined[0]}.__contains__)
    batch.step()
    last = batch.join((TEXTS[3], {"beam_size": 2}))
    batch.running.drop(set(last).__contains__)
    batch.finish()
    assert batch.found == {t: w for t, w in batch.wanted.items() if t not in (joined[0], *last)}


def test_one_alone_keeps_the_state_that_it_began_with(
    native: Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A joint state would cost a lone request time."""
    monkeypatch.delattr(JointState, "feed")
    batch = Batch(native)
    batch.join((TEXTS[2], {"beam_size": 2}), (TEXTS[0], {"beam_size": 2}))
    batch.finish()
    assert batch.found == batch.wanted


def test_buffers_grow(native: Translator) -> None:
    """More sentences than there was room for, longer sources and longer targets."""
    batch = Batch(native)
    long = " ".join(TEXTS * 4)
    batch.join((TEXTS[1], {"beam_size": 2, "min_length": 90, "max_length": 140}))
    for _ in range(40):
        batch.step()
    batch.join(*[(text, {"beam_size": 2}) for text in (*TEXTS, long)])
    batch.finish()
    assert batch.found == batch.wanted
    assert len(batch.wanted[0][0].tokens) > 64
    assert len(native.encode(long, "en")) > 64


def test_a_batch_of_other_graphs_runs_to_its_end(demo_bundle: Path) -> None:
    for fused in (True, False):
        batch = Batch(Translator(demo_bundle, fused=fused))
        assert not batch.running.joins
        batch.join(*[(text, {"beam_size": 3}) for text in TEXTS[:3]])
        batch.step()
        batch.running.drop({1}.__contains__)
        batch.finish()
        assert batch.found.keys() == {0, 2}
        for ticket, found in batch.found.items():
            assert [h.tokens for h in found] == [h.tokens for h in batch.wanted[ticket]]
            scores = [h.score for h in found]
            np.testing.assert_allclose(scores, [h.score for h in batch.wanted[ticket]], atol=1e-5)


def test_groups(native: Translator, demo_bundle: Path) -> None:
    """What may not share a run is told apart."""
    running = Running[int](native.model)
    other = Translator(demo_bundle, kernels=False)
    closed = Running[int](other.model)

    def groups(*ways: dict[str, Any], of: Running[int] = running) -> int:
        pairs = [sentence_of(native, TEXTS[0], **options) for options in ways]
        return len({of.group_of(search, sentence) for sentence, search in pairs})

    assert groups(KINDS["greedy"][0], KINDS["beams"][0], KINDS["penalty"][0]) == 3
    for ways in KINDS.values():
        assert groups(*ways) == 1
        # Terms are in no option: a search has those of each sentence.
        other_ways = [options for options in ways if "terms" not in options]
        assert groups(*ways, of=closed) == len(other_ways)


def test_scores_that_are_no_numbers(native: Translator) -> None:
    batch = Batch(native)
    for _ in range(2):
        batch.join((TEXTS[0], {"beam_size": 2}))
        batch.step()
    joint = batch.running._joint
    assert joint is not None
    joint._own.array[:, :, :, :3] = np.nan
    with pytest.raises(InvalidInputError, match="found NaN"):
        batch.step()
