"""Cost of serving, beside the library's own drawing of the same pictures, in one run.

`python benchmarks/serving.py [--jobs 1000] [--pictures 40] [--clients 8] [--steps 20] [--rounds 3] [--out FILE]`

With `mini` on the processor, `inkwash serve` on a free port, and the library in this process:

- enqueue: jobs put into a paused queue over one kept connection, milliseconds each, and the server's processor time;
- one picture: by AUTOMATIC1111's `txt2img` with its answer read, less the library's drawing and saving of the same one;
- throughput: as many clients as there are, each sending its next request once it has a picture, beside the library
  drawing the same pictures one after another, and in batches of as many, whose bytes are others (decision 101);
- memory: of all of the server's processes at rest, less that of a process of the library that has drawn the same.

The sides take turns. `busy` are processor seconds, which other programs disturb less than `seconds`. Memory is what
belongs to the processes alone, with an equal share of what several of them hold (PSS).
"""

import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import torch
from cyclopts import App
from PIL import Image

import inkwash
from inkwash.kernels.cpu import processor
from inkwash.pipeline.record.metadata import save_image
from inkwash.process import keep_memory

app = App(help=__doc__)
PROMPT = "a red taxi, noto style"
TICK = os.sysconf("SC_CLK_TCK")
ALONE = """
import sys, inkwash
from inkwash.process import keep_memory
keep_memory()
model = inkwash.load("mini")
model.text_to_image(sys.argv[1], steps=int(sys.argv[2]), seed=1)
print("drawn", flush=True)
sys.stdin.read()
"""


def busy(pid: int) -> float:
    """Processor seconds of a process, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in family(int(child)))]


def megabytes(pids: list[int]) -> float:
    """Memory of processes, of what they share their part."""
    rolled = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids)
    return sum(int(text.split("\nPss:")[1].split()[0]) for text in rolled) / 1024


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[str, int]]:
    """The address and the process of a server at rest: with `mini` at hand, and all models known."""
    command = [sys.executable, "-m", "inkwash", "serve", "--port", "0", "--state", str(folder), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        url = process.stdout.readline().split()[-1]
        while len(family(process.pid)) != 2 or not httpx.get(f"{url}/api/server").json()["memory"].get(
            "weights"
        ):
            time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.communicate()


def timed(call: Callable[[], Any], pids: Callable[[], list[int]]) -> tuple[float, float]:
    """Seconds of a call, and processor seconds of processes meanwhile."""
    begun, before = time.perf_counter(), sum(map(busy, pids()))
    call()
    return time.perf_counter() - begun, sum(map(busy, pids())) - before


def enqueue(http: httpx.Client, pid: int, jobs: int) -> dict[str, float]:
    """Milliseconds of each of many jobs that are put into a queue that is paused."""
    http.post("/api/queue", json={"paused": True}).raise_for_status()
    times: list[float] = []

    def put() -> None:
        for k in range(jobs):
            body = {"task": "text_to_image", "request": {"prompt": PROMPT, "seed": k}}
            begun = time.perf_counter()
            http.post("/api/jobs", json=body).raise_for_status()
            times.append((time.perf_counter() - begun) * 1e3)

    _, worked = timed(put, lambda: [pid])
    for job in http.get("/api/queue").json()["jobs"]:
        http.post(f"/api/jobs/{job['id']}/cancel")
    http.post("/api/queue", json={"paused": False}).raise_for_status()
    return {
        "median": statistics.median(times),
        "99 %": sorted(times)[int(len(times) * 0.99)],
        "busy": worked * 1e3 / jobs,
    }


class Sides:
    """Draws pictures over HTTP and by the library, from the same seeds; a new seed for each, so that none is drawn twice."""

    def __init__(self, url: str, pid: int, model: Any, folder: Path, steps: int):
        self.url, self.pid, self.model, self.folder, self.steps = url, pid, model, folder, steps

    def over_http(self, http: httpx.Client, seed: int) -> bytes:
        """The PNG of a picture."""
        body = {"prompt": PROMPT, "seed": seed, "steps": self.steps, "width": 128, "height": 128}
        answer = http.post("/sdapi/v1/txt2img", json=body | {"sampler_name": "DPM++ 2M"}).raise_for_status()
        return base64.b64decode(answer.json()["images"][0])

    def by_library(self, seed: int, num: int = 1) -> None:
        """Draw and save."""
        options = {"steps": self.steps, "cfg_scale": 7.0, "width": 128, "height": 128, "sampler": "dpmpp_2m"}
        drawn = self.model.text_to_image(PROMPT, seed=seed, batch_size=num, schedule="karras", **options)
        for k, image in enumerate(drawn):
            save_image(image, self.folder / f"{seed + k}.png")

    def same(self, http: httpx.Client) -> bool:
        """Return True if both draw the same picture, so that their times may be compared."""
        self.by_library(1)
        theirs = Image.open(BytesIO(self.over_http(http, 1)))
        with Image.open(self.folder / "1.png") as ours:
            return ours.tobytes() == theirs.tobytes()

    def clients(self, num: int, pictures: int, seed: int) -> None:
        """Draw as many pictures by several clients at once."""

        def client(number: int) -> None:
            with httpx.Client(base_url=self.url, timeout=600) as http:
                for k in range(number, pictures, num):
                    self.over_http(http, seed + k)

        with ThreadPoolExecutor(num) as pool:
            list(pool.map(client, range(num)))


def throughput(sides: Sides, clients: int, pictures: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds for the pictures by clients, one after another, and in batches: the least of all rounds, and busy ones."""
    drawn = -(-pictures // clients) * clients
    mine, theirs = (lambda: [os.getpid()]), (lambda: family(sides.pid))
    ways: dict[str, tuple[Callable[[int], Any], Callable[[], list[int]]]] = {
        "clients": (lambda seed: sides.clients(clients, drawn, seed), theirs),
        "one after another": (lambda seed: [sides.by_library(seed + k) for k in range(drawn)], mine),
        "in batches": (
            lambda seed: [sides.by_library(seed + k, clients) for k in range(0, drawn, clients)],
            mine,
        ),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, (way, pids) in ways.items():
            found[name].append(timed(lambda way=way, turn=turn: way(1000 + turn * drawn), pids))
    return {
        name: {"seconds": min(one for one, _ in some), "busy": min(one for _, one in some)}
        for name, some in found.items()
    }


def memory_alone(steps: int) -> float:
    """Megabytes of a process of the library that has drawn."""
    command = [sys.executable, "-c", ALONE, PROMPT, str(steps)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdin
        process.stdout.readline()
        found = megabytes([process.pid])
        process.stdin.close()
    return found


@app.default
def main(
    *,
    jobs: int = 1000,
    pictures: int = 40,
    clients: int = 8,
    steps: int = 20,
    rounds: int = 3,
    out: Path | None = None,
) -> None:
    """Measure, and print the figures as JSON, which also go into FILE (`--out`)."""
    keep_memory()
    load, threads = round(os.getloadavg()[0], 1), torch.get_num_threads()
    with (
        tempfile.TemporaryDirectory() as scratch,
        serving(Path(scratch) / "state") as (url, pid),
        httpx.Client(base_url=url, timeout=600) as http,
    ):
        sides = Sides(url, pid, inkwash.load("mini"), Path(scratch), steps)
        if not sides.same(http):
            raise SystemExit("the server and the library draw different pictures")
        by_http, alone = [], []
        for k in range(2, 2 + pictures):
            by_http.append(timed(lambda k=k: sides.over_http(http, k), lambda: [pid])[0])
            alone.append(timed(lambda k=k: sides.by_library(k), lambda: [pid])[0])
        added = [(one - other) * 1e3 for one, other in zip(by_http, alone, strict=True)]
        rates = throughput(sides, clients, pictures, rounds)
        rest = megabytes(family(pid))  # before the queue is filled
        queued = enqueue(http, pid, jobs)
    library = memory_alone(steps)
    taken = {name: rates[name] for name in rates}
    report: dict[str, Any] = {
        "benchmark": "serving",
        "settings": {"jobs": jobs, "pictures": pictures, "clients": clients, "steps": steps, "rounds": rounds},
        "enqueue, ms": {name: round(value, 2) for name, value in queued.items()},
        "HTTP adds to a picture, ms": {
            "median": round(statistics.median(added), 1),
            "least": round(min(by_http) * 1e3 - min(alone) * 1e3, 1),
        },
        "throughput": {
            name: {key: round(value, 2) for key, value in sides.items()} for name, sides in taken.items()
        },
        "clients beside": {
            name: {key: round(taken[name][key] / taken["clients"][key], 2) for key in ("seconds", "busy")}
            for name in ("one after another", "in batches")
        },
        "memory at rest, MB": {
            "server": round(rest), "library alone": round(library), "server adds": round(rest - library)
        },
        "machine": {"cpu": processor().get("model name"), "cores": os.cpu_count(), "threads": threads, "load": load},
        "versions": {name: version(name) for name in ("inkwash", "torch", "fastapi", "uvicorn")},
    }  # fmt: skip
    text = json.dumps(report, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n")


if __name__ == "__main__":
    app()
