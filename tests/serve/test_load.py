"""The server under load: many clients at once, cancels, memory that runs out, and switches of models.

The counts of `make test-full` are the whole ones.
"""

import os
import random
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

import inkwash
from inkwash.pipeline.names import SAMPLER_NAMES
from inkwash.serve.worker import Worker
from tests.serve.conftest import Served
from tests.serve.folders import write_models
from tests.support.processes import children

DRAW = {"prompt": "a red taxi", "steps": 2}


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_models(tiny, tmp_path_factory.mktemp("load") / "models")
    (folder / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    (folder / "cut.safetensors").write_bytes(b"\x08\0\0")
    return folder


def tiny_server(started: Any, models: Path, **options: Any) -> Served:
    return started("--models", str(models), "--model", str(models / "tiny"), **options)


def memory(pid: int) -> int:
    """Bytes that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def busy(pid: int) -> float:
    """Processor seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize(("clients", "seconds"), [(6, 4), pytest.param(16, 120, marks=pytest.mark.full)])
def test_many_clients_that_cancel_go_away_and_err(started, models, clients, seconds) -> None:
    server = tiny_server(started, models)
    pid, waits = server.process.pid, []
    server.wait(server.job(DRAW)["id"])
    end = time.monotonic() + seconds
    before, files = memory(pid), descriptors(pid)
    wrong: list[Any] = []

    def client(number: int) -> int:
        draw, done = random.Random(number), 0
        with httpx.Client(base_url=server.url, timeout=60) as http:
            while time.monotonic() < end:
                chance = draw.random()
                if chance < 0.05:
                    answer = http.post(
                        "/sdapi/v1/txt2img", content=b"{", headers={"Content-Type": "application/json"}
                    )
                elif chance < 0.15:
                    try:
                        answer = http.post(
                            "/sdapi/v1/txt2img",
                            json=DRAW | {"steps": 50, "width": 32, "height": 32},
                            timeout=0.2,
                        )
                    except httpx.TimeoutException:
                        continue
                elif chance < 0.35:
                    job = http.post(
                        "/api/jobs", json={"task": "text_to_image", "request": DRAW | {"steps": 50}}
                    )
                    answer = (
                        http.post(f"/api/jobs/{job.json()['id']}/cancel") if job.status_code == 202 else job
                    )
                else:
                    answer = http.post("/sdapi/v1/txt2img", json=DRAW | {"width": 32, "height": 32})
                    done += answer.status_code == 200
                if answer.status_code >= 500:
                    wrong.append(answer.text)
        return done

    def watcher() -> None:
        with httpx.Client(base_url=server.url, timeout=60) as http:
            while time.monotonic() < end:
                begun = time.perf_counter()
                http.get("/sdapi/v1/progress?skip_current_image=true").raise_for_status()
                waits.append(time.perf_counter() - begun)
                time.sleep(0.05)

    watching = threading.Thread(target=watcher)
    watching.start()
    with ThreadPoolExecutor(clients) as pool:
        drawn = sum(pool.map(client, range(clients)))
    watching.join()
    assert wrong == []
    assert drawn > 0
    until = time.monotonic() + 60
    while server.get("/api/queue")["length"] or server.get("/sdapi/v1/progress")["state"]["job_count"]:
        assert time.monotonic() < until, "a job hangs"
        time.sleep(0.1)
    time.sleep(0.5)
    print(f"{drawn} drawn, {len(waits)} asked, p99 {statistics.quantiles(waits, n=100)[98] * 1e3:.0f} ms, "
          f"{(memory(pid) - before) >> 20} MB more, {descriptors(pid) - files} more descriptors")  # fmt: skip
    assert memory(pid) - before < 100 << 20
    assert abs(descriptors(pid) - files) <= 5


@pytest.mark.parametrize("num", [6, pytest.param(200, marks=pytest.mark.full)])
def test_cancels_at_any_step_leave_the_next_picture_as_it_is(started, models, num) -> None:
    server, draw = tiny_server(started, models), random.Random(0)

    def pixels() -> bytes:
        job = server.wait(server.job(DRAW | {"seed": 1})["id"])
        return server.call("GET", job["pictures"][0]["url"]).content

    expected, longest = pixels(), 0.0
    for _ in range(num):
        id = server.job(DRAW | {"steps": 500, "seed": 2})["id"]
        after = server.job(DRAW | {"seed": 1})["id"]
        while not server.get(f"/api/jobs/{id}")["progress"]:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.2))
        begun = time.monotonic()
        server.post(f"/api/jobs/{id}/cancel")
        assert server.wait(id)["state"] in ("cancelled", "done")
        longest = max(longest, time.monotonic() - begun)
        done = server.wait(after)
        assert server.call("GET", done["pictures"][0]["url"]).content == expected
    print(f"{num} cancels, the longest took {longest:.2f} s")
    assert longest < 5


@pytest.mark.parametrize("num", [4, pytest.param(200, marks=pytest.mark.full)])
def test_clients_that_go_away_leave_the_others_pictures_as_they_are(started, models, num) -> None:
    server, draw = tiny_server(started, models), random.Random(0)
    body = DRAW | {"width": 32, "height": 32, "seed": 1}

    def picture() -> str:
        return server.post("/sdapi/v1/txt2img", body)["images"][0]

    expected, longest = picture(), 0.0
    for k in range(num):
        with pytest.raises(httpx.TimeoutException), httpx.Client(base_url=server.url) as http:
            http.post(
                "/sdapi/v1/txt2img", json=body | {"steps": 500, "seed": k}, timeout=draw.uniform(0.05, 0.3)
            )
        begun = time.monotonic()
        while server.get("/api/queue")["length"] or server.get("/sdapi/v1/progress")["state"]["job_count"]:
            assert time.monotonic() < begun + 30, "the job goes on without its client"
            time.sleep(0.02)
        longest = max(longest, time.monotonic() - begun)
        assert picture() == expected
    print(f"{num} went away, the longest that a job outlived its client is {longest:.2f} s")


@pytest.fixture(scope="module")
def told() -> list[Any]:
    """What the worker says."""
    return []


@pytest.fixture(scope="module")
def worker(told: list[Any]) -> Worker:
    return Worker({"load": {"device": "cpu"}, "resident_bytes": None}, told.append)


@pytest.fixture(scope="module")
def draw(worker: Worker, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Draws the same picture each time; where it would be."""
    from inkwash.pipeline.tasks import TASKS

    request = TASKS["text_to_image"].request.model_validate(DRAW | {"seed": 3}).model_dump(mode="json")
    about = {
        "task": "text_to_image",
        "source": str(models / "tiny"),
        "request": request,
        "images": {},
        "grid": {},
    }

    def draw(id: str) -> Path:
        folder = tmp_path_factory.mktemp(id)
        worker.answer({"call": "draw", "id": id, "folder": str(folder), **about})
        return folder / "0.png"

    return draw


@pytest.fixture(scope="module")
def expected(draw: Callable[[str], Path]) -> bytes:
    return Image.open(draw("first")).tobytes()


@pytest.mark.parametrize("site", range(30))
def test_memory_that_runs_out_costs_one_job(draw, told, expected, monkeypatch, site) -> None:
    whole, calls = torch.nn.Module.__call__, 0

    def failing(module: torch.nn.Module, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1 + site * 7:
            raise torch.OutOfMemoryError("out of memory") if site % 2 else MemoryError
        return whole(module, *args, **options)

    told.clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "__call__", failing)
        draw("failed")
    assert calls >= 1 + site * 7, "the place was not reached"
    error = next(each for each in told if each["id"] == "failed" and "error" in each)["error"]
    assert error == {"kind": "memory", "message": "not enough memory; draw fewer or smaller pictures"}
    assert Image.open(draw("after")).tobytes() == expected


def test_a_request_draws_the_same_in_any_process_and_in_a_busy_queue(started, models) -> None:
    """Each sampler: alone in this process, and twice over HTTP while other jobs come between."""
    server, model = tiny_server(started, models), inkwash.load(models / "tiny")
    for sampler in SAMPLER_NAMES:
        options: dict[str, Any] = {"prompt": "a fox", "steps": 3, "seed": 5, "sampler": sampler}
        other = [server.job(DRAW | {"seed": k, "batch_size": 2}) for k in range(2)]
        ids = [server.job(options)["id"], *(job["id"] for job in other), server.job(options)["id"]]
        expected = model.text_to_image(**options)[0].tobytes()
        for id in (ids[0], ids[-1]):
            url = server.wait(id)["pictures"][0]["url"]
            assert Image.open(BytesIO(server.call("GET", url).content)).tobytes() == expected, sampler


@pytest.mark.parametrize("num", [12, pytest.param(300, marks=pytest.mark.full)])
def test_models_are_switched_without_growth_and_broken_ones_hurt_nobody(started, models, num) -> None:
    server = tiny_server(started, models)
    names, draw = ("tiny", "other", "mini", "mini-inpainting", "broken", "cut"), random.Random(0)
    sizes = []
    for k in range(num):
        name = draw.choice(names)
        answer = server.call("POST", "/api/models/load", json={"name": name})
        assert answer.status_code == 200 or (name in ("broken", "cut") and answer.status_code < 500), (
            answer.text
        )
        if k % 6 == 5:
            server.post("/api/models/load", {"name": "mini"})
            sizes.append(max(memory(child) for child in children(server.process.pid)))
    print("MB of the drawing process: " + " ".join(str(size >> 20) for size in sizes))
    assert sizes[-1] < sizes[0] * 1.05 + (16 << 20)
    assert server.wait(server.job(DRAW)["id"])["state"] == "done"


def test_at_rest_there_are_the_server_and_what_draws(started, models) -> None:
    server = tiny_server(started, models)
    end = time.monotonic() + 90
    while len(server.get("/api/models")["models"]) > 4 or len(children(server.process.pid)) != 1:
        assert time.monotonic() < end, server.get("/api/models")
        time.sleep(0.2)
    assert memory(server.process.pid) < 100 << 20
    assert server.post("/api/tokens", {"text": "a red taxi"})["count"] > 0  # by a process that comes again
    assert server.wait(server.job(DRAW)["id"])["state"] == "done"


def test_a_job_is_put_into_the_queue_in_5_ms_of_the_server(started, models) -> None:
    """Of its processor's time; `benchmarks/serving.py` has the client's."""
    server = tiny_server(started, models)
    server.post("/api/queue", {"paused": True})
    before = busy(server.process.pid)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for k in range(100):
            body = {"task": "text_to_image", "request": DRAW | {"seed": k}}
            http.post("/api/jobs", json=body).raise_for_status()
    each = (busy(server.process.pid) - before) / 100
    print(f"{each * 1e3:.1f} ms")
    assert each < 0.005
