"""The queue in its file."""

from pathlib import Path

import pytest

from inkwash.serve.queue import MAX_TRIES, Queue


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue.sqlite")


def add(queue: Queue, id: str, priority: int = 0, prompt: str = "a fox") -> str:
    return queue.add(id, "text_to_image", "mini", {"prompt": prompt}, {}, {}, "api", priority).id


def waiting(queue: Queue) -> str:
    return "".join(job.id for job in queue.waiting())


def test_jobs_are_claimed_by_priority_then_in_their_order(queue: Queue) -> None:
    for id, priority in (("a", 0), ("b", 0), ("c", 5), ("d", -1)):
        add(queue, id, priority)
    claimed = [queue.claim() for _ in range(5)]
    assert [job and job.id for job in claimed] == ["c", "a", "b", "d", None]


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("id", "abcde")
def test_a_moved_job_stands_where_a_list_would_have_it(queue: Queue, id: str, position: int) -> None:
    for each, priority in zip("abcde", (2, 2, 0, 0, -1), strict=True):
        add(queue, each, priority)
    wanted = [each for each in "abcde" if each != id]
    wanted.insert(position, id)
    moved = queue.move(id, position)
    assert waiting(queue) == "".join(wanted)
    assert queue.position(moved) == position


def test_a_paused_job_keeps_its_place_and_is_not_claimed(queue: Queue) -> None:
    for id in "abc":
        add(queue, id)
    queue.change("a", state="paused")
    assert waiting(queue) == "abc"
    assert (job := queue.claim()) and job.id == "b"
    queue.change("a", state="queued")
    assert (job := queue.claim()) and job.id == "a"


def test_what_ran_when_the_process_ended_waits_again_in_front(tmp_path: Path) -> None:
    first = Queue(tmp_path / "queue.sqlite")
    for id in "abc":
        add(first, id)
    first.claim()
    again = Queue(tmp_path / "queue.sqlite")  # the first one is not closed: its process was killed
    assert [job.state for job in again.recover()] == ["queued"]
    assert waiting(again) == "abc"


def test_a_job_that_ends_its_process_is_parked(queue: Queue) -> None:
    add(queue, "a")
    for _ in range(MAX_TRIES):
        queue.claim()
        job = queue.put_back("a")
    assert job.state == "failed"
    assert "3 times" in (job.error or "")
    assert queue.claim() is None


def test_an_orderly_end_does_not_count_as_a_try(queue: Queue) -> None:
    add(queue, "a")
    for _ in range(MAX_TRIES + 2):
        queue.claim()
        job = queue.put_back("a", counted=False)
    assert (job.state, job.tries) == ("queued", 0)


def test_only_waiting_jobs_can_be_changed(queue: Queue) -> None:
    add(queue, "a")
    queue.claim()
    with pytest.raises(KeyError):
        queue.change("a", priority=3)


def test_history_is_searched_by_words_and_pages_go_on(queue: Queue) -> None:
    for k in range(5):
        add(queue, f"f{k}", prompt="A Red fox")
        add(queue, f"o{k}", prompt="an owl, 100% red_")
    found = queue.history(search="fox red", limit=2)
    assert [job.id for job in found] == ["f4", "f3"]
    assert [job.id for job in queue.history(search="fox red", before=found[-1].number)] == ["f2", "f1", "f0"]
    assert [job.id for job in queue.history(search="% d_", limit=1)] == ["o4"]
    assert queue.history(states=["done"]) == []
