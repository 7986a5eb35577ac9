"""The choices of AUTOMATIC1111's clients."""

from typing import Any

from fastapi import APIRouter, Request

from inkwash.pipeline.names import SAMPLER_NAMES, SCHEDULE_NAMES, UPSCALER_NAMES
from inkwash.serve.answers import dispatcher_of
from inkwash.serve.enlarging import UPSCALERS
from inkwash.serve.sdapi.options import V1

router = APIRouter()


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
async def upscalers(request: Request) -> list[dict[str, Any]]:
    """The upscalers of pictures."""
    missing = dict.fromkeys(("model_name", "model_path", "model_url"))
    names = ("None", *map(str.capitalize, UPSCALERS), *dispatcher_of(request).library.upscalers())
    return [{"name": name, **missing, "scale": 4} for name in names]


@router.get(f"{V1}/latent-upscale-modes")
async def latent_upscale_modes() -> list[dict[str, str]]:
    """The upscalers of latents."""
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
    """Empty lists, of things that this server has none of."""
    return []


@router.get(f"{V1}/scripts")
async def scripts() -> dict[str, list[str]]:
    """Scripts that are honoured; webuiapi knows the ControlNet extension by the second name."""
    return {key: ["controlnet", "controlnet m2m"] for key in ("txt2img", "img2img")}
