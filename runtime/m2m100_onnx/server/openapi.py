"""The OpenAPI 3.1 document of all APIs; that of the options is made from the library's table.

Knows the names and types of parameters and answers. A test holds it equal to the routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from m2m100_onnx import __version__
from m2m100_onnx.option import Option
from m2m100_onnx.options import OPTIONS
from m2m100_onnx.server.documents import FORMATS
from m2m100_onnx.server.settings import Limits

__all__ = ["CALL_OPTIONS", "document"]

# How a batch is cut is the server's own affair, and `timeout` is not the library's alone.
CALL_OPTIONS: Final = tuple(
    name for name in OPTIONS if name not in ("max_batch_tokens", "max_batch_bytes", "timeout")
)
"""The options of the library that a client may set."""

_STRING: Final = {"type": "string"}
_STRINGS: Final = {"type": "array", "items": _STRING}
_IDS: Final = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_NUMBER: Final = {"type": "number"}
_TERMS: Final = {
    "type": "object",
    "additionalProperties": {"oneOf": [_STRING, {**_STRINGS, "minItems": 1}]},
}
_KEY: Final = {"type": ["string", "null"]}
_ENTROPY: Final = "Whether scores have `token_entropies`, which take all logits."
_ERROR: Final = {"$ref": "#/components/schemas/Error"}


def option_schema(option: Option) -> dict[str, Any]:
    """Returns the JSON schema of an option of the table."""
    kind = option.type.removesuffix(" | None")
    schemas: dict[str, dict[str, Any]] = {
        "int": {"type": "integer"},
        "float": {"type": "number"},
        "bool": {"type": "boolean"},
        "bool | Literal['never']": {"enum": [True, False, "never"]},
        "tuple[int, ...]": dict(_IDS),
        "tuple[str | tuple[int, ...], ...]": _array(
            {"oneOf": [{**_STRING, "minLength": 1}, {**_IDS, "minItems": 1}]}
        ),
    }
    found = schemas[kind]
    if option.low is not None:
        found |= {"minimum": option.low, "maximum": option.high}
    if kind != option.type:
        found["type"] = [found["type"], "null"]
    return {**found, "description": option.help}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object", "properties": properties}
    return found | ({"required": list(required)} if required else {})


def _closed(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    """An object that has no other names."""
    return {**_object(required, **properties), "additionalProperties": False}


def _array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _answer(schema: Any, about: str = "The answer.") -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": schema}}}


def _operation(
    summary: str,
    body: Any = None,
    answer: Any = None,
    *,
    error: Any = _ERROR,
    bodies: tuple[str, ...] = ("application/json",),
    statuses: tuple[int, ...] = (400, 401, 403, 408, 413, 415, 429, 500, 503, 504),
    name: str,
    parameters: Sequence[Any] = (),
) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": summary, "operationId": name}
    if parameters:
        found["parameters"] = [*parameters]
    if body is not None:
        content = {kind: {"schema": body} for kind in bodies}
        found["requestBody"] = {"required": True, "content": content}
    found["responses"] = {"200": _answer(answer if answer is not None else {})}
    for status in statuses:
        found["responses"][str(status)] = _answer(error, "An error.")
    return found


def _language(codes: Sequence[str], about: str, *more: str) -> dict[str, Any]:
    """A language: a code that is listed, or another way to write one."""
    listed = {"type": "string", "enum": [*more, *codes]}
    return {"anyOf": [listed, {**_STRING, "minLength": 1}], "description": about}


def _translation_request(limits: Limits, codes: Sequence[str]) -> dict[str, Any]:
    text = {
        "oneOf": [_STRING, {**_STRINGS, "minItems": 1, "maxItems": limits.texts}],
        "description": "A text, best a sentence, or several.",
    }
    about = "Name of a bundle; without it, the first that has the languages."
    options = {name: option_schema(OPTIONS[name]) for name in CALL_OPTIONS}
    for name in ("beam_size", "num_hypotheses"):
        options[name]["maximum"] = limits.beams
    more = {
        name: {
            "type": ["integer", "null"],
            "minimum": low,
            "description": f"As {like} without the "
            "start token, which is transformers' way to count.",
        }
        for name, like, low in (
            ("max_new_tokens", "max_length", 1),
            ("min_new_tokens", "min_length", 0),
        )
    }
    return {
        "text": text,
        "source_lang": _language(codes, "Language of the texts."),
        "target_lang": _language(codes, "Language to translate into."),
        "model": {"type": ["string", "null"], "description": about},
        "target_prefix": {
            "description": "What every translation begins with, or one for each text.",
            "oneOf": [
                {"type": "null"},
                _STRING,
                _array({"oneOf": [_STRING, _IDS, {"type": "null"}]}),
            ],
        },
        "terms": {
            "description": "Terms with their targets, for all texts or for each.",
            "oneOf": [{"type": "null"}, _TERMS, _array({"oneOf": [_TERMS, {"type": "null"}]})],
        },
        "timeout": option_schema(OPTIONS["timeout"]),
        **options,
        **more,
    }


def _own_paths(limits: Limits, codes: Sequence[str]) -> dict[str, Any]:
    request = _translation_request(limits, codes)
    needed = ("text", "source_lang", "target_lang")
    about = 'Answer with server-sent events: `data: {"text": piece}`, then `event: done`.'
    stream = {"type": "boolean", "default": False, "description": about}
    about = "Cut texts into sentences; the answer has no scores then."
    split = {"type": "boolean", "default": False, "description": about}
    refs = {
        n: {"$ref": f"#/components/schemas/{n}"} for n in ("Translation", "Alternative", "Score")
    }
    model = {"model": _STRING}
    one = {**request, "text": _STRING}
    detection = _object(("language", "confidence"), language=_STRING, confidence=_NUMBER)
    paths = {
        "/v1/translations": _operation(
            "Translates texts.",
            _closed(needed, **request, stream=stream, split=split),
            _object(("model", "translations"), **model, translations=_array(refs["Translation"])),
            name="translate",
        ),
        "/v1/alternatives": _operation(
            "Says how a translation may go on after a prefix.",
            _closed(
                needed,
                **{name: value for name, value in one.items() if name != "target_prefix"},
                prefix={"type": ["string", "null"]},
                count={"type": "integer", "minimum": 1, "maximum": limits.beams, "default": 5},
            ),
            _object(("model", "alternatives"), **model, alternatives=_array(refs["Alternative"])),
            name="alternatives",
        ),
        "/v1/scores": _operation(
            "Says how likely the model holds translations that are given.",
            _closed(
                (*needed, "target"),
                **{n: request[n] for n in (*needed, "model", "timeout", "truncate")},
                target=request["text"],
                entropy={"type": "boolean", "default": False, "description": _ENTROPY},
            ),
            _object(("model", "scores"), **model, scores=_array(refs["Score"])),
            name="scores",
        ),
        "/v1/embeddings": _operation(
            "Returns a vector for each text, the mean of the encoder's states.",
            _closed(
                ("text", "source_lang"),
                **{n: request[n] for n in ("text", "source_lang", "model", "timeout", "truncate")},
                target_lang={"anyOf": [request["target_lang"], {"type": "null"}]},
            ),
            _object(
                ("model", "embeddings"),
                **model,
                embeddings=_array({"type": "array", "items": _NUMBER}),
            ),
            name="embeddings",
        ),
        "/v1/detections": _operation(
            "Detects the language of a text.",
            _closed(("text",), text=_STRING),
            _object(("detections",), detections=_array(detection)),
            name="detections",
        ),
    }
    found = {path: {"post": operation} for path, operation in paths.items()}
    language = _object(("code", "name"), code=_STRING, name=_STRING)
    answer = _object(("languages",), languages=_array(language))
    for path, about, shown in (
        ("/v1/languages", "Lists the languages.", answer),
        ("/v1/models", "Lists the bundles, and the limits.", _object(("models",))),
        ("/health/live", "Says that the process runs.", _object(("status",), status=_STRING)),
        ("/health/ready", "Says whether it takes requests.", _object(("status",), status=_STRING)),
    ):
        name = path.strip("/").replace("/", "_")
        found[path] = {"get": _operation(about, None, shown, statuses=(503,), name=name)}
    return found


def _libretranslate_paths(codes: Sequence[str]) -> dict[str, Any]:
    error = _object(("error",), error=_STRING)
    bodies = ("application/json", "application/x-www-form-urlencoded")
    text = {"oneOf": [{**_STRING, "minLength": 1}, {**_STRINGS, "minItems": 1}]}
    request = _object(
        ("q", "source", "target"),
        q=text,
        source=_language(codes, "Language of the texts, or `auto`.", "auto"),
        target=_language(codes, "Language to translate into."),
        format={"enum": ["text", "html"]},
        alternatives={"type": "integer", "minimum": 0},
        api_key=_KEY,
    )
    detection = _object(("confidence", "language"), confidence=_NUMBER, language=_STRING)
    answer = _object(
        ("translatedText",),
        translatedText={"oneOf": [_STRING, _STRINGS]},
        detectedLanguage={"oneOf": [detection, _array(detection)]},
        alternatives=_array({"oneOf": [_STRING, _STRINGS]}),
    )
    row = _object(("code", "name", "targets"), code=_STRING, name=_STRING, targets=_STRINGS)
    detected = _object(("q",), q=text, api_key=_KEY)
    like = partial(_operation, error=error, bodies=bodies)
    upload = _object(
        ("file", "source", "target"),
        file={**_STRING, "format": "binary", "description": f"A file: {', '.join(FORMATS)}."},
        **{name: request["properties"][name] for name in ("source", "target", "api_key")},
    )
    link = _object(("translatedFileUrl",), translatedFileUrl=_STRING)
    place = {"name": "name", "in": "path", "required": True, "schema": _STRING}
    fetch = _operation(
        "Returns a translated file (LibreTranslate).",
        error=error,
        statuses=(400, 403),
        name="lt_download",
        parameters=[place],
    )
    fetch["responses"]["200"] = {
        "description": "The file.",
        "content": {kind: {"schema": _STRING} for kind in dict.fromkeys(FORMATS.values())},
    }
    page = {"text/html": {"schema": _STRING}}
    fetch["responses"]["404"] = {"description": "There is no such file.", "content": page}
    return {
        "/translate": {
            "post": like("Translates (LibreTranslate).", request, answer, name="lt_translate")
        },
        "/translate_file": {
            "post": like(
                "Translates a file (LibreTranslate).",
                upload,
                link,
                bodies=("multipart/form-data",),
                name="lt_translate_file",
            )
        },
        "/download_file/{name}": {"get": fetch},
        "/detect": {
            "post": like("Detects (LibreTranslate).", detected, _array(detection), name="lt_detect")
        },
        "/languages": {
            "get": _operation(
                "Lists languages (LibreTranslate).", None, _array(row), name="lt_languages"
            )
        },
        "/frontend/settings": {
            "get": _operation("Settings of a page (LibreTranslate).", name="lt_settings")
        },
        "/health": {"get": _operation("Says that it runs (LibreTranslate).", name="lt_health")},
    }


def _deepl_paths(codes: Sequence[str]) -> dict[str, Any]:
    upper = [code.upper() for code in codes]
    request = _object(
        ("text", "target_lang"),
        text={**_STRINGS, "minItems": 1},
        target_lang=_language(upper, "Language to translate into."),
        source_lang=_language(upper, "Language of the texts."),
        tag_handling={"enum": ["html"]},
    )
    row = _object(
        ("detected_source_language", "text", "billed_characters"),
        detected_source_language=_STRING,
        text=_STRING,
        billed_characters={"type": "integer"},
    )
    error = _object(("message",), message=_STRING, detail=_STRING)
    answer = _object(("translations",), translations=_array(row))
    return {
        "/v2/translate": {
            "post": _operation(
                "Translates (DeepL).", request, answer, error=error, name="deepl_translate"
            )
        },
        "/v2/languages": {
            "get": _operation("Lists languages (DeepL).", error=error, name="deepl_languages")
        },
        "/v2/usage": {
            "get": _operation("Counts characters (DeepL).", error=error, name="deepl_usage")
        },
    }


def document(limits: Limits, codes: Sequence[str]) -> Mapping[str, Any]:
    """Returns the document of a server with some limits and languages."""
    paths = {**_own_paths(limits, codes), **_libretranslate_paths(codes), **_deepl_paths(codes)}
    answer = paths["/v1/translations"]["post"]["responses"]["200"]
    answer["content"]["text/event-stream"] = {"schema": _STRING}  # With `stream`.
    alignment = _object(
        ("source_words", "target_words", "matrix", "pairs"),
        source_words=_STRINGS,
        target_words=_STRINGS,
        matrix=_array(_array(_NUMBER)),
        pairs=_array(_IDS),
    )
    more = {
        "tokens": _IDS,
        "token_log_probs": _array(_NUMBER),
        "alignment": {"oneOf": [{"type": "null"}, alignment]},
    }
    hypothesis = _object(("text", "score", "tokens"), text=_STRING, score=_NUMBER, **more)
    hypotheses = _array(hypothesis)
    error = _object(
        ("type", "message"), type=_STRING, message=_STRING, position={"type": "integer"}
    )
    schemas = {
        "Translation": _object(
            ("text",), text=_STRING, score=_NUMBER, tokens=_IDS, hypotheses=hypotheses
        ),
        "Alternative": _object(
            ("piece", "token", "probability", "translation"),
            piece=_STRING,
            token={"type": "integer"},
            probability=_NUMBER,
            translation={"$ref": "#/components/schemas/Translation"},
        ),
        "Score": _object(
            ("sum", "mean", "tokens", "pieces", "token_log_probs", "token_entropies"),
            sum=_NUMBER,
            mean={"type": ["number", "null"]},
            tokens=_IDS,
            pieces=_STRINGS,
            token_log_probs=_array(_NUMBER),
            token_entropies={**_array(_NUMBER), "description": "In nats; empty without `entropy`."},
        ),
        "Error": _object(("error",), error=error),
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "m2m100-onnx",
            "version": __version__,
            "description": "Translation with M2M100: our own API, LibreTranslate's, DeepL's. The "
            "Open Inference Protocol's paths under /v2 are described by KServe.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }
