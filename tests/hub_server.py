"""A hub on the loopback interface: it speaks the part of the hub's protocol that downloads need.

Large files are served as the hub does: `resolve` redirects to another address, which has ranges.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

# Files of these names are kept outside of git, by Git LFS.
_LARGE = (".onnx", ".onnx_data", ".safetensors", ".bin", ".model", ".npz")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by name."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@dataclass
class Repository:
    """A repository: its commits, and the branches and tags that name one."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    def commit(self, files: Mapping[str, bytes], *names: str) -> str:
        """Adds a commit that `names`, by default `main`, stand for from now on."""
        sha = hashlib.sha1(f"{id(self)} {len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.names |= dict.fromkeys(names or ("main",), sha)
        return sha


@dataclass(frozen=True)
class Request:
    """A request that came; the names of its headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class Pause:
    """A body that stops.

    Attributes:
        size: after so many bytes.
        reached: is set when it has stopped.
        over: ends the pause.
    """

    size: int
    reached: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


@dataclass
class Hub:
    """The state of the server, which a test changes while it runs.

    Attributes:
        url: its address.
        repositories: by their names.
        requests: all that came.
        sent: files whose contents were asked for, each with the first byte that was sent.
        status: answers everything with this status, where it is set.
        cuts: by the file's name, a body breaks off after so many bytes, once.
        pauses: by the file's name, a body stops in the middle, once.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    status: int | None = None
    sent: list[tuple[str, int]] = field(default_factory=list)
    cuts: dict[str, int] = field(default_factory=dict)
    pauses: dict[str, Pause] = field(default_factory=dict)

    def add(self, name: str, files: Mapping[str, bytes], **facts: Any) -> Repository:
        """Adds a repository with one commit, `main`."""
        self.repositories[name] = repository = Repository(**facts)
        repository.commit(files)
        return repository

    def take(self) -> tuple[set[str], int]:
        """Returns the files that were sent since the last call, and the number of requests."""
        found = {file for file, _ in self.sent}, len(self.requests)
        self.sent.clear()
        self.requests.clear()
        return found


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(Request(self.command, self.path, headers))
        if self.hub.status is not None:
            return self._answer(self.hub.status)
        if path.startswith("/large/"):
            commit, file = path.removeprefix("/large/").split("//")
            places = (r.commits.get(commit, {}) for r in self.hub.repositories.values())
            return self._body(file, next(files[file] for files in places if file in files))
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        org, name, *rest = parts[2:] if api else parts
        repository = self.hub.repositories.get(f"{org}/{name}")
        if repository is None or not self._admitted(repository):
            hidden = repository is None or not repository.gated
            # The hub does not tell a private repository from one that is not there.
            code = "RepoNotFound" if hidden else "GatedRepo"
            return self._answer(401 if hidden else 403, {"X-Error-Code": code})
        revision = unquote(rest[1]) if rest else "main"
        commit = repository.names.get(revision, revision)
        if commit not in repository.commits:
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        files = repository.commits[commit]
        if api:
            return self._info(f"{org}/{name}", commit, files)
        return self._resolve(commit, unquote("/".join(rest[2:])), files)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _admitted(self, repository: Repository) -> bool:
        wanted = repository.token
        return wanted is None or self.headers["Authorization"] == f"Bearer {wanted}"

    def _info(self, name: str, commit: str, files: Mapping[str, bytes]) -> None:
        siblings = [{"rfilename": file} for file in files]
        facts = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
        more = {"private": False, "gated": False, "tags": [], "downloads": 0, "likes": 0}
        data = json.dumps(facts | more).encode()
        self._answer(200, {"Content-Type": "application/json"}, data)

    def _resolve(self, commit: str, file: str, files: Mapping[str, bytes]) -> None:
        headers = {"X-Repo-Commit": commit}
        if file not in files:
            return self._answer(404, headers | {"X-Error-Code": "EntryNotFound"})
        data = files[file]
        if file.endswith(_LARGE):
            digest = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            # Another host to the client, which sends it no token.
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
            place = f"{elsewhere}/large/{commit}//{file}"
            return self._answer(302, headers | {"Location": place})
        blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        return self._body(file, data, headers | {"ETag": f'"{blob}"'})

    def _body(self, file: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        start, status = self._start(), 200
        more = {"Accept-Ranges": "bytes", **(headers or {})}
        if start:
            more["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status = 206
        self._answer(status, more, data[start:], file)

    def _start(self) -> int:
        """The first byte that is asked for; the client asks for no last one."""
        asked = self.headers["Range"]
        return int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0

    def _answer(
        self,
        status: int,
        headers: Mapping[str, str] | None = None,
        data: bytes = b"",
        file: str = "",
    ) -> None:
        if file and self.command == "GET":
            self.hub.sent.append((file, self._start()))
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        size = self.hub.cuts.pop(file, None)
        if size is not None:
            self.wfile.write(data[:size])
            self.close_connection = True
            return
        pause = self.hub.pauses.get(file)
        if pause is not None and not pause.reached.is_set():
            self.wfile.write(data[: pause.size])
            pause.reached.set()
            pause.over.wait(60)
            data = data[pause.size :]
        with contextlib.suppress(ConnectionError):  # The client was killed.
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Runs a hub without repositories."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            for pause in hub.pauses.values():
                pause.over.set()
            server.shutdown()
            thread.join()


def connect(url: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Has this process use a hub and a cache; the client has read its variables already."""
    constants = "huggingface_hub.constants"
    patch.setattr(f"{constants}.ENDPOINT", url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    # Versions before 1 have copies of their own.
    for module in (constants, "huggingface_hub.file_download"):
        patch.setattr(f"{module}.HUGGINGFACE_CO_URL_TEMPLATE", url + template, raising=False)
    patch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))
    patch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    patch.setattr(f"{constants}.HF_TOKEN_PATH", str(cache / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    _forget_sessions()


def go_offline(patch: pytest.MonkeyPatch) -> None:
    """Has this process use the cache alone, as HF_HUB_OFFLINE has a new one."""
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _forget_sessions()


def _forget_sessions() -> None:
    """Versions before 1 decide when they open a session whether they are offline."""
    import huggingface_hub.utils._http as client

    getattr(client, "reset_sessions", lambda: None)()


def variables(url: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that uses a hub and keeps its cache in `home`."""
    ours = ("HF_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    paths = os.pathsep.join(path for path in sys.path if path)
    return {**kept, "PYTHONPATH": paths, "HF_ENDPOINT": url, "HF_HOME": str(home), **more}
