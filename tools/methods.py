"""Write src/inkwash/pipeline/methods.py, the typed methods of `Pipeline`, from the table of tasks."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from inkwash.pipeline.boxes import Box
from inkwash.pipeline.controls import Control
from inkwash.pipeline.request import Request
from inkwash.pipeline.tasks import TASKS, Task

TARGET = Path(__file__).parents[1] / "src" / "inkwash" / "pipeline" / "methods.py"
NAMED = ("prompt", "negative_prompt", "boxes")  # parameters of their own
HEAD = '''"""The methods of `Pipeline`, one a task, with typed options. Written by `make methods`; do not edit."""

from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack

from PIL.Image import Image

from inkwash.pipeline.controls import Control
from inkwash.pipeline.denoising.denoiser import Watch
from inkwash.pipeline.model import Model
from inkwash.pipeline.tasks import TASKS

Prompt = str | tuple[str, ...]  # one for all pictures, or one for each
# left, top, right, bottom and label, or as text
Boxes = Sequence[tuple[float, float, float, float, str] | str]
'''


def spelled(annotation: Any) -> str:
    """A field's type as a caller may give it."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return spelled(args[0])
    if origin in (Union, types.UnionType):
        return " | ".join(map(spelled, args))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, args))}]"
    if origin is tuple:
        if args[1:] != (...,):
            return "tuple[int, int] | str"
        if get_args(args[0])[:1] == (Control,):
            return "Sequence[Control | str]"
        if get_args(args[0])[:1] == (Box,):
            return "Boxes | str"
        numbers = {(int,): "Sequence[int] | str", (float,): "Sequence[float] | str"}
        return numbers.get(get_args(args[0])[:1], "Sequence[str]")
    return "None" if annotation is type(None) else annotation.__name__


def options_name(request: type[Request]) -> str:
    """The name of a request's TypedDict."""
    return request.__name__.removesuffix("Request") + "Options" if request is not Request else "CommonOptions"


def typed_dict(request: type[Request]) -> str:
    """The options that a request adds to those of its base."""
    base = request.__bases__[0] if request is not Request else None
    inherited = base.model_fields if base and issubclass(base, Request) else {}
    parent = options_name(base) if base and issubclass(base, Request) else "TypedDict"
    head = f"class {options_name(request)}({parent}, total=False):\n"
    fields = [
        f"    {name}: {spelled(field.annotation)}\n"
        for name, field in request.model_fields.items()
        if name not in inherited and name not in NAMED
    ]
    doc = f'    """Options of `{request.__name__}`, where their defaults are."""\n'
    return head + doc + ("\n" + "".join(fields) if fields else "")


def method(task: Task) -> str:
    """The method of a task."""
    fields = task.request.model_fields
    required = [name for name in NAMED if name in fields and fields[name].is_required()]
    optional = [name for name in NAMED if name in fields and name not in required]
    types_of = {"prompt": "Prompt", "negative_prompt": "Prompt", "boxes": "Boxes"}
    parameters = [f"{name}: {types_of[name]}" for name in required]
    parameters += [f"{role}: Image" for role in task.images if role not in task.optional]
    parameters += [f"{role}: Image | None = None" for role in task.optional]
    parameters += [f'{name}: {types_of[name]} = ""' for name in optional]
    parameters += ["*", "on_step: Watch | None = None", f"**options: Unpack[{options_name(task.request)}]"]
    images = ", ".join(f'"{role}": {role}' for role in task.images)
    given = ", ".join(f"{name}={name}" for name in (*required, *optional))
    return f'''
    def {task.name}(self, {", ".join(parameters)}) -> list[Image]:
        """{task.summary}

        Returns `batch_size` RGB images. on_step gets each sampling step, and stops the run by raising. Raises
        ValueError for an option that is wrong, or does not fit the model.
        """
        return TASKS["{task.name}"].run(self, {{{images}}}, on_step, {given}, **options)
'''


def source() -> str:
    """The file's content."""
    lines = [reversed(task.request.__mro__) for task in TASKS.values()]
    requests = dict.fromkeys(kind for line in lines for kind in line if issubclass(kind, Request))
    classes = "\n\n".join(map(typed_dict, requests))
    doc = '    """Methods that draw; their options are validated by the requests of `tasks.TASKS`."""\n'
    text = f"{HEAD}\n\n{classes}\n\nclass TaskMethods(Model):\n{doc}{''.join(map(method, TASKS.values()))}"
    ruff = [sys.executable, "-m", "ruff", "format", "--stdin-filename", TARGET.name, "-"]
    root = TARGET.parents[3]
    return subprocess.run(ruff, input=text, capture_output=True, text=True, check=True, cwd=root).stdout


if __name__ == "__main__":
    TARGET.write_text(source(), "utf-8")
