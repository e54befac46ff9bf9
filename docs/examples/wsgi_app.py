"""Translation over HTTP without a framework: `gunicorn --config gunicorn_conf.py wsgi_app:app`."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from m2m100_onnx import DeadlineExceeded, Translator

# Opened before gunicorn forks (`preload_app`): workers share the vocabulary and open the graphs.
translator = Translator(os.environ.get("BUNDLE", "bundles/demo"), lazy=True)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answers a POST of `{"text": ..., "source_lang": ..., "target_lang": ...}`."""
    try:
        job = json.load(environ["wsgi.input"])
        # Three fields and no others: options are the server's to choose.
        text, source, target = (job[name] for name in ("text", "source_lang", "target_lang"))
        found = translator.translate(text, source_lang=source, target_lang=target, timeout=25)
        status, answer = "200 OK", {"text": found}
    except DeadlineExceeded:
        status, answer = "504 Gateway Timeout", {"error": "the translation took too long"}
    # `json` and `UnicodeDecodeError` are ValueErrors, and so is what concerns the input.
    except (ValueError, KeyError, TypeError) as error:
        status, answer = "422 Unprocessable Content", {"error": str(error)}
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
