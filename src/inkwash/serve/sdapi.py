"""AUTOMATIC1111's dialect: /sdapi/v1, and what its clients ask for beside it."""

import asyncio
import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from pydantic import BaseModel, ConfigDict

from inkwash.pipeline.names import SAMPLER_NAMES, SCHEDULE_NAMES, UPSCALER_NAMES
from inkwash.pipeline.record.a1111 import parse_parameters
from inkwash.pipeline.record.metadata import read_recipes
from inkwash.serve import sdapi_fields as fields
from inkwash.serve.answers import dispatcher_of, drawn
from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.errors import Refusal
from inkwash.serve.images import decoded, encoded
from inkwash.serve.queue import Job

router = APIRouter(tags=["AUTOMATIC1111"])
V1 = "/sdapi/v1"
OPTIONS = {"sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1, "samples_format": "png"}
PLAIN_UPSCALERS = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
MAX_SIDE = 8192  # pixels of an enlarged picture


class Loose(BaseModel):
    model_config = ConfigDict(extra="ignore")


class OnePicture(Loose):
    image: str = ""


class Extras(Loose):
    """The options of extra-single-image and extra-batch-images that enlarge."""

    resize_mode: int = 0
    upscaling_resize: float = 2
    upscaling_resize_w: int = 512
    upscaling_resize_h: int = 512
    upscaling_crop: bool = True
    upscaler_1: str = "None"
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: float = 0
    gfpgan_visibility: float = 0
    codeformer_visibility: float = 0
    image: str = ""
    imageList: list[dict[str, Any]] = []


class TaskId(Loose):
    id_task: str | None = None
    id_live_preview: int = -1
    live_preview: bool = True


def options_of(dispatcher: Dispatcher) -> dict[str, Any]:
    return OPTIONS | dispatcher.queue.kept("options", {})


def own_jobs(dispatcher: Dispatcher) -> list[Job]:
    """The dialect's jobs that run or wait, in their order."""
    running = [dispatcher.queue.get(id) for id in dispatcher.running]
    return [job for job in [*running, *dispatcher.queue.waiting()] if job.dialect == "sdapi"]


@router.post(f"{V1}/txt2img")
async def txt2img(request: Request, body: fields.TextToImage) -> dict[str, Any]:
    """Draw from a prompt."""
    options = options_of(dispatcher_of(request)) | (body.override_settings or {})
    return await answer(request, body, "text_to_image", fields.of_text(body, options), {})


@router.post(f"{V1}/img2img")
async def img2img(request: Request, body: fields.ImageToImage) -> dict[str, Any]:
    """Change a picture, or the white part of a mask."""
    dispatcher = dispatcher_of(request)
    if not body.init_images:
        raise Refusal(404, "Init image not found", "init_images")
    if len(body.init_images) > 1:
        raise Refusal(422, "init_images: one picture a request is taken", "init_images")
    options = options_of(dispatcher) | (body.override_settings or {})
    image = decoded(body.init_images[0], "init_images")
    mask = decoded(body.mask, "mask") if body.mask else None
    model = dispatcher.library.resolve(options.get("sd_model_checkpoint"))
    instruct = model.about.get("sees") == "instruct-pix2pix"
    task, wanted, images = await asyncio.to_thread(fields.of_image, body, options, image, mask, instruct)
    return await answer(request, body, task, wanted, images)


async def answer(
    request: Request, body: fields.Drawing, task: str, wanted: fields.Wanted, images: dict[str, bytes]
) -> dict[str, Any]:
    """Draw, as one job for each of `n_iter`, and answer with the pictures."""
    dispatcher = dispatcher_of(request)
    settings = body.override_settings or {}
    model = dispatcher.library.resolve(settings.get("sd_model_checkpoint"))
    if settings.get("sd_model_checkpoint") and body.override_settings_restore_afterwards is False:
        dispatcher.library.choose(model.name)
    jobs: list[Job] = []
    values = dict(wanted.values)
    for _ in range(wanted.repeats):
        job = dispatcher.submit(task, values, images, model.name, dialect="sdapi")
        jobs.append(job)
        step = job.request["batch_size"]
        varied = bool(job.request["variation_strength"])
        values |= {
            "seed": job.request["seed"] + (0 if varied else step),
            "variation_seed": job.request["variation_seed"] + (step if varied else 0),
        }
    ended = await drawn(request, jobs)
    files = [dispatcher.folder(job.id) / f"{k}.png" for job in ended for k in range(len(job.pictures))]
    pictures = [] if body.send_images is False else [encoded(path.read_bytes()) for path in files]
    echo = body.model_dump()
    if not echo.pop("include_init_images", False):
        echo |= dict.fromkeys({"init_images", "mask"} & echo.keys())
    return {"images": pictures, "parameters": echo, "info": fields.info(ended, body, model, wanted.comments)}


@router.get(f"{V1}/options")
async def get_options(request: Request) -> dict[str, Any]:
    """The settings that can be changed."""
    dispatcher = dispatcher_of(request)
    model = dispatcher.library.resolve(None)
    return {
        "sd_model_checkpoint": model.title,
        "sd_checkpoint_hash": model.about.get("sha256", ""),
    } | options_of(dispatcher)


@router.post(f"{V1}/options")
async def set_options(request: Request, body: dict[str, Any]) -> dict[str, Any]:
    """Change settings; those that are not known here are let be."""
    dispatcher = dispatcher_of(request)
    name = body.get("sd_model_checkpoint")
    if name is not None and not isinstance(name, str):
        raise Refusal(422, "sd_model_checkpoint is no text", "sd_model_checkpoint")
    if name and dispatcher.library.resolve(name).name != dispatcher.library.current:
        await dispatcher.load(name)
    own = {key: value for key, value in body.items() if key in OPTIONS and type(value) is type(OPTIONS[key])}
    if own:
        dispatcher.queue.keep("options", dispatcher.queue.kept("options", {}) | own)
    return {}


@router.get(f"{V1}/sd-models")
async def sd_models(request: Request) -> list[dict[str, Any]]:
    """The models."""
    return [
        {
            "title": model.title,
            "model_name": model.name,
            "hash": model.hash or None,
            "sha256": model.about.get("sha256"),
            "filename": model.name,
            "config": None,
        }
        for model in dispatcher_of(request).library.models.values()
    ]


@router.get(f"{V1}/samplers")
async def samplers() -> list[dict[str, Any]]:
    """The samplers, by A1111's names."""
    return [
        {"name": name, "aliases": [f"k_{own}", own], "options": {}} for own, name in SAMPLER_NAMES.items()
    ]


@router.get(f"{V1}/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """The noise schedules."""
    return [
        {"name": own, "label": name, "aliases": None, "default_rho": -1, "need_inner_model": False}
        for own, name in SCHEDULE_NAMES.items()
    ]


@router.get(f"{V1}/upscalers")
async def upscalers() -> list[dict[str, Any]]:
    """What enlarges pictures."""
    missing = dict.fromkeys(("model_name", "model_path", "model_url"))
    return [{"name": name, **missing, "scale": 4} for name in ("None", *PLAIN_UPSCALERS)]


@router.get(f"{V1}/latent-upscale-modes")
async def latent_upscale_modes() -> list[dict[str, str]]:
    """What enlarges latents."""
    return [{"name": name} for name in UPSCALER_NAMES.values() if name.startswith("Latent")]


@router.get(f"{V1}/loras")
async def loras(request: Request) -> list[dict[str, Any]]:
    """LoRAs, by the names that prompts may use."""
    return [
        {"name": lora["name"], "alias": lora["name"], "path": lora["path"], "metadata": lora["metadata"]}
        for lora in dispatcher_of(request).library.loras()
    ]


@router.get(f"{V1}/embeddings")
async def embeddings(request: Request) -> dict[str, Any]:
    """Embeddings by name."""
    about = dict.fromkeys(("step", "sd_checkpoint", "sd_checkpoint_name", "shape", "vectors"))
    return {
        "loaded": {name: about for name in dispatcher_of(request).library.named("embeddings")},
        "skipped": {},
    }


@router.get(f"{V1}/hypernetworks")
async def hypernetworks(request: Request) -> list[dict[str, Any]]:
    """Hypernetworks by name."""
    return [{"name": name, "path": name} for name in dispatcher_of(request).library.named("hypernetworks")]


@router.get(f"{V1}/prompt-styles")
async def prompt_styles(request: Request) -> list[dict[str, str]]:
    """Styles."""
    return dispatcher_of(request).library.styles()


@router.get(f"{V1}/sd-vae")
@router.get(f"{V1}/face-restorers")
@router.get(f"{V1}/realesrgan-models")
@router.get(f"{V1}/script-info")
@router.get(f"{V1}/extensions")
async def none_of_these() -> list[Any]:
    """What this server has none of."""
    return []


@router.get(f"{V1}/scripts")
async def scripts() -> dict[str, list[str]]:
    """Scripts that may be named."""
    return {"txt2img": [], "img2img": []}


@router.get(f"{V1}/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    """Nothing: how the server was started is nobody's business."""
    return {}


@router.post(f"{V1}/refresh-checkpoints")
@router.post(f"{V1}/refresh-loras")
@router.post(f"{V1}/refresh-vae")
@router.post(f"{V1}/refresh-embeddings")
async def refresh(request: Request) -> dict[str, Any]:
    """Look at the folders again."""
    dispatcher = dispatcher_of(request)
    dispatcher.library.refresh()
    await dispatcher.library.describe_all(dispatcher.helper)
    return {}


@router.post(f"{V1}/unload-checkpoint")
async def unload(request: Request) -> dict[str, Any]:
    """Free the models' memory, once what runs has ended."""
    await dispatcher_of(request).processes[0].result("unload")
    return {}


@router.post(f"{V1}/reload-checkpoint")
async def reload(request: Request) -> dict[str, Any]:
    """Have the current model at hand again."""
    dispatcher = dispatcher_of(request)
    await dispatcher.load(dispatcher.library.current)
    return {}


@router.get(f"{V1}/memory")
async def memory(request: Request) -> dict[str, Any]:
    """Main memory, and a GPU's."""
    values = {}
    with open("/proc/meminfo") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            values[name] = int(value.split()[0]) * 1024
    free, total = values["MemAvailable"], values["MemTotal"]
    cuda = dispatcher_of(request).processes[0].memory.get("cuda")
    return {
        "ram": {"free": free, "used": total - free, "total": total},
        "cuda": {"reserved": {"current": cuda}} if cuda is not None else {"error": "no GPU is used"},
    }


@router.get(f"{V1}/progress")
async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
    """How far what is being drawn is; progress 0 and no job where nothing is."""
    dispatcher = dispatcher_of(request)
    if not skip_current_image:
        dispatcher.watch_previews()
    jobs = own_jobs(dispatcher)
    running = next((job for job in jobs if job.id in dispatcher.running), None)
    told = (dispatcher.progress.get(running.id) if running else None) or {}
    step, num_steps = told.get("step", 0), told.get("num_steps", 0)
    share = step / num_steps if num_steps else 0.0
    preview = dispatcher.preview.get(running.id) if running and not skip_current_image else None
    return {
        "progress": max(share / len(jobs), 0.001) if jobs else 0.0,
        "eta_relative": told.get("seconds_left") or 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": running.id if running else "",
            "job_count": len(jobs),
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(running.started))
            if running
            else "0",
            "job_no": 0,
            "sampling_step": step,
            "sampling_steps": num_steps,
        },
        "current_image": preview.partition(",")[2] if preview else None,
        "textinfo": None,
        "current_task": running.id if running else None,
    }


@router.post("/internal/progress")
async def internal_progress(request: Request, body: TaskId) -> dict[str, Any]:
    """The same for a task by its id."""
    dispatcher = dispatcher_of(request)
    told = await progress(request, not body.live_preview)
    waiting = [job.id for job in dispatcher.queue.waiting()]
    active = body.id_task in dispatcher.running
    image = told["current_image"]
    return {
        "active": active,
        "queued": body.id_task in waiting,
        "completed": not active and body.id_task not in waiting,
        "progress": told["progress"] if active else None,
        "eta": told["eta_relative"] if active else None,
        "live_preview": f"data:image/jpeg;base64,{image}" if active and image else None,
        "id_live_preview": told["state"]["sampling_step"],
        "textinfo": None,
    }


@router.get("/internal/pending-tasks")
async def pending_tasks(request: Request) -> dict[str, Any]:
    """What waits."""
    waiting = [job.id for job in dispatcher_of(request).queue.waiting()]
    return {"size": len(waiting), "tasks": waiting}


@router.post(f"{V1}/interrupt")
async def interrupt(request: Request) -> dict[str, Any]:
    """End what this dialect draws and has waiting of the same request: all that runs now."""
    dispatcher = dispatcher_of(request)
    for job in own_jobs(dispatcher):
        if job.id in dispatcher.running:
            dispatcher.cancel(job.id)
    return {}


@router.post(f"{V1}/skip")
async def skip(request: Request) -> dict[str, Any]:
    """End the picture that is being drawn; the request's next ones follow."""
    return await interrupt(request)


@router.post(f"{V1}/png-info")
async def png_info(request: Request, body: OnePicture) -> dict[str, Any]:
    """The text in a picture."""
    dispatcher = dispatcher_of(request)
    async with dispatcher.file_of(decoded(body.image, "image")) as path:
        try:
            found = await asyncio.to_thread(read_recipes, Path(path))
        except OSError:
            raise Refusal(422, "the picture can't be read", "image") from None
    text = found.get("parameters", "")
    values: dict[str, Any] = {}
    if text:
        prompt, negative, values = parse_parameters(text)
        values = {"Prompt": prompt, "Negative prompt": negative, **values}
    return {"info": text, "items": {key: str(value) for key, value in found.items()}, "parameters": values}


@router.post(f"{V1}/extra-single-image")
async def extra_single_image(body: Extras) -> dict[str, Any]:
    """Enlarge a picture."""
    made = await asyncio.to_thread(enlarged, decoded(body.image, "image"), body)
    return {"html_info": "", "image": made}


@router.post(f"{V1}/extra-batch-images")
async def extra_batch_images(body: Extras) -> dict[str, Any]:
    """Enlarge several pictures."""
    if not body.imageList:
        raise Refusal(422, "imageList is empty", "imageList")
    pictures = [decoded(one.get("data", ""), "imageList") for one in body.imageList]
    return {"html_info": "", "images": [await asyncio.to_thread(enlarged, data, body) for data in pictures]}


def enlarged(data: bytes, body: Extras) -> str:
    """Base64 of a picture in another size. Raises Refusal."""
    image = fields.opened(data, "image").convert("RGB")
    if body.gfpgan_visibility or body.codeformer_visibility:
        raise Refusal(422, "this server has no face restorer", "gfpgan_visibility")
    if body.upscaler_2 != "None" and body.extras_upscaler_2_visibility:
        raise Refusal(422, "upscaler_2: one upscaler is used", "upscaler_2")
    if body.upscaler_1 == "None":
        return encoded(fields.as_png(image))
    if body.upscaler_1 not in PLAIN_UPSCALERS:
        raise Refusal(422, f"upscaler_1 {body.upscaler_1[:100]!r}: no such upscaler", "upscaler_1")
    if body.resize_mode == 1:
        scale = max(body.upscaling_resize_w / image.width, body.upscaling_resize_h / image.height)
    else:
        scale = body.upscaling_resize
    size = round(image.width * scale), round(image.height * scale)
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise Refusal(422, f"{size[0]}x{size[1]} is not 1 to {MAX_SIDE} pixels a side", "upscaling_resize")
    made = image.resize(size, PLAIN_UPSCALERS[body.upscaler_1])
    if body.resize_mode == 1 and body.upscaling_crop:
        made = fields.cropped(made, (body.upscaling_resize_w, body.upscaling_resize_h))
    return encoded(fields.as_png(made))


@router.post(f"{V1}/interrogate")
async def interrogate() -> dict[str, Any]:
    """No model here describes pictures."""
    raise Refusal(404, "this server has no model that describes pictures", "model")
