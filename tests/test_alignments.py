"""Alignments against PyTorch's attention, and against links that were made by hand."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import M2M100ForConditionalGeneration

from families import MEMBERS
from m2m100_onnx import (
    Alignment,
    AlignmentHeads,
    BundleError,
    InvalidInputError,
    LanguageModel,
    StoppedError,
    Translator,
)
from m2m100_onnx.bundle.graphs import CROSS_ATTENTION_FILE
from m2m100_onnx.search.alignment import mutual_pairs
from m2m100_onnx.text.words import words_of
from m2m100_onnx_export import export
from translations import EN_DE, GRAPHS, need_kernels

SOURCES = ["Open the file.", "The file could not be opened.", "Save a copy of the page, or quit."]
TARGETS = [
    "Öffnen Sie die Datei.",
    "Die Datei konnte nicht geöffnet werden.",
    "Speichern Sie eine Kopie der Seite, oder beenden Sie.",
]


@pytest.fixture(scope="module")
def eager(demo_checkpoint: Path) -> M2M100ForConditionalGeneration:
    """The demo checkpoint, with attention that tells its weights."""
    return M2M100ForConditionalGeneration.from_pretrained(
        demo_checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("heads", [(0,), (1, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("fed", [True, False])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_the_matrix_is_pytorchs_attention(
    translator: Translator,
    eager: M2M100ForConditionalGeneration,
    layer: int,
    heads: tuple[int, ...],
    fed: bool,
) -> None:
    chosen = AlignmentHeads(layer, heads, fed)
    found = translator.align(SOURCES, TARGETS, **EN_DE, heads=chosen)
    for source, target, alignment in zip(SOURCES, TARGETS, found, strict=True):
        ids, labels = translator.encode(source, "en"), translator.encode(target, "de")
        fed_ids = [2, *labels[:-1]]
        with torch.inference_mode():
            out = eager(
                input_ids=torch.tensor([ids]),
                decoder_input_ids=torch.tensor([fed_ids]),
                output_attentions=True,
            )
        weights = out.cross_attentions[layer][0, list(heads)].mean(0).numpy()
        # Rows of the words' pieces, or of the tokens before them; columns without the frame.
        rows = weights[2:] if fed else weights[1:-1]
        sides = [words_of(translator.tokenizer.tokenize(text)) for text in (source, target)]
        expected = [
            [float(rows[t.start : t.end, 1:-1][:, s.start : s.end].sum(1).mean()) for s in sides[0]]
            for t in sides[1]
        ]
        np.testing.assert_allclose(alignment.matrix, expected, atol=1e-4)
        assert alignment.target_words == tuple(word.text for word in sides[1])
        most = np.argmax(expected, axis=1), np.argmax(expected, axis=0)
        assert list(alignment.pairs) == [
            (source, target)
            for target, source in enumerate(most[0].tolist())
            if most[1][source] == target
        ]


@pytest.mark.parametrize("name", MEMBERS)
def test_every_family(name: str, tmp_path: Path) -> None:
    """Rows and columns are those of the words, whatever control tokens a family puts around."""
    member = MEMBERS[name]
    member.make(tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "b", family=member.family, verify_outputs=False)
    model = M2M100ForConditionalGeneration.from_pretrained(
        tmp_path / "checkpoint", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    rows, forced = member.frames(tmp_path / "checkpoint", member)
    translator, text = Translator(tmp_path / "b"), member.texts[0]
    pieces = translator.tokenizer.tokenize(text)
    ids = translator.tokenizer.pieces_to_ids(pieces)
    prompt = [translator.bundle.config.decoder_start_token_id]
    prompt += [] if forced is None else [forced]
    with torch.inference_mode():
        out = model(
            input_ids=torch.tensor(rows[:1]),
            decoder_input_ids=torch.tensor([[*prompt, *ids]]),
            output_attentions=True,
        )
    first = rows[0].index(ids[0])
    weights = out.cross_attentions[-1][0].mean(0).numpy()
    weights = weights[len(prompt) :, first : first + len(ids)]
    words = words_of(pieces)
    expected = [
        [weights[t.start : t.end, s.start : s.end].sum(1).mean() for s in words] for t in words
    ]
    heads = tuple(range(translator.bundle.config.decoder_attention_heads))
    languages = {"source_lang": member.source, "target_lang": member.target}
    found = translator.align(text, text, **languages, heads=AlignmentHeads(-1, heads))
    np.testing.assert_allclose(found.matrix, expected, atol=1e-4)


def test_a_pair_alone_as_in_a_batch(native_bundle: Path) -> None:
    """Equal to the last bit, where activations are rounded too."""
    translator = Translator(native_bundle)
    sources, targets = [*SOURCES, "Quit", ""], [*TARGETS, "Beenden", "Ja"]
    together = translator.align(sources, targets, **EN_DE)
    for source, target, found in zip(sources, targets, together, strict=True):
        assert translator.align(source, target, **EN_DE) == found
    assert translator.align(sources, targets, **EN_DE, max_batch_tokens=1) == together
    assert translator.align([], [], **EN_DE) == []


def test_the_chosen_head_aligns_the_words_that_people_link(
    translator: Translator, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import alignments

    gold = list(alignments.read_gold())
    assert len(gold) > 40
    found = [
        set(
            translator.align(
                line.source,
                line.target,
                source_lang=line.source_lang,
                target_lang=line.target_lang,
            ).pairs
        )
        for line in gold
    ]
    chosen = alignments.error_rate(found, gold)
    # The head was not chosen by these links, and no other is better.
    rates = []
    for layer in range(3):
        for fed in (True, False):
            heads = [alignments.matrices(translator, line, layer, shifted=fed) for line in gold]
            rates += [
                alignments.error_rate((set(mutual_pairs(each[head])) for each in heads), gold)
                for head in range(4)
            ]
    assert chosen == pytest.approx(min(rates))
    assert chosen < 10
    monkeypatch.delitem(sys.modules, "alignments")


@pytest.mark.parametrize("graphs", GRAPHS.values(), ids=GRAPHS)
def test_translations_have_alignments(
    demo_bundle: Path, native_bundle: Path, graphs: dict[str, bool]
) -> None:
    if graphs.get("kernels"):
        need_kernels()
    translator = Translator(native_bundle if graphs.get("kernels") else demo_bundle, **graphs)
    options: dict[str, Any] = {"beam_size": 3, "num_hypotheses": 3}
    plain = translator.translate_batch([*SOURCES, ""], **EN_DE, **options)
    opened = translator.model.sessions._sessions
    assert opened
    assert not any(CROSS_ATTENTION_FILE in key for key in opened)  # It costs nothing until asked.
    found = translator.translate_batch([*SOURCES, ""], **EN_DE, **options, alignments=True)
    assert [strip(translation) for translation in found] == plain
    for source, translation in zip(SOURCES, found, strict=False):
        (alone,) = translator.translate_batch([source], **EN_DE, **options, alignments=True)
        assert alone == translation
        for hypothesis in translation.hypotheses:
            assert hypothesis.alignment is not None
            expected = translator.align(source, hypothesis.text, **EN_DE)
            words = hypothesis.alignment.target_words
            if words == expected.target_words:
                np.testing.assert_allclose(hypothesis.alignment.matrix, expected.matrix, atol=1e-4)
            assert hypothesis.alignment.pairs
    samples = translator.translate_batch(
        SOURCES, **EN_DE, do_sample=True, seed=1, target_prefix="Bitte", alignments=True
    )
    for translation in samples:
        alignment = translation.hypotheses[0].alignment
        assert alignment is not None
        assert alignment.target_words[0] == "Bitte"


def strip(translation: Any) -> Any:
    """Returns a translation without its alignments."""
    hypotheses = tuple(replace(h, alignment=None) for h in translation.hypotheses)
    return replace(translation, hypotheses=hypotheses)


def test_unknown_tokens_become_source_words(translator: Translator) -> None:
    texts = ["The snowman \u2603 is here.", "Open the file."]
    plain = translator.translate_batch(texts, **EN_DE)
    unknown = translator.tokenizer.unk_id
    assert unknown in plain[0].tokens
    found = translator.translate_batch(texts, **EN_DE, replace_unknowns=True)
    assert "\u2603" in found[0].text
    assert found[0].text == found[0].hypotheses[0].text
    assert found[0].text.replace("\u2603", "").split() == plain[0].text.split()
    assert [t.tokens for t in found] == [t.tokens for t in plain]
    assert found[1] == plain[1]
    assert found[0].hypotheses[0].alignment is None
    streamed = translator.translate_iterable(texts, **EN_DE, replace_unknowns=True)
    assert list(streamed) == found


def test_words_and_pharaoh(translator: Translator) -> None:
    found = translator.align(SOURCES[1], TARGETS[1], **EN_DE)
    assert found.source_words == ("The", "file", "could", "not", "be", "opened", ".")
    assert str(found) == "0-0 1-1 2-2 3-3 5-4 4-5 6-6"
    assert all(0 <= sum(row) <= 1.0001 for row in found.matrix)
    empty = translator.align(["", "Quit"], ["Ja", ""], **EN_DE)
    assert empty == [Alignment((), ("Ja",), ((),), ()), Alignment(("Quit",), (), (), ())]


def test_wrong_arguments(translator: Translator, causal_xlm: tuple[Path, Path]) -> None:
    pair = SOURCES[0], TARGETS[0]
    wrong: tuple[tuple[Any, str], ...] = (
        (AlignmentHeads(3, (0,)), "expected a layer from -3 to 2, found 3"),
        (AlignmentHeads(0, ()), r"one or more from 0 to 3, found \(\)"),
        (AlignmentHeads(0, (4,)), r"one or more from 0 to 3, found \(4,\)"),
        (5, "heads: expected an AlignmentHeads, found int"),
    )
    for heads, message in wrong:
        with pytest.raises(InvalidInputError, match=message):
            translator.align(*pair, **EN_DE, heads=heads)
    with pytest.raises(InvalidInputError, match="expected one for each of 3 sources, found 2"):
        translator.align(SOURCES, TARGETS[:2], **EN_DE)
    with pytest.raises(StoppedError):
        translator.align(SOURCES, TARGETS, **EN_DE, timeout=0)
    with pytest.raises(TypeError, match="alignments: not an option"):
        translator.score(*pair, **EN_DE, alignments=True)
    for name in ("alignments", "replace_unknowns"):
        option: dict[str, Any] = {name: True}
        with pytest.raises(InvalidInputError, match=f"{name}: expected False for a stream"):
            translator.stream(SOURCES[0], **EN_DE, **option)
        with pytest.raises(InvalidInputError, match=f"{name}: expected a translation"):
            LanguageModel(causal_xlm[1]).generate("abc", language="en", **option)


def test_a_bundle_without_the_graph(demo_bundle: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(demo_bundle, old)
    (old / CROSS_ATTENTION_FILE).unlink()
    manifest = json.loads((old / "manifest.json").read_text())
    for part in ("graphs", "files"):
        del manifest[part][CROSS_ATTENTION_FILE]
    (old / "manifest.json").write_text(json.dumps(manifest))
    translator = Translator(old)
    assert translator.translate(SOURCES[0], **EN_DE) == TARGETS[0]
    with pytest.raises(BundleError, match=r"expected cross_attention\.onnx for alignments"):
        translator.align(SOURCES[0], TARGETS[0], **EN_DE)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["▁Die", "▁Da", "tei", "."], ["Die", "Datei", "."]),
        (["▁", "Ö", "ffnen", "▁(", "x", ")"], ["Öffnen", "(", "x", ")"]),
        (["▁文件", "打开", "。"], ["文件", "打开", "。"]),
        (["▁l", "'", "eau", "..."], ["l", "'", "eau", "..."]),
        ([], []),
        (["▁"], []),
    ],
)
def test_words(pieces: list[str], words: list[str]) -> None:
    found = words_of(pieces)
    assert [word.text for word in found] == words
    # No piece is in two words.
    places = [place for word in found for place in range(word.start, word.end)]
    assert places == sorted(set(places))
