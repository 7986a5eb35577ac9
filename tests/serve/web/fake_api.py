"""A small server of /api for the page's tests: real task table, drawn-by-formula pictures, and texts that attack.

It keeps jobs in memory and finishes them when told to (`run`), so that a test sees each state as long as it needs.
"""

import base64
import io
import json
import queue
import re
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from inkwash.pipeline.tasks import TASKS

WEB = Path(__file__).parents[3] / "src/inkwash/serve/web"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'"
)


def table() -> list[dict[str, Any]]:
    return [
        {
            "name": task.name,
            "title": task.name.replace("_", " ").capitalize(),
            "summary": task.summary,
            "images": {role: {"mode": mode, "required": True} for role, mode in task.images.items()},
            "inputs_of_model": task.sees,
            "schema": task.request.model_json_schema(),
        }
        for task in TASKS.values()
    ]


def picture(hue: int, size: tuple[int, int] = (128, 128), kind: str = "PNG") -> bytes:
    """A plane whose colour goes from one hue to the next, so that pictures can be told apart."""
    wide = Image.linear_gradient("L").resize(size).point(lambda value: (hue * 37 + value // 6) % 256)
    full = Image.new("L", size, 255)
    buffer = io.BytesIO()
    Image.merge("HSV", (wide, full.point(lambda _: 150), full)).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


class FakeApi:
    """The state behind the server; tests read and change it."""

    def __init__(self) -> None:
        self.tasks = table()
        self.models: list[dict[str, Any]] = [
            {"name": "mini", "title": "mini", "hash": "0" * 10, "family": "mini", "loaded": True, "size": 1,
             "tasks": ["text_to_image", "image_to_image", "inpaint", "outpaint"]},
            {"name": "mini-inpainting", "title": "mini-inpainting", "hash": "1" * 10, "family": "mini", "loaded": False,
             "size": 1, "tasks": ["inpaint", "outpaint"]},
        ]  # fmt: skip
        self.extras: dict[str, Any] = {
            "loras": [{"name": "ink", "path": "ink.safetensors", "hash": "2" * 10, "triggers": ["inkstyle"]}],
            "embeddings": [{"name": "soft-light"}],
            "hypernetworks": [],
            "controlnets": [],
            "upscalers": ["lanczos"],
            "styles": [{"name": "watercolour", "prompt": "{prompt}, watercolour", "negative_prompt": ""}],
            "wildcards": ["colours"],
            "annotators": ["canny", "depth"],
        }
        self.controls: list[dict[str, Any]] = []
        self.current, self.paused, self.token = "mini", False, None
        self.recipe: dict[str, Any] | str = "it carries no recipe"
        self.refusal: dict[str, Any] | None = None  # what the next job is answered by
        self.openapi: dict[str, Any] = {"paths": {"/api/annotate": {}, "/api/upscale": {}}}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.bodies: list[dict[str, Any]] = []  # of the jobs that were asked for
        self.previews: list[str] = []
        self.listeners: list[queue.Queue[bytes]] = []
        self.address = ""
        self.policy: str | None = CSP

    # what tests do

    def run(self, job_id: str, previews: int = 1, finish: bool = True) -> dict[str, Any]:
        """Draw a job: running, with progress and previews, then done."""
        job = self.jobs[job_id]
        steps = job["request"].get("steps", 20)
        job |= {"state": "running", "position": None, "started": time.time()}
        self.tell("job", job)
        for step in range(1, previews + 1):
            progress = {
                "step": step,
                "num_steps": steps,
                "picture": 0,
                "num_pictures": 1,
                "seconds_left": 75.0,
            }
            job["progress"] = progress
            self.tell("progress", {"id": job_id, **progress})
            self.previews.append(url(picture(step, (32, 32), "JPEG"), "jpeg"))
            self.tell("preview", {"id": job_id, "image": self.previews[-1]})
        if finish:
            self.finish(job)
        return job

    def finish(self, job: dict[str, Any]) -> None:
        cells = 1
        for values in job["grid"].values():
            cells *= len(values)
        request, number = job["request"], int(job["id"].removeprefix("job"))
        for k in range(max(cells, request.get("batch_size", 1))):
            name = f"/api/pictures/{job['id']}/{k}"
            size = (request.get("width") or 128, request.get("height") or 128)
            self.files[name + ".png"] = picture(number + k, size)
            self.files[name + ".webp"] = picture(number + k, (64, 64), "WEBP")
            seed = request["seed"] + k
            job["pictures"].append(
                {"url": name + ".png", "thumbnail": name + ".webp", "width": size[0], "height": size[1], "seed": seed,
                 "parameters": f"{request.get('prompt')}\nSteps: 20, Seed: {seed}",
                 "recipe": {"task": job["task"], "request": request | {"seed": seed}}}
            )  # fmt: skip
        job |= {"state": "done", "progress": None, "finished": time.time()}
        self.tell("job", job)

    def hang_up(self) -> None:
        """End all streams of events; pages connect again by themselves."""
        for listener in self.listeners[:]:
            listener.put(b"")

    def tell(self, event: str, data: object) -> None:
        for listener in self.listeners:
            listener.put(f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())

    def add(self, body: dict[str, Any]) -> dict[str, Any]:
        number = len(self.jobs) + 1
        job: dict[str, Any] = {
            "id": f"job{number}", "task": body["task"], "model": body.get("model") or self.current, "state": "queued",
            "priority": 0, "position": len(self.waiting()), "created": time.time() + number / 1000, "started": None,
            "finished": None, "request": body["request"], "grid": body.get("grid") or {}, "error": None, "progress": None,
            "pictures": [],
        }  # fmt: skip
        self.jobs[job["id"]] = job
        return job

    def waiting(self) -> list[dict[str, Any]]:
        queued = [job for job in self.jobs.values() if job["state"] in ("queued", "paused")]
        return sorted(queued, key=lambda job: job["position"])

    def move(self, job: dict[str, Any], position: int) -> None:
        rest = [other for other in self.waiting() if other is not job]
        rest.insert(position, job)
        for place, other in enumerate(rest):
            other["position"] = place

    # what the page asks

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        if path in ("/api/train", "/api/merge"):
            self.bodies.append(body)
            return 202, self.add({"task": path.removeprefix("/api/"), "request": {}})
        if path == "/api/jobs" and method == "POST":
            self.bodies.append(body)
            if self.refusal:
                refusal, self.refusal = self.refusal, None
                return 422, {"error": refusal}
            return 202, self.add(body)
        if path == "/api/jobs":
            found = [
                job for job in self.jobs.values() if not query.get("state") or job["state"] == query["state"]
            ]
            found = [job for job in found if query.get("search", "") in str(job["request"].get("prompt", ""))]
            found.sort(key=lambda job: -job["created"])
            start = int(query.get("before", 0))
            end = start + int(query.get("limit", 50))
            return 200, {"jobs": found[start:end], "next": end if end < len(found) else None}
        if match := re.fullmatch(r"/api/jobs/(\w+)(/\w+)?", path):
            return self.change(method, self.jobs[match[1]], match[2], body)
        if path == "/api/queue":
            if method == "POST":
                self.paused = body["paused"]
            return 200, {"paused": self.paused, "length": len(self.waiting()), "jobs": self.waiting()}
        if path == "/api/models/load":
            self.current = body["name"]
        if path == "/api/recipe" and isinstance(self.recipe, str):
            return 422, {"error": {"message": self.recipe, "field": None}}
        return 200, {
            "/api/tasks": {"tasks": self.tasks},
            "/api/models": {"models": self.models, "current": self.current},
            "/api/models/load": self.models[0],
            "/api/models/refresh": {"models": self.models, "current": self.current},
            "/api/extras": self.extras,
            "/api/controls": {"model": self.current, "controls": self.controls},
            "/api/recipe": self.recipe,
            "/openapi.json": self.openapi,
            "/api/tokens": {"count": len(str((body or {}).get("text")).split()), "chunks": 1, "limit": 75, "tokens": []},
            "/api/annotate": {"image": url(picture(9))},
            "/api/upscale": {"image": url(picture(3, (256, 256)))},
        }[path]  # fmt: skip

    def change(self, method: str, job: dict[str, Any], action: str | None, body: Any) -> tuple[int, Any]:
        if method == "DELETE":
            del self.jobs[job["id"]]
            return 204, None
        if method == "PATCH" and "position" in body:
            self.move(job, body["position"])
        elif method == "PATCH":
            job |= body
        if action == "/cancel":
            job |= {"state": "cancelled", "position": None}
        if action == "/retry":
            job = self.add({"task": job["task"], "request": job["request"]})
        return 200, job


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: FakeApi

    def log_message(self, format: str, *args: object) -> None:
        pass

    def send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if self.api.policy:
            self.send_header("Content-Security-Policy", self.api.policy)
        self.end_headers()
        self.wfile.write(data)

    def send_file(self, path: str) -> None:
        file = WEB / (path.removeprefix("/") or "index.html")
        if file.is_file():
            self.send(200, file.read_bytes(), TYPES[file.suffix])
        else:
            self.send(404, b"", "text/plain")

    def events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        mine: queue.Queue[bytes] = queue.Queue()
        mine.put(b"retry: 300\n\n")
        self.api.listeners.append(mine)
        try:
            while True:
                if not (event := mine.get()):
                    break
                self.wfile.write(event)
        except OSError:
            pass
        self.api.listeners.remove(mine)

    def handle_any(self) -> None:
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        if path in self.api.files:
            return self.send(200, self.api.files[path], f"image/{path.rsplit('.')[-1]}")
        if not path.startswith(("/api/", "/openapi.json")):
            return self.send_file(path)
        if path == "/api/login":
            self.api.token = None if body["token"] == self.api.token else self.api.token
        if self.api.token:
            return self.send(
                401, b'{"error": {"message": "the token is wrong", "field": null}}', "application/json"
            )
        if path == "/api/events":
            return self.events()
        if path == "/api/login":
            return self.send(204, b"", "application/json")
        status, answer = self.api.answer(self.command, path, dict(urllib.parse.parse_qsl(query)), body)
        return self.send(status, b"" if answer is None else json.dumps(answer).encode(), "application/json")

    do_GET = do_POST = do_PATCH = do_DELETE = handle_any


def serve(api: FakeApi) -> tuple[ThreadingHTTPServer, str]:
    """A running server and its address; `shutdown` ends it."""
    handler = type("Bound", (Handler,), {"api": api})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"
