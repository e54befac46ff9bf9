"""`m2m100 serve`: answers HTTP requests for translations.

Knows arguments; `server/` knows requests.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from m2m100_onnx.cli.arguments import (
    Commands,
    add_command,
    add_device,
    add_kernels,
    add_revision,
    add_threads,
    kernels,
    opening,
    path,
)
from m2m100_onnx.cli.cache import add_cache_options
from m2m100_onnx.errors import DependencyError
from m2m100_onnx.option import Option
from m2m100_onnx.server.settings import LIMITS, Limits, Settings

__all__ = ["add_parser"]

_PORT = Option("port", "int", 5000, "Port; 0 takes a free one.", 0, 65535)
_WORKERS = Option("workers", "int", 1, "Processes that answer.", 1, 1024)
_PARALLEL = Option("parallel", "int | None", None, "Calls that run at the same time.", 1, 1024)
_ABOUT = "Serve translations over HTTP."
_DESCRIPTION = f"""\
{_ABOUT}

The APIs are LibreTranslate's, DeepL's, the Open Inference Protocol of KServe and Triton, and our
own under /v1, which /openapi.json describes. A page is at /, health at /health/live and
/health/ready, numbers for Prometheus at /metrics.

SIGTERM lets requests end; SIGHUP opens the bundles anew and switches to them."""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command to those of `m2m100`."""
    parser = add_command(commands, "serve", _run, _ABOUT, _DESCRIPTION)
    add = parser.add_argument
    about = "Folder of a bundle, or its name on the hub; several serve several."
    add("-m", "--model", required=True, action="append", type=path, metavar="BUNDLE", help=about)
    add_revision(add)
    add("--host", default="127.0.0.1", help="Address to listen on. (default: 127.0.0.1)")
    add("--port", type=int, default=5000, metavar="N", help="Port. (default: 5000)")
    add_device(add)
    add_threads(add)
    about = "Processes that answer; each has its own limits of calls and connections. (default: 1)"
    add("--workers", type=int, default=1, metavar="N", help=about)
    about = "Calls that run at the same time. (default: 2 at least, one per core)"
    add("--parallel", type=int, metavar="N", help=about)
    add_kernels(add)
    add_cache_options(add)
    about = "File of API keys, NAME:SHA256 a line; read again when it changes."
    add("--api-keys", type=path, metavar="FILE", help=about)
    about = "Web origin whose pages may call the server, or *; several times for several."
    add("--cors-origin", action="append", default=[], metavar="ORIGIN", help=about)
    about = "Addresses whose X-Forwarded-For names the client, with commas."
    add("--trusted-proxies", default="", metavar="ADDRESS,...", help=about)
    about = "Keep suggested translations of /suggest in a file, a line of JSON each."
    add("--suggestions", type=path, metavar="FILE", help=about)
    about = "Translate no files, which are kept on disk until they are fetched or too old."
    add("--no-files", action="store_true", help=about)
    about = "Log texts and translations. Without it no text is logged."
    add("--log-texts", action="store_true", help=about)
    about = "Send spans of OpenTelemetry, to where the OTEL_* variables say."
    add("--traces", action="store_true", help=about)
    group = parser.add_argument_group("limits")
    for row in LIMITS.values():
        kind: Any = float if row.type == "float" else int
        default = "" if row.default is None else f" (default: {row.default})"
        flag, metavar = f"--{row.name.replace('_', '-')}", "X" if kind is float else "N"
        group.add_argument(
            flag, type=kind, default=row.default, metavar=metavar, help=f"{row.help}{default}"
        )


def _run(arguments: argparse.Namespace) -> int:
    try:
        from m2m100_onnx.server import run
    except ImportError as error:
        if error.name is None or error.name.startswith("m2m100_onnx"):
            raise
        raise DependencyError(
            f"serve needs {error.name}; run `pip install 'm2m100-onnx[server]'`"
        ) from error
    from m2m100_onnx.process import cores
    from m2m100_onnx.server.engine import open_all

    settings = Settings(
        Limits(**{name: getattr(arguments, name) for name in LIMITS}),
        api_keys=Path(arguments.api_keys) if arguments.api_keys else None,
        cors_origins=tuple(arguments.cors_origin),
        suggestions=Path(arguments.suggestions) if arguments.suggestions else None,
        files=not arguments.no_files,
        log_texts=arguments.log_texts,
        traces=arguments.traces,
    )
    port = _PORT.check(arguments.port)
    workers = _WORKERS.check(arguments.workers)
    own_cores = max(1, cores() // workers)
    parallel = _PARALLEL.check(arguments.parallel) or max(2, own_cores)
    given = {**opening(arguments), **kernels(arguments), "lazy": workers > 1}
    if workers > 1 and given["intra_op_num_threads"] is None:
        given["intra_op_num_threads"] = own_cores
    open_bundles = partial(open_all, arguments.model, given)
    host, proxies = arguments.host, arguments.trusted_proxies
    if workers > 1:
        ran = run.serve_by_workers(open_bundles, settings, workers, parallel, host, port, proxies)
    else:
        ran = run.serve(open_bundles, settings, parallel, host, port, proxies)
    return 0 if ran else 1
