"""A server of its own process, on a free port of this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import save_file

import inkwash
from inkwash.models.compact import CompactConfig
from tests.support.processes import free_port
from tests.support.upscalers import network


@dataclass
class Served:
    """A running `inkwash serve`."""

    process: subprocess.Popen[bytes]
    port: int
    state: Path
    log: Path
    token: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return httpx.request(
            method, self.url + path, timeout=120, headers=headers | options.pop("headers", {}), **options
        )

    def get(self, path: str, **options: Any) -> Any:
        return self.call("GET", path, **options).raise_for_status().json()

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        return self.call("POST", path, json=body, **options).raise_for_status().json()

    def job(self, request: dict[str, Any], task: str = "text_to_image", **body: Any) -> dict[str, Any]:
        """Put a job into the queue."""
        return self.post("/api/jobs", {"task": task, "request": request, **body})

    def wait(self, id: str, seconds: float = 60) -> dict[str, Any]:
        """A job once it has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            job = self.get(f"/api/jobs/{id}")
            if job["state"] in ("done", "failed", "cancelled"):
                return job
            time.sleep(0.02)
        raise AssertionError(f"the job did not end: {job}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(40)


def start(state: Path, *arguments: str, token: str | None = None) -> Served:
    """Start a server, and wait until it answers."""
    port, log = free_port(), state.with_suffix(".log")
    command = [
        sys.executable,
        "-m",
        "inkwash",
        "serve",
        "--port",
        str(port),
        "--state",
        str(state),
        *arguments,
    ]
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command + (["--token", token] if token else []),
            stdout=stream,
            stderr=stream,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    server = Served(process, port, state, log, token)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            server.get("/health")
            return server
        except httpx.TransportError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
    process.kill()
    raise AssertionError(log.read_text())


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts servers, and ends them with the test."""
    running: list[Served] = []

    def begin(*arguments: str, name: str = "state", **options: Any) -> Served:
        running.append(start(tmp_path / name, *arguments, **options))
        return running[-1]

    yield begin
    for server in running:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Served]:
    """One server for all tests that change nothing of it for others."""
    with serving(tmp_path_factory.mktemp("serve")) as running:
        yield running


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """A server of a folder with styles, wildcards and a broken model."""
    models = folder / "models"
    for name in ("loras", "wildcards", "ESRGAN"):
        (models / name).mkdir(parents=True)
    (models / "wildcards/colour.txt").write_text("red\nblue\n")
    (models / "styles.csv").write_text("name,prompt,negative_prompt\nink,{prompt} in ink,colour\n")
    (models / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    save_file(network(CompactConfig(8, 3)).state_dict(), models / "ESRGAN/RealESRGAN_x4plus.safetensors")
    running = start(folder / "state", "--models", str(models))
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def model() -> Any:
    """`mini` of the library, whose pictures a server's are compared with."""
    return inkwash.load("mini")
