"""Measures `m2m100 serve`: latency beside the library's, throughput, connections, a long load.

Each part adds its numbers to a file of JSON. The client is on the server's machine and takes a part
of its cores: what is measured is what both do together. Run from the repository's root:

    python benchmarks/server.py latency --model bundles/demo
    python benchmarks/server.py throughput --model bundles/demo --flags='--workers 2'
    python benchmarks/server.py connections --model bundles/demo
    python benchmarks/server.py soak --model bundles/demo --share 0.8 --minutes 60
"""

from __future__ import annotations

import argparse
import asyncio
import html
import json
import os
import platform
import random
import shlex
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from m2m100_onnx import Translator
from m2m100_onnx.cli.benchmark.worker import memory
from m2m100_onnx.process import cores

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = {"source_lang": "en", "target_lang": "de"}
FORM = b"--x\r\nContent-Disposition: form-data; name=%s\r\n\r\n%s\r\n"
_QUIET = 5.0
"""Seconds without a request, after which what a server still has is what it keeps."""


def sentences() -> list[str]:
    """Returns the held-out English sentences."""
    path = ROOT / "demo" / "heldout" / "test.en"
    return path.read_text("utf-8").splitlines()


def tree(pid: int) -> list[int]:
    """Returns a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [pid, *map(int, children.split())]


def used(pid: int) -> dict[str, int]:
    """Returns what a server's processes have, in bytes: private memory, and descriptors."""
    found = [memory(str(each)) for each in tree(pid)]
    files = sum(len(list(Path(f"/proc/{each}/fd").iterdir())) for each in tree(pid))
    return {"private": sum(each["private"] for each in found), "descriptors": files}


@contextmanager
def serving(model: str, flags: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Runs a server; gives its port and its process's id."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    command = [sys.executable, "-m", "m2m100_onnx", "serve", "-m", model, "--port", str(port)]
    path = os.pathsep.join([str(ROOT / "runtime"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [*command, *flags],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    ) as running:
        try:
            while running.poll() is None:
                with socket.socket() as one:
                    if one.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield port, running.pid
        finally:
            running.terminate()


def request(method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
    """Returns the bytes of a request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def translation(text: str, **more: Any) -> bytes:
    """Returns a request of the server's own API."""
    job = {"text": text, **LANGUAGES, **more}
    return request("POST", "/v1/translations", json.dumps(job).encode())


class Client:
    """A connection that stays open, and does little, so as to leave the cores to the server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, data: bytes) -> tuple[int, bytes]:
        """Sends a request; returns the status and the body of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head[9:12])
        if b"transfer-encoding: chunked" in head:
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
        if b"connection: close" in head:
            self.close()
        return status, body

    @property
    def closed(self) -> bool:
        """Whether the server has closed the connection, which it does after seconds without use."""
        return self._streams is not None and self._streams[0].at_eof()

    def close(self) -> None:
        """Closes the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Returns the median and the 99th percentile of seconds, in milliseconds."""
    ordered = sorted(values)
    return {
        "p50_ms": 1000 * statistics.median(ordered),
        "p99_ms": 1000 * ordered[int(0.99 * (len(ordered) - 1))],
    }


async def latency(arguments: argparse.Namespace) -> dict[str, Any]:
    """One request at a time beside a call of the library, in turns and in changing order."""
    translator = Translator(arguments.model, intra_op_num_threads=arguments.threads)
    random_ = random.Random(1)
    texts = random_.sample(sentences(), arguments.count)
    flags = ["--threads", str(arguments.threads), *shlex.split(arguments.flags)]
    # A random model does not end, and a connection that is idle for seconds is closed.
    limits = {"max_new_tokens": arguments.max_new_tokens}
    rows: dict[str, list[float]] = {"http": [], "direct": []}
    with serving(arguments.model, flags) as (port, _):
        client = Client(port)
        for number, text in enumerate(texts):
            sides = ["http", "direct"]
            random_.shuffle(sides)
            data, answers = translation(text, **limits), set()
            for side in sides:
                began = time.perf_counter()
                if side == "http":
                    status, body = await client.ask(data)
                    seconds = time.perf_counter() - began
                    assert status == 200, body
                    answers.add(json.loads(body)["translations"][0]["text"])
                else:
                    answers.add(translator.translate(text, **LANGUAGES, **limits))
                    seconds = time.perf_counter() - began
                if number >= arguments.count // 10:  # The first ones warm both up.
                    rows[side].append(seconds)
            assert len(answers) == 1, answers
        client.close()
    more = [http - direct for http, direct in zip(rows["http"], rows["direct"], strict=True)]
    return {
        "pairs": len(more),
        "threads": arguments.threads,
        "http": percentiles(rows["http"]),
        "direct": percentiles(rows["direct"]),
        "http_more": percentiles(more),
    }


async def saturate(
    port: int, clients: int, seconds: float, make: Callable[[random.Random], bytes]
) -> tuple[float, list[float], Counter[int]]:
    """Has clients ask again at once; returns the rate, the seconds of each answer, and statuses."""
    took: list[float] = []
    statuses: Counter[int] = Counter()
    first = time.perf_counter()

    async def ask(seed: int) -> None:
        random_, client = random.Random(seed), Client(port)
        while time.perf_counter() < first + seconds:
            began = time.perf_counter()
            status, _ = await client.ask(make(random_))
            took.append(time.perf_counter() - began)
            statuses[status] += 1
        client.close()

    await asyncio.gather(*map(ask, range(clients)))
    return statuses[200] / (time.perf_counter() - first), took, statuses


async def throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    """As many requests of a sentence as clients get answered that ask again at once."""
    texts = sentences()
    found: dict[str, Any] = {"seconds": arguments.seconds, "by_clients": {}}

    def make(random_: random.Random) -> bytes:
        return translation(random_.choice(texts))

    with serving(arguments.model, shlex.split(arguments.flags)) as (port, _):
        for count in arguments.clients:
            rate, took, statuses = await saturate(port, count, arguments.seconds, make)
            row = {"per_second": rate, "statuses": statuses, **percentiles(took)}
            found["by_clients"][str(count)] = row
            print(f"{count} clients: {rate:.0f} a second, {dict(statuses)}", flush=True)
    return found


async def connections(arguments: argparse.Namespace) -> dict[str, Any]:
    """What connections take that have sent a request each and wait."""
    flags = [*shlex.split(arguments.flags), "--connections", str(arguments.count + 10)]
    with serving(arguments.model, flags) as (port, pid):
        health, first = request("GET", "/health"), Client(port)
        # The tenth part of them warms the server up.
        for client in [Client(port) for _ in range(arguments.count // 10)]:
            await client.ask(health)
            client.close()
        await first.ask(translation("Open the file."))
        before = used(pid)
        clients = [Client(port) for _ in range(arguments.count)]
        for client in clients:
            await client.ask(health)
        during = used(pid)
        await first.ask(translation("Open the file."))
        for client in [first, *clients]:
            client.close()
    opened = during["descriptors"] - before["descriptors"]
    assert opened > 0.98 * arguments.count, f"{opened} connections were open at the end"
    return {
        "connections": opened,
        "private_before": before["private"],
        "private_during": during["private"],
        "private_more": during["private"] - before["private"],
    }


def mixed(random_: random.Random, texts: Sequence[str]) -> bytes:
    """Returns one of many kinds of requests."""
    some = random_.sample(texts, 3)
    lists = {"q": some, "source": "en", "target": "de"}
    marked = "<p>{} <b>{}</b> {}</p>".format(*map(html.escape, some))
    page = {**lists, "q": marked, "format": "html"}
    deepl = {"text": some, "source_lang": "EN", "target_lang": "DE"}
    parts = ((b"source", b"en"), (b"target", b"de"), (b"file; filename=a.txt", some[2].encode()))
    form = b"".join(FORM % part for part in parts) + b"--x--\r\n"
    return random_.choice(
        [
            translation(some[0]),
            translation(" ".join(some), split=True),
            translation(some[1], stream=True),
            translation(some[2], num_hypotheses=3),
            request("POST", "/translate", json.dumps(lists).encode()),
            request("POST", "/translate", json.dumps(page).encode()),
            request("POST", "/v2/translate", json.dumps(deepl).encode()),
            request("POST", "/translate_file", form, "multipart/form-data; boundary=x"),
            request("POST", "/v1/detections", json.dumps({"text": some[0]}).encode()),
            request("GET", "/metrics"),
            request("GET", "/languages"),
        ]
    )


async def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Requests of all kinds at a rate that waits for no answer; what fails, and what is kept.

    What the server can answer is measured at each pause again: a machine that others share has
    twice its speed in one hour of what it has in another.
    """
    flags = shlex.split(arguments.flags)
    texts, random_ = sentences(), random.Random(1)
    statuses: Counter[str] = Counter()
    took: list[float] = []
    idle: list[Client] = []
    tasks: set[asyncio.Task[None]] = set()

    async def ask(port: int, at: float, data: bytes) -> None:
        while idle and idle[-1].closed:
            idle.pop().close()
        client = idle.pop() if idle else Client(port)
        try:
            status, body = await client.ask(data)
            failed = status == 200 and b"event: error" in body
            statuses["error in a stream" if failed else str(status)] += 1
            idle.append(client)
        except (OSError, asyncio.IncompleteReadError) as error:
            statuses[type(error).__name__] += 1
            client.close()
        took.append(time.perf_counter() - at)

    async def kept(pid: int) -> int:
        # What a server keeps shows when nothing runs: what runs takes more by the moment.
        await asyncio.gather(*tasks)
        await asyncio.sleep(_QUIET)
        return used(pid)["private"]

    async def most(port: int) -> float:
        rate, _, answered = await saturate(port, 32, arguments.seconds, partial(mixed, texts=texts))
        assert set(answered) == {200}, answered
        return rate

    async def load(port: int, rate: float) -> None:
        began = time.perf_counter()
        for number in range(int(rate * 60)):
            at = began + number / rate
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            task = asyncio.create_task(ask(port, at, mixed(random_, texts)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    with serving(arguments.model, flags) as (port, pid):
        samples: list[dict[str, float]] = []
        for minute in range(arguments.minutes):
            samples.append({"minutes": minute, **used(pid)})
            if minute % arguments.pause == 0:
                samples[-1] |= {"idle": await kept(pid), "most": await most(port)}
                rate = arguments.share * samples[-1]["most"]
            print(samples[-1], dict(statuses), flush=True)
            await load(port, rate)
        samples.append({"minutes": arguments.minutes, **used(pid)})
        samples[-1]["idle"] = await kept(pid)
        for client in idle:
            client.close()
    facts = {"share": arguments.share, "statuses": statuses, **percentiles(took)}
    return {**facts, "samples": samples}


def main() -> None:
    """Measures a part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for part in (latency, throughput, connections, soak):
        add = parts.add_parser(part.__name__, help=part.__doc__).add_argument
        add("--model", required=True)
        add("--flags", default="", help="of m2m100 serve")
        add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "server.json")
        if part is latency:
            add("--count", type=int, default=300)
            add("--threads", type=int, default=1)
            add("--max-new-tokens", type=int, default=48)
        elif part is throughput:
            add("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
            add("--seconds", type=float, default=10.0)
        elif part is connections:
            add("--count", type=int, default=1000)
        else:
            add("--share", type=float, default=0.8, help="of what the server can answer")
            add("--seconds", type=float, default=15.0, help="in which that is measured")
            add("--minutes", type=int, default=60)
            add("--pause", type=int, default=5, help="minutes until the load pauses for a moment")
    arguments = parser.parse_args()
    found = asyncio.run(globals()[arguments.part](arguments))
    found |= {
        "model": Path(arguments.model).name,
        "flags": arguments.flags,
        "cores": cores(),
        "processor": platform.processor() or platform.machine(),
        "load_before": os.getloadavg()[0],
    }
    known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    arguments.output.write_text(json.dumps({**known, arguments.part: found}, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
