"""The process that draws: it takes one job after the other as lines of JSON on stdin, and answers on stdout.

It is started as `python -m inkwash.serve.worker`. A message has a `call`, an `id`, and what the call takes; its answer has
the id and a `result` or an `error`. Between them come events of steps and previews. It ends with its stdin, so that it
never outlives the server.
"""

import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from inkwash.process import importing, keep_memory
from inkwash.serve import questions
from inkwash.serve.cells import cells_of, num_steps, sheet_of, thumbnail
from inkwash.serve.errors import Cancelled
from inkwash.serve.problems import problem

if TYPE_CHECKING:
    from PIL.Image import Image

    from inkwash.diffusion.samplers import Step
    from inkwash.pipeline.api import Pipeline
    from inkwash.pipeline.request import Request
    from inkwash.pipeline.upscaler import Tile, Upscaler

log = logging.getLogger("inkwash.serve")
JOBS = ("draw", "merge", "train")
PREVIEW_EVERY = 0.4  # seconds


class Worker:
    """Calls by name, and what they share: the models that are open, and what was cancelled."""

    def __init__(self, settings: Mapping[str, Any], send: Callable[[Mapping[str, Any]], None]):
        from inkwash.serve.resident import Residents

        self.send = send
        self.models = Residents(settings["load"], settings["resident_bytes"])
        self.cancelled: set[str] = set()
        self.watched = False
        self.calls = {
            "draw": self.draw,
            "load": self.load,
            "unload": self.unload,
            "merge": self.merge,
            "train": self.train,
            "annotate": questions.annotate,
            "describe": questions.describe,
            "enlarge": questions.enlarge,
            "misfits": questions.misfits,
            "recipe": questions.recipe,
            "tokens": questions.tokens,
        }

    def tell(self, message: Mapping[str, Any]) -> bool:
        """Handle a message without an answer: a job to cancel, or previews on or off. Returns False for a call."""
        if "cancel" in message:
            self.cancelled.add(message["cancel"])
        elif "watched" in message:
            self.watched = message["watched"]
        else:
            return False
        return True

    def answer(self, message: dict[str, Any]) -> None:
        """Handle a message, and send the answer."""
        id, call = message.pop("id"), message.pop("call")
        try:
            if id in self.cancelled:
                raise Cancelled
            arguments = message | ({"id": id} if call in JOBS else {})
            answer: dict[str, Any] = {"result": self.calls[call](**arguments)}
        except (Cancelled, KeyboardInterrupt):  # a training that has saved its state ends by the second
            answer = {"error": {"kind": "cancelled", "message": "it was cancelled"}}
        except Exception as error:  # whatever one job ends in, the next one is drawn
            answer = {"error": problem(error)}
        self.cancelled.discard(id)
        self.send({"id": id, **answer, "resident": self.models.names, "memory": self.models.memory()})

    def load(self, source: str) -> dict[str, Any]:
        """Open a model, or have it at hand."""
        model = self.models.open(source)
        return {"name": model.name, "hash": model.hash, "sees": model.inputs.needed}

    def unload(self) -> dict[str, Any]:
        """Close all models."""
        self.models.leave(0)
        return {}

    def draw(
        self,
        id: str,
        task: str,
        source: str,
        request: dict[str, Any],
        images: dict[str, str],
        folder: str,
        grid: dict[str, list[Any]],
    ) -> dict[str, Any]:
        """Draw a job's pictures into its folder, as the command line would, and say what they are."""
        from inkwash.pipeline.denoising.control import with_pictures
        from inkwash.pipeline.images import open_picture
        from inkwash.pipeline.record.metadata import RECIPE, save_image
        from inkwash.pipeline.tasks import TASKS
        from inkwash.pipeline.upscaler import Upscaler
        from inkwash.serve.checks import check_enlarged

        about = TASKS[task]
        made = about.request.model_validate(request)
        given = {role: open_picture(Path(path), about.images[role]) for role, path in images.items()}
        blind = any(control.image is None and control.face is None for control in made.controls)
        model = self.models.open_for(task, source, blind and about.by_prior)
        has_prior = not isinstance(model, Upscaler) and model.prior is not None
        made = with_pictures(made, given.get("image"), has_prior)
        if isinstance(model, Upscaler):
            check_enlarged(model.size(given["image"], getattr(made, "factor", None)))
        cells = list(cells_of(made, grid))
        watch = self.watch(id, model, cells)
        pictures: list[Image] = []
        with noted() as notes:
            for cell in cells:
                pictures += about.draw(model, cell, given, watch)
        if grid:
            pictures.append(sheet_of(made, grid, pictures))
        described = []
        for k, image in enumerate(pictures):
            path = Path(folder) / f"{k}.png"
            save_image(image, path)
            thumbnail(image, path.with_suffix(".webp"))
            recipe = json.loads(str(image.info.get(RECIPE, "{}")))
            described.append(
                {
                    "width": image.width,
                    "height": image.height,
                    "seed": recipe.get("request", request)["seed"] + recipe.get("picture", 0)
                    if not made.variation_strength
                    else made.seed,
                    "parameters": image.info["parameters"],
                    "recipe": recipe,
                    "notes": notes,
                }
            )
        return {"pictures": described, "model": model.name, "hash": model.hash}

    def merge(self, id: str, folder: str, recipe: dict[str, Any], output: str) -> dict[str, Any]:
        """Merge models into a file."""
        from inkwash.serve.building import Report, merge

        return merge(Report(id, Path(folder), self.send, self.cancelled), recipe, Path(output))

    def train(
        self, id: str, folder: str, method: str, config: dict[str, Any], results: str
    ) -> dict[str, Any]:
        """Train by a method, from where its run stands."""
        from inkwash.serve.building import Report, train

        self.models.leave(0)
        return train(Report(id, Path(folder), self.send, self.cancelled), method, config, Path(results))

    def watch(
        self, id: str, model: "Pipeline | Upscaler", cells: "Sequence[Request]"
    ) -> "Callable[[Step], None] | Callable[[Tile], None]":
        """Callback for each step or tile: it stops a cancelled job, and sends the progress of the others."""
        from inkwash.pipeline.upscaler import Upscaler
        from inkwash.serve.previews import Previews

        if isinstance(model, Upscaler):
            return self.watch_tiles(id)
        per_cell, pictures = num_steps(cells[0]), sum(cell.batch_size for cell in cells)
        total, done, last = sum(map(num_steps, cells)), 0, 0.0
        previews = Previews(model)

        def on_step(step: "Step") -> None:
            nonlocal total, done, last
            if id in self.cancelled:
                raise Cancelled
            done += 1
            total = max(total, done)
            picture = min((done - 1) // per_cell, len(cells) - 1)
            told = {"step": done, "num_steps": total, "picture": picture, "num_pictures": pictures}
            self.send({"event": "step", "id": id, **told})
            if self.watched and time.monotonic() - last > PREVIEW_EVERY:
                self.send({"event": "preview", "id": id, "image": previews.data_url(step.denoised)})
                last = time.monotonic()

        return on_step

    def watch_tiles(self, id: str) -> "Callable[[Tile], None]":
        """Callback for each tile that a pixel upscaler has made."""

        def on_tile(tile: "Tile") -> None:
            if id in self.cancelled:
                raise Cancelled
            told = {"step": tile.index + 1, "num_steps": tile.total, "picture": 0, "num_pictures": 1}
            self.send({"event": "step", "id": id, **told})

        return on_tile


class Notes(logging.Handler):
    """Keeps warnings, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.said[record.getMessage()] = None


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collect warnings given meanwhile, such as settings that do not suit a model; the list is filled at the end."""
    handler, found = Notes(), []
    logger = logging.getLogger("inkwash")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        found += handler.said


@contextmanager
def own_stdout() -> Iterator[IO[str]]:
    """A stream for answers alone; what else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        yield answers
    finally:
        with suppress(BrokenPipeError):  # of what is still to be written, where the server has gone
            answers.close()


def main() -> None:
    """Answer the lines of stdin until it ends."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    keep_memory()
    with own_stdout() as answers:
        lock = threading.Lock()

        def send(message: Mapping[str, Any]) -> None:
            with lock:
                answers.write(json.dumps(message, ensure_ascii=False) + "\n")
                answers.flush()

        settings = json.loads(sys.stdin.readline())
        with importing():
            import inkwash.pipeline.api  # noqa: F401
        worker = Worker(settings, send)
        todo: deque[dict[str, Any]] = deque()
        more = threading.Semaphore(0)

        def read() -> None:
            for line in sys.stdin:
                message = json.loads(line)
                if not worker.tell(message):
                    todo.append(message)
                    more.release()
            os._exit(0)  # also in the middle of a step: the server has gone

        threading.Thread(target=read, daemon=True).start()
        with suppress(BrokenPipeError):
            send({"event": "ready"})
            while True:
                more.acquire()
                worker.answer(todo.popleft())


if __name__ == "__main__":
    main()
