"""`inkwash serve`: pictures over HTTP."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from inkwash.cli import options
from inkwash.cli.converters import whole

if TYPE_CHECKING:
    from inkwash.serve.models import Library
    from inkwash.serve.settings import Settings

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@Parameter(name="*")
@dataclass(frozen=True)
class ServeOptions:
    """The server's address, models and limits."""

    models: Annotated[
        Path | None,
        Parameter(help="Folder of models; its folders loras, embeddings, wildcards ... are served, too."),
    ] = None
    data: Annotated[
        Path | None,
        Parameter(help="Folder of pictures that clients may train on; results go into the folder of models."),
    ] = None
    host: Annotated[str, Parameter(help="Address to listen at; beyond this machine, a token is needed.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Parameter(converter=whole, help="Port to listen at.")] = 7860
    token: Annotated[
        str | None,
        Parameter(
            help="What clients must give, also as the environment's INKWASH_TOKEN; 16 characters or more."
        ),
    ] = None
    allow_host: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=False,
            negative="",
            help="A name that clients may call the server by; repeatable.",
        ),
    ] = ()
    state: Annotated[
        Path | None,
        Parameter(help="Folder of the queue and the pictures; default: inkwash in the user's state."),
    ] = None
    also_on: Annotated[
        tuple[str, ...],
        Parameter(consume_multiple=False, negative="", help="A further device that draws; repeatable."),
    ] = ()
    ray: Annotated[
        int,
        Parameter(
            converter=whole,
            help="Workers of a Ray cluster that draw in place of this machine, at most; each has a GPU by --device cuda.",
        ),
    ] = 0
    max_queue: Annotated[int, Parameter(converter=whole, help="Jobs that may wait.")] = 2000
    keep_models: Annotated[
        float | None,
        Parameter(help="GB of models that stay open on each device; default: the one that was used last."),
    ] = None

    def check(self) -> None:
        """Check the values. Raises CommandError for the first that is not allowed."""
        if self.host not in LOOPBACK and not self.token:
            raise options.usage_error(f"--host {self.host} lets other machines in: give a --token, too")
        if self.token and (len(self.token) < 16 or not re.fullmatch(r"[\w.~+/=-]+", self.token, re.ASCII)):
            raise options.usage_error("--token has 16 or more letters, digits and . _ ~ + / = - alone")
        if not 0 <= self.port <= 65535 or self.max_queue < 1:
            raise options.usage_error(
                f"--port {self.port}, --max-queue {self.max_queue}: 0 to 65535, and 1 or more"
            )
        for name, folder in (("--models", self.models), ("--data", self.data)):
            if folder and not folder.is_dir():
                raise options.file_error(f"{name} {folder}: there is no such folder")
        if (self.ray and (self.data or self.also_on)) or not 0 <= self.ray <= 10_000:
            raise options.usage_error(f"--ray {self.ray}: 0 to 10000, and without --data and --also-on")
        if self.data and not self.models:
            raise options.usage_error(f"--data {self.data}: what is trained needs --models, too")

    def settings(self, loading: options.LoadOptions) -> "Settings":
        """The server's settings."""
        from inkwash.serve.settings import Settings

        how, places = loading.how(), loading.places()
        return Settings(
            state=(self.state or default_state()).absolute(),
            model=loading.model,
            models=self.models and self.models.absolute(),
            data=self.data and self.data.absolute(),
            host=self.host,
            port=self.port,
            token=self.token,
            hosts=self.allow_host,
            devices=(how.pop("device"), *self.also_on),
            ray=self.ray,
            resident_bytes=None if self.keep_models is None else int(self.keep_models * 1e9),
            max_queue=self.max_queue,
            load=how | {"parts": list(loading.parts)},
            places={kind: tuple(Path(path).absolute() for path in paths) for kind, paths in places.items()},
        )


DEFAULTS = ServeOptions()


def serve(
    *,
    loading: options.LoadOptions = options.DEFAULTS,
    serving: ServeOptions = DEFAULTS,
    check: Annotated[bool, Parameter(negative="", help="Say what would be served, and end.")] = False,
) -> None:
    """Serve the page and the APIs: inkwash's own, AUTOMATIC1111's, OpenAI's and ComfyUI's.

    The queue is kept: what was accepted is drawn, also after a crash.
    """
    serving = replace(serving, token=serving.token or os.environ.get("INKWASH_TOKEN") or None)
    serving.check()
    try:
        from inkwash.serve.app import run
    except ImportError as error:
        raise options.file_error(f"serving needs {error.name}; pip install 'inkwash[serve]'") from None
    settings = serving.settings(loading)
    library = library_of(settings)
    if check:
        say(settings, library)
        return
    if settings.ray:
        options.connect_cluster()
    try:
        run(settings)
    except BlockingIOError:
        raise options.file_error(f"--state {settings.state}: another server uses it") from None


def default_state() -> Path:
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local/state") / "inkwash"


def library_of(settings: "Settings") -> "Library":
    """The models that would be served. Raises CommandError where the one to begin with is none."""
    from inkwash.files import ModelFileError
    from inkwash.serve.models import Library
    from inkwash.serve.queue import Queue
    from inkwash.weights.bytes.paths import check_model_name

    library = Library(settings, Queue(Path(":memory:")))
    try:
        check_model_name(library.resolve(settings.model).source)
    except ModelFileError as error:
        raise options.file_error(str(error)) from None
    return library


def say(settings: "Settings", library: "Library") -> None:
    """Print what would be served."""
    print(
        f"http://{settings.host}:{settings.port}, {'with a token' if settings.token else 'without a token'}"
    )
    workers = f", up to {settings.ray} workers of a cluster" if settings.ray else ""
    print(f"devices: {', '.join(settings.devices)}{workers}")
    print(f"queue and pictures: {settings.state}")
    for model in library.models.values():
        print(f"model: {model.name}{' (current)' if model.name == library.current else ''}")
    for kind in ("loras", "embeddings", "hypernetworks", "wildcards"):
        print(f"{kind}: {', '.join(library.named(kind)) or 'none'}")
    print(f"styles: {', '.join(style['name'] for style in library.styles()) or 'none'}")
    print(f"controls: {', '.join(library.controls())}")
    print(f"upscalers: {', '.join(library.upscalers()) or 'none'}")
