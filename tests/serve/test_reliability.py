"""The server survives kill -9 of itself and of its processes, SIGTERM, and jobs that crash their process."""

import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.support.processes import children, seconds_of

DRAW = {"prompt": "a red taxi, noto style", "steps": 2}


def pictures(server: Any, ids: list[str]) -> list[bytes]:
    return [server.call("GET", f"/api/pictures/{id}/0.png").content for id in ids]


@pytest.mark.parametrize(("kills", "jobs"), [(3, 20), pytest.param(30, 1000, marks=pytest.mark.full)])
def test_kill_9_loses_and_doubles_nothing_and_changes_no_byte(started, kills, jobs) -> None:
    server, random_ = started(), random.Random(0)
    ids = [server.job(DRAW | {"seed": k % 5})["id"] for k in range(jobs)]
    for _ in range(kills):
        time.sleep(random_.uniform(0.5, 2))
        server.process.kill()
        server.process.wait()
        server = started()
        assert seconds_of(server.process.pid) < 5  # until it answers, whatever else the machine does
    done = [server.wait(id, 600) for id in ids]
    assert [job["state"] for job in done] == ["done"] * jobs
    assert len(server.get("/api/jobs?limit=500")["jobs"]) == min(jobs, 500)
    made = pictures(server, ids)
    assert all(made[k] == made[k % 5] for k in range(jobs))
    assert len(set(made)) == 5


def test_a_process_that_dies_is_replaced_and_its_job_drawn_again(started) -> None:
    server = started()
    expected = pictures(server, [server.wait(server.job(DRAW | {"seed": 1, "steps": 20})["id"])["id"]])
    id = server.job(DRAW | {"seed": 1, "steps": 20})["id"]
    while not server.get(f"/api/jobs/{id}")["progress"]:
        time.sleep(0.02)
    for child in children(server.process.pid):
        os.kill(child, signal.SIGKILL)
    assert server.wait(id)["state"] == "done"
    assert pictures(server, [id]) == expected


def test_a_process_whose_server_has_gone_meanwhile_ends_without_a_word() -> None:
    command = [sys.executable, "-m", "inkwash.serve.worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.write(b'{"load": {}, "resident_bytes": 0}\n')
    process.stdin.flush()
    assert process.wait(120) == 0
    assert process.stderr.read() == b""


def test_a_job_that_ends_its_process_three_times_is_parked_and_the_next_one_drawn(started) -> None:
    server = started()
    poison, after = server.job(DRAW | {"seed": 1, "steps": 500})["id"], server.job(DRAW | {"seed": 1})["id"]
    end = time.monotonic() + 120
    while server.get(f"/api/jobs/{poison}")["state"] != "failed" and time.monotonic() < end:
        if server.get(f"/api/jobs/{poison}")["progress"]:
            for child in children(server.process.pid):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.1)
    assert "3 times" in server.get(f"/api/jobs/{poison}")["error"]
    assert server.wait(after)["state"] == "done"


WHEN = random.Random(0)


@pytest.mark.parametrize(
    "delay",
    [
        0.0,
        0.4,
        1.5,
        *(pytest.param(WHEN.uniform(0, 3), marks=pytest.mark.full, id=f"{k}") for k in range(50)),
    ],
)
def test_sigterm_ends_by_0_and_what_was_accepted_is_drawn_later(started, delay) -> None:
    server = started()
    ids = [server.job(DRAW | {"seed": k, "steps": 8})["id"] for k in range(6)]
    time.sleep(delay)
    begun = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun < 30
    again = started()
    assert [again.wait(id)["state"] for id in ids] == ["done"] * 6


def test_a_second_server_does_not_take_the_same_queue(started) -> None:
    server = started()
    with pytest.raises(AssertionError, match="another server uses it"):
        started()
    assert server.get("/health")
