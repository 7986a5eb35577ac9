"""Checks of every request before a dialect sees it: its host, origin, kind, size and token. For any ASGI server."""

import base64
import binascii
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from contextlib import suppress
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from inkwash.serve.errors import Refusal
from inkwash.serve.settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

COOKIE = "inkwash_token"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
READS = ("GET", "HEAD", "OPTIONS")
FORMS = ("/v1/images/edits", "/v1/images/variations", "/upload/image")  # and nothing else
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """The application behind checks. open_paths: what may be read without a token: the page's own files."""

    def __init__(self, app: Any, settings: Settings, open_paths: Collection[str]):
        self.app, self.settings = app, settings
        self.open_paths = {"/", "/health", "/api/login", *open_paths}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            self.check(scope)
        except Refusal as refusal:
            await refuse(scope, receive, send, refusal)
            return
        left = self.settings.max_body

        async def limited() -> MutableMapping[str, Any]:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise self.too_large()
            return message

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
                    (b"x-request-id", secrets.token_hex(8).encode()),
                ]
            await send(message)

        await self.app(scope, limited, with_headers if scope["type"] == "http" else send)

    def too_large(self) -> Refusal:
        return Refusal(413, f"the request is too large; at most {self.settings.max_body} bytes are taken")

    def check(self, scope: Scope) -> None:
        """Check a request's headers; raise Refusal for a foreign host, another site's page, or a missing token."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], scope.get("method", "GET")
        host = headers.get("host", "")
        if (
            not self.settings.token or self.settings.hosts
        ):  # else a name that leads here still lacks the token
            self.check_host(host)
        if method not in READS or scope["type"] == "websocket":
            check_origin(headers, host)
            if method != "PUT":  # which no page of another site can send without asking
                check_kind(headers, path)
        if not headers.get("content-length", "0").isdecimal():
            raise Refusal(400, "Content-Length is not a number")
        if int(headers.get("content-length", "0")) > self.settings.max_body:
            raise self.too_large()
        needed = self.settings.token if method != "OPTIONS" and path not in self.open_paths else None
        if needed and not any(same(given, needed) for given in tokens(headers)):
            scheme = "Basic" if path.startswith(("/sdapi", "/controlnet", "/internal")) else "Bearer"
            raise Refusal(401, "the token is missing or wrong", headers={"WWW-Authenticate": scheme})

    def check_host(self, host: str) -> None:
        name = urlsplit(f"//{host}").hostname if "[" not in host or "]" in host else None
        if name not in {*LOOPBACK, self.settings.host, *self.settings.hosts}:
            raise Refusal(
                403, f"this server is not called {host[:100]!r}; start it with --allow-host to allow it"
            )


def check_origin(headers: Mapping[str, str], host: str) -> None:
    """Check that no other site's page sent the request; raise Refusal otherwise."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise Refusal(403, f"requests of {origin[:100]!r} are not taken")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Refusal(403, "requests of other sites are not taken")


def check_kind(headers: Mapping[str, str], path: str) -> None:
    """Check the body's content type; raise Refusal for one that another site's page can send without a preflight."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not (kind == "multipart/form-data" and path in FORMS):
        raise Refusal(415, f"a body of {kind[:60]!r} is not taken here; send application/json")
    if not kind and headers.get("content-length", "0") != "0":
        raise Refusal(415, "the body has no Content-Type; send application/json")


def tokens(headers: Mapping[str, str]) -> list[str]:
    """Tokens that a request gives: as Bearer, as the password of Basic, or in the cookie."""
    found = []
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        found.append(value.strip())
    elif scheme.lower() == "basic":
        with suppress(binascii.Error, ValueError):
            found.append(base64.b64decode(value, validate=True).decode().partition(":")[2])
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        cookie = None
    return [*found, cookie.value] if cookie else found


def same(given: str, token: str) -> bool:
    """Compare a token with the right one, in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


async def refuse(scope: Scope, receive: Receive, send: Send, refusal: Refusal) -> None:
    """Answer by a refusal alone."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.message[:120]})
        return
    body = json.dumps(error_body(scope["path"], refusal)).encode()
    headers = (
        HEADERS | refusal.headers | {"Content-Type": "application/json", "Content-Length": str(len(body))}
    )
    if refusal.status == 413:
        headers["Connection"] = "close"
    listed = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": listed})
    await send({"type": "http.response.body", "body": body})


def status_of(path: str, refusal: Refusal) -> int:
    """The HTTP status of a refusal: 400 in place of 422 for OpenAI's clients, which expect that for bad requests."""
    return 400 if path.startswith("/v1") and refusal.status == 422 else refusal.status


OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(path: str, refusal: Refusal) -> dict[str, Any]:
    """The body of a refusal, in the dialect of a path."""
    message, status = refusal.message, refusal.status
    if path.startswith(("/sdapi", "/controlnet", "/internal")):
        return {"error": "HTTPException", "detail": message, "body": "", "errors": message}
    if path.startswith("/v1"):
        kind = OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return {"error": {"message": message, "type": kind, "code": None, "param": refusal.field}}
    return {"error": {"message": message, "field": refusal.field}}
