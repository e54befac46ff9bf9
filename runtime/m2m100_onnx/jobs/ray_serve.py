"""The server as a deployment of Ray Serve: replicas on many machines behind one address.

    serve run m2m100_onnx.jobs.ray_serve:application bundle=s3://bucket/418M max_replicas=8

The application is that of `m2m100 serve`, unchanged: all APIs, limits and errors. What is ours is
how a replica opens it, when it is healthy, and by what Serve adds replicas.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from m2m100_onnx.errors import DependencyError, InvalidInputError, JobError
from m2m100_onnx.heap import return_large_blocks
from m2m100_onnx.jobs.bundles import absolute, is_uri, on_this_node
from m2m100_onnx.option import Option

__all__ = ["application", "make_application"]

_OPTIONS = {
    row.name: row
    for row in (
        Option("cpus", "int", 1, "CPUs, and threads, of a replica.", 1, 1024),
        Option("min_replicas", "int", 1, "Fewest replicas.", 1, 10_000),
        Option("max_replicas", "int", 1, "Most replicas.", 1, 10_000),
        Option("queue", "int", 4, "Requests a replica that Serve aims at.", 1, 10_000),
    )
}


def application(arguments: Mapping[str, str]) -> Any:
    """Makes the application from what `serve run` or a config file of Serve's gives.

    Args:
        arguments: `bundle`, or several with commas between them, and `cpus`, `min_replicas`,
            `max_replicas` and `queue` of `make_application`.

    Raises:
        InvalidInputError: an argument is unknown, missing or out of range.
    """
    given = dict(arguments)
    bundles = [bundle for bundle in given.pop("bundle", "").split(",") if bundle]
    if unknown := [name for name in given if name not in _OPTIONS]:
        expected = ", ".join(["bundle", *_OPTIONS])
        raise InvalidInputError(f"serve: expected {expected}, found {unknown[0]!r}")
    try:
        numbers: dict[str, Any] = {name: int(value) for name, value in given.items()}
    except ValueError as error:
        raise InvalidInputError(f"serve: expected numbers: {error}") from None
    return make_application(bundles, **numbers)


def make_application(
    bundles: list[str],
    *,
    settings: Any = None,
    opening: Mapping[str, Any] | None = None,
    cpus: int = 1,
    min_replicas: int = 1,
    max_replicas: int = 1,
    queue: int = 4,
) -> Any:
    """Makes an application for `ray.serve.run`.

    A request's texts are one batch in its replica. Requests that come meanwhile wait there, so
    Serve's own batching is not used. Running it under the same name with another bundle replaces
    the replicas one after another, each after the requests that it has.

    Args:
        bundles: folders, names on the hub or URIs of fsspec's, which are fetched once a node.
        settings: `m2m100_onnx.server.settings.Settings`; its defaults by default.
        opening: further arguments of `Translator`.
        cpus: CPUs, and threads, of a replica.
        min_replicas: fewest replicas.
        max_replicas: most replicas.
        queue: how many requests a replica has, running or waiting, at which Serve aims: it adds
            replicas when they are more.

    Raises:
        DependencyError: Ray Serve, or what the server needs, is not installed.
        InvalidInputError: there is no bundle, or a number is out of range.
    """
    if not bundles:
        raise InvalidInputError("bundle: expected a folder, a name or a URI, found none")
    numbers = {"cpus": cpus, "min_replicas": min_replicas, "max_replicas": max_replicas}
    for name, value in {**numbers, "queue": queue}.items():
        _OPTIONS[name].check(value)
    if min_replicas > max_replicas:
        raise InvalidInputError(
            f"min_replicas: expected at most max_replicas = {max_replicas}, found {min_replicas}"
        )
    try:
        from ray import serve

        from m2m100_onnx.server.settings import Settings
    except ImportError as error:
        raise DependencyError(
            f"Ray Serve needs {error.name}; run `pip install 'm2m100-onnx[ray,server]'`"
        ) from error
    settings = settings or Settings()
    given = {"intra_op_num_threads": cpus, **(opening or {}), "lazy": False}
    places = [_found_by_replicas(bundle) for bundle in bundles]

    def build() -> Any:
        return _build(places, given, settings, cpus)

    deployment = serve.deployment(
        serve.ingress(build)(_Replica),
        name="m2m100",
        ray_actor_options={"num_cpus": cpus},
        # The replica itself says 503 to what is too much, as the server does.
        max_ongoing_requests=settings.limits.calls + 1,
        graceful_shutdown_timeout_s=settings.limits.drain_seconds,
        health_check_period_s=5,
        health_check_timeout_s=30,
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": queue,
        },
    )
    return deployment.bind()


def _found_by_replicas(bundle: str) -> str:
    return absolute(bundle) if not is_uri(bundle) and Path(bundle).is_dir() else bundle


def _build(bundles: list[str], opening: dict[str, Any], settings: Any, cpus: int) -> Any:
    """Opens the bundles in a replica, and returns the server's application."""
    from m2m100_onnx.server.app import make_app, make_service
    from m2m100_onnx.server.engine import open_all

    return_large_blocks()
    named = [_named(bundle, on_this_node(bundle)) for bundle in bundles]

    def served() -> tuple[Any, ...]:
        # A fetched bundle lies in a folder whose name is a hash; clients call it by its URI's end.
        found = open_all([folder for _, folder in named], opening)
        for each, (name, _) in zip(found, named, strict=True):
            each.name = name
        return found

    return make_app(make_service(served, settings, max(2, cpus)))


def _named(bundle: str, folder: str) -> tuple[str, str]:
    return bundle.rstrip("/").rpartition("/")[2], folder


class _Replica:
    """What Serve asks a replica beside requests."""

    app: Any
    """The server's application, which `serve.ingress` sets."""

    async def check_health(self) -> None:
        """Asks the application's own `/health/ready`.

        Raises:
            JobError: it is not ready.
        """
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/health/ready",
            "raw_path": b"/health/ready",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"replica")],
            "client": None,
            "server": None,
        }
        await self.app(scope, receive, send)
        if statuses != [200]:
            raise JobError(f"the replica is not ready: /health/ready answers {statuses}")
