"""Bodies of AUTOMATIC1111's API, and the requests that they mean. Fields may be missing or null, and others more."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import ImageChops
from pydantic import BaseModel, ConfigDict

from inkwash.pipeline.names import (
    A1111_ETAS,
    ETAS,
    FILL_NAMES,
    SAMPLER_NAMES,
    SCHEDULE_NAMES,
    resolve,
)
from inkwash.pipeline.record.a1111 import parse_parameters, request_values
from inkwash.serve.errors import Refusal
from inkwash.serve.pixels import RESIZE, as_mask, as_png, opened, resized

MAX_PICTURES = 64


class Loose(BaseModel):
    """A model that may hold fields that are not known here."""

    model_config = ConfigDict(extra="ignore")


class Drawing(Loose):
    """The common fields of txt2img and img2img."""

    prompt: str | None = None
    negative_prompt: str | None = None
    styles: list[str] | None = None
    seed: int | None = None
    subseed: int | None = None
    subseed_strength: float | None = None
    seed_resize_from_h: int | None = None
    seed_resize_from_w: int | None = None
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: int | None = None
    n_iter: int | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    restore_faces: bool | None = None
    tiling: bool | None = None
    eta: float | None = None
    s_churn: float | None = None
    s_noise: float | None = None
    denoising_strength: float | None = None
    clip_skip: int | None = None  # of SillyTavern
    refiner_checkpoint: str | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool | None = None
    script_name: str | None = None
    script_args: list[Any] | None = None
    alwayson_scripts: dict[str, Any] | None = None
    send_images: bool | None = None
    infotext: str | None = None

    def own(self, name: str, default: Any) -> Any:
        """A field's value, or A1111's default of it."""
        value = getattr(self, name)
        return default if value is None else value


class TextToImage(Drawing):
    """The body of txt2img."""

    enable_hr: bool | None = None
    hr_scale: float | None = None
    hr_upscaler: str | None = None
    hr_second_pass_steps: int | None = None
    hr_resize_x: int | None = None
    hr_resize_y: int | None = None
    hr_prompt: str | None = None
    hr_negative_prompt: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_checkpoint_name: str | None = None


class ImageToImage(Drawing):
    """The body of img2img."""

    init_images: list[str] | None = None
    resize_mode: int | None = None
    image_cfg_scale: float | None = None
    mask: str | None = None
    mask_blur: float | None = None
    mask_blur_x: float | None = None
    mask_blur_y: float | None = None
    inpainting_fill: int | None = None
    inpaint_full_res: bool | int | None = None
    inpaint_full_res_padding: int | None = None
    inpainting_mask_invert: bool | int | None = None
    include_init_images: bool | None = None


class Wanted(NamedTuple):
    """A request's fields, how often it is drawn with seeds that go on, and what of the body is not applied."""

    values: dict[str, Any]
    repeats: int
    comments: list[str]


def sampler_of(body: Drawing) -> tuple[str, str]:
    """Own names of the sampler and the schedule. Raises Refusal."""
    name = body.sampler_name or body.sampler_index or "Euler"
    sampler, schedule = resolve(name, body.scheduler or "automatic")
    if sampler not in SAMPLER_NAMES:
        raise Refusal(404, "Sampler not found", "sampler_name")
    if schedule not in SCHEDULE_NAMES:
        raise Refusal(404, "Scheduler not found", "scheduler")
    return sampler, schedule


def common(body: Drawing, options: Mapping[str, Any]) -> Wanted:
    """Values that txt2img and img2img share. options: of the server, with the request's own above them. Raises Refusal."""
    if body.script_name and body.script_name.lower() != "none":
        raise Refusal(422, f"Script {body.script_name[:100]!r} not found", "script_name")
    if unknown := [name for name in body.alwayson_scripts or {} if scripted(body, name)]:
        raise Refusal(422, f"always on script {unknown[0][:100]} not found", "alwayson_scripts")
    if body.restore_faces:
        raise Refusal(422, "restore_faces: this server has no face restorer", "restore_faces")
    sampler, schedule = sampler_of(body)
    values: dict[str, Any] = {}
    comments: list[str] = []
    if body.infotext:
        try:
            values |= request_values(*parse_parameters(body.infotext)).request
            comments += [f"ControlNet {each['file']} has no picture" for each in values.pop("controls", [])]
        except ValueError as error:
            raise Refusal(422, f"infotext: {error}", "infotext") from None
    defaults = {
        "prompt": ("prompt", ""),
        "negative_prompt": ("negative_prompt", ""),
        "styles": ("styles", []),
        "width": ("width", 512),
        "height": ("height", 512),
        "steps": ("steps", 50),
        "cfg_scale": ("cfg_scale", 7.0),
        "batch_size": ("batch_size", 1),
        "variation_strength": ("subseed_strength", 0.0),
    }
    for name, (theirs, default) in defaults.items():
        if getattr(body, theirs) is not None or name not in values:
            values[name] = body.own(theirs, default)
    if body.sampler_name or body.sampler_index or "sampler" not in values:
        values |= {"sampler": sampler, "schedule": schedule}
    values |= eta_of(body, options, values)
    for name, theirs in (("seed", "seed"), ("variation_seed", "subseed")):
        if getattr(body, theirs) is not None:
            values[name] = getattr(body, theirs)
    if (body.seed_resize_from_w or 0) > 0 and (body.seed_resize_from_h or 0) > 0:
        values["seed_resize_from"] = (body.seed_resize_from_w, body.seed_resize_from_h)
    if body.tiling:
        values["seamless"] = "both"
    skip = body.clip_skip or options.get("CLIP_stop_at_last_layers")
    if isinstance(skip, int) and skip > 1:
        values["clip_skip"] = skip
    repeats = body.own("n_iter", 1)
    if not (1 <= repeats <= MAX_PICTURES and 1 <= values["batch_size"] * repeats <= MAX_PICTURES):
        raise Refusal(422, f"batch_size times n_iter must be 1 to {MAX_PICTURES}", "n_iter")
    if body.refiner_checkpoint and body.refiner_checkpoint.lower() != "none":
        comments.append(f"refiner_checkpoint {body.refiner_checkpoint} is not applied")
    if (vae := options.get("sd_vae")) not in (None, "", "None", "none", "Automatic", "automatic"):
        comments.append(f"sd_vae {vae} is not applied: the model's own is used")
    for name, default in (("s_churn", 0.0), ("s_noise", 1.0)):
        if body.own(name, default) != default:
            comments.append(f"{name} {getattr(body, name):g} is not applied")
    return Wanted(values, repeats, comments)


def eta_of(body: Drawing, options: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler's eta, None for its own: the body's, else the infotext's or that of the options.

    As in A1111, samplers that have none ignore it.
    """
    sampler, _ = resolve(values["sampler"])
    if sampler not in ETAS:
        return {"eta": None}
    if body.infotext or sampler == "tcd":  # which A1111 has not
        eta = values.get("eta")
    else:
        eta = options["eta_ddim" if A1111_ETAS[sampler][0] == "Eta DDIM" else "eta_ancestral"]
    eta = eta if body.eta is None else body.eta
    return {"eta": None if eta == ETAS[sampler] else eta}


def scripted(body: Drawing, name: str) -> bool:
    """Return True if an unknown script has arguments to act on; clients also send scripts that are switched off."""
    if name.lower() == "controlnet":
        return False
    arguments = (body.alwayson_scripts or {})[name]
    given = arguments.get("args") if isinstance(arguments, dict) else arguments
    return bool(given) and given != [False]


def of_text(body: TextToImage, options: Mapping[str, Any]) -> Wanted:
    """The request of txt2img. Raises Refusal."""
    wanted = common(body, options)
    if not body.enable_hr:
        return wanted
    values, comments = wanted.values, wanted.comments
    values["hires"] = body.own("hr_scale", 2.0)
    if body.hr_resize_x or body.hr_resize_y:
        factors = [
            side / values[name]
            for side, name in ((body.hr_resize_x, "width"), (body.hr_resize_y, "height"))
            if side
        ]
        values["hires"] = max(factors)
    values["hires_strength"] = body.own("denoising_strength", 0.75)
    values["hires_steps"] = body.hr_second_pass_steps or None
    values["hires_upscaler"] = body.own("hr_upscaler", "Latent")
    same = ("", "use same sampler", "use same scheduler", "use same checkpoint")
    for name in ("hr_prompt", "hr_negative_prompt", "hr_sampler_name", "hr_scheduler", "hr_checkpoint_name"):
        text = getattr(body, name)
        if (
            text
            and text.lower() not in same
            and text not in (body.prompt, body.negative_prompt, body.sampler_name)
        ):
            comments.append(f"{name} {text} is not applied")
    return wanted


def of_image(
    body: ImageToImage, options: Mapping[str, Any], image: bytes, mask: bytes | None, sees: str | None
) -> tuple[str, Wanted, dict[str, bytes]]:
    """The task, the request and the pictures of img2img. sees: the model, beside the latent. Raises Refusal."""
    wanted = common(body, options)
    values = wanted.values
    size = values["width"], values["height"]
    if not all(1 <= side <= 4096 for side in size):
        raise Refusal(422, "width and height must be 1 to 4096", "width")
    if sees == "picture" and mask is None:
        if body.denoising_strength not in (None, 1):
            wanted.comments.append(
                "denoising_strength is not applied: the model draws what it sees in the picture"
            )
        return "vary", wanted, {"image": image}
    instruct = sees == "instruct-pix2pix"
    if instruct:
        values["image_cfg_scale"] = body.own("image_cfg_scale", 1.5)
    else:
        values["strength"] = body.own("denoising_strength", 0.75)
    mode = body.own("resize_mode", 0)
    if mode not in RESIZE:
        raise Refusal(422, f"resize_mode {mode}: 0 to 3 are there", "resize_mode")
    if mode == 3:
        wanted.comments.append("resize_mode 3 is drawn as 0")
    if mask is None:
        made = resized(image, size, mode)
        return "instruct" if instruct else "image_to_image", wanted, {"image": made}
    only_masked = bool(body.own("inpaint_full_res", True))
    fill = body.own("inpainting_fill", 0)
    if not 0 <= fill <= 3:
        raise Refusal(422, f"inpainting_fill {fill}: 0 to 3 are there", "inpainting_fill")
    blurs = [blur for blur in (body.mask_blur, body.mask_blur_x, body.mask_blur_y) if blur is not None]
    values |= {
        "mask_blur": max(blurs, default=4),
        "fill": ("around", "original", "noise", "nothing")[fill],
        "only_masked": only_masked,
        "padding": body.own("inpaint_full_res_padding", 0),
    }
    picture, hole = opened(image, "init_images"), as_mask(opened(mask, "mask"))
    if body.inpainting_mask_invert:
        hole = ImageChops.invert(hole)
    hole = hole.resize(picture.size) if hole.size != picture.size else hole
    if not only_masked and picture.size != size:
        picture, hole = RESIZE[mode](picture.convert("RGB"), size), RESIZE[mode](hole, size)
    return "inpaint", wanted, {"image": as_png(picture), "mask": as_png(hole)}


assert list(FILL_NAMES) == ["original", "around", "noise", "nothing"]
