"""The server's settings."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Settings:
    """The server's address, models and limits."""

    state: Path  # the folder of the queue and of the pictures
    model: str = "mini"
    models: Path | None = None  # a folder of models and of what prompts name
    data: Path | None = None  # a folder of pictures to train on
    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    hosts: tuple[str, ...] = ()  # names by which clients may call it, beside this machine's own
    devices: tuple[str, ...] = ("cpu",)  # a process draws on each
    # workers of a Ray cluster, at most, each with the first device; 0: processes of this machine
    ray: int = 0
    resident_bytes: int | None = None  # of models that stay open, in each process; None: one model
    max_queue: int = 2000  # jobs
    max_pixels: int = 2**24  # of a picture
    max_body: int = 64 << 20  # bytes of a request
    load: dict[str, Any] = field(default_factory=dict)  # keywords of `inkwash.load`
    places: dict[str, tuple[Path, ...]] = field(default_factory=dict)  # of `inkwash.prompts.folders.Folders`
    grace: float = 20.0  # seconds that the running jobs have to end in, once the server is to stop
