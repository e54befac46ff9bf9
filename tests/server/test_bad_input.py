"""Whatever is sent to whatever path: the API's own shape of an error, and never a failure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from m2m100_onnx.server.app import _ROUTES
from serving import FORM, Answer, Server

POSTS = sorted(route.path for route in _ROUTES if "POST" in (route.methods or ()))
SHAPES = {
    "/v1": {"error"},
    "/v2/translate": {"message", "detail"},
    "/v2/models": {"error"},
    "/translate": {"error"},
}
JSON = "application/json"
BODIES: list[tuple[bytes, str]] = [
    (b"", JSON),
    (b"{", JSON),
    (b"null", JSON),
    (b"[]", JSON),
    (b"7", JSON),
    (b'"text"', JSON),
    (b"\xff\xfe\x00", JSON),
    (b"\x00" * 100, JSON),
    (b"[" * 100_000, JSON),
    (b'{"a":' * 50_000, JSON),
    (b'{"q": NaN, "text": Infinity}', JSON),
    (b'{"q": 1' + b"0" * 5000 + b"}", JSON),
    (json.dumps({"q": {"a": 1}, "text": {"a": 1}, "source": {}, "target": []}).encode(), JSON),
    (b"\xff=\xff&q=%ff%00&source=%00&target=%", FORM),
    (b"&".join([b"q=a"] * 5000), FORM),
    (b"--x\r\nnonsense", "multipart/form-data; boundary=x"),
    (b"--x", "multipart/form-data"),
    (b"q=a", f"{FORM}; charset=nonsense"),
    (b"<xml/>", "application/xml"),
    (b"q", "\xe9\xff"),
]
LANGUAGES = {"source": "en", "target": "de", "source_lang": "en", "target_lang": "de"}
# In the place of a text, a language, an option.
VALUES: list[Any] = [None, True, -1, 10**30, 1.5, "", "\ud800", "\x00", "a\u202e", [], [[]], {}]


def path_of(route: str) -> str:
    return route.replace("{name}", "demo").replace("{version}", "1").replace("{rest:path}", "x")


def check(answer: Answer, path: str) -> None:
    assert answer.status < 500, (path, answer.body)
    assert b"Traceback" not in answer.body
    if answer.status >= 400 and answer.status not in (404, 405):
        shape = next((keys for start, keys in SHAPES.items() if path.startswith(start)), None)
        assert shape is None or set(answer.json) == shape


@pytest.mark.parametrize("route", POSTS)
def test_malformed_bodies(server: Server, route: str) -> None:
    path = path_of(route)
    for body, kind in BODIES:
        answer = server.post(path, body, kind)
        check(answer, path)
        # DeepL's lists need no body.
        if kind == JSON and not path.startswith(("/v2/usage", "/v2/languages")):
            assert answer.status >= 400, (body, answer.body)


@pytest.mark.parametrize("name", ["q", "source", "target", "format", "alternatives", "api_key"])
def test_values_of_libretranslate(server: Server, name: str) -> None:
    for value in VALUES:
        check(server.post("/translate", {"q": "a", **LANGUAGES, name: value}), "/translate")
        check(server.post("/detect", {"q": "a", name: value}), "/detect")


@pytest.mark.parametrize(
    "name", ["text", "source_lang", "target_lang", "tag_handling", "split_sentences", "auth_key"]
)
def test_values_of_deepl(server: Server, name: str) -> None:
    job = {"text": ["a"], "source_lang": "EN", "target_lang": "DE"}
    for value in VALUES:
        check(server.post("/v2/translate", {**job, name: value}), "/v2/translate")


def test_values_of_our_own(server: Server) -> None:
    document = server.get("/openapi.json").json
    for path, operations in document["paths"].items():
        if not path.startswith("/v1/") or "post" not in operations:
            continue
        content = operations["post"]["requestBody"]["content"]
        schema = content["application/json"]["schema"]
        job = {"text": "a", "source_lang": "en", "target_lang": "de", "target": "b"}
        good = {name: value for name, value in job.items() if name in schema["properties"]}
        assert server.post(path, good).status == 200
        for name in schema["properties"]:
            for value in VALUES:
                check(server.post(path, {**good, name: value}), path)
        for name in schema["required"]:
            answer = server.post(path, {key: good[key] for key in good if key != name})
            assert answer.status == 400, (path, name)


def test_lone_surrogates_are_answered(server: Server) -> None:
    job = {"q": '"\\ud800"', "source": "en", "target": "de"}
    body = '{"q": "\\ud800 a", "source": "en", "target": "\\ud800"}'
    answer = server.post("/translate", body, JSON)
    assert (answer.status, answer.json["error"]) == (400, "? is not supported")
    body = '{"text": "a \\ud800", "source_lang": "en", "target_lang": "de"}'
    answer = server.post("/v1/translations", body, JSON)
    assert (answer.status, answer.json["error"]["type"]) == (400, "InvalidInputError")
    check(server.post("/translate", {**job, "format": "html"}), "/translate")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "FOO"])
def test_methods_and_paths(server: Server, method: str) -> None:
    paths = {path_of(route.path) for route in _ROUTES}
    odd = ("/v1/x", "/v2/x", "/v2/models/x", "/%ff%00", "//", "/../etc/passwd", "/page.js/x", "/?%")
    for path in (*paths, *odd):
        check(server.ask(method, path), path)


def test_html_of_every_kind(server: Server) -> None:
    pages = ["<", "<a", "</", "<!", "<![x", "<!-- ", "&#x110000;"]
    pages += [part * 500 for part in ("<p", "&", "<b>")]
    for page in pages:
        job = {"q": page, "source": "en", "target": "de", "format": "html"}
        check(server.post("/translate", job), "/translate")
