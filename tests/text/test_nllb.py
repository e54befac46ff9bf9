"""NLLB's vocabulary has the ids of transformers' NllbTokenizer."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import sentencepiece
from transformers import NllbTokenizer

from m2m100_onnx.text.nllb import NllbVocabulary

TEXTS = ["Hello world", "", " ", "a  b", " a", "a ", "a\tb\n", "ﬁne", "😀x", "a\u200bb", "\u200b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nllb")
    model = io.BytesIO()
    lines = [f"Hello world number {n} is fine, a b x" for n in range(50)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=60
    )
    (path / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    return path


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_ids_equal_transformers(folder: Path, number: int) -> None:
    ours = NllbVocabulary((folder / "sentencepiece.bpe.model").read_bytes(), {})
    theirs = NllbTokenizer.from_pretrained(str(folder))
    text = TEXTS[number]
    assert ours.ids(ours.split(text), 3) == theirs(text, add_special_tokens=False)["input_ids"]
