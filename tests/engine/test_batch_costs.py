"""What a batch costs: the bytes that it is charged against those that it holds."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from m2m100_onnx import Bundle, SearchOptions, Translator
from m2m100_onnx.engine import batches
from m2m100_onnx.engine.batches import Batch, Sentence, cut
from m2m100_onnx.model.fused import FusedState
from m2m100_onnx.model.model import Model
from m2m100_onnx.model.portable import PortableState
from m2m100_onnx.options import CallOptions, Settings
from translations import EN_DE, assert_same

GIB = 1 << 30


def shape_of_418m(bundle: Bundle) -> Bundle:
    """The facts of m2m100_418M, in a bundle that has none of its weights."""
    config = dataclasses.replace(
        bundle.config,
        vocab_size=128_112,
        d_model=1024,
        decoder_layers=12,
        decoder_attention_heads=16,
        max_position_embeddings=1024,
    )
    return dataclasses.replace(bundle, config=config)


def test_a_batch_at_the_longest_length_is_charged_what_it_reserves(tiny_bundle: Path) -> None:
    """25 sentences with 5 beams reserved 11.7 GiB; two caches of fp32, of 1,024 positions each."""
    bundle = shape_of_418m(Bundle.open(tiny_bundle))
    charged = FusedState.cache_bytes(bundle, 25, 125, 32, 1024)
    assert 11.7 * GIB <= charged <= 19 * GIB
    sentences = [Sentence(n, [2] * 32, [2, 5]) for n in range(25)]

    def sizes(max_length: int, budget: int) -> list[int]:
        settings = Settings(
            SearchOptions(max_length=max_length), CallOptions(max_batch_bytes=budget)
        )

        def cost(*numbers: int) -> int:
            return FusedState.cache_bytes(bundle, *numbers)

        return [len(batch) for batch in cut(sentences, settings, cost)]

    assert sizes(1024, 6 * GIB) == [8, 8, 8, 1]
    assert sizes(200, 6 * GIB) == [25]
    # One sentence is always taken.
    assert sizes(1024, 1) == [1] * 25


@pytest.mark.parametrize("seed", range(20))
def test_every_batch_fits_both_budgets(seed: int) -> None:
    chance = random.Random(seed)
    lengths = [chance.randint(3, 200) for _ in range(chance.randint(1, 60))]
    sentences = [Sentence(n, [5] * length, [2, 5]) for n, length in enumerate(lengths)]
    beams, longest = chance.randint(1, 6), chance.randint(3, 300)
    tokens, budget = chance.randint(1, 6000), chance.randint(1, 60_000)

    def cost(count: int, rows: int, source: int, target: int) -> int:
        return count * source + 3 * rows * target

    settings = Settings(
        SearchOptions(beam_size=beams, max_length=longest),
        CallOptions(max_batch_tokens=tokens, max_batch_bytes=budget),
    )
    found = list(cut(sentences, settings, cost))
    assert sorted(s.position for batch in found for s in batch) == list(range(len(lengths)))
    sources = [len(sentence.source) for batch in found for sentence in batch]
    assert sources == sorted(sources, reverse=True)
    for batch, following in zip(found, [*found[1:], None], strict=True):
        source = len(batch[0].source)

        def fits(count: int, source: int = source) -> bool:
            within = count * beams * max(source, 32) <= tokens
            return within and cost(count, count * beams, source, longest) <= budget

        assert len(batch) == 1 or fits(len(batch))
        # It is as large as it may be.
        assert following is None or not fits(len(batch) + 1)


GROWTH = """
import pathlib, re, sys
from m2m100_onnx import Translator

def resident(kind):
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{kind}:\\s+(\\d+) kB", status)[1])

bundle, fused, beams, length = sys.argv[1], sys.argv[2] == "True", *map(int, sys.argv[3:])
translator = Translator(bundle, fused=fused, intra_op_num_threads=1, cache_dir=False)
options = {"source_lang": "en", "target_lang": "de", "beam_size": beams}
texts = ["Open the file and save a copy."] * 30
translator.translate(texts[:1], **options, max_length=5)
before = resident("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")  # The peak is counted from here.
budget = {"max_batch_tokens": 1 << 30, "max_batch_bytes": 1 << 45}
translator.translate(texts, **options, **budget, max_length=length, min_length=length)
source = len(translator.encode(texts[0], "en"))
charged = translator.model.cache_bytes(30, 30 * beams, source, length)
print(resident("VmHWM") - before, charged)
"""


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("beams", "length"), [(5, 120), (5, 200), (1, 200)])
def test_a_process_grows_by_no_more_than_a_batch_is_charged(
    demo_bundle: Path, environment: dict[str, str], fused: bool, beams: int, length: int
) -> None:
    command = [sys.executable, "-c", GROWTH, str(demo_bundle), str(fused), str(beams), str(length)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    grown, charged = map(int, done.stdout.split())
    # Other memory of a search, such as the decoder's hidden states, does not grow with the length.
    assert grown <= charged + 16 * 2**20
    # And it is not charged for much that it does not take.
    assert grown >= 0.3 * charged


def test_little_memory_means_small_batches_and_the_same_results(
    translator: Translator, starts: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Open the file and save a copy.", "Quit", "Close the window."] * 4
    expected = translator.translate_batch(texts, **EN_DE)
    assert [size for size, _ in starts] == [12]
    starts.clear()
    each = translator.model.cache_bytes(1, 5, 12, 200)
    monkeypatch.setattr(batches, "_memory_limit", lambda: 4 * 5 * each)
    assert_same(translator.translate_batch(texts, **EN_DE), expected)
    assert len(starts) > 2
    starts.clear()
    # What a call asks for goes before what the machine has.
    assert_same(translator.translate_batch(texts, **EN_DE, max_batch_bytes=100 * each), expected)
    assert [size for size, _ in starts] == [12]


def test_padding_ends_at_a_multiple_of_four() -> None:
    sentences = [Sentence(n, [7] * length, [2, n]) for n, length in enumerate((9, 6, 5, 3))]
    batch = Batch.of(sentences, pad_id=1)
    assert batch.input_ids.shape == (4, 9)
    assert batch.attention_mask.sum(axis=1).tolist() == [9, 6, 5, 3]
    second = batch.part(1, 2, pad_id=1)
    assert second.prompt.tolist() == [[2, 1], [2, 3]]
    np.testing.assert_array_equal(second.input_ids[1], [7, 7, 7, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(second.attention_mask[1], [1, 1, 1, 0, 0, 0, 0, 0])


def test_model_and_twin_agree(demo_bundle: Path) -> None:
    for fused, kind in ((True, FusedState), (False, PortableState)):
        model = Model(Bundle.open(demo_bundle), fused=fused)
        assert model.cache_bytes(3, 15, 40, 200) == kind.cache_bytes(model.bundle, 3, 15, 40, 200)
