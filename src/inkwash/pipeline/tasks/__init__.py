"""The table of tasks. From it come the methods of `Pipeline`, the verbs of the command line, replay, and the guide.

To add a task: its request in `task_requests`, a file with its drawing function, named as the task is, and its lines here.
Imports no torch until something is drawn.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from inkwash.pipeline.names import BY_PRIOR
from inkwash.pipeline.request import Request
from inkwash.pipeline.task_requests import (
    DepthRequest,
    ImageRequest,
    InpaintRequest,
    InstructRequest,
    LayoutRequest,
    OutpaintRequest,
    SemanticRequest,
    TextToImageRequest,
    UpscaleRequest,
    VaryRequest,
)


@dataclass(frozen=True)
class Task:
    """A kind of drawing: its options, the pictures that it takes, and what the model must see."""

    request: type[Request]
    verb: str  # of the command line
    summary: str
    images: Mapping[str, str] = field(default_factory=dict)  # role -> mode, as of `images.open_picture`
    details: str = ""  # the rest of the help
    sees: str | None = None  # the input beside the latent, a key of INPUTS, that the model must have
    optional: tuple[str, ...] = ()  # roles of pictures that need not be given
    by_prior: bool = False  # whether it also draws with models whose prior makes what they see

    @property
    def name(self) -> str:
        """The name of its drawing function and of its method."""
        return self.request.task

    def fits(self, needed: str | None, has_prior: bool) -> bool:
        """Return True if a model can do the task. needed: the input that it needs, a key of INPUTS."""
        return self.sees == needed or (self.by_prior and has_prior and needed in BY_PRIOR)

    def run(self, model: Any, images: Mapping[str, Any], on_step: Any = None, **options: Any) -> list[Any]:
        """Validate options, convert the pictures to the modes needed, and draw."""
        from inkwash.pipeline.images import in_mode

        request = self.request.model_validate(options)
        return self.draw(
            model,
            request,
            {role: in_mode(image, self.images[role]) for role, image in images.items() if image is not None},
            on_step,
        )

    def draw(self, model: Any, request: Request, images: Mapping[str, Any], on_step: Any = None) -> list[Any]:
        """Draw a validated request. Raises ValueError for a model that sees something else."""
        from inkwash.pipeline.denoising.prompting import resolve
        from inkwash.pipeline.tasks.upscale import by_upscaler
        from inkwash.pipeline.upscaler import Upscaler

        check_inputs(self, model)
        if isinstance(model, Upscaler):  # which reads no prompts
            return [by_upscaler(model, request, images["image"], on_step)]  # type: ignore[arg-type]
        resolved = resolve(model, request, images.get("image"))
        given = {role: images[role] for role in self.images if role in images}
        return draw_functions()[self.name](model, resolved, **given, on_step=on_step)


# what a network can see beside the latent
INPUTS = {
    "depth": "a depth map",
    "instruct-pix2pix": "the picture to change",
    "layout": "boxes",
    "picture": "what CLIP sees in a picture",
    "semantic": "a label map",
    "upscaler": "the small picture to enlarge",
    "vector": "the vector that a prior makes of a prompt",
}
IMAGE = {"image": "RGB"}
GRID = "With --grid, --output is the sheet, and the pictures are numbered."
BOXES = (
    "WHAT is words, or, for a model without text input, the number of a category or its name in --categories."
)

TASKS = {
    task.name: task
    for task in (
        Task(
            TextToImageRequest,
            "generate",
            "Draw pictures from a prompt.",
            details=GRID,
            by_prior=True,
        ),
        Task(ImageRequest, "edit", "Change a picture by a prompt.", IMAGE),
        Task(
            InpaintRequest,
            "inpaint",
            "Draw the white part of a mask anew; unmasked pixels are unchanged.",
            IMAGE | {"mask": "L"},
        ),
        Task(
            OutpaintRequest,
            "outpaint",
            "Extend a picture beyond its sides; its own pixels are unchanged.",
            IMAGE,
        ),
        Task(
            DepthRequest,
            "depth",
            "Change a picture by a prompt while its depth stays.",
            IMAGE | {"depth": "F"},
            "The depth is given, by --depth, or estimated, by --depth-model.",
            "depth",
        ),
        Task(
            InstructRequest, "instruct", "Change a picture by an instruction.", IMAGE, sees="instruct-pix2pix"
        ),
        Task(
            LayoutRequest,
            "layout",
            "Draw what boxes name, where they lie.",
            {},
            BOXES,
            "layout",
        ),
        Task(SemanticRequest, "semantic", "Draw what a label map shows.", {"labels": "P"}, sees="semantic"),
        Task(
            UpscaleRequest,
            "upscale",
            "Enlarge a picture, by diffusion or by a pixel upscaler.",
            {"image": "RGBA"},
            "With --upscaler no other model is opened, and of the options --factor and --tile count.",
            "upscaler",
        ),
        Task(
            VaryRequest,
            "vary",
            "Draw a picture's meaning again, or what lies between two pictures.",
            IMAGE | {"second": "RGB"},
            sees="picture",
            optional=("second",),
        ),
    )
}


def draw_functions() -> dict[str, Callable[..., list[Any]]]:
    """The drawing functions by the names of their tasks."""
    from inkwash.pipeline.tasks.depth import depth_to_image
    from inkwash.pipeline.tasks.image_to_image import image_to_image
    from inkwash.pipeline.tasks.inpaint import inpaint
    from inkwash.pipeline.tasks.instruct import instruct
    from inkwash.pipeline.tasks.layout import layout_to_image
    from inkwash.pipeline.tasks.outpaint import outpaint
    from inkwash.pipeline.tasks.semantic import semantic_to_image
    from inkwash.pipeline.tasks.text_to_image import text_to_image
    from inkwash.pipeline.tasks.upscale import upscale
    from inkwash.pipeline.tasks.vary import vary

    functions = (
        text_to_image,
        image_to_image,
        inpaint,
        outpaint,
        depth_to_image,
        instruct,
        layout_to_image,
        semantic_to_image,
        upscale,
        vary,
    )
    return {function.__name__: function for function in functions}


def check_inputs(task: Task, model: Any) -> None:
    """Check that the task gives the model the inputs that it needs beside the latent; raise ValueError otherwise."""
    needed = model.inputs.needed
    if task.fits(needed, model.prior is not None):
        return
    if needed in BY_PRIOR and task.by_prior:
        instead = "" if needed == "vector" else ", or use vary (`inkwash vary`)"
        raise ValueError(
            f"{model.name} sees CLIP's vectors, which a prior makes of a prompt; give one{instead}"
        )
    if task.sees:
        raise ValueError(f"{task.verb} needs a model that sees {INPUTS[task.sees]}; {model.name} does not")
    if needed not in INPUTS:
        raise ValueError(f"{model.name} sees an unknown input beside the latent, which no task gives it")
    fitting = [other for other in TASKS.values() if other.fits(needed, needed == "vector")]
    names = [f"{other.name} (`inkwash {other.verb}`)" for other in fitting]
    raise ValueError(f"{model.name} needs {INPUTS[needed]} beside the latent; use {' or '.join(names)}")
