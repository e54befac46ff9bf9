"""The model card of a bundle, as the hub's own reader of cards sees it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import M2M100ForConditionalGeneration, NllbTokenizer

import nllb
import xlm
from checkpoints import copied
from m2m100_onnx import Bundle, LanguageModel, Manifest, Translator
from m2m100_onnx.bundle.identity import identity_of
from m2m100_onnx.bundle.manifest import sha256_of
from m2m100_onnx_export import export
from m2m100_onnx_export.card import Card
from m2m100_onnx_export.licence import Licence
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
    ("head", "licence", "sentence"),
    [
        ("---\nlicense: MIT # free\nlanguage:\n- en\n---\n", "mit", "licence `mit`."),
        ('---\r\nlicense: "cc-by-nc-4.0"\r\n---\r\n', "cc-by-nc-4.0", "licence `cc-by-nc-4.0`."),
        ("---\nlicense:\n- mit\n- gpl-3.0\n---\n", ["mit", "gpl-3.0"], "`mit` and `gpl-3.0`."),
        ("license: mit\n", None, None),
        ("---\nlanguage: en\n---\nlicense: mit\n", None, None),
        ("---\nlicense: 3\n---\n", None, None),
        ("---\n- license\n---\n", None, None),
        ("---\nlicense: [mit\n---\n", None, None),
        ("---\nlicense: mit\n", None, None),
        (None, None, None),
    ],
)
def test_the_licence_is_that_of_the_source(
    tiny_checkpoint: Path,
    tmp_path: Path,
    head: str | None,
    licence: str | list[str] | None,
    sentence: str | None,
) -> None:
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    if head is not None:
        (folder / CARD).write_bytes(f"{head}# A model\n".encode())
    card = card_of(export(folder, tmp_path / "bundle", verify_outputs=False).bundle)
    assert card.data.license == (licence or "other")
    assert (sentence or "The checkpoint names no licence; ask its source.") in card.text
    assert (card.data.to_dict().get("license_name") == "unknown") == (licence is None)
    assert ("must not be used commercially" in card.text) == (licence == "cc-by-nc-4.0")


@pytest.mark.parametrize(
    ("given", "facts", "sentence"),
    [
        (
            Licence(("other",), "Some NC license 2", "https://some.example/terms"),
            {
                "license": "other",
                "license_name": "some-nc-license-2",
                "license_link": "https://some.example/terms",
            },
            "the licence `other`, `Some NC license 2` (`https://some.example/terms`).",
        ),
        # The file is not in the bundle.
        (
            Licence(("other",), "ours", "LICENSE"),
            {"license": "other", "license_name": "ours"},
            "the licence `other`, `ours` (`LICENSE` of the checkpoint).",
        ),
        # The hub would refuse the card.
        (
            Licence(("apache license 2.0",)),
            {"license": "other", "license_name": "apache-license-2.0"},
            "the licence `apache license 2.0`.",
        ),
    ],
    ids=["named", "file", "no identifier"],
)
def test_licences_of_ones_own(given: Licence, facts: dict[str, str], sentence: str) -> None:
    read = ModelCard(written(licences={"checkpoint": given}).text())
    found = read.data.to_dict()
    assert {k: v for k, v in found.items() if k.startswith("license")} == facts
    assert sentence in read.text
    assert ("must not be used commercially" in read.text) == ("NC" in (given.title or ""))


def test_an_adapter_has_a_licence_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "tuned"
    model: Any = M2M100ForConditionalGeneration.from_pretrained(tiny_checkpoint)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(adapter)
    (adapter / CARD).write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    folder = copied(tiny_checkpoint, tmp_path / "checkpoint")
    (folder / CARD).write_text("---\nlicense: mit\n---\n")
    made = export(folder, tmp_path / "bundle", adapter=adapter, verify_outputs=False).bundle
    card = card_of(made)
    assert card.data.license == ["mit", "cc-by-nc-4.0"]
    assert "`checkpoint` with the adapter `tuned` merged in" in card.text
    assert "The adapter names the licence `cc-by-nc-4.0`" in card.text
    assert "must not be used commercially" in card.text
    assert Manifest.read(made).adapter == "tuned"


def test_nllb_is_not_commercial(tmp_path: Path) -> None:
    checkpoint = nllb.make_checkpoint(tmp_path / "checkpoint")
    card = card_of(export(checkpoint, tmp_path / "bundle", verify_outputs=False).bundle)
    assert "CC-BY-NC 4.0, which allows **no commercial use**" in card.text
    assert card.data.license == "other"
    # The hub takes no capitals here, and refuses the whole card.
    assert {"eng", "zho"} <= set(card.data.language)
    assert all(re.fullmatch("[a-z]{2,3}", code) for code in card.data.language)
    assert "eng_Latn" in card.data.to_dict()["language_details"].split(", ")
    assert "m2m100-onnx[cpu,hub]'" in card.text


def test_what_reads_tokenizer_json_alone(tmp_path: Path) -> None:
    checkpoint = nllb.make_checkpoint(tmp_path / "checkpoint")
    NllbTokenizer.from_pretrained(checkpoint).save_pretrained(checkpoint)
    (checkpoint / "sentencepiece.bpe.model").unlink()
    card = card_of(export(checkpoint, tmp_path / "bundle", verify_outputs=False).bundle)
    assert "m2m100-onnx[cpu,hub,nllb]'" in card.text


def test_language_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = export(DEMO / "xlm", tmp_path / "bundle", verify_outputs=False).bundle
    card = card_of(bundle)
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.language == ["de", "en"]
    assert "CC-BY-NC" in card.text
    expected = LanguageModel(bundle).score("Text", language="en")
    assert run_python(card, bundle, capsys) == f"{expected}\n"


@pytest.mark.parametrize(
    ("head", "task"), [(True, "fill-mask"), (False, "feature-extraction")], ids=["mask", "bare"]
)
def test_language_models_that_are_not_causal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], head: bool, task: str
) -> None:
    checkpoint = xlm.make_checkpoint(tmp_path / "checkpoint", head=head, causal=False)
    bundle = export(checkpoint, tmp_path / "bundle", verify_outputs=False).bundle
    card = card_of(bundle)
    assert card.data.pipeline_tag == task
    assert run_python(card, bundle, capsys)


def test_the_owner_may_edit_it(demo_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    before = identity_of(Bundle.open(folder))
    for change in (lambda: (folder / CARD).write_text("mine"), (folder / CARD).unlink):
        change()
        bundle = Bundle.open(folder)
        bundle.verify()
        assert identity_of(bundle) == before


def written(**facts: Any) -> Card:
    some: dict[str, Any] = {
        "task": "translation",
        "precision": "int8",
        "source": "acme/tiny",
        "revision": "0" * 40,
        "family": "m2m100",
        "languages": ["no", "yes"],
        "versions": {"torch": "1"},
        "files": {},
        "licences": {"checkpoint": Licence()},
    }
    return Card(**{**some, **facts})


def test_names_do_not_break_it() -> None:
    name = "a|b`c``\n---\nlicense: mit"
    read = ModelCard(written(source=name).text())
    assert read.data.license == "other"
    assert read.data.base_model == name
    assert read.data.language == ["no", "yes"]
    assert "# ``` a\\|b`c`` --- license: mit ```" in read.text


@pytest.mark.parametrize(
    ("facts", "relation"),
    [({}, "quantized"), ({"precision": "fp32"}, None), ({"adapter": "tuned"}, None)],
    ids=["int8", "fp32", "adapter"],
)
def test_the_relation_to_its_source(facts: dict[str, Any], relation: str | None) -> None:
    found = ModelCard(written(**facts).text()).data.to_dict()
    assert found["base_model"] == "acme/tiny"
    assert found.get("base_model_relation") == relation


def test_it_is_the_same_each_time(tiny_checkpoint: Path, tmp_path: Path) -> None:
    texts = {
        (export(tiny_checkpoint, tmp_path / name, verify_outputs=False).bundle / CARD).read_text()
        for name in "ab"
    }
    assert len(texts) == 1
