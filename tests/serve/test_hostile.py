"""Hostile requests, in this process, where every file and address that is opened is seen.

Counts are a hundredth of those of `make test-full`.
"""

import base64
import json
import random
import string
import struct
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin

from inkwash.serve.app import make_app
from inkwash.serve.settings import Settings

opened: list[str] = []
connected: list[Any] = []
watching = False


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook can't be taken away; it keeps nothing but while it is watching."""
    if watching and event == "open":
        opened.append(str(arguments[0]))
    if watching and event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        connected.append(arguments)


sys.addaudithook(hook)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server whose queue stands still: what is asked for is checked and kept, and nothing drawn."""
    place = tmp_path_factory.mktemp("hostile")
    for name in ("models/loras", "models/controlnet", "data/things"):
        (place / name).mkdir(parents=True)
    (place / "secret.png").write_bytes(png())
    (place / "models/controlnet/net.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    settings = Settings(place / "state", models=place / "models", data=place / "data", max_queue=10**6)
    with TestClient(make_app(settings), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        client.post("/api/queue", json={"paused": True}).raise_for_status()
        yield client


@pytest.fixture
def watched() -> Iterator[None]:
    global watching
    opened.clear()
    connected.clear()
    watching = True
    yield
    watching = False


def png(
    size: tuple[int, int] = (16, 16), info: PngImagePlugin.PngInfo | None = None, kind: str = "PNG"
) -> bytes:
    buffer = BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(buffer, kind, **{"pnginfo": info} if info else {})
    return buffer.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Bytes with some changed, cut out, doubled or appended."""
    made = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(len(made) or 1)
        way = draw.randrange(5)
        if way == 0 and made:
            made[place] = draw.randrange(256)
        elif way == 1:
            del made[place : place + draw.randint(1, 64)]
        elif way == 2:
            made[place:place] = made[max(0, place - 32) : place]
        elif way == 3:
            made[place : place + 4] = draw.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        else:
            made = made[:place] or bytearray(data[:4])
    return bytes(made)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bomb(width: int, height: int, kind: int, *more: bytes) -> bytes:
    """A PNG whose header promises more pixels than there are. kind: depth * 256 + colour. more: chunks after the header."""
    header = chunk(b"IHDR", struct.pack(">IIHBBB", width, height, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 10**6))
    palette = chunk(b"PLTE", b"\0" * 3) if kind & 255 == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + header + palette + b"".join(more) + pixels + chunk(b"IEND", b"")


def jpeg_bomb(width: int, height: int) -> bytes:
    """A JPEG whose frame promises more pixels than there are."""
    made = bytearray(png(kind="JPEG"))
    place = made.index(b"\xff\xc0") + 5
    made[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(made)


def webp_bomb(width: int, height: int) -> bytes:
    """A WebP whose canvas promises more pixels than there are."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<IB3x", 10, 0) + size + png(kind="WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


SIDES = (
    (2**14, 2**14), (2**31 - 1, 1), (1, 2**31 - 1), (65535, 65535), (2**20, 2**12), (0, 0), (3, 2**30), (2**30, 3),
    (8193, 8193),
)  # fmt: skip
KINDS = (0x0802, 0x1006, 0x0803, 0x0100)  # RGB, RGBA of 16 bits, a palette, black and white
SMALL_SIDES = (
    (65535, 65535),
    (65535, 4097),
    (16384, 16383),
    (8193, 8193),
    (1, 65535),
    (65535, 1),
    (30000, 9000),
)
PACKED = zlib.compress(b"\0" * (100 << 20))  # 100 kB that unpack to 100 MB
BOMBS = [
    *(png_bomb(*side, kind) for side in SIDES for kind in KINDS),
    *(jpeg_bomb(*side) for side in SMALL_SIDES),
    *(webp_bomb(*side) for side in SMALL_SIDES),
    *(png_bomb(16, 16, kind, chunk(b"zTXt", b"parameters\0\0" + PACKED)) for kind in KINDS),
    *(png_bomb(16, 16, kind, chunk(b"iTXt", b"inkwash\0\1\0\0\0" + PACKED)) for kind in KINDS),
    *(png_bomb(16, 16, kind, chunk(b"iCCP", b"x\0\0" + PACKED)) for kind in KINDS),
]


def resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("num", [600, pytest.param(300_000, marks=pytest.mark.full)])
def test_damaged_pictures_are_the_clients_fault(app, num) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a fox\nNegative prompt: x\nSteps: 20, Sampler: Euler, Seed: 1, Size: 16x16")
    info.add_itxt("inkwash", json.dumps({"task": "text_to_image", "request": {"prompt": "x"}}))
    whole, draw = [png(info=info), png(kind="JPEG"), png(kind="WEBP")], random.Random(0)
    paths = (
        "/sdapi/v1/png-info",
        "/api/upscale",
        "/sdapi/v1/img2img",
        "/sdapi/v1/extra-single-image",
        "/api/recipe",
    )
    before = resident()
    for k in range(num):
        text, path = b64(mutated(whole[k % 3], draw)), paths[k // 3 % len(paths)]
        body = {"image": text, "init_images": [text], "upscaler_1": "Lanczos", "mask": text, "prompt": "x"}
        if path in ("/api/upscale", "/api/recipe"):
            body = {"image": text}
        elif path == "/sdapi/v1/img2img":
            path, body = (
                "/api/jobs",
                {"task": "image_to_image", "request": {"prompt": "x"}, "images": {"image": text}},
            )
        answer = app.post(path, json=body)
        assert answer.status_code < 500, (path, answer.text[:300])
        assert "Traceback" not in answer.text
    assert resident() - before < 300 << 20


def test_pictures_that_promise_too_much_are_refused(app) -> None:
    before = resident()
    for k, data in enumerate(BOMBS):
        for path in ("/api/upscale", "/sdapi/v1/extra-single-image", "/sdapi/v1/png-info", "/api/recipe"):
            body = {"image": b64(data)} | ({"upscaler_1": "Lanczos"} if "extra" in path else {})
            answer = app.post(path, json=body)
            assert answer.status_code < 500 and "Traceback" not in answer.text, (k, path)
            # A1111 answers for a picture whose texts can't be read that it has none
            assert answer.status_code >= 400 or (path == "/sdapi/v1/png-info" and '"info":""' in answer.text)
    assert resident() - before < 300 << 20


PLACES = [
    "/etc/passwd",
    "../secret.png",
    "..",
    ".",
    "/",
    "~",
    "\0",
    "",
    "C:\\x",
    "\\\\host\\share\\x",
    "CON",
    "nul.png",
]
ENDINGS = ["", "\0.png", ".png", "/", "%00", "?", "#", " "]
STARTS = [
    "",
    "../" * 3,
    "..\\" * 3,
    "%2e%2e%2f" * 3,
    "..%c0%af" * 3,
    "file://",
    "file:///",
    "....//",
    "/./",
    "//",
    "things/../../",
]


def traversals() -> list[str]:
    """Texts that mean files elsewhere, to one program or another."""
    found = [start + place + end for start in STARTS for place in PLACES for end in ENDINGS]
    return found[:500]


JOB = {"task": "text_to_image", "request": {"prompt": "x"}}
TRAIN = {"method": "lora", "name": "n", "data": ["things"]}


def requests_with(text: str) -> Iterator[tuple[str, str, Any]]:
    """Requests that hold a text wherever a file could be meant."""
    yield "POST", "/api/jobs", JOB | {"model": text}
    yield (
        "POST",
        "/api/jobs",
        {"task": "image_to_image", "request": {"prompt": "x"}, "images": {"image": text}},
    )
    yield (
        "POST",
        "/api/jobs",
        JOB | {"request": {"prompt": "x", "controls": [{"model": text, "image": b64(png())}]}},
    )
    yield (
        "POST",
        "/api/jobs",
        JOB | {"request": {"prompt": "x", "controls": [{"model": "net", "image": text}]}},
    )
    yield "POST", "/api/models/load", {"name": text}
    yield "POST", "/api/recipe", {"image": text}
    yield "POST", "/api/uploads", {"image": text}
    yield "POST", "/api/train", {"config": TRAIN | {"data": [text]}}
    yield "POST", "/api/train", {"config": TRAIN | {"name": text}}
    yield "POST", "/api/train", {"config": TRAIN | {"model": text}}
    yield "POST", "/api/merge", {"config": {"name": text, "models": ["mini", "mini"]}}
    yield "POST", "/sdapi/v1/options", {"sd_model_checkpoint": text}
    yield "POST", "/sdapi/v1/png-info", {"image": text}
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": text}}}
    yield (
        "POST",
        "/prompt",
        {"prompt": graph | {"2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}},
    )
    yield "GET", "/view", {"filename": text, "type": "input"}
    yield "GET", "/view", {"filename": "x.png", "subfolder": text, "type": text}


def send(app: TestClient, method: str, path: str, body: Any) -> Any:
    return app.get(path, params=body) if method == "GET" else app.request(method, path, json=body)


@pytest.mark.parametrize("num", [25, pytest.param(500, marks=pytest.mark.full)])
def test_no_name_leads_out_of_the_servers_folders(app, num, watched) -> None:
    texts = traversals()
    assert len(texts) == 500
    random.Random(0).shuffle(texts)
    for text in texts[:num]:
        for method, path, body in requests_with(text):
            answer = send(app, method, path, body)
            assert answer.status_code < 500, (path, text, answer.text)
            assert "root:" not in answer.text
    root = str(app.app.state.dispatcher.settings.state.parent)  # type: ignore[attr-defined]
    own = (root, sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "/proc", "/dev", "/tmp", "/sys")
    elsewhere = [path for path in opened if path.startswith("/") and not path.startswith(own)]
    assert [path for path in elsewhere if not path.startswith(("/usr", "/lib", "/etc/ld"))] == []
    assert not [path for path in opened if "secret" in path or "passwd" in path]


HOSTS = ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "0x7f000001", "0177.0.0.1", "169.254.169.254",
         "metadata.google.internal", "a@127.0.0.1", "127.0.0.1#@example.org", "[::ffff:127.0.0.1]"]  # fmt: skip
SCHEMES = ["http://", "https://", "ftp://", "gopher://", "//"]


def test_no_address_is_opened(app, watched) -> None:
    for url in [f"{scheme}{host}/x.png" for scheme in SCHEMES for host in HOSTS]:
        for method, path, body in requests_with(url):
            assert send(app, method, path, body).status_code < 500
    assert connected == []


def anything(draw: random.Random, depth: int = 0) -> Any:
    """A value of JSON."""
    kind = draw.randrange(9 if depth < 3 else 7)
    if kind == 0:
        return None
    if kind == 1:
        return draw.choice((True, False))
    if kind == 2:
        return draw.choice((0, -1, 1, 2**31, 2**63, -(2**63), 10**30))
    if kind == 3:
        return draw.choice((0.5, -0.0, 1e308, 1e-308))
    if kind < 7:
        return "".join(draw.choices(string.printable + "\0\u202e\U0001f600", k=draw.choice((0, 1, 8, 300))))
    values = [anything(draw, depth + 1) for _ in range(draw.randrange(4))]
    return values if kind == 7 else {str(anything(draw, 3)): value for value in values}


def fields_of(schema: Any, root: dict[str, Any]) -> list[str]:
    """The names of a body's fields."""
    if "$ref" in schema:
        schema = root["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return list(schema.get("properties", {}))


@pytest.mark.parametrize("num", [400, pytest.param(20_000, marks=pytest.mark.full)])
def test_bodies_that_mean_nothing_are_the_clients_fault(app, num) -> None:
    """Fields of the schema with values of any kind, on every route."""
    schema, draw = app.get("/openapi.json").json(), random.Random(1)
    slow = (
        "/api/events",
        "/api/jobs/{id}/events",
        "/v1/images/generations",
        "/sdapi/v1/txt2img",
        "/sdapi/v1/img2img",
    )
    helped = (
        "/api/models/refresh",
        "/sdapi/v1/refresh",
        "/sdapi/v1/reload",
        "/sdapi/v1/unload",
        "/api/tokens",
    )
    routes = [
        (path, method, about)
        for path, methods in schema["paths"].items()
        for method, about in methods.items()
        if path not in slow and not path.startswith(helped) and path != "/api/queue"
    ]
    for _ in range(num):
        path, method, about = draw.choice(routes)
        body = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
        names = fields_of(body, schema)
        values = {name: anything(draw) for name in draw.sample(names, draw.randint(0, len(names)))}
        filled = path.replace("{id}", draw.choice(("0" * 24, "x", "..", "%00"))).replace("{file}", "0.png")
        query = {p["name"]: str(anything(draw, 3)) for p in about.get("parameters", ()) if p["in"] == "query"}
        content = draw.choice((json.dumps(values), json.dumps(anything(draw)), "{", json.dumps([values])))
        given = {"content": content.encode(), "headers": {"Content-Type": "application/json"}} if body else {}
        answer = app.request(method.upper(), filled.replace("{kind}", "KSampler"), params=query, **given)
        assert answer.status_code < 500, (method, path, content, query, answer.text)
        assert "Traceback" not in answer.text
        assert "site-packages" not in answer.text


def test_an_answer_of_500_says_what_a_browser_may_do(app, monkeypatch) -> None:
    monkeypatch.setattr(type(app.app.state.dispatcher.queue), "order", None)  # type: ignore[attr-defined]
    answer = app.get("/api/jobs")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the server has failed; its log says more"
    assert answer.headers.get_list("content-security-policy")[0].startswith("default-src 'none'")


def test_the_pages_files_are_asked_for_again(app) -> None:
    first = app.get("/app/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = app.get("/app/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == "no-cache"
