"""The process for calls that draw nothing, which is there while it is needed."""

import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from inkwash.serve.images import suffix_of
from inkwash.serve.process import Process

IDLE = 120.0  # seconds after which the process ends


class Helper:
    """A drawing process of its own that answers questions. folder: for temporary files."""

    def __init__(self, load: Mapping[str, Any], folder: Path):
        self.process = Process({"load": load, "resident_bytes": None}, lambda event: None)
        self.folder = folder
        self.used = 0.0

    async def ask(self, call: str, **arguments: Any) -> dict[str, Any]:
        """The result of a call. Raises Refusal."""
        self.used = time.monotonic()
        try:
            return await self.process.result(call, **arguments)
        finally:
            self.used = time.monotonic()

    @asynccontextmanager
    async def file_of(self, data: bytes) -> AsyncIterator[str]:
        """A picture in a temporary file. Raises Refusal for no picture."""
        suffix = suffix_of(data, "image")
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = Path(folder) / f"image{suffix}"
            path.write_bytes(data)
            yield str(path)

    async def annotate(self, kind: str, image: bytes, **numbers: float) -> bytes:
        """The hint that an annotator makes of a picture, a PNG. Raises Refusal."""
        async with self.file_of(image) as path:
            hint = Path(path).with_name("hint.png")
            await self.ask("annotate", kind=kind, path=path, output=str(hint), numbers=numbers)
            return hint.read_bytes()

    async def enlarge(
        self, upscaler: str, device: str, image: bytes, size: tuple[int, int] | None = None
    ) -> bytes:
        """A picture in another (width, height), or enlarged by what its file is for, by a pixel upscaler's file, a PNG.

        Raises Refusal.
        """
        async with self.file_of(image) as path:
            larger = Path(path).with_name("larger.png")
            await self.ask(
                "enlarge", upscaler=upscaler, device=device, path=path, output=str(larger), size=size
            )
            return larger.read_bytes()

    async def rest(self, idle: float = IDLE) -> None:
        """End the process where it has been idle for so many seconds."""
        if not self.process.answers and self.process.pid and time.monotonic() - self.used >= idle:
            await self.process.stop()
