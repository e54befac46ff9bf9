"""Clients that mean harm: each is refused or cut off, and others go on meanwhile."""

from __future__ import annotations

import contextlib
import socket
import time

from serving import Server

FLAGS = ("--receive-seconds", "1", "--connections", "40")
LT = {"q": "Open the file.", "source": "en", "target": "de"}


def ended(one: socket.socket, seconds: float = 5) -> bytes:
    """What a connection had to say until the server closed it."""
    one.settimeout(seconds)
    found = b""
    try:
        while data := one.recv(65536):
            found += data
    except ConnectionError:
        pass
    return found


def goes_on(server: Server) -> None:
    assert server.post("/translate", LT).status == 200


def test_slow_headers(server: Server) -> None:
    sockets = [server.raw() for _ in range(20)]
    for one in sockets:
        one.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
    goes_on(server)
    began = time.monotonic()
    while time.monotonic() - began < 0.8:  # A byte now and then is no headers.
        for one in sockets:
            with contextlib.suppress(ConnectionError):  # It is closed when its time is over.
                one.sendall(b"X-A: b\r\n")
        time.sleep(0.1)
    for one in sockets:
        assert ended(one) == b""
    assert time.monotonic() - began < 5
    goes_on(server)


def test_slow_headers_of_a_second_request(server: Server) -> None:
    one = server.raw()
    one.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert one.recv(65536).startswith(b"HTTP/1.1 200")
    one.sendall(b"GET /health HTTP/1.1\r\n")
    began = time.monotonic()
    assert b"HTTP" not in ended(one)
    assert time.monotonic() - began < 4


def test_silent_connections(server: Server) -> None:
    one = server.raw()
    began = time.monotonic()
    assert ended(one) == b""
    assert time.monotonic() - began < 4


def test_slow_bodies(server: Server) -> None:
    one = server.raw()
    one.sendall(b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    one.sendall(b"Content-Length: 1000\r\n\r\n{")
    goes_on(server)
    assert ended(one).startswith(b"HTTP/1.1 408")


def test_floods_of_headers(server: Server) -> None:
    for flood in (b"X-A: b\r\n" * 20_000, b"X-A: " + b"b" * 200_000, b"X" * 200_000):
        one = server.raw()
        try:
            one.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + flood)
        except ConnectionError:
            continue
        found = ended(one)
        assert found == b"" or found.startswith(b"HTTP/1.1 4")
        goes_on(server)


def test_a_long_target(server: Server) -> None:
    one = server.raw()
    one.sendall(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    found = ended(one)
    assert found == b"" or found.startswith(b"HTTP/1.1 4")
    goes_on(server)


def test_malformed_requests(server: Server) -> None:
    for start in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # No host.
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /translate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        one = server.raw()
        one.sendall(start)
        found = ended(one)
        assert found == b"" or found.split()[1].startswith(b"4"), (start, found)
    goes_on(server)


def test_requests_that_are_smuggled(server: Server) -> None:
    """A body has one length."""
    one = server.raw()
    one.sendall(
        b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    found = ended(one)
    assert found.startswith(b"HTTP/1.1 400")
    assert found.count(b"HTTP/1.1") == 1
    goes_on(server)


def test_too_many_connections(server: Server) -> None:
    sockets = [server.raw() for _ in range(80)]
    time.sleep(0.3)
    open_ones = 0
    for one in sockets:
        one.setblocking(False)
        try:
            open_ones += one.recv(1) != b""
        except BlockingIOError:
            open_ones += 1
        except ConnectionError:
            pass
    assert open_ones <= 40
    time.sleep(1.2)  # Those that are silent are closed, and make room.
    goes_on(server)
    for one in sockets:
        one.close()


def test_upgrades_are_ignored(server: Server) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    assert server.ask("GET", "/health", headers=headers).status == 200
