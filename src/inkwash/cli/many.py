"""Many pictures: one for each line of a file, here or by workers of a Ray cluster; a stopped run goes on."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from inkwash.cli import options
from inkwash.files import write_bytes
from inkwash.pipeline.record.metadata import save_image

if TYPE_CHECKING:
    from inkwash.pipeline.task_requests import TextToImageRequest

SHARD = 16  # lines that are drawn between two reports of progress
PER_FOLDER = 1000  # pictures; where there are more lines, folders within the folder
Shard = list[tuple[int, str]]  # lines by their numbers, from 0 on
Problem = tuple[str, int]  # a message, and the exit code
Told = tuple[int, list[str]]  # lines that have been drawn, and what was wrong with others


@dataclass(frozen=True)
class Work:
    """The work to draw: `request` with the prompt of each line, and its seed plus the line's number."""

    request: "TextToImageRequest"
    loading: options.LoadOptions
    folder: Path
    prompts: list[str]

    def path(self, line: int) -> Path:
        parent = f"{line // PER_FOLDER:06}" if len(self.prompts) > PER_FOLDER else ""
        return self.folder / parent / f"{line:08}.png"

    def shards(self) -> list[Shard]:
        """The lines that have a prompt and no picture yet."""
        left = [
            (k, text) for k, text in enumerate(self.prompts) if text.strip() and not self.path(k).exists()
        ]
        return [left[k : k + SHARD] for k in range(0, len(left), SHARD)]


class Drawer:
    """A worker that draws lines with a model that stays open."""

    def __init__(self, work: Work, cwd: str | None = None):
        if cwd:  # of who asks, whose paths are meant
            os.chdir(cwd)
        self.work, self.model = work, None

    def ready(self) -> Problem | None:
        """Open the model; returns the error where that fails."""
        try:
            self.model = self.model or options.open_model(self.work.loading)
        except options.CommandError as error:
            return str(error), error.code

    def draw(self, shard: Shard) -> Told:
        """Draw lines, but for those whose pictures are there."""
        from inkwash.pipeline.tasks import TASKS

        if problem := self.ready():  # a worker that has come anew
            return 0, [f"lines {shard[0][0] + 1} to {shard[-1][0] + 1}: {problem[0]}"]
        request, done, problems = self.work.request, 0, []
        for line, text in shard:
            path = self.work.path(line)
            if path.exists():  # drawn by a worker that has ended
                done += 1
                continue
            values = {"prompt": text + self.work.loading.tags, "seed": request.seed + line}
            try:
                with options.checking(), options.drawing():
                    made = type(request).model_validate(dict(request) | values)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    save_image(TASKS["text_to_image"].draw(self.model, made, {}, None)[0], path)
            except options.CommandError as error:
                problems.append(f"line {line + 1}: {error}")
            done += path.exists()
        return done, problems


def by_ray(work: Work, shards: Sequence[Shard], num: int) -> Iterator[Told]:
    """The shards by up to num workers of a cluster; one that ends is started again, and its shard drawn on."""
    from inkwash.cluster import connect, resources

    ray = connect()
    kind = ray.remote(Drawer).options(max_restarts=-1, max_task_retries=3, **resources(work.loading.device))
    given = ray.put(replace(work, prompts=[""] * len(work.prompts)))
    workers = [kind.remote(given, os.getcwd()) for _ in range(min(num, len(shards)))]
    asked: dict[Any, tuple[Any, Shard]] = {worker.ready.remote(): (worker, []) for worker in workers}
    todo = deque(shards)
    while todo or any(shard for _, shard in asked.values()):
        (done,), _ = ray.wait(list(asked))
        worker, shard = asked.pop(done)
        try:
            answer = ray.get(done)
        except ray.exceptions.RayActorError as error:
            if not shard:
                raise options.file_error(f"a worker has ended as it started: {error}") from error
            answer = 0, [f"lines {shard[0][0] + 1} to {shard[-1][0] + 1}: {error}"]
        if shard:
            yield answer
        elif problem := cast(Problem | None, answer):
            raise options.CommandError(*problem)
        if todo:
            shard = todo.popleft()
            asked[worker.draw.remote(shard)] = worker, shard
    for worker in workers:
        ray.kill(worker)


def seed_of(work: Work, given: int | None) -> int:
    """The seed of the folder's pictures, which keeps what it was begun with. Raises CommandError for other options."""
    record = work.folder / "inkwash.json"
    wanted = work.request.model_dump(mode="json", exclude={"seed"}) | {"model": work.loading.model}
    kept = json.loads(record.read_text()) if record.exists() else {}
    if kept:
        same = kept["request"] == wanted and given in (None, kept["seed"])
        if not same or kept["hash"] != hashed(work.prompts[: kept["lines"]]):
            raise options.usage_error(
                f"{work.folder} holds pictures of other options or lines; lines may be added at the end, "
                "and else another --output be given"
            )
    seed = kept.get("seed", work.request.seed)
    made = {
        "seed": seed,
        "lines": len(work.prompts),
        "hash": hashed(work.prompts),
        "request": wanted,
    }
    work.folder.mkdir(parents=True, exist_ok=True)
    write_bytes(record, json.dumps(made).encode())
    return seed


def hashed(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def draw_lines(
    request: "TextToImageRequest",
    loading: options.LoadOptions,
    file: Path,
    output: Path | None,
    workers: int,
    seed: int | None,
    as_json: bool,
) -> None:
    """Draw a picture for each line of a file into a folder, and print how many. seed: as it was given."""
    if request.batch_size != 1:
        raise options.usage_error("--from-file draws one picture of each line; leave out --batch-size")
    folder = output or file.with_suffix("")
    if folder.exists() and not folder.is_dir():
        raise options.usage_error(f"--output {folder} is a file; with --from-file it is a folder")
    work = Work(request, loading, folder, options.read_lines(file))
    work = replace(work, request=request.model_copy(update={"seed": seed_of(work, seed)}))
    shards, problems, drawn = work.shards(), [], 0
    num = sum(map(len, shards))
    if workers:
        told = by_ray(work, shards, workers)
    else:
        drawer = Drawer(work)
        if shards and (problem := drawer.ready()):
            raise options.CommandError(*problem)
        told = (drawer.draw([line]) for shard in shards for line in shard)
    with options.progress(num) as show:
        for done, wrong in told:
            drawn, problems = drawn + done, problems + wrong
            show(SimpleNamespace(index=drawn + len(problems) - 1, total=num))  # type: ignore[arg-type]
    there = sum(map(bool, map(str.strip, work.prompts))) - num
    report = {
        "folder": str(folder),
        "drawn": drawn,
        "there": there,
        "failed": problems,
        "seed": work.request.seed,
    }
    print(json.dumps(report) if as_json else f"{drawn} drawn into {folder}{os.sep}, {there} were there")
    if problems:
        raise options.file_error("\n".join(problems))
