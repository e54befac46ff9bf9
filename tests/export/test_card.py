"""The model card of a bundle, as the hub's reader of cards and who runs its examples see it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import nllb
from hub_server import connect, contents, serving
from m2m100_onnx import Bundle, LanguageModel, Manifest, Translator, __version__
from m2m100_onnx.bundle.identity import identity_of
from m2m100_onnx.bundle.manifest import MANIFEST_FILE, sha256_of
from m2m100_onnx_export import export
from m2m100_onnx_export.card import translation_use, write_card
from m2m100_onnx_export.hub import CARD_FILE

NO_SALE = "It allows no commercial use"


def card_of(folder: Path) -> ModelCard:
    return ModelCard.load(folder / CARD_FILE)


def exported(checkpoint: Path | str, folder: Path, **options: Any) -> ModelCard:
    return card_of(export(checkpoint, folder, verify_outputs=False, **options).bundle)


def blocks(card: ModelCard, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", card.content, re.DOTALL)


def run(card: ModelCard, folder: Path) -> tuple[str, str]:
    """Runs the card's command and its Python, as written, in the bundle's folder."""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths}
    ours = re.findall(r"^m2m100 (.*)$", blocks(card, "bash")[0], re.MULTILINE)[0]
    (python,) = blocks(card, "python")
    outputs = []
    for argv in (["-m", "m2m100_onnx", *shlex.split(ours)], ["-c", python]):
        done = subprocess.run(
            [sys.executable, *argv], cwd=folder, env=environment, capture_output=True, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode()
        outputs.append(done.stdout.decode())
    return outputs[0], outputs[1]


def test_what_it_says(demo_bundle: Path) -> None:
    card = card_of(demo_bundle)
    facts = card.data.to_dict()
    assert facts["library_name"] == "m2m100-onnx"
    assert facts["pipeline_tag"] == "translation"
    assert facts["language"] == list(Translator(demo_bundle, lazy=True).languages)
    assert {"onnx", "m2m100", "fp32"} <= set(facts["tags"])
    # The name of a local folder is none of the hub's.
    assert "base_model" not in facts
    assert "`model`" in card.text
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")]
    assert all(v in card.text for v in [f"m2m100-onnx {__version__}", *versions])
    translator = Translator(demo_bundle)
    expected = translator.translate("Open the file.", source_lang="en", target_lang="fr")
    assert run(card, demo_bundle) == (f"{expected}\n", f"{expected}\n")


def test_the_checksums(demo_bundle: Path, bundle: Path) -> None:
    lines = re.findall(r"^([0-9a-f]{64})  (.+)$", card_of(demo_bundle).content, re.MULTILINE)
    found = {name: digest for digest, name in lines}
    names = {path.name for path in demo_bundle.iterdir()} - {CARD_FILE}
    assert found == {name: sha256_of(demo_bundle / name) for name in names}
    command = blocks(card_of(bundle), "bash")[1]
    check = ["bash", "-o", "pipefail", "-c", command]
    assert subprocess.run(check, cwd=bundle, capture_output=True).returncode == 0
    (bundle / "config.json").write_text("{}")
    done = subprocess.run(check, cwd=bundle, capture_output=True)
    assert done.returncode != 0
    assert b"config.json: FAILED" in done.stdout


def test_language_models(
    causal_xlm: tuple[Path, Path], masked_xlm: tuple[Path, Path], make_xlm: Callable[..., Any]
) -> None:
    bundle = causal_xlm[1]
    card = card_of(bundle)
    model = LanguageModel(bundle)
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.license == "cc-by-nc-4.0"
    assert NO_SALE in card.text
    assert card.data.language == list(model.languages)
    _, printed = run(card, bundle)
    language = re.findall(r'language="(\w+)"', card.content)[0]
    assert printed == f"{model.score('Open the file.', language=language)}\n"
    assert card_of(masked_xlm[1]).data.pipeline_tag == "fill-mask"
    headless = make_xlm(head=False)[1]
    card = card_of(headless)
    assert card.data.pipeline_tag == "feature-extraction"
    run(card, headless)


# --- Where it comes from -------------------------------------------------------------------------


def test_a_checkpoint_of_the_hub(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as hub:
        head = b"---\nlicense: apache-2.0\n---\n# Model\n"
        hub.add("acme/tiny", contents(tiny_checkpoint) | {CARD_FILE: head})
        connect(hub.url, tmp_path / "hub", monkeypatch)
        card = exported("acme/tiny", tmp_path / "int8", precision="int8")
        facts = card.data.to_dict()
        assert (facts["license"], facts["base_model"]) == ("apache-2.0", "acme/tiny")
        # Without it, the hub takes a model that has a base for a fine-tuned one.
        assert facts["base_model_relation"] == "quantized"
        assert f"`{hub.repositories['acme/tiny'].names['main']}`" in card.text


@pytest.mark.parametrize(
    ("head", "licence", "shown"),
    [
        ("---\nlicense: mit\nlanguage:\n- en\n---\n", "mit", "states `mit`"),
        ('---\r\nlicense: "cc-by-nc-4.0"\r\n---\r\n', "cc-by-nc-4.0", NO_SALE),
        ("---\nlicense:\n- mit\n- cc-by-nc-sa-3.0\n---\n", ["mit", "cc-by-nc-sa-3.0"], NO_SALE),
        ("---\nlicense: Bespoke, not known\n---\n", "Bespoke, not known", "Bespoke"),
        ("license: mit\n", "unknown", "the source states none"),
        ("---\nlanguage: en\n---\nlicense: mit\n", "unknown", "the source states none"),
        ("---\nlicense: unknown\n---\n", "unknown", "the source states none"),
        ("---\nlicense: {a: [}\n---\n", "unknown", "the source states none"),
        ("---\n- license\n---\n", "unknown", "the source states none"),
        ("---\nlicense: 5\n---\n", "unknown", "the source states none"),
        ("\0\ufffe", "unknown", "the source states none"),
        (None, "unknown", "the source states none"),
    ],
    ids=lambda value: str(value)[:24].encode("unicode_escape").decode(),
)
def test_the_licence_is_that_of_the_source(
    tiny_bundle: Path, tmp_path: Path, head: str | None, licence: Any, shown: str
) -> None:
    if head is not None:
        (tmp_path / CARD_FILE).write_text(f"{head}# A model\n", newline="")
    card = written(tiny_bundle, tmp_path)
    assert card.data.license == licence
    assert shown in card.text
    concerned = "nc-" in str(licence)
    assert (NO_SALE in card.text) == concerned


def written(bundle: Path, folder: Path, **changes: Any) -> ModelCard:
    """Writes the card of a bundle whose checkpoint lies in `folder`, with other facts."""
    manifest = replace(Manifest.read(bundle), **changes)
    work = Path(shutil.copytree(bundle, folder / "work"))
    languages = manifest.languages or Translator(bundle, lazy=True).languages
    write_card(work, manifest, translation_use(languages), folder)
    return card_of(work)


def test_a_licence_that_the_hub_has_no_name_for(tiny_bundle: Path, tmp_path: Path) -> None:
    head = "---\nlicense: other\nlicense_name: acme-1\nlicense_link: {}\n---\n"
    for link in ("LICENSE", "https://example.org/terms"):
        folder = tmp_path / link.rpartition("/")[2]
        folder.mkdir()
        (folder / CARD_FILE).write_text(head.format(link))
        facts = written(tiny_bundle, folder).data.to_dict()
        assert (facts["license"], facts["license_name"]) == ("other", "acme-1")
        # A link inside another repository leads nowhere.
        assert facts.get("license_link") == (link if "/" in link else None)


def test_nllb_is_not_commercial_whatever_its_source_says(tmp_path: Path) -> None:
    checkpoint = nllb.make_checkpoint(tmp_path / "checkpoint")
    card = exported(checkpoint, tmp_path / "bundle")
    assert card.data.license == "cc-by-nc-4.0"
    assert "NLLB-200 was published under `cc-by-nc-4.0`" in card.text
    assert NO_SALE in card.text
    # The hub knows codes of ISO 639.
    assert "eng" in card.data.language
    assert "eng_Latn" in card.data.to_dict()["language_details"].split()
    run(card, tmp_path / "bundle")
    (checkpoint / CARD_FILE).write_text("---\nlicense: mit\n---\n")
    card = exported(checkpoint, tmp_path / "again")
    assert card.data.license == "mit"
    assert "NLLB-200 was published under `cc-by-nc-4.0`" in card.text
    assert NO_SALE in card.text


# --- What it must not do -------------------------------------------------------------------------


def test_the_owner_may_edit_it(bundle: Path) -> None:
    before = identity_of(Bundle.open(bundle))
    assert CARD_FILE not in Manifest.read(bundle).files
    for change in (lambda: (bundle / CARD_FILE).write_text("mine"), (bundle / CARD_FILE).unlink):
        change()
        opened = Bundle.open(bundle)
        opened.verify()
        assert identity_of(opened) == before


@pytest.mark.parametrize(
    "name",
    [
        'no: "yes" # \\ \'',
        "a|b`c``",
        "`",
        "x\n---\nlicense: mit",
        "emoji \U0001f600 \u2028\x85\x7f\ufeff",
        "{}[]!&*%@",
    ],
    ids=["yaml", "markdown", "tick", "lines", "unicode", "marks"],
)
def test_names_do_not_break_it(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    languages = ("no", "on", "yes")
    changes = {"source": name, "revision": "0" * 40, "adapter": name, "languages": languages}
    card = written(tiny_bundle, tmp_path, **changes)
    facts = card.data.to_dict()
    assert facts["license"] == "unknown"
    assert facts["language"] == list(languages)
    shown = "".join(" " if c.isspace() else c if c.isprintable() else "\ufffd" for c in name)
    assert facts["base_model"] == " ".join(shown.split())
    # CommonMark: as many ticks as open a span of code close it, and no fewer.
    for line in card.text.splitlines():
        if line.startswith(("# ", "- Source", "The adapter")):
            (ticks, inside, rest) = re.findall(r"(?<!`)(`+)(?!`)(.*?)(?<!`)\1(?!`)(.*)", line)[0]
            assert inside.strip() == " ".join(shown.split()).rpartition("/")[2]
            assert "`" not in rest
            assert ticks
    assert MANIFEST_FILE in card.text


def test_it_is_the_same_each_time(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in "ab":
        exported(tiny_checkpoint, tmp_path / name)
    first, second = ((tmp_path / name / CARD_FILE).read_bytes() for name in "ab")
    assert first == second
