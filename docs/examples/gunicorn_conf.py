"""Settings of gunicorn: one application, read once and forked."""

from typing import Any

workers = 2
preload_app = True


def post_fork(server: Any, worker: Any) -> None:  # noqa: ARG001 - gunicorn's names
    """Opens the graphs in each worker, so that its first request does not wait for them."""
    from wsgi_app import translator

    translator.model.load()
