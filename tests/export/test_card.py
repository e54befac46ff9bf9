"""The model card of a bundle, as the hub's own reader of cards sees it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import nllb
from checkpoints import copied
from m2m100_onnx import Bundle, LanguageModel, Manifest, Translator
from m2m100_onnx.bundle.identity import identity_of
from m2m100_onnx.bundle.manifest import sha256_of
from m2m100_onnx_export import export
from m2m100_onnx_export.card import Card
from tokenization import DEMO

CARD = "README.md"


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / CARD)


def run_python(card: ModelCard, folder: Path, capture: pytest.CaptureFixture[str]) -> str:
    """Runs the card's example with the bundle's folder."""
    (code,) = re.findall(r"```python\n(.*?)```", card.content, re.DOTALL)
    exec(code.replace("FOLDER_OR_ID", str(folder)), {})
    return capture.readouterr().out


def test_what_it_says(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = card_of(demo_bundle)
    facts = card.data.to_dict()
    assert facts["library_name"] == "m2m100-onnx"
    assert facts["pipeline_tag"] == "translation"
    assert facts["language"] == list(Translator(demo_bundle, lazy=True).languages)
    assert "base_model" not in facts  # the name of a folder is none of the hub's
    assert "asks" not in card.text
    for name, record in Manifest.read(demo_bundle).files.items():
        assert f"| `{name}` | {record.size:,} | `{record.sha256}` |" in card.text
        assert sha256_of(demo_bundle / name) == record.sha256
    translator = Translator(demo_bundle)
    expected = translator.translate("Text", source_lang="en", target_lang=facts["language"][1])
    source = re.search(r'source_lang="(\w+)", target_lang="(\w+)"', card.content)
    assert source is not None
    expected = translator.translate("Text", source_lang=source[1], target_lang=source[2])
    assert run_python(card, demo_bundle, capsys) == f"{expected}\n"


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ("---\nlicense: MIT\nlanguage:\n- en\n---\n", "mit"),
        ('---\r\nlicense: "cc-by-nc-4.0"\r\n---\r\n', "cc-by-nc-4.0"),
        ("license: mit\n", None),
        ("---\nlanguage: en\n---\nlicense: mit\n", None),
        (None, None),
    ],
)
def test_the_licence_is_that_of_the_source(
    tiny_checkpoint: Path, tmp_path: Path, head: str | None, licence: str | None
) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    if head is not None:
        (folder / CARD).write_bytes(f"{head}# A model\n".encode())
    card = card_of(export(folder, tmp_path / "bundle", verify_outputs=False).bundle)
    assert card.data.license == (licence or "other")
    if licence is None:
        assert card.data.to_dict()["license_name"] == "unknown"
        assert "names no licence; ask its source" in card.text
    assert ("must not be used commercially" in card.text) == (licence == "cc-by-nc-4.0")


def test_nllb_is_not_commercial(tmp_path: Path) -> None:
    checkpoint = nllb.make_checkpoint(tmp_path / "checkpoint")
    card = card_of(export(checkpoint, tmp_path / "bundle", verify_outputs=False).bundle)
    assert "CC-BY-NC 4.0, which allows **no commercial use**" in card.text
    assert card.data.license == "other"
    assert "eng_Latn" in card.data.language


def test_language_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = export(DEMO / "xlm", tmp_path / "bundle", verify_outputs=False).bundle
    card = card_of(bundle)
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.language == ["de", "en"]
    assert "CC-BY-NC" in card.text
    expected = LanguageModel(bundle).score("Text", language="en")
    assert run_python(card, bundle, capsys) == f"{expected}\n"


def test_the_owner_may_edit_it(demo_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    before = identity_of(Bundle.open(folder))
    for change in (lambda: (folder / CARD).write_text("mine"), (folder / CARD).unlink):
        change()
        bundle = Bundle.open(folder)
        bundle.verify()
        assert identity_of(bundle) == before


def test_names_do_not_break_it() -> None:
    name = "a|b`c``\n---\nlicense: mit"
    card = Card(
        kind="translation",
        precision="int8",
        source=name,
        revision="0" * 40,
        licence=None,
        family="m2m100",
        languages=["no", "yes"],
        versions={"torch": "1"},
        files={},
    )
    read = ModelCard(card.text())
    assert read.data.license == "other"
    assert read.data.base_model == name
    assert read.data.language == ["no", "yes"]
    assert "# ``` a\\|b`c`` --- license: mit ```" in read.text


def test_it_is_the_same_each_time(tiny_checkpoint: Path, tmp_path: Path) -> None:
    texts = {
        (export(tiny_checkpoint, tmp_path / name, verify_outputs=False).bundle / CARD).read_text()
        for name in "ab"
    }
    assert len(texts) == 1
