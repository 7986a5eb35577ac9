"""The process that draws: one job after the other, told by lines of JSON on stdin, answering on stdout.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from inkwash.process import importing, keep_memory

if TYPE_CHECKING:
    from PIL.Image import Image

    from inkwash.diffusion.samplers import Step
    from inkwash.pipeline.api import Pipeline
    from inkwash.pipeline.request import Request

log = logging.getLogger("inkwash.serve")
THUMBNAIL = 256  # pixels
PREVIEW_EVERY = 0.4  # seconds


class Cancelled(Exception):
    """Stops a drawing between two steps."""


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
            "describe": describe,
            "recipe": recipe,
            "tokens": tokens,
        }

    def answer(self, message: dict[str, Any]) -> None:
        """Do what a message asks for, and send the answer."""
        id, call = message.pop("id"), message.pop("call")
        try:
            if id in self.cancelled:
                raise Cancelled
            arguments = message | ({"id": id} if call == "draw" else {})
            answer: dict[str, Any] = {"result": self.calls[call](**arguments)}
        except Cancelled:
            answer = {"error": {"kind": "cancelled", "message": "it was cancelled"}}
        except Exception as error:  # noqa: BLE001  whatever one job ends in, the next one is drawn
            answer = {"error": problem(error)}
        self.cancelled.discard(id)
        self.send({"id": id, **answer, "resident": self.models.names, "memory": self.models.memory()})

    def load(self, source: str) -> dict[str, Any]:
        """Open a model, or have it at hand."""
        model = self.models.open(source)
        return {"name": model.name, "hash": model.hash, "sees": model.sees}

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
        from inkwash.pipeline.images import open_picture
        from inkwash.pipeline.record.metadata import RECIPE, save_image
        from inkwash.pipeline.tasks import TASKS

        about = TASKS[task]
        made = about.request.model_validate(request)
        given = {role: open_picture(Path(path), about.images[role]) for role, path in images.items()}
        model = self.models.open(source)
        cells = list(cells_of(made, grid))
        watch = self.watch(id, model, cells)
        pictures: list[Image] = []
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
                }
            )
        return {"pictures": described, "model": model.name, "hash": model.hash}

    def watch(self, id: str, model: "Pipeline", cells: "Sequence[Request]") -> "Callable[[Step], None]":
        """What is told of each step: it stops a cancelled job, and sends how far the others are."""
        from inkwash.serve.previews import Previews

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


def num_steps(request: "Request") -> int:
    """About how many steps a request takes."""
    strength = getattr(request, "strength", 1.0)
    steps = request.steps
    if getattr(request, "step_rule", "exact") != "exact":
        steps = max(1, round(steps * strength))
    if getattr(request, "hires", 1) > 1:
        steps += round((request.hires_steps or request.steps) * request.hires_strength)  # type: ignore[attr-defined]
    return steps


def axes_of(grid: Mapping[str, Iterable[Any]]) -> list[Any]:
    from inkwash.explain.sheets import Axis

    return [Axis(name, tuple(map(str, values))) for name, values in grid.items()]


def cells_of(request: "Request", grid: Mapping[str, Iterable[Any]]) -> "Iterator[Request]":
    """The request of each cell of a grid; the request itself where there is none."""
    if not grid:
        yield request
        return
    from inkwash.explain.sheets import cells

    for row in cells(request, axes_of(grid)):  # type: ignore[arg-type]
        yield from row


def sheet_of(request: "Request", grid: Mapping[str, Iterable[Any]], pictures: "list[Image]") -> "Image":
    from inkwash.explain.sheets import sheet

    return sheet(request, axes_of(grid), pictures)


def thumbnail(image: "Image", path: Path) -> None:
    """A small WebP without a recipe."""
    from PIL import Image

    from inkwash.files import atomic

    small = Image.Image.copy(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    with atomic(path) as partial:
        Image.Image.save(small, partial, "WEBP", quality=80)


def describe(source: str) -> dict[str, Any]:
    """A model's family, hash and size, and what it must see beside the latent, without building it."""
    from inkwash.models.bert import BERTConfig
    from inkwash.models.conditions import PictureConfig, SemanticConfig
    from inkwash.weights.bytes.paths import model_path
    from inkwash.weights.checkpoint import hash_of
    from inkwash.weights.families import variant_of
    from inkwash.weights.inspect import inspect
    from inkwash.weights.models.convert import read_checkpoint

    path = model_path(source)
    checkpoint = read_checkpoint(path)
    stage = checkpoint.cond_stage and checkpoint.cond_stage.config
    kinds = {SemanticConfig: "semantic", BERTConfig: "layout", PictureConfig: "picture"}
    sees = kinds.get(type(stage)) or variant_of(checkpoint.unet.config)
    digest = hash_of(checkpoint.files)
    return {
        "sha256": digest,
        "family": inspect(path)["family"],
        "sees": None if sees in ("base", "inpainting") else sees or "unknown",
        "size": sum(file.stat().st_size for file in checkpoint.files),
    }


def recipe(path: str) -> dict[str, Any]:
    """The task and the request of a picture, by any tool's metadata, and its texts."""
    from inkwash.pipeline.record.metadata import read_recipes
    from inkwash.pipeline.replay import recorded

    found = read_recipes(Path(path))
    if not found:
        raise ValueError("it carries no recipe")
    of = recorded(found)
    request = of.request.model_dump(mode="json")
    return {
        "task": of.request.task,
        "request": request,
        "images": list(of.given),
        "notes": list(of.not_applied),
        "model": of.model,
    }


def tokens(text: str, source: str) -> dict[str, Any]:
    """How many tokens of a model's vocabulary a prompt has, and in how many chunks they go."""
    from inkwash.models.tokenizer import Tokenizer
    from inkwash.prompts.chunks import chunks
    from inkwash.weights.bytes.paths import model_path
    from inkwash.weights.models.convert import read_checkpoint

    texts = read_checkpoint(model_path(source)).text
    tokenizer = texts[0].tokenizer if texts else Tokenizer.clip()
    made = chunks(tokenizer, text)
    ends = {tokenizer.start, tokenizer.end, tokenizer.pad}
    names = {number: token for token, number in tokenizer.vocab.items()}
    words = [
        names[token].replace("</w>", " ") for chunk in made for token in chunk.tokens if token not in ends
    ]
    return {"count": len(words), "chunks": len(made), "limit": tokenizer.max_length - 2, "tokens": words}


def problem(error: Exception) -> dict[str, str]:
    """What a client is told of an error: whose fault it is, and one line without this machine's paths."""
    import torch
    from pydantic import ValidationError

    from inkwash.pipeline.problems import describe as describe_problem

    if isinstance(error, ValidationError):
        return {
            "kind": "request",
            "message": "; ".join(describe_problem(one, str) for one in error.errors()),
        }
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return {"kind": "memory", "message": "not enough memory; draw fewer or smaller pictures"}
    if isinstance(error, ValueError | FloatingPointError):
        return {"kind": "request", "message": without_folders(str(error))}
    log.error("a job failed", exc_info=error)
    return {
        "kind": "internal",
        "message": f"the server has failed by {type(error).__name__}; its log says more",
    }


def without_folders(text: str) -> str:
    """A message in which files keep their names alone."""
    import re

    return re.sub(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][^/\\\s:'\"]+)*[/\\](?=[^/\\\s:'\"])", "", text)


@contextmanager
def own_stdout() -> Iterator[IO[str]]:
    """A stream for answers alone; what else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with answers:
        yield answers


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
                if "cancel" in message:
                    worker.cancelled.add(message["cancel"])
                elif "watched" in message:
                    worker.watched = message["watched"]
                else:
                    todo.append(message)
                    more.release()
            os._exit(0)  # also in the middle of a step: the server has gone

        threading.Thread(target=read, daemon=True).start()
        send({"event": "ready"})
        with suppress(BrokenPipeError):
            while True:
                more.acquire()
                worker.answer(todo.popleft())


if __name__ == "__main__":
    main()
