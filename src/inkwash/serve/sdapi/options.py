"""AUTOMATIC1111's settings, and the models that are open."""

from typing import Any

from fastapi import APIRouter, Request

from inkwash.process import proc_bytes
from inkwash.serve.answers import dispatcher_of
from inkwash.serve.dispatch import Dispatcher
from inkwash.serve.errors import Refusal

router = APIRouter()


V1 = "/sdapi/v1"


OPTIONS = {
    "sd_vae": "Automatic",
    "CLIP_stop_at_last_layers": 1,
    "samples_format": "png",
    "eta_ddim": 0.0,
    "eta_ancestral": 1.0,
}


def options_of(dispatcher: Dispatcher) -> dict[str, Any]:
    return OPTIONS | dispatcher.queue.kept("options", {})


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
        raise Refusal(422, "sd_model_checkpoint is not a string", "sd_model_checkpoint")
    if name and dispatcher.library.resolve(name).name != dispatcher.library.current:
        await dispatcher.load(name)
    body = {
        key: float(value) if type(value) is int and key.startswith("eta_") else value
        for key, value in body.items()
    }
    own = {key: value for key, value in body.items() if key in OPTIONS and type(value) is type(OPTIONS[key])}
    if own:
        dispatcher.queue.keep("options", dispatcher.queue.kept("options", {}) | own)
    return {}


@router.get(f"{V1}/cmd-flags")
async def cmd_flags() -> dict[str, Any]:
    """An empty answer: clients need not know how the server was started."""
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
    """Free the models' memory, once running jobs have ended."""
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
    values = proc_bytes("/proc/meminfo")
    free, total = values["MemAvailable"], values["MemTotal"]
    cuda = dispatcher_of(request).processes[0].memory.get("cuda")
    return {
        "ram": {"free": free, "used": total - free, "total": total},
        "cuda": {"reserved": {"current": cuda}} if cuda is not None else {"error": "no GPU is used"},
    }
