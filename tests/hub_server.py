"""A small hub on the loopback interface, for real clients of huggingface_hub.

Speaks what a download asks for: the model's facts, and files with an ETag, a commit, their length
and ranges of bytes. It can break off a file, ask for a token, and answer with an error.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The state of a hub.

    Attributes:
        repos: the folder of each repository, by id.
        revisions: names of the one commit that each has.
        token: what a request has to bring; None lets everyone in.
        status: what everything is answered with; 200 answers as it should.
        broken: how often a file of 100 kB or more is still broken off, after `limit` bytes.
        limit: see `broken`.
        stuck: whether later requests for such a file give no byte.
        asked: `(method, path, range)` of each request.
        url: where it listens.
    """

    repos: dict[str, Path] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", "v1", COMMIT)
    token: str | None = None
    status: int = 200
    broken: int = 0
    limit: int = 4096
    stuck: bool = False
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def downloads(self, name: str) -> list[str | None]:
        """Returns the range of each request for a file's bytes."""
        return [
            r for method, path, r in self.asked if method == "GET" and path.endswith(f"/{name}")
        ]


@contextmanager
def serve() -> Iterator[Hub]:
    """Runs a hub."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range")))
            if hub.status != 200:
                self._send(hub.status, b"")
            elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._refuse(401, "GatedRepo")
            elif facts := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                self._facts(facts[1], facts[2] or "main")
            elif tree := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
                self._tree(tree[1])
            elif file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(*file.groups())
            else:
                self._refuse(404, "EntryNotFound")

        def _facts(self, repo: str, revision: str) -> None:
            if repo not in hub.repos:
                self._refuse(404, "RepoNotFound")
            elif revision not in hub.revisions:
                self._refuse(404, "RevisionNotFound")
            else:
                names = [p.name for p in sorted(hub.repos[repo].iterdir())]
                siblings = [{"rfilename": name} for name in names]
                facts = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
                self._send(200, json.dumps({**facts, "private": False, "tags": []}).encode())

        def _tree(self, repo: str) -> None:
            files = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": path.name}
                for path in sorted(hub.repos[repo].iterdir())
            ]
            self._send(200, json.dumps(files).encode())

        def _file(self, repo: str, revision: str, name: str) -> None:
            path = hub.repos.get(repo, Path("missing")) / name
            if revision not in hub.revisions or not path.is_file():
                self._refuse(404, "EntryNotFound")
                return
            data = path.read_bytes()
            first, status = 0, 200
            headers = {
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
                first, status = int(wanted[1]), 206
                headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            self._send(status, data[first:], headers)

        def _refuse(self, status: int, code: str) -> None:
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

        def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.broken and len(data) > 100_000:
                hub.broken -= 1
                self.wfile.write(data[: hub.limit])
                hub.limit = 0 if hub.stuck else hub.limit
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self.wfile.write(data)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        hub.url = f"http://127.0.0.1:{listening.server_port}"
        try:
            yield hub
        finally:
            listening.shutdown()
            thread.join()
