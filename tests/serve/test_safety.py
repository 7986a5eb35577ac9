"""Who may ask for what: tokens, origins, hosts, kinds and sizes of bodies, and how much waits."""

import base64
import json
import re
import socket
import subprocess
import sys
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

TOKEN = "0123456789abcdef-token"
CLIENT = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
OPEN = ("/health", "/api/login")  # without a token, beside the page's own files


def raw(server: Any, path: str, headers: dict[str, str], body: bytes = b"{}", method: str = "POST") -> int:
    return CLIENT.request(method, server.url + path, headers=headers, content=body).status_code


def routes(server: Any) -> list[tuple[str, str]]:
    """The method and path of every route."""
    paths = server.get("/openapi.json")["paths"]
    found = [
        (verb.upper(), re.sub(r"{\w+(:path)?}", "0", path)) for path, verbs in paths.items() for verb in verbs
    ]
    assert len(found) > 90
    return found


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "rebound.example:7860"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
    ids=str,
)
def test_what_a_page_of_another_site_can_send_is_refused(server, headers) -> None:
    for method, path in routes(server):
        # PUT is sent by no page of another site without asking, whatever the body's kind
        if method != "GET" and not (method == "PUT" and "Content-Type" in headers):
            status = raw(server, path, {"Content-Type": "application/json"} | headers, method=method)
            assert status in (403, 415), (method, path)


@pytest.mark.parametrize(
    ("origin", "headers"),
    [
        ("https://evil.example", {}),
        ("null", {}),
        (None, {"Sec-Fetch-Site": "cross-site"}),
    ],
)
def test_another_sites_page_opens_no_socket(server, origin, headers) -> None:
    url = f"ws://127.0.0.1:{server.port}/ws"
    with connect(url) as socket:
        assert json.loads(socket.recv(30))["type"] == "status"
    with pytest.raises(InvalidStatus) as refused, connect(url, origin=origin, additional_headers=headers):
        pass
    assert refused.value.response.status_code == 403


def test_a_form_is_taken_where_pictures_are_uploaded_alone(server) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    forms = {"/v1/images/edits", "/v1/images/variations", "/upload/image"}
    for method, path in routes(server):
        if method not in ("GET", "PUT") and path not in forms:
            assert raw(server, path, form, b"--x--\r\n", method) == 415, (method, path)


def test_without_the_token_only_the_page_and_health_answer(started) -> None:
    server = started(token=TOKEN)
    assert httpx.get(server.url + "/health").status_code == 200
    hidden = [("GET", path) for path in ("/openapi.json", "/docs", "/metrics", "/internal/pending-tasks")]
    for method, path in [*routes(server), *hidden]:
        for wrong in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": "Basic " + base64.b64encode(b"anyone:wrong").decode()},
            {"Cookie": "inkwash_token=wrong"},
        ):
            if path not in OPEN:
                headers = {"Content-Type": "application/json"} | wrong
                assert raw(server, path, headers, b"{}", method) == 401, (method, path)
    with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{server.port}/ws"):
        pass
    assert "Basic" in httpx.get(server.url + "/sdapi/v1/options").headers["www-authenticate"]
    assert server.call("GET", "/api/tasks").status_code == 200
    assert httpx.get(server.url + "/sdapi/v1/options", auth=("anyone", TOKEN)).status_code == 200
    with httpx.Client(base_url=server.url) as browser:
        assert browser.post("/api/login", json={"token": "wrong"}).status_code == 401
        answer = browser.post("/api/login", json={"token": TOKEN})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert browser.get("/api/tasks").status_code == 200


@pytest.mark.parametrize(
    "arguments", [["--host", "0.0.0.0"], ["--token", "short"], ["--token", "with blanks in the token"]]
)
def test_it_does_not_start_open_to_others(tmp_path, arguments) -> None:
    command = [sys.executable, "-m", "inkwash", "serve", "--state", str(tmp_path / "state"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "token" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server) -> None:
    lines = (
        "POST /sdapi/v1/txt2img HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {1 << 40}",
    )
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b"null", b"[]", b'{"prompt": NaN}', b'{"task": 1}', b'"\\ud800"', b"\xff\xfe",
     b'{"seed": 1e999}',     json.dumps({"steps": 10**40}).encode()],
    ids=lambda body: repr(body[:20]),
)  # fmt: skip
def test_damaged_json_is_the_clients_fault_everywhere(server, body) -> None:
    for path in (
        "/api/jobs",
        "/api/recipe",
        "/sdapi/v1/img2img",
        "/sdapi/v1/png-info",
        "/v1/images/generations",
        "/prompt",
    ):
        answer = httpx.post(
            server.url + path, content=body, headers={"Content-Type": "application/json"}, timeout=60
        )
        assert 400 <= answer.status_code < 500, (path, answer.text)
        assert "Traceback" not in answer.text
        assert "site-packages" not in answer.text


def test_every_answer_says_what_a_browser_may_do(server) -> None:
    for path in ("/", "/health", "/api/tasks", "/api/jobs/nothing"):
        headers = server.call("GET", path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_a_full_queue_says_when_to_come_again(started) -> None:
    server = started("--max-queue", "3")
    server.post("/api/queue", {"paused": True})
    body = {"task": "text_to_image", "request": {"prompt": "x", "steps": 1, "seed": 0}}
    answers = [server.call("POST", "/api/jobs", json=body) for _ in range(30)]
    assert [answer.status_code for answer in answers] == [202] * 3 + [429] * 27
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers[3:])
    assert max(answer.elapsed.total_seconds() for answer in answers[3:]) < 0.5
    assert (
        server.call("POST", "/v1/images/generations", json={"prompt": "x"}).json()["error"]["type"]
        == "rate_limit_error"
    )
    server.post("/api/queue", {"paused": False})
    assert all(server.wait(answer.json()["id"])["state"] == "done" for answer in answers[:3])
