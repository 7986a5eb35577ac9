"""Workers of a Ray cluster of this machine, one of which is killed."""

import os
import signal
import time
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

import inkwash
from tests.serve.folders import write_models
from tests.support.processes import descendants

pytest.importorskip("ray")
pytestmark = pytest.mark.full  # a cluster starts in some 10 seconds
DRAW = {"prompt": "a red taxi", "steps": 100}


def actors(pid: int) -> list[int]:
    """The processes of a cluster's actors below a process."""
    found = []
    for child in descendants(pid):
        if b"ray::Actor" in Path(f"/proc/{child}/cmdline").read_bytes():
            found.append(child)
    return found


def test_workers_of_a_cluster_draw_and_one_that_is_killed_loses_nothing(tiny, started, tmp_path) -> None:
    models = write_models(tiny, tmp_path / "models")
    server = started("--models", str(models), "--model", str(models / "tiny"), "--ray", "2")
    ids: list[str] = []
    end = time.monotonic() + 400
    while len(server.get("/api/jobs?state=running")["jobs"]) < 2:  # the second worker comes with the work
        assert time.monotonic() < end
        if server.get("/api/queue")["length"] < 4:
            ids.append(server.job(DRAW | {"seed": len(ids)})["id"])
        time.sleep(0.05)
    at_work = actors(server.process.pid)
    assert len(at_work) == 2
    os.kill(at_work[0], signal.SIGKILL)
    model = inkwash.load(models / "tiny")
    for k, id in list(enumerate(ids))[-8:]:
        job = server.wait(id, 300)
        assert job["state"] == "done", job
        drawn = Image.open(BytesIO(server.call("GET", job["pictures"][0]["url"]).content))
        assert drawn.tobytes() == model.text_to_image(**DRAW, seed=k)[0].tobytes()
    running = server.job(DRAW | {"steps": 500, "seed": 9})["id"]
    while not server.get(f"/api/jobs/{running}")["progress"]:
        time.sleep(0.02)
    server.post(f"/api/jobs/{running}/cancel")
    assert server.wait(running)["state"] == "cancelled"
    assert server.stop() == 0
