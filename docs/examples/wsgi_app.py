"""Translation over HTTP without a framework: `gunicorn --config gunicorn_conf.py wsgi_app:app`."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from m2m100_onnx import M2M100Error, Translator

# Opened before gunicorn forks (`preload_app`): workers share the vocabulary and open the graphs.
translator = Translator(os.environ.get("BUNDLE", "bundles/demo"), lazy=True)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answers a POST of `{"text": ..., "source_lang": ..., "target_lang": ...}`."""
    try:
        job = json.load(environ["wsgi.input"])
        status, answer = "200 OK", {"text": translator.translate(**job, timeout=25)}
    except (M2M100Error, TypeError, json.JSONDecodeError) as error:
        status, answer = "422 Unprocessable Content", {"error": str(error)}
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
