"""The application: all dialects behind one guard, the page, health and metrics."""

import html
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

import inkwash
from inkwash.pipeline.problems import describe
from inkwash.serve import api, comfy, openai, sdapi
from inkwash.serve.answers import dispatcher_of
from inkwash.serve.builds import TRAININGS
from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.errors import Refusal
from inkwash.serve.guard import HEADERS, Guard, error_body, status_of
from inkwash.serve.settings import Settings

if sys.platform != "win32":
    import fcntl

log = logging.getLogger("inkwash.serve")
DIALECTS = (sdapi.router, openai.router, comfy.router)  # beside our own
WEB = Path(str(files("inkwash.serve") / "web"))
STATES = ("queued", "paused", "running", "done", "failed", "cancelled")


def make_app(settings: Settings) -> FastAPI:
    """The application of a server; it draws between its start-up and its shut-down."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.dispatcher = Dispatcher(settings)
        await app.state.dispatcher.open()
        yield
        await app.state.dispatcher.close()

    app = FastAPI(title="inkwash", version=inkwash.__version__, lifespan=life, docs_url=None, redoc_url=None)
    for router in (api.routes(settings), *DIALECTS):
        app.include_router(router)
    app.get("/health")(health)
    app.get("/metrics")(metrics)
    app.get("/docs", include_in_schema=False)(docs)
    for kind in (
        Refusal,
        RequestValidationError,
        HTTPException,
        RecursionError,
        UnicodeEncodeError,
        Exception,
    ):
        app.exception_handler(kind)(refused)
    page = [f"/{path.relative_to(WEB).as_posix()}" for path in WEB.rglob("*")] if WEB.is_dir() else []
    if page:
        app.mount("/", Page(directory=WEB, html=True))
    app.add_middleware(Guard, settings=settings, open_paths=page)  # pyright: ignore[reportArgumentType]
    return app


class Page(StaticFiles):
    """The page's files: a browser asks each time whether its copy is the newest."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


def refused(request: Request, error: Exception) -> JSONResponse:
    """The response for an error, in the client's dialect."""
    path = request.url.path
    if isinstance(error, Refusal):
        refusal = error
    elif isinstance(error, RequestValidationError):
        problems = [{**one, "loc": place_of(one["loc"]) or ("the body",)} for one in error.errors()]
        refusal = Refusal(
            422, "; ".join(short(describe(one, str)) for one in problems), str(problems[0]["loc"][0])
        )
    elif isinstance(error, HTTPException):
        refusal = Refusal(error.status_code, str(error.detail), headers=error.headers)
    elif isinstance(error, RecursionError | UnicodeEncodeError):
        refusal = Refusal(400, "the request holds what can't be read")
    else:
        # this answer is made outside of the guard
        refusal = Refusal(500, "the server has failed; its log says more", headers=HEADERS)
        log.error("%s %s failed", request.method, path, exc_info=error)
    return JSONResponse(error_body(path, refusal), status_of(path, refusal), refusal.headers)


def place_of(place: Sequence[Any]) -> tuple[Any, ...]:
    """The place of an error in a body; of a configuration, the option, whatever kind of it is meant."""
    _, *inner = place
    if inner[:1] == ["config"] and len(inner) > 1:
        return tuple(inner[1 + (inner[1] in TRAININGS) :]) or ("config",)
    return tuple(inner)


def short(text: str) -> str:
    """A message without the bulk of a value that it quotes."""
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-140:]}"


async def health() -> dict[str, str]:
    """Answer that the server is up."""
    return {"status": "ok"}


async def metrics(request: Request) -> PlainTextResponse:
    """Counts and times, as Prometheus reads them."""
    dispatcher = dispatcher_of(request)
    counts = dispatcher.queue.counts()
    lines = ["# TYPE inkwash_jobs gauge"]
    lines += [f'inkwash_jobs{{state="{state}"}} {counts.get(state, 0)}' for state in STATES]
    for name, kind, value in (
        ("inkwash_pictures_total", "counter", dispatcher.totals["pictures"]),
        ("inkwash_drawing_seconds_total", "counter", round(dispatcher.totals["seconds"], 3)),
        ("inkwash_uptime_seconds", "gauge", round(time.time() - dispatcher.started, 1)),
        ("inkwash_workers", "gauge", len(dispatcher.processes)),
        ("inkwash_workers_busy", "gauge", len(dispatcher.running)),
        ("inkwash_queue_paused", "gauge", int(dispatcher.paused)),
        ("inkwash_model_bytes", "gauge", sum(p.memory.get("weights", 0) for p in dispatcher.processes)),
    ):
        lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
    return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


async def docs(request: Request) -> HTMLResponse:
    """All routes on one page that needs no script."""
    rows = []
    for path, methods in request.app.openapi()["paths"].items():
        for method, about in methods.items():
            said = html.escape(about.get("description", about.get("summary", "")))
            rows.append(f"<dt><code>{method.upper()} {html.escape(path)}</code></dt><dd>{said}</dd>")
    title = "inkwash: HTTP API"
    return HTMLResponse(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><h1>{title}</h1>"
        f"<p>The whole schema: <a href=/openapi.json>openapi.json</a></p><dl>{''.join(rows)}</dl></html>"
    )


class Server(uvicorn.Server):
    """A server that exits with 0 on SIGTERM: streams end at once, running jobs are finished or go back into the queue."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, model: str):
        super().__init__(config)
        self.app, self.model = app, model

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where: port 0 is any that is free."""
        await super().startup(sockets)
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            print(f"inkwash serves {self.model} at http://{host}:{port}", flush=True)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        if dispatcher := getattr(self.app.state, "dispatcher", None):
            dispatcher.loop.call_soon_threadsafe(dispatcher.drain)


class Line(logging.Formatter):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        about = {"time": self.formatTime(record), "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            about["error"] = self.formatException(record.exc_info)
        return json.dumps(about, ensure_ascii=False)


def write_log() -> None:
    """Write the server's log, and uvicorn's warnings, to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(Line())
    for name, level in (("inkwash.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


@contextmanager
def only_one(state: Path) -> Iterator[None]:
    """The folder of a queue is this process's alone. Raises BlockingIOError where another one has it."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises BlockingIOError where another server has the folder of the queue."""
    write_log()
    app = make_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(settings.grace) + 5,
        server_header=False,
        ws_max_size=1 << 16,
        h11_max_incomplete_event_size=1 << 16,
    )
    with only_one(settings.state):
        Server(config, app, settings.model).run()
