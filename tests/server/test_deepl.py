"""DeepL's API, with DeepL's own client."""

from __future__ import annotations

from collections.abc import Iterator

import deepl
import pytest

from m2m100_onnx import Translator
from serving import FORM, Server

TEXT = "Open the file."


@pytest.fixture(scope="module")
def german(translator: Translator) -> str:
    return translator.translate(TEXT, source_lang="en", target_lang="de")


@pytest.fixture
def client(server: Server) -> Iterator[deepl.Translator]:
    found = deepl.Translator("key", server_url=server.url, send_platform_info=False)
    yield found
    found.close()


def test_the_client_translates(client: deepl.Translator, german: str) -> None:
    one = client.translate_text(TEXT, source_lang="EN", target_lang="DE")
    assert isinstance(one, deepl.TextResult)
    assert (one.text, one.detected_source_lang, one.billed_characters) == (german, "EN", len(TEXT))
    several = client.translate_text([TEXT, "", TEXT], source_lang="EN", target_lang="DE")
    assert [each.text for each in several] == [german, "", german]


def test_the_language_is_detected(client: deepl.Translator) -> None:
    found = client.translate_text("Die Datei wurde nicht gefunden.", target_lang="EN-US")
    assert found.detected_source_lang == "DE"
    assert found.text


def test_html(client: deepl.Translator, german: str) -> None:
    page = f"<p id='a'>{TEXT}</p>"
    found = client.translate_text(page, source_lang="EN", target_lang="DE", tag_handling="html")
    assert found.text == page.replace(TEXT, german)


def test_sentences(client: deepl.Translator, german: str) -> None:
    two = f"{TEXT} {TEXT}"
    found = client.translate_text(two, source_lang="EN", target_lang="DE")
    assert found.text == f"{german} {german}"
    options = {"source_lang": "EN", "target_lang": "DE"}
    whole = client.translate_text(two, split_sentences="0", **options)
    assert whole.text != ""


def test_languages_and_usage(client: deepl.Translator) -> None:
    sources = [language.code for language in client.get_source_languages()]
    assert sources == ["EN", "DE", "FR", "ES", "RU", "ZH"]
    targets = [language.code for language in client.get_target_languages()]
    assert targets == ["EN-GB", "EN-US", "DE", "FR", "ES", "RU", "ZH", "ZH-HANS"]
    # Each of them is understood.
    for code in targets:
        assert client.translate_text(TEXT, source_lang="DE", target_lang=code).text
    before = client.get_usage().character.count
    client.translate_text(TEXT, source_lang="EN", target_lang="DE")
    usage = client.get_usage()
    assert usage.character.count == before + len(TEXT)
    assert not usage.any_limit_reached


def test_what_is_not_there_is_refused(client: deepl.Translator) -> None:
    for code in ("ZH-HANT", "JA"):
        with pytest.raises(deepl.DeepLException, match=f"{code} is not supported"):
            client.translate_text(TEXT, source_lang="EN", target_lang=code)
    with pytest.raises(deepl.DeepLException, match="glossaries are not supported"):
        client.create_glossary("a", "EN", "DE", {"file": "Akte"})
    with pytest.raises(deepl.DeepLException, match="glossary_id is not supported"):
        client.translate_text(TEXT, source_lang="EN", target_lang="DE", glossary="abc")
    with pytest.raises(deepl.DeepLException, match="documents are not supported"):
        client.translate_document_upload(b"x", target_lang="DE", filename="x.txt")
    with pytest.raises(deepl.DeepLException, match="tag_handling"):
        client.translate_text(TEXT, source_lang="EN", target_lang="DE", tag_handling="xml")


def test_what_has_no_effect_is_named(server: Server, german: str) -> None:
    job = {"text": [TEXT], "source_lang": "EN", "target_lang": "DE", "formality": "more"}
    answer = server.post("/v2/translate", {**job, "context": "x", "é\r\n": 1})
    assert answer.json["translations"][0]["text"] == german
    assert answer.headers["x-ignored-parameters"] == "context, formality"


def test_forms(server: Server, german: str) -> None:
    answer = server.post("/v2/translate", "text=Open+the+file.&text=&target_lang=DE", FORM)
    assert [row["text"] for row in answer.json["translations"]] == [german, ""]


def test_errors(server: Server) -> None:
    for job in ({}, {"text": [TEXT]}, {"text": [1], "target_lang": "DE"}, {"target_lang": "DE"}):
        answer = server.post("/v2/translate", job)
        assert answer.status == 400
        assert set(answer.json) == {"message", "detail"}
    answer = server.post("/v2/translate", {"text": ["a"] * 51, "target_lang": "DE"})
    assert answer.status == 413
    assert server.ask("PUT", "/v2/translate").status == 405
