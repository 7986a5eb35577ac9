"""Bytes that are no HTTP, or hardly: the server answers no 5xx, tells nothing of itself, and goes on."""

import random
import socket
import time

import pytest

REQUEST = (
    b"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b'Content-Length: 14\r\nConnection: close\r\n\r\n{"prompt": ""}'
)
LINES = (
    b"GET / HTTP/9.9",
    b"GET  /health  HTTP/1.1",
    b"\0\0\0\0 / HTTP/1.1",
    b"G\xffT / HTTP/1.1",
    b"GET /\r/ HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"CONNECT 10.0.0.1:22 HTTP/1.1",
    b"GET http://10.0.0.1/ HTTP/1.1",
    b"TRACE / HTTP/1.1",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1",
)
HEADERS = (
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: 1\r\nContent-Length: 2",
    b"Content-Length: x",
    b"Transfer-Encoding: chunked\r\nContent-Length: 4",
    b"Transfer-Encoding: nothing",
    b"Host: a\r\nHost: b",
    b": empty",
    b"No colon",
    b"A\0b: c",
    b" folded: yes",
    b"X: " + b"y" * 70_000,
    b"Expect: 200-no",
    b"Upgrade: websocket\r\nConnection: upgrade",
    b"Cookie: \xff=;;=",
    b"Authorization: Basic \xff\xfe",
    b"Origin: null",
    b"Content-Type: application/json; charset=\xff",
)


def broken(draw: random.Random) -> bytes:
    """A request that is wrong in its line, its headers or anywhere."""
    kind = draw.randrange(4)
    if kind == 0:
        return draw.choice(LINES) + b"\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    if kind == 1:
        return REQUEST.replace(b"Content-Length: 14", draw.choice(HEADERS))
    if kind == 2:
        return bytes(draw.randrange(256) for _ in range(draw.randrange(1, 400))) + b"\r\n\r\n"
    changed = bytearray(REQUEST)
    for _ in range(draw.randrange(1, 6)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed[: draw.randrange(1, len(changed) + 1)])


@pytest.mark.parametrize("num", [100, pytest.param(2000, marks=pytest.mark.full)])
def test_what_is_no_http_is_refused(server, num: int) -> None:
    draw, times = random.Random(0), []
    for _ in range(num):
        data, begun, answer = broken(draw), time.perf_counter(), b""
        with socket.create_connection(("127.0.0.1", server.port), 30) as client:
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                while more := client.recv(1 << 16):
                    answer += more
            except ConnectionError:  # it has closed before it had read all
                pass
        times.append(time.perf_counter() - begun)
        status = answer[9:10]
        assert status != b"5", (data[:300], answer[:300])
        if status == b"4":
            assert b"Traceback" not in answer and b"site-packages" not in answer
    assert server.get("/health") == {"status": "ok"}
    print(f"{num} sent, 99 % answered within {sorted(times)[int(num * 0.99) - 1] * 1e3:.1f} ms")
