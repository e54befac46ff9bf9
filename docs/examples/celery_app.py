"""Translation in the background: `celery --app celery_app worker --concurrency 2`."""

import os

from celery import Celery
from celery.signals import worker_process_init

from m2m100_onnx import Translator

app = Celery("translation")
# Celery forks its workers. They share what is read before: the vocabulary, and no graph yet.
translator = Translator(os.environ.get("BUNDLE", "bundles/demo"), intra_op_num_threads=1, lazy=True)


@worker_process_init.connect
def load(**_: object) -> None:
    """Opens the graphs in each worker, so that its first task does not wait for them."""
    translator.model.load()


@app.task(soft_time_limit=60, time_limit=90)
def translate(texts: list[str], source_lang: str, target_lang: str) -> list[str]:
    """Translates texts; an error reaches the caller of `get()` with its attributes.

    Celery raises `SoftTimeLimitExceeded` in the middle of the call; it passes through as it is.
    """
    return translator.translate(texts, source_lang=source_lang, target_lang=target_lang)
