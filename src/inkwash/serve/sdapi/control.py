"""AUTOMATIC1111's ControlNet extension: units of txt2img and img2img, what they may name, and hints alone."""

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import APIRouter, Request

from inkwash.pipeline.controls import MODES, PASSES, REFERENCES, RESIZES, TYPE_OF, UNION_TYPES, own_name
from inkwash.serve.answers import dispatcher_of
from inkwash.serve.checks import validated
from inkwash.serve.controls import GivenControl
from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.errors import Refusal
from inkwash.serve.images import decoded, encoded
from inkwash.serve.pixels import as_png, opened
from inkwash.serve.sdapi.fields import Drawing, Loose

router = APIRouter(prefix="/controlnet")
FIELD = "alwayson_scripts"
NAME = "controlnet"
MOST = 8  # units


class Slider(NamedTuple):
    """A number of an annotator, which comes as threshold_a or threshold_b."""

    name: str
    default: float
    least: float
    most: float


class Module(NamedTuple):
    """One of our annotators by the extension's name; none for what the network itself makes of the picture."""

    annotator: str | None
    sliders: tuple[Slider, ...] = ()


MODULES = {
    "none": Module(None),
    "canny": Module("canny", (Slider("low", 100, 1, 255), Slider("high", 200, 1, 255))),
    "lineart_standard": Module("lineart", (Slider("sigma", 6, 0.1, 32),)),
    "scribble_xdog": Module("scribble", (Slider("threshold", 32, 1, 64),)),
    "blur_gaussian": Module("blur", (Slider("sigma", 9, 0.01, 64),)),
    "tile_resample": Module("tile", (Slider("factor", 4, 1, 16),)),
    "t2ia_color_grid": Module("palette", (Slider("factor", 64, 1, 128),)),
    "recolor_luminance": Module("recolor", (Slider("gamma", 1, 0.1, 2),)),
    **{name: Module(None, (Slider("style_fidelity", 0.5, 0, 1),)) for name in REFERENCES},
    "ip-adapter_clip_sd15": Module(None),
    "ip-adapter_clip_sdxl": Module(None),
    "clip_vision": Module(None),  # of the style adapter
    "shuffle": Module(None),
}


class Unit(Loose):
    """A ControlNet unit as clients send it; null fields count as absent."""

    enabled: bool = True
    module: str = "none"
    model: str = "None"
    weight: float = 1.0
    image: Any = None
    mask: str | None = None
    resize_mode: str | int = RESIZES["crop"]
    processor_res: float = -1
    threshold_a: float = -1
    threshold_b: float = -1
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    control_mode: str | int = "Balanced"
    hr_option: str = PASSES["both"]
    save_detected_map: bool = True
    union_control_type: str = UNION_TYPES["auto"]
    effective_region_mask: str | None = None
    advanced_weighting: list[float] = []  # of each layer, in place of the weight

    @property
    def thresholds(self) -> tuple[float, float]:
        return self.threshold_a, self.threshold_b


ALIASES = {"input_image": "image", "mask_image": "mask", "guidance": "guidance_end"}
ORDERED = {  # where a number stands for one of these
    "resize_mode": tuple(RESIZES),
    "control_mode": ("balanced", "prompt", "control"),
    "hr_option": tuple(PASSES),
}


class Detect(Loose):
    """Pictures to make hints of, and the annotator."""

    controlnet_module: str = "none"
    controlnet_input_images: list[str] = []
    controlnet_images: list[str] = []  # as webuiapi calls them
    controlnet_processor_res: float = -1
    controlnet_threshold_a: float = -1
    controlnet_threshold_b: float = -1


def units_of(body: Drawing) -> list[Unit]:
    """The units of a request that are turned on. Raises Refusal."""
    scripts = {name.lower(): script for name, script in (body.alwayson_scripts or {}).items()}
    script = scripts.get(NAME) or {}
    given = script.get("args") if isinstance(script, Mapping) else script
    found = []
    for each in given or []:
        if not isinstance(each, Mapping):
            continue  # the extension's settings may come first
        values = {ALIASES.get(key, key): value for key, value in each.items() if value is not None}
        unit = validated(Unit, values, FIELD)
        if unit.enabled:
            found.append(unit)
    if len(found) > MOST:
        raise Refusal(422, f"ControlNet: at most {MOST} units are taken", FIELD)
    return found


async def controls_of(
    dispatcher: Dispatcher, body: Drawing, source: bytes | None
) -> tuple[list[GivenControl], list[bytes]]:
    """The controls of a request, and the hints that its answer shows. source: the picture of img2img. Raises Refusal."""
    controls, hints = [], []
    for unit in units_of(body):
        module, reference = module_of(unit.module), bare(unit.module) in REFERENCES
        model = bare(unit.module) if reference else unit.model
        if model.lower() == "none":
            raise Refusal(422, "ControlNet: a unit names no model", FIELD)
        image, mask = pictures_of(unit)
        seen = image or source
        if seen is None and (module.annotator or not dispatcher.settings.load.get("prior")):
            raise Refusal(422, f"ControlNet: the unit of {model[:100]} has no picture", FIELD)
        if module.annotator and seen:
            image = await detected(dispatcher, unit.module, seen, unit.processor_res, unit.thresholds)
        if unit.save_detected_map and not reference and seen:
            hints.append(image or seen)
        values: dict[str, Any] = {
            "annotator": "none",  # the hint is made here
            "weight": unit.weight,
            "start": unit.guidance_start,
            "end": unit.guidance_end,
            "mode": choice(unit, "control_mode", MODES),
            "resize": choice(unit, "resize_mode", RESIZES),
            "passes": choice(unit, "hr_option", PASSES),
            "type": choice(unit, "union_control_type", UNION_TYPES),
        }
        if values["type"] == "auto" and dispatcher.library.is_union(model):
            values["type"] = TYPE_OF.get(module.annotator or "", "auto")
        if reference and unit.threshold_a >= 0:
            values["style_fidelity"] = unit.threshold_a
        if unit.advanced_weighting:
            if values["mode"] == "control":
                raise Refusal(422, f"ControlNet: advanced_weighting goes with no {MODES['control']!r}", FIELD)
            # nor are layers weakened by the mode
            values |= {"weight": 1.0, "mode": "balanced", "layer_weights": unit.advanced_weighting}
        controls.append(GivenControl(model, values, image, None if reference else mask))
    return controls, hints


def choice(unit: Unit, field: str, names: Mapping[str, str | None]) -> str:
    """Our name of one of the extension's choices, which are names or numbers."""
    value = getattr(unit, field)
    if isinstance(value, int):
        known = ORDERED[field]
        return known[value] if 0 <= value < len(known) else str(value)
    return own_name(names, value) or value


def pictures_of(unit: Unit) -> tuple[bytes | None, bytes | None]:
    """A unit's picture and mask, in any of the forms that clients send. Raises Refusal."""
    image, mask = unit.image, unit.effective_region_mask or unit.mask
    if isinstance(image, list) and image and isinstance(image[0], Mapping):
        image = image[0]
    if isinstance(image, Mapping):
        image, mask = image.get("image"), image.get("mask") or mask
    elif isinstance(image, list):
        image, mask = (image[0] if image else None), (image[1] if len(image) > 1 else mask)
    return (decoded(image, FIELD) if image else None), (decoded(mask, FIELD) if mask else None)


def module_of(name: str) -> Module:
    """A module by its name, as the extension's lists may lengthen it. Raises Refusal."""
    if bare(name) not in MODULES:
        raise Refusal(422, f"ControlNet: there is no module {name[:100]!r} here", FIELD)
    return MODULES[bare(name)]


def bare(name: str) -> str:
    return name.partition(" (")[0].strip().lower()


async def detected(
    dispatcher: Dispatcher, name: str, image: bytes, side: float, thresholds: tuple[float, float]
) -> bytes:
    """The hint that a module makes of a picture, a PNG. side: the shorter one that it sees; below 1 the picture's own."""
    module = module_of(name)
    if not module.annotator:
        return image
    if side >= 1:
        image = await asyncio.to_thread(shrunk, image, min(side, 4096))
    given = zip(module.sliders, thresholds, strict=False)
    numbers = {slider.name: value for slider, value in given if value >= 0}
    return await dispatcher.helper.annotate(module.annotator, image, **numbers)


def shrunk(data: bytes, side: float) -> bytes:
    """A picture whose shorter side has a length."""
    image = opened(data, FIELD).convert("RGB")
    scale = side / min(image.size)
    return as_png(image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale)))))


@router.get("/version")
async def version() -> dict[str, int]:
    """The version of the extension whose units are taken."""
    return {"version": 3}


@router.get("/model_list")
async def model_list(request: Request) -> dict[str, list[str]]:
    """The networks that units may name."""
    return {"model_list": models_of(request)}


def models_of(request: Request) -> list[str]:
    """The networks that there are; references are modules here."""
    return [name for name in dispatcher_of(request).library.controls() if name not in REFERENCES]


@router.get("/module_list")
async def module_list() -> dict[str, Any]:
    """The annotators, which make hints of pictures."""
    detail = {
        name: {"model_free": False, "sliders": [slider_info(slider) for slider in module.sliders]}
        for name, module in MODULES.items()
    }
    return {"module_list": list(MODULES), "module_detail": detail}


def slider_info(slider: Slider) -> dict[str, Any]:
    return {"name": slider.name, "value": slider.default, "min": slider.least, "max": slider.most}


@router.get("/control_types")
async def control_types(request: Request) -> dict[str, Any]:
    """The networks and modules, all as one kind."""
    models = ["None", *models_of(request)]
    every = {"module_list": list(MODULES), "model_list": models, "default_option": "none"}
    return {"control_types": {"All": every | {"default_model": models[-1]}}}


@router.get("/settings")
async def settings() -> dict[str, int]:
    """The number of units that a request may have."""
    return {"control_net_unit_count": MOST}


@router.post("/detect")
async def detect(request: Request, body: Detect) -> dict[str, Any]:
    """Make hints of pictures."""
    dispatcher, made = dispatcher_of(request), []
    given = body.controlnet_input_images or body.controlnet_images
    if not 1 <= len(given) <= MOST:
        raise Refusal(
            422, f"controlnet_input_images: 1 to {MOST} pictures are taken", "controlnet_input_images"
        )
    thresholds = body.controlnet_threshold_a, body.controlnet_threshold_b
    for text in given:
        image = decoded(text, "controlnet_input_images")
        hint = await detected(
            dispatcher, body.controlnet_module, image, body.controlnet_processor_res, thresholds
        )
        made.append(encoded(hint))
    return {"images": made, "info": "Success"}
