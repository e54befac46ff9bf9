"""The sessions and the cache: arguments, devices, and `select` against PyTorch from scratch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import M2M100ForConditionalGeneration

from m2m100_onnx import Bundle, BundleError, InferenceError, Translator
from m2m100_onnx.bundle.graphs import FUSED_FILES, GRAPH_FILES
from m2m100_onnx.bundle.manifest import MANIFEST_FILE
from m2m100_onnx.model import support
from m2m100_onnx.model.model import Model
from m2m100_onnx.model.portable import PortableState
from m2m100_onnx_export import export

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

LENGTHS = (9, 4, 7)
START, WORDS = 2, (4, 10000)


# --- The cache -----------------------------------------------------------------------------------


class Reference:
    """PyTorch on the same checkpoint, without any cache."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype = torch.float32) -> None:
        model = M2M100ForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype)
        self.model = model.float().eval()

    @torch.inference_mode()
    def logits(self, source: list[int], target: list[int]) -> Float32Array:
        """Scores of the token after `target`."""
        found = self.model(
            input_ids=torch.tensor([source]),
            decoder_input_ids=torch.tensor([target]),
            use_cache=False,
        )
        scores: Float32Array = found.logits[0, -1].numpy()
        return scores


def sources() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(*WORDS, length).tolist() for length in LENGTHS]


def padded(rows: list[list[int]]) -> tuple[Int64Array, Int64Array]:
    longest = max(map(len, rows))
    ids = np.array([row + [1] * (longest - len(row)) for row in rows], np.int64)
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in rows], np.int64)
    return ids, mask


def begin(model: Model, ids: Int64Array, mask: Int64Array, prompt: Int64Array) -> PortableState:
    """A state of the portable graphs, whichever the model would choose."""
    return PortableState(model.sessions, ids, mask, prompt)


def stepped(state: PortableState, tokens: Int64Array) -> Float32Array:
    state.step(tokens)
    return state.logits


class Rows:
    """A cache beside what it should hold: each row's sentence and its tokens so far."""

    def __init__(self, model: Model, reference: Reference, tolerance: float) -> None:
        self.model, self.reference, self.tolerance = model, reference, tolerance
        self.rng = np.random.default_rng(5)
        self.sources = sources()
        self.sentences = [0, 1, 2]
        self.targets = [[START, 10500 + n] for n in range(3)]
        self.cache = self.start(self.sources, self.targets)
        self.check(self.cache.logits)

    def start(self, sources: list[list[int]], targets: list[list[int]]) -> PortableState:
        return begin(self.model, *padded(sources), np.array(targets, np.int64))

    def select(self, *rows: int) -> None:
        self.cache.select(np.array(rows, np.int64))
        self.sentences = [self.sentences[row] for row in rows]
        self.targets = [list(self.targets[row]) for row in rows]
        assert self.cache.rows == len(rows)

    def step(self) -> Float32Array:
        tokens = self.rng.integers(*WORDS, (len(self.targets), 1))
        for target, token in zip(self.targets, tokens[:, 0].tolist(), strict=True):
            target.append(token)
        self.cache.step(tokens)
        self.check(self.cache.logits)
        return self.cache.logits

    def check(self, logits: Float32Array) -> None:
        assert logits.dtype == np.float32
        expected = np.array(
            [
                self.reference.logits(self.sources[sentence], target)
                for sentence, target in zip(self.sentences, self.targets, strict=True)
            ]
        )
        assert logits.shape == expected.shape
        bound = self.tolerance * float(np.abs(expected).max())
        np.testing.assert_allclose(logits, expected, rtol=0, atol=bound)
        # The tolerance is far below what tells the rows of a sentence apart.
        for a in range(len(expected)):
            for b in range(a):
                if self.targets[a] != self.targets[b]:
                    assert np.abs(expected[a] - expected[b]).max() > 5 * bound


@pytest.fixture(scope="module", params=["fp32", "fp16", "beams-apart"])
def opened_pair(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Model, Reference, float]:
    """In both precisions, and as a folder of Optimum's, which repeats the source for each beam."""
    folder = tmp_path_factory.mktemp("pair") / "bundle"
    if request.param == "fp16":
        export(tiny_checkpoint, folder, precision="fp16", verify_outputs=False)
        return Model(Bundle.open(folder)), Reference(tiny_checkpoint, torch.float16), 2e-2
    shutil.copytree(tiny_bundle, folder)
    if request.param == "beams-apart":
        (folder / MANIFEST_FILE).unlink()
    model = Model(Bundle.open(folder))
    return model, Reference(tiny_checkpoint), 2e-5


@pytest.fixture
def rows(opened_pair: tuple[Model, Reference, float]) -> Rows:
    """Three sentences that were just started."""
    return Rows(*opened_pair)


def test_select_expands_reorders_and_drops(rows: Rows) -> None:
    rows.step()
    rows.select(0, 0, 1, 1, 2, 2)
    rows.step()
    rows.step()
    rows.select(1, 0, 3, 3, 4, 4)  # swapped; one beam twice; the other twice
    rows.step()
    rows.select(0, 1, 2, 3, 4, 5)  # as they are
    rows.step()
    rows.select(1, 1, 5, 4)  # the middle sentence leaves
    rows.step()
    rows.select(3, 2)  # the first leaves, the last is swapped
    rows.step()
    rows.select(0, 0)
    rows.step()


@pytest.mark.parametrize(
    ("expanded", "then"),
    [
        ((0, 1, 2), (1,)),
        ((0, 1, 2), (0, 2)),
        ((0, 1, 2), (0, 1)),
        ((0, 0, 0, 1, 1, 1, 2, 2, 2), (2, 1, 0, 8, 8, 6)),
        ((0, 0, 0, 1, 1, 1, 2, 2, 2), (4, 3, 5)),
        ((0, 0, 2, 2), (3, 3)),
    ],
)
def test_select_before_any_step(
    rows: Rows, expanded: tuple[int, ...], then: tuple[int, ...]
) -> None:
    rows.select(*expanded)
    rows.step()
    rows.select(*then)
    rows.step()


def test_step_after_select_equals_one_of_a_new_cache(rows: Rows) -> None:
    rows.step()
    rows.select(0, 0, 1, 1, 2, 2)
    rows.step()
    rows.select(3, 2, 5, 4)
    kept = [rows.sources[sentence] for sentence in rows.sentences]
    fresh = rows.start(kept, rows.targets)
    rows.check(fresh.logits)
    tokens = np.array([[77], [78], [79], [80]])
    found, expected = stepped(rows.cache, tokens), stepped(fresh, tokens)
    bound = rows.tolerance * float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def test_caches_do_not_share_anything(rows: Rows) -> None:
    """Two searches at once, as two threads have them."""
    other = Rows(rows.model, rows.reference, rows.tolerance)
    rows.select(0, 0, 1, 1, 2, 2)
    rows.step()
    other.step()
    other.select(2, 0)
    rows.step()
    other.step()


def test_callers_arrays_are_not_changed(tiny_bundle: Path) -> None:
    """On the CPU onnxruntime reads numpy's memory itself."""
    model = Model(Bundle.open(tiny_bundle))
    ids, mask = padded(sources())
    prompt = np.array([[START, 10500]] * 3)
    arrays = (ids, mask, prompt)
    copies = [array.copy() for array in arrays]
    tokens = np.array([[5], [6], [7]])
    expected = stepped(begin(model, *arrays), tokens).copy()
    assert all(np.array_equal(*pair) for pair in zip(arrays, copies, strict=True))
    # What was given before a step may be reused; only the mask is needed on.
    again = begin(model, ids, mask, prompt)
    ids[:], prompt[:], again.logits[:] = 9, 9, 0
    np.testing.assert_array_equal(stepped(again, tokens), expected)


def test_logits_may_be_overwritten(tiny_bundle: Path) -> None:
    """Search writes penalties into them; the next step must not see that."""
    model = Model(Bundle.open(tiny_bundle))
    ids, mask = padded(sources())
    prompt = np.array([[START, 10500]] * 3)
    found = []
    for value in (None, -np.inf):
        cache = begin(model, ids, mask, prompt)
        for token in (5, 6):
            if value is not None:
                cache.logits[:] = value
            cache.step(np.full((3, 1), token))
        found.append(cache.logits.copy())
    np.testing.assert_array_equal(*found)


def test_failing_graph_is_an_inference_error(tiny_bundle: Path) -> None:
    model = Model(Bundle.open(tiny_bundle))
    ids, mask = padded(sources())
    prompt = np.array([[START, 10500]] * 3)
    with pytest.raises(InferenceError, match=r"onnxruntime .*99999"):
        begin(model, np.full_like(ids, 99999), mask, prompt)
    cache = begin(model, ids, mask, prompt)
    with pytest.raises(InferenceError, match=r"onnxruntime .*99999"):
        cache.step(np.full((3, 1), 99999))
    # The session serves others on.
    cache = begin(model, ids, mask, prompt)
    assert np.isfinite(stepped(cache, np.full((3, 1), 5))).all()


def test_fp16_on_a_cpu_warns(
    demo_bundle: Path, demo_bundle_fp16: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Model(Bundle.open(demo_bundle))
    assert not caplog.records
    Model(Bundle.open(demo_bundle_fp16))
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("m2m100_onnx", "WARNING")
    assert str(demo_bundle_fp16) in record.getMessage()


# --- Opening -------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs onnxruntime was given, in order."""
    names: list[str] = []
    real = support.ort.InferenceSession

    def session(model: Any, *arguments: Any, **options: Any) -> Any:
        names.append(Path(model).name if isinstance(model, str) else "gather")
        return real(model, *arguments, **options)

    monkeypatch.setattr(support.ort, "InferenceSession", session)
    return names


@pytest.mark.parametrize(("fused", "files"), [(None, FUSED_FILES), (False, GRAPH_FILES)])
def test_graphs_are_opened_at_once(
    tiny_bundle: Path, opened: list[str], fused: bool | None, files: tuple[str, ...]
) -> None:
    translator = Translator(tiny_bundle, fused=fused)
    assert sorted(name for name in opened if name != "gather") == sorted(files)
    translator.translate("Quit", source_lang="en", target_lang="de")
    translator.translate("Quit", source_lang="en", target_lang="de")
    # Each is opened once, however often it is used.
    assert len(opened) == len(set(opened))


def test_lazy_opens_nothing_until_it_is_needed(tiny_bundle: Path, opened: list[str]) -> None:
    translator = Translator(tiny_bundle, lazy=True)
    assert translator.languages
    assert translator.translate("", source_lang="en", target_lang="de") == ""
    assert opened == []
    translator.translate("Quit", source_lang="en", target_lang="de")
    assert set(opened) == set(FUSED_FILES)
    assert len(opened) == len(set(opened))


def test_session_is_opened_once_by_many_threads(tiny_bundle: Path, opened: list[str]) -> None:
    model = Model(Bundle.open(tiny_bundle))
    with ThreadPoolExecutor(8) as pool:
        sessions = list(pool.map(lambda _: model.sessions.get(GRAPH_FILES[0]), range(16)))
    assert opened == [GRAPH_FILES[0]]
    assert all(session is sessions[0] for session in sessions)


def test_bundle_that_vanishes_before_it_is_needed(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    translator = Translator(bundle, lazy=True)
    shutil.rmtree(bundle)
    with pytest.raises(BundleError, match=FUSED_FILES[0]):
        translator.translate("Quit", source_lang="en", target_lang="de")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_packaged_gather_selects_rows(
    make_checkpoint: Callable[..., Path], tiny_bundle: Path, tmp_path: Path, precision: Any
) -> None:
    bundle = tiny_bundle
    if precision == "fp16":
        bundle = tmp_path / "fp16"
        export(make_checkpoint(), bundle, precision=precision, verify_outputs=False)
    model = Model(Bundle.open(bundle))
    real = np.dtype(np.float16 if precision == "fp16" else np.float32)
    data = np.random.default_rng(0).normal(size=(4, 2, 3, 5)).astype(real)
    index = np.array([3, 0, 0, 2, 3])
    (found,) = model.sessions.gather(real.name).run(None, {"data": data, "rows": index})
    assert found.dtype == real
    np.testing.assert_array_equal(found, data[index])
