"""The Open Inference Protocol, with Triton's own client, in JSON and in its binary form."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from m2m100_onnx import Translator
from serving import Server

TEXTS = ["Open the file.", "The file could not be found. 你好"]
PATH = "/v2/models/demo/infer"


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as found:
        yield found


def tensors(binary: bool, shape: tuple[int, ...] = (2,), **given: Any) -> list[triton.InferInput]:
    values = {"text": TEXTS, "source_lang": ["en"], "target_lang": ["de"], **given}
    found = []
    for name, texts in values.items():
        array = np.array(texts, dtype=np.object_)
        array = array.reshape(shape) if name == "text" else array
        found.append(triton.InferInput(name, array.shape, "BYTES"))
        found[-1].set_data_from_numpy(array, binary_data=binary)
    return found


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("demo")
    assert client.is_model_ready("demo", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    facts = client.get_model_metadata("demo")
    assert [each["name"] for each in facts["inputs"]] == ["text", "source_lang", "target_lang"]


@pytest.mark.parametrize("shape", [(2,), (2, 1)], ids=str)
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("asked", ["none", "json", "binary"])
def test_the_client_translates(
    client: triton.InferenceServerClient,
    translator: Translator,
    shape: tuple[int, ...],
    binary: bool,
    asked: str,
) -> None:
    outputs = None
    if asked != "none":
        outputs = [
            triton.InferRequestedOutput(name, binary_data=asked == "binary")
            for name in ("score", "translation")
        ]
    found = client.infer("demo", tensors(binary, shape), outputs=outputs, request_id="7")
    expected = translator.translate_batch(TEXTS, source_lang="en", target_lang="de")
    texts = [
        each.decode() if isinstance(each, bytes) else each
        for each in found.as_numpy("translation").ravel()
    ]
    assert texts == [each.text for each in expected]
    assert found.as_numpy("translation").shape == shape
    assert found.as_numpy("score").ravel() == pytest.approx([each.score for each in expected])
    assert found.get_response()["id"] == "7"


def test_languages_for_each_text_and_options(
    client: triton.InferenceServerClient, translator: Translator
) -> None:
    inputs = tensors(True, target_lang=["de", "fr"])
    found = client.infer("demo", inputs, parameters={"beam_size": 1}).as_numpy("translation")
    expected = [
        translator.translate(text, source_lang="en", target_lang=code, beam_size=1)
        for text, code in zip(TEXTS, ("de", "fr"), strict=True)
    ]
    assert [each.decode() for each in found] == expected


def test_the_client_sees_errors(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="xx is not supported"):
        client.infer("demo", tensors(True, target_lang=["xx"]))
    with pytest.raises(InferenceServerException, match="no model 'other'"):
        client.infer("other", tensors(True))
    with pytest.raises(InferenceServerException, match="beam_size"):
        client.infer("demo", tensors(True), parameters={"beam_size": 0})
    with pytest.raises(InferenceServerException, match="the time for the request is over"):
        client.infer("demo", tensors(True), timeout=1)
    with pytest.raises(InferenceServerException, match="Content-Encoding"):
        client.infer("demo", tensors(True), request_compression_algorithm="gzip")


def tensor(name: str, data: Any, **facts: Any) -> dict[str, Any]:
    shape = [len(data)] if isinstance(data, list) else [1]
    return {"name": name, "datatype": "BYTES", "shape": shape, "data": data, **facts}


LANGUAGES = [tensor("source_lang", ["en"]), tensor("target_lang", ["de"])]
GOOD = tensor("text", ["a"])


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"inputs": 1},
        {"inputs": [1]},
        {"inputs": [GOOD]},
        {"inputs": [GOOD, GOOD, *LANGUAGES]},
        {"inputs": [{**GOOD, "shape": [2]}, *LANGUAGES]},
        {"inputs": [{**GOOD, "shape": [-1]}, *LANGUAGES]},
        {"inputs": [{**GOOD, "shape": [10**400]}, *LANGUAGES]},
        {"inputs": [{**GOOD, "shape": "x"}, *LANGUAGES]},
        {"inputs": [{**GOOD, "datatype": "FP32"}, *LANGUAGES]},
        {"inputs": [tensor("text", [1]), *LANGUAGES]},
        {"inputs": [tensor("text", []), *LANGUAGES]},
        {"inputs": [tensor("other", ["a"]), *LANGUAGES]},
        {"inputs": [{**GOOD, "parameters": {"binary_data_size": 5}}, *LANGUAGES]},
        {"inputs": [{**GOOD, "parameters": {"binary_data_size": -1}}, *LANGUAGES]},
        {"inputs": [GOOD, *LANGUAGES], "outputs": [{"name": "logits"}]},
        {"inputs": [GOOD, *LANGUAGES], "outputs": 5},
        {"inputs": [GOOD, *LANGUAGES], "parameters": []},
        {"inputs": [GOOD, *LANGUAGES], "parameters": {"timeout": "x"}},
        {"inputs": [GOOD, LANGUAGES[0], tensor("target_lang", ["de", "de"])]},
    ],
)
def test_malformed_requests(server: Server, body: Any) -> None:
    answer = server.post(PATH, body)
    assert (answer.status, list(answer.json)) == (400, ["error"])


@pytest.mark.parametrize(
    "data", [b"\x05\0\0\0a", b"\x01\0\0", b"\x01\0\0\0\xff", b"\xff\xff\xff\xffa"], ids=repr
)
def test_malformed_binary_tensors(server: Server, data: bytes) -> None:
    size = {"binary_data_size": len(data)}
    head = {"inputs": [{**GOOD, "parameters": size}, *LANGUAGES]}
    text = json.dumps(head).encode()
    for length in (len(text), len(text) + 100, -1, "x"):
        headers = {"Inference-Header-Content-Length": str(length)}
        answer = server.post(PATH, text + data, "application/octet-stream", **headers)
        assert answer.status == 400
    good = struct.pack("<I", 1) + b"a" + b"rest"
    headers = {"Inference-Header-Content-Length": str(len(text))}
    assert server.post(PATH, text + good, None, **headers).status == 400
