"""The fused graphs against the portable ones and numpy: `select`, ranking, whole searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import golden
from m2m100_onnx import Bundle, InferenceError, InvalidInputError, Translator
from m2m100_onnx.bundle.bundle import WEIGHTS_FILE
from m2m100_onnx.bundle.graphs import FUSED_FILES, FUSED_STEP_FILE, GRAPH_FILES
from m2m100_onnx.model import fused, support
from m2m100_onnx.model.device_blocks import DeviceMemory
from m2m100_onnx.model.fused import FusedState
from m2m100_onnx.model.model import Model
from m2m100_onnx.search.ranking import amend, rank
from m2m100_onnx.search.state import DecoderState, Int64Array, Ranked, Ranking
from m2m100_onnx_export import export

START, WORDS = 2, (4, 10000)
LENGTHS = (9, 4, 7)


def device_memory(packed: int) -> Callable[..., DeviceMemory]:
    """Returns what makes a device's memory, with so many numbers of a head side by side."""
    return lambda sessions, _: DeviceMemory(sessions, packed)


@pytest.fixture(scope="module", params=["host", "device"])
def models(tiny_bundle: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Model, Model]]:
    """The same bundle with fused and with portable graphs.

    The fused graphs run in numpy's memory, and in a device's, which is the CPU's here.
    """
    bundle = Bundle.open(tiny_bundle)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "device":
            patch.setattr(fused, "memory_of", device_memory(bundle.head_size))
        yield Model(bundle), Model(bundle, fused=False)


class Pair:
    """A fused and a portable cache that are told the same."""

    def __init__(self, models: tuple[Model, Model], prompt: int = 2) -> None:
        rng = np.random.default_rng(3)
        self.rng = np.random.default_rng(5)
        ids = np.full((len(LENGTHS), max(LENGTHS)), 1)
        for row, length in zip(ids, LENGTHS, strict=True):
            row[:length] = rng.integers(*WORDS, length)
        mask = (ids != 1).astype(np.int64)
        target = np.array([[START, 10500, 600, 700][:prompt]] * 3) + np.arange(3)[:, None]
        self.states: list[DecoderState] = [m.begin(ids, mask, target) for m in models]
        assert isinstance(self.states[0], FusedState)
        self.rows = len(LENGTHS)
        self.check(Ranking(count=7))

    def check(self, ranking: Ranking) -> None:
        found, expected = (state.best(ranking) for state in self.states)
        assert_same(found, expected)
        # Rows are told apart: another row's scores are far off.
        assert self.rows == 1 or np.ptp(expected.scores[:, 0]) > 1e-3

    def select(self, *rows: int) -> None:
        for state in self.states:
            state.select(np.array(rows))
        self.rows = len(rows)

    def step(self, ranking: Ranking | None = None) -> None:
        tokens = self.rng.integers(*WORDS, (self.rows, 1))
        for state in self.states:
            state.step(tokens)
        self.check(ranking or Ranking(count=7))


def assert_same(found: Ranked, expected: Ranked) -> None:
    np.testing.assert_allclose(found.scores, expected.scores, atol=2e-4)
    # Order may differ only where scores tie within rounding.
    differs = found.tokens != expected.tokens
    finite = np.where(np.isfinite(expected.scores), expected.scores, 0)
    gaps = np.minimum(
        np.abs(np.diff(finite, append=-99.0, axis=1)),
        np.abs(np.diff(finite, prepend=99.0, axis=1)),
    )
    assert not (differs & (gaps > 4e-4) & np.isfinite(expected.scores)).any()


def test_select_expands_reorders_and_drops(models: tuple[Model, Model]) -> None:
    pair = Pair(models)
    pair.step()
    pair.select(0, 0, 1, 1, 2, 2)
    pair.step()
    pair.step()
    pair.select(1, 0, 3, 3, 4, 4)  # swapped; one beam twice; the other twice
    pair.step()
    pair.select(1, 0, 2, 3, 5, 5)  # swapped back
    pair.step()
    pair.select(0, 1, 2, 3, 4, 5)  # as they are
    pair.step()
    pair.select(1, 1, 5, 4)  # the middle sentence leaves
    pair.step()
    pair.select(1, 0, 2, 2)
    pair.step()
    pair.select(3, 2)  # the first leaves, the last is swapped
    pair.step()
    pair.select(0, 0)
    pair.step()
    pair.select(1, 0, 1)  # more beams again
    pair.step()
    pair.select(2)  # and one
    pair.step()


@pytest.mark.parametrize("prompt", [1, 2, 4])
def test_prompts_of_any_length(models: tuple[Model, Model], prompt: int) -> None:
    pair = Pair(models, prompt)
    pair.select(0, 0, 0, 1, 1, 1, 2, 2, 2)
    pair.step()


@pytest.mark.parametrize("beams", [1, 3])
def test_buffers_grow(make_checkpoint: Any, tmp_path: Path, beams: int) -> None:
    """Beyond twice the first capacity, with beams that change places all the time."""
    export(make_checkpoint(max_position_embeddings=200), tmp_path / "bundle", verify_outputs=False)
    bundle = Bundle.open(tmp_path / "bundle")
    pair = Pair((Model(bundle), Model(bundle, fused=False)))
    pair.select(*np.repeat(np.arange(3), beams))
    for _ in range(140):
        pair.step()
        if beams > 1:
            pair.select(*(np.arange(9).reshape(3, 3)[:, pair.rng.integers(0, 3, 3)].reshape(-1)))


CELLS = np.array([[0, 17], [0, 99], [2, 17], [2, 500], [2, 17], [1, 2]])


@pytest.mark.parametrize("renormalized", [False, True])
@pytest.mark.parametrize("penalty", [1.4, 0.7])
@pytest.mark.parametrize(
    ("seen", "banned"), [(CELLS, CELLS[:0]), (CELLS[:0], CELLS), (CELLS, CELLS[1:3])]
)
def test_ranking_is_numpys(
    models: tuple[Model, Model],
    renormalized: bool,
    penalty: float,
    seen: Int64Array,
    banned: Int64Array,
) -> None:
    pair = Pair(models)
    # The best tokens of all are among what is banned and penalized.
    best = pair.states[1].best(Ranking(count=3)).tokens
    top = np.stack([np.repeat(np.arange(3), 3), best.reshape(-1)], axis=1)
    ranking = Ranking(
        count=5,
        renormalized=renormalized,
        repetition_penalty=penalty,
        seen=np.concatenate([seen, top[::2]]) if len(seen) else seen,
        banned=np.concatenate([banned, top[::3]]) if len(banned) else banned,
    )
    pair.step(ranking)
    pair.step()


@pytest.mark.parametrize("count", [1, 4, 30])
def test_amend_is_ranking_with_bans(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(200):
        logits = rng.normal(size=(3, 30)).astype(np.float32) * 2
        cells = rng.integers(0, (3, 30), (rng.integers(0, 40), 2))
        cut = rng.integers(0, len(cells) + 1)
        penalty = float(rng.choice([1.0, 1.5, 0.6]))
        ranking = Ranking(count, False, penalty, cells[:cut], cells[cut:])
        expected = rank(logits.copy(), ranking)
        wide = rank(logits.copy(), Ranking(count + ranking.most_cells(3)))
        peak = logits.max(axis=1, keepdims=True)
        shift = peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
        seen_scores = (logits - shift)[cells[:cut, 0], cells[:cut, 1]]
        found = amend(wide, seen_scores, ranking)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        sure = np.isfinite(expected.scores)
        np.testing.assert_array_equal(found.tokens[sure], expected.tokens[sure])


def test_rows_where_all_is_banned(models: tuple[Model, Model]) -> None:
    model = models[0]
    vocab_size = model.bundle.config.vocab_size
    everything = np.stack([np.zeros(vocab_size, np.int64), np.arange(vocab_size)], axis=1)
    for renormalized in (False, True):
        state = Pair(models).states[0]
        state.step(np.full((3, 1), 5))
        ranked = state.best(Ranking(2, renormalized, banned=everything))
        assert (ranked.scores[0] == -np.inf).all()
        assert np.isfinite(ranked.scores[1:]).all()


def test_scores_that_are_not_numbers(models: tuple[Model, Model]) -> None:
    state = Pair(models).states[0]
    assert isinstance(state, FusedState)
    for value in state._source.values:
        value.update_inplace(np.full(value.shape(), np.nan, np.float32))
    state.step(np.full((3, 1), 5))
    # Of a ban's -inf and a NaN neither is the larger, and the first must not hide the second.
    banned = np.stack([np.repeat(np.arange(3), 40), np.tile(np.arange(40), 3)], axis=1)
    seen = np.array([[0, 5], [1, 5], [2, 5]])
    for more in ({}, {"banned": banned}, {"banned": banned, "seen": seen}):
        for renormalized in (False, True):
            ranking = Ranking(2, renormalized, 1.2 if "seen" in more else 1.0, **more)
            with pytest.raises(InvalidInputError, match="NaN"):
                state.best(ranking)


def test_a_token_that_does_not_exist(models: tuple[Model, Model]) -> None:
    state = Pair(models).states[0]
    state.step(np.full((3, 1), 99999))
    with pytest.raises(InferenceError, match=r"onnxruntime .*99999"):
        state.best(Ranking(2))


def test_callers_arrays_are_not_changed(models: tuple[Model, Model]) -> None:
    """On the CPU onnxruntime reads numpy's memory itself, and one row is contiguous as it is."""
    ids, prompt = np.full((1, 5), 7), np.array([[START, 10500]])
    arrays = (ids, np.ones_like(ids), prompt)
    copies = [array.copy() for array in arrays]
    state = models[0].begin(*arrays)
    first = state.best(Ranking(3)).scores.copy()
    state.step(np.array([[9]]))
    state.best(Ranking(3))
    assert all(np.array_equal(*pair) for pair in zip(arrays, copies, strict=True))
    again = models[0].begin(*arrays)
    ids[:], prompt[:], arrays[1][:] = 9, 9, 0
    np.testing.assert_array_equal(again.best(Ranking(3)).scores, first)


# --- Which graphs are used -----------------------------------------------------------------------


def test_fused_graphs_share_the_weights_file(demo_bundle: Path) -> None:
    def places(name: str) -> dict[str, list[str]]:
        graph = onnx.load(demo_bundle / name, load_external_data=False).graph
        return {
            tensor.name: [entry.value for entry in tensor.external_data]
            for tensor in graph.initializer
            if tensor.external_data
        }

    portable = {k: v for name in GRAPH_FILES for k, v in places(name).items()}
    for name in FUSED_FILES:
        found = places(name)
        assert found
        assert all(portable[key] == place for key, place in found.items())
        assert {place[0] for place in found.values()} == {WEIGHTS_FILE}


def test_a_step_has_few_operators(demo_bundle: Path) -> None:
    graph = onnx.load(demo_bundle / FUSED_STEP_FILE, load_external_data=False).graph
    assert not {"Concat", "Softmax"} & {
        node.op_type for node in graph.node if "layers" in node.name
    }
    assert len(graph.node) < 40 + 25 * 3


def test_where_fused_graphs_do_not_run(demo_bundle: Path, demo_bundle_fp16: Path) -> None:
    assert Model(Bundle.open(demo_bundle)).fused
    assert not Model(Bundle.open(demo_bundle_fp16)).fused
    providers = ["CPUExecutionProvider"]
    assert Model(Bundle.open(demo_bundle), providers=providers).fused
    with pytest.raises(InvalidInputError, match=r"fused: expected .*fp16"):
        Model(Bundle.open(demo_bundle_fp16), fused=True)


# --- Whole searches ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 1},
        {"beam_size": 5, "num_hypotheses": 5},
        {"beam_size": 4, "no_repeat_ngram_size": 2, "length_penalty": 0.6, "early_stopping": False},
        {"beam_size": 1, "repetition_penalty": 1.3, "min_length": 12, "no_repeat_ngram_size": 3},
        {"beam_size": 3, "repetition_penalty": 1.3, "min_length": 12, "suppress_tokens": (5, 17)},
    ],
    ids=str,
)
def test_portable_graphs_translate_alike(demo_bundle: Path, options: dict[str, Any]) -> None:
    """The parity tests run on the fused graphs; this ties the portable ones to them."""
    fused = Translator(demo_bundle, intra_op_num_threads=1)
    portable = Translator(demo_bundle, intra_op_num_threads=1, fused=False)
    texts = golden.Case("zh-en", 1, {}, every=10).texts()
    same, worst = 0, 0.0
    found, expected = (
        each.translate_batch(texts, source_lang="zh", target_lang="en", max_length=64, **options)
        for each in (fused, portable)
    )
    for a, b in zip(found, expected, strict=True):
        same += [h.tokens for h in a.hypotheses] == [h.tokens for h in b.hypotheses]
        worst = max(worst, abs(a.score - b.score))
    # Two beams within rounding of each other may come in either order.
    assert same >= len(texts) - 1
    assert worst < 1e-4


@pytest.mark.parametrize("beams", [1, 5])
def test_float16_graphs_on_a_device(
    demo_bundle_fp16: Path, repository: Path, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are for CUDA; where a CPU has no operator for float16, onnxruntime casts."""
    size = Bundle.open(demo_bundle_fp16).head_size
    monkeypatch.setitem(support._FUSED_PRECISIONS, "cpu", ("fp16",))
    monkeypatch.setattr(fused, "memory_of", device_memory(size))
    texts = (repository / "demo" / "heldout" / "dev.en").read_text().splitlines()[:30]
    found = []
    for chosen in (True, False):
        translator = Translator(demo_bundle_fp16, fused=chosen)
        assert translator.model.fused == chosen
        options: dict[str, Any] = {"source_lang": "en", "target_lang": "de", "beam_size": beams}
        found.append(translator.translate(texts, **options))
    alike = [a == b for a, b in zip(*found, strict=True)]
    assert np.mean(alike) > 0.9  # Scores differ by float16's rounding.
