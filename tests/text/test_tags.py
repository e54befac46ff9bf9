"""NLLB's languages by tags, other codes and names, as BCP 47 and CLDR have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from m2m100_onnx import Translator, UnknownLanguageError
from m2m100_onnx.bundle.families import FAMILIES
from m2m100_onnx.text.flores import MEANINGS, NAMES, SHOWN
from m2m100_onnx.text.languages import names_of, suggest
from m2m100_onnx.text.tags import resolve
from m2m100_onnx.text.tokenizer import Tokenizer
from m2m100_onnx_export import export
from nllb import make_checkpoint
from shell import Shell

CODES = FAMILIES["nllb"].languages


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("eng_Latn", "eng_Latn"),
        ("ENG-latn", "eng_Latn"),
        ("eng", "eng_Latn"),
        ("en", "eng_Latn"),
        ("EN", "eng_Latn"),
        ("en-US", "eng_Latn"),
        ("en_GB", "eng_Latn"),
        ("es-419", "spa_Latn"),
        ("pt-BR", "por_Latn"),
        ("English", "eng_Latn"),
        (" german ", "deu_Latn"),
        ("ger", "deu_Latn"),
        ("iw", "heb_Hebr"),
        ("fil", "tgl_Latn"),
        # One script is likely where none is named, and regions have scripts of their own.
        ("zh", "zho_Hans"),
        ("zh-CN", "zho_Hans"),
        ("zh-Hant", "zho_Hant"),
        ("zh-TW", "zho_Hant"),
        ("zh-hant-hk", "zho_Hant"),
        ("zh-yue", "yue_Hant"),
        ("Chinese", "zho_Hans"),
        ("Traditional Chinese", "zho_Hant"),
        ("Chinese (Simplified)", "zho_Hans"),
        ("sr", "srp_Cyrl"),
        ("sr-Cyrl", "srp_Cyrl"),
        ("sr-Cyrl-RS", "srp_Cyrl"),
        ("ks", "kas_Arab"),
        ("ks-Deva", "kas_Deva"),
        ("Acehnese (Arabic script)", "ace_Arab"),
        ("ko-Kore", "kor_Hang"),
        # Macrolanguages.
        ("ar", "arb_Arab"),
        ("ar-AE", "arb_Arab"),
        ("fa", "pes_Arab"),
        ("fa-AF", "prs_Arab"),
        ("no", "nob_Latn"),
        ("nn", "nno_Latn"),
        ("ms", "zsm_Latn"),
        ("ku", "kmr_Latn"),
        ("sq", "als_Latn"),
        ("yi", "ydd_Hebr"),
    ],
)
def test_what_has_one_meaning_resolves(name: str, code: str) -> None:
    assert resolve(name, CODES) == code


@pytest.mark.parametrize(
    ("name", "candidates"),
    [
        ("sr-Latn", ("srp_Cyrl",)),
        ("sr-ME", ("srp_Cyrl",)),
        ("ar-EG", ("arb_Arab", "arz_Arab", "ary_Arab")),
        ("sh", ("bos_Latn", "hrv_Latn", "srp_Cyrl")),
        ("Serbo-Croatian", ("bos_Latn", "hrv_Latn", "srp_Cyrl")),
        ("Levantine Arabic", ("ajp_Arab", "apc_Arab")),
        ("Sotho", ("nso_Latn", "sot_Latn")),
        ("ku-Arab", ("ckb_Arab", "kmr_Latn")),
        ("az-IR", ("azj_Latn", "azb_Arab")),
        ("zh-Latn", ("zho_Hans", "zho_Hant", "yue_Hant")),
        ("Englsh", ("eng_Latn",)),
        ("eng_Lat", ("eng_Latn",)),
        ("klingon", ()),
        ("ca-valencia", ()),
        ("", ()),
    ],
)
def test_what_is_not_certain_has_candidates(name: str, candidates: tuple[str, ...]) -> None:
    assert resolve(name, CODES) is None
    assert suggest(name, CODES) == candidates


def test_nothing_becomes_what_the_checkpoint_lacks() -> None:
    few = ("eng_Latn", "zho_Hans", "prs_Arab", "arz_Arab")
    assert resolve("en", few) == "eng_Latn"
    for name in ("zh-TW", "Traditional Chinese", "fa", "ar", "de"):
        assert resolve(name, few) is None
    assert suggest("zh-TW", few) == ("zho_Hans",)
    assert suggest("fa", few) == ("prs_Arab",)


def test_the_languages_of_extended_checkpoints() -> None:
    """The files name them, and a code says its own language and script."""
    more = (*CODES, "tyv_Cyrl", "chv_Cyrl", "gag_Latn", "gag_Cyrl")
    found = {name: resolve(name, more) for name in ("tyv", "tyv-Cyrl", "cv", "Chuvash", "gag_cyrl")}
    assert found == {
        "tyv": "tyv_Cyrl",
        "tyv-Cyrl": "tyv_Cyrl",
        "cv": "chv_Cyrl",
        "Chuvash": "chv_Cyrl",
        "gag_cyrl": "gag_Cyrl",
    }
    # CLDR is not asked about a language that the table lacks, so the caller says which script.
    assert resolve("gag", more) is None
    assert suggest("gag", more) == ("gag_Latn", "gag_Cyrl")


def test_every_code_resolves_from_its_parts_and_its_name() -> None:
    names = names_of(CODES)
    assert {*names} == {*CODES}
    assert len({*names.values()}) == len(CODES)
    assert names["zho_Hant"] == "Chinese (Traditional)"
    assert names["deu_Latn"] == "German"
    for code in CODES:
        assert resolve(code.lower().replace("_", "-"), CODES) == code
        assert resolve(names[code], CODES) == code


def test_the_table_has_no_row_twice_and_no_stray_code() -> None:
    assert {code.split("_")[0] for code in CODES} <= {*SHOWN}
    for meant in (*MEANINGS.values(), *NAMES.values()):
        assert {*meant} <= {*SHOWN}
    assert {*SHOWN}.isdisjoint(MEANINGS)
    assert {name for name, meant in MEANINGS.items() if len(meant) > 1} == {"sh", "hbs"}
    # Of a language with two scripts, both stand for one language.
    several = {name for name, meant in NAMES.items() if len(meant) > 1}
    assert several == {"serbo-croatian", "levantine arabic", "sotho"}


@pytest.fixture(scope="module")
def nllb_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nllb")
    codes = ("eng_Latn", "deu_Latn", "zho_Hans", "zho_Hant", "srp_Cyrl", "rus_Cyrl")
    checkpoint = make_checkpoint(folder / "checkpoint", codes=codes)
    export(
        checkpoint,
        folder / "bundle",
        languages=["en", "German", "zh", "zho_Hant", "sr"],
        verify_outputs=False,
    )
    return folder / "bundle"


def test_translations_take_every_name(nllb_bundle: Path) -> None:
    text = "Open the file."
    with Translator(nllb_bundle, intra_op_num_threads=1) as translator:
        assert translator.languages == ("eng_Latn", "deu_Latn", "zho_Hans", "zho_Hant", "srp_Cyrl")
        expected = translator.translate(text, source_lang="eng_Latn", target_lang="zho_Hant")
        for source, target in (("en", "zh-TW"), ("English", "Traditional Chinese")):
            assert translator.translate(text, source_lang=source, target_lang=target) == expected
        many = translator.translate_batch(
            [text, text], source_lang=["en-US", "de"], target_lang="zh-Hant"
        )
        assert many[0].text == expected
        assert translator.encode(text, "en") == translator.encode(text, "eng_Latn")
        with pytest.raises(UnknownLanguageError, match=r"'sr-Latn'; did you mean 'srp_Cyrl'\?"):
            translator.translate(text, source_lang="en", target_lang="sr-Latn")
        with pytest.raises(UnknownLanguageError, match=r"'rus_Cyrl' has a token, but .* not train"):
            translator.translate(text, source_lang="en", target_lang="Russian")
        with pytest.raises(UnknownLanguageError, match="unknown language 'None'"):
            translator.encode(text, None)  # type: ignore[arg-type]


def test_the_commands_take_every_name(nllb_bundle: Path, shell: Shell) -> None:
    model = ("--model", str(nllb_bundle))
    outputs = {
        shell("translate", *model, "-s", source, "-t", target, "Open the file.")[:2]
        for source, target in (("eng_Latn", "deu_Latn"), ("en", "de-AT"), ("english", "German"))
    }
    ((status, _),) = outputs
    assert status == 0
    listed = json.loads(shell("languages", *model, "--json")[1])
    assert listed[0] == {"code": "eng_Latn", "name": "English", "trained": True}
    assert listed[3]["name"] == "Chinese (Traditional)"
    status, _, errors = shell("translate", *model, "-s", "en", "-t", "sr-Latn", "Open it.")
    assert status == 2
    assert "did you mean 'srp_Cyrl'" in errors


def test_codes_without_a_script_stay_as_they_are(tokenizer: Tokenizer) -> None:
    """A name would lose a script or a region there."""
    for name in ("eng_Latn", "English", "en-US", "EN"):
        with pytest.raises(UnknownLanguageError, match="did you mean 'en'"):
            tokenizer.resolve_language(name)
    assert tokenizer.resolve_language("en") == "en"
    assert names_of(["en", "xx"]) == {"en": "English"}
