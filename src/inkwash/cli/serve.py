"""`inkwash serve`: pictures over HTTP."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from inkwash.cli import options
from inkwash.cli.converters import whole

if TYPE_CHECKING:
    from inkwash.serve.settings import Settings

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    *,
    loading: options.LoadOptions = options.DEFAULTS,
    models: Annotated[
        Path | None,
        Parameter(help="Folder of models; its folders loras, embeddings, wildcards ... are served, too."),
    ] = None,
    data: Annotated[
        Path | None,
        Parameter(help="Folder of pictures that clients may train on; results go into the folder of models."),
    ] = None,
    host: Annotated[
        str, Parameter(help="Address to listen at; beyond this machine, a token is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(converter=whole, help="Port to listen at.")] = 7860,
    token: Annotated[
        str | None,
        Parameter(
            help="What clients must give, also as the environment's INKWASH_TOKEN; 16 characters or more."
        ),
    ] = None,
    allow_host: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=False,
            negative="",
            help="A name that clients may call the server by; repeatable.",
        ),
    ] = (),
    state: Annotated[
        Path | None,
        Parameter(help="Folder of the queue and the pictures; default: inkwash in the user's state."),
    ] = None,
    also_on: Annotated[
        tuple[str, ...],
        Parameter(consume_multiple=False, negative="", help="A further device that draws; repeatable."),
    ] = (),
    ray: Annotated[
        int,
        Parameter(
            converter=whole,
            help="Workers of a Ray cluster that draw in place of this machine, at most; each has a GPU by --device cuda.",
        ),
    ] = 0,
    max_queue: Annotated[int, Parameter(converter=whole, help="Jobs that may wait.")] = 2000,
    keep_models: Annotated[
        float | None,
        Parameter(help="GB of models that stay open on each device; default: the one that was used last."),
    ] = None,
    check: Annotated[bool, Parameter(negative="", help="Say what would be served, and end.")] = False,
) -> None:
    """Serve the page and the APIs: inkwash's own, AUTOMATIC1111's, OpenAI's and ComfyUI's.

    The queue is kept: what was accepted is drawn, also after a crash.
    """
    token = token or os.environ.get("INKWASH_TOKEN") or None
    if host not in LOOPBACK and not token:
        raise options.usage_error(f"--host {host} lets other machines in: give a --token, too")
    if token and (len(token) < 16 or not re.fullmatch(r"[\w.~+/=-]+", token, re.ASCII)):
        raise options.usage_error("--token has 16 or more letters, digits and . _ ~ + / = - alone")
    if not 0 <= port <= 65535 or max_queue < 1:
        raise options.usage_error(f"--port {port}, --max-queue {max_queue}: 0 to 65535, and 1 or more")
    for name, folder in (("--models", models), ("--data", data)):
        if folder and not folder.is_dir():
            raise options.file_error(f"{name} {folder}: there is no such folder")
    if (ray and (data or also_on)) or not 0 <= ray <= 10_000:
        raise options.usage_error(f"--ray {ray}: 0 to 10000, and without --data and --also-on")
    if data and not models:
        raise options.usage_error(f"--data {data}: what is trained needs --models, too")
    try:
        from inkwash.serve.app import run
        from inkwash.serve.settings import Settings
    except ImportError as error:
        raise options.file_error(f"serving needs {error.name}; pip install 'inkwash[serve]'") from None
    how = ("dtype", "int8", "variant", "offline", "refiner", "prior", "compile")
    how += ("vae_tile", "vae_slicing", "offload")
    settings = Settings(
        state=(state or default_state()).absolute(),
        model=loading.model,
        models=models and models.absolute(),
        data=data and data.absolute(),
        host=host,
        port=port,
        token=token,
        hosts=allow_host,
        devices=(loading.device, *also_on),
        ray=ray,
        resident_bytes=None if keep_models is None else int(keep_models * 1e9),
        max_queue=max_queue,
        load={name: getattr(loading, name) for name in how} | {"parts": list(loading.part)},
        places={
            kind: tuple(Path(path).absolute() for path in paths) for kind, paths in loading.places().items()
        },
    )
    if check:
        say(settings)
        return
    if ray:
        options.connect_cluster()
    try:
        run(settings)
    except BlockingIOError:
        raise options.file_error(f"--state {settings.state}: another server uses it") from None


def default_state() -> Path:
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local/state") / "inkwash"


def say(settings: "Settings") -> None:
    """Print what would be served."""
    from inkwash.serve.models import Library
    from inkwash.serve.queue import Queue

    library = Library(settings, Queue(Path(":memory:")))
    print(
        f"http://{settings.host}:{settings.port}, {'with a token' if settings.token else 'without a token'}"
    )
    workers = f", up to {settings.ray} workers of a cluster" if settings.ray else ""
    print(f"devices: {', '.join(settings.devices)}{workers}")
    print(f"queue and pictures: {settings.state}")
    for model in library.models.values():
        print(f"model: {model.name}{' (current)' if model.name == library.current else ''}")
    for kind, paths in library.places().items():
        print(f"{kind}: {', '.join(paths) or 'none'}")
