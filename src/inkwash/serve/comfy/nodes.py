"""The choices of ComfyUI's clients: nodes and the values of their inputs."""

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

import inkwash
from inkwash.pipeline.names import SAMPLER_NAMES, SCHEDULE_NAMES
from inkwash.serve.answers import dispatcher_of
from inkwash.serve.comfy.links import CHANNELS
from inkwash.serve.comfy.pictures import uploads
from inkwash.serve.comfy.table import LEVELS, METHODS, NODES, OUTPUTS, SAMPLINGS, SENT, UNION_TYPES, UPSCALERS
from inkwash.serve.dispatch import Dispatcher

router = APIRouter()


@router.get("/system_stats")
async def system_stats(request: Request) -> dict[str, Any]:
    """The system that the server runs on."""
    devices = dispatcher_of(request).settings.devices
    return {
        "system": {
            "os": "posix",
            "comfyui_version": f"inkwash {inkwash.__version__}",
            "embedded_python": False,
        },
        "devices": [
            {"name": device, "type": device.partition(":")[0], "index": k, "vram_total": 0, "vram_free": 0}
            for k, device in enumerate(devices)
        ],
    }


def choices(dispatcher: Dispatcher) -> dict[str, list[str]]:
    """The values of inputs that take one of a list, by the inputs' names."""
    library, refiner = dispatcher.library, dispatcher.settings.load.get("refiner")
    refiners = {Path(refiner).stem} - set(library.models) if refiner else set()
    return {
        "ckpt_name": [*library.models, *refiners],
        "clip_name": [model.name for model in library.models.values() if "vary" in model.tasks],
        "control_net_name": [path.name for path in library.controls().values()],
        "type": list(UNION_TYPES),
        "model_name": [path.name for path in library.upscalers().values()],
        "lora_name": [lora["path"] for lora in library.loras()],
        "sampler_name": list(SAMPLER_NAMES),
        "scheduler": list(SCHEDULE_NAMES),
        "upscale_method": list({**UPSCALERS, **METHODS}),
        "fill": ["neutral"],
        "format": ["PNG", "JPEG"],
        "channel": list(CHANNELS),
        "sampling": list(SAMPLINGS),
        "crop": ["center", "none"],
        "return_with_leftover_noise": ["disable", "enable"],
        "image": sorted(path.name for path in uploads(dispatcher).glob("*")),
    }


TYPES = {
    "model": "MODEL", "clip": "CLIP", "vae": "VAE", "positive": "CONDITIONING", "negative": "CONDITIONING",
    "latent_image": "LATENT", "samples": "LATENT", "control_net": "CONTROL_NET",
    "noise": "NOISE", "guider": "GUIDER", "sampler": "SAMPLER", "sigmas": "SIGMAS", "id": "STRING",
    "upscale_model": "UPSCALE_MODEL", "layout": "TILE_LAYOUT", "tile": "IMAGE", "conditioning": "CONDITIONING",
    "clip_vision": "CLIP_VISION", "clip_vision_output": "CLIP_VISION_OUTPUT", "zsnr": "BOOLEAN", "add_noise": "BOOLEAN",
    "mask": "MASK", "pixels": "IMAGE", "images": "IMAGE", "text": "STRING", "text_g": "STRING", "text_l": "STRING",
}  # fmt: skip


FLOATS = (
    "cfg",
    "denoise",
    "strength_model",
    "strength_clip",
    "scale_by",
    "strength",
    "start_percent",
    "end_percent",
    "value",
    "epsilon",
    "offset",
    "threshold",
    "noise_augmentation",
    "ascore",
    "sigma_max",
    "sigma_min",
    "rho",
    "alpha",
    "beta",
)
OWN: dict[tuple[str, str], list[Any]] = {  # inputs that are others in one node
    ("KSamplerAdvanced", "add_noise"): [["enable", "disable"]],
    ("ManualSigmas", "sigmas"): ["STRING"],
}


RETURNS = {name: ["SIGMAS"] for name in LEVELS} | {
    "CheckpointLoaderSimple": ["MODEL", "CLIP", "VAE"], "unCLIPCheckpointLoader": ["MODEL", "CLIP", "VAE", "CLIP_VISION"],
    "CLIPVisionLoader": ["CLIP_VISION"], "CLIPVisionEncode": ["CLIP_VISION_OUTPUT"], "unCLIPConditioning": ["CONDITIONING"],
    "ModelSamplingDiscrete": ["MODEL"], "SamplerCustom": ["LATENT", "LATENT"], "SplitSigmasDenoise": ["SIGMAS", "SIGMAS"],
    "LoraLoader": ["MODEL", "CLIP"], "LoraLoaderModelOnly": ["MODEL"],
    "CLIPSetLastLayer": ["CLIP"], "ControlNetLoader": ["CONTROL_NET"], "SetUnionControlNetType": ["CONTROL_NET"],
    "ControlNetApply": ["CONDITIONING"],
    "ControlNetApplyAdvanced": ["CONDITIONING", "CONDITIONING"],
    "CLIPTextEncode": ["CONDITIONING"], "CLIPTextEncodeSDXL": ["CONDITIONING"],
    "CLIPTextEncodeSDXLRefiner": ["CONDITIONING"], "LoadImage": ["IMAGE", "MASK"],
    "LoadImageMask": ["MASK"], "InvertMask": ["MASK"], "ImageScale": ["IMAGE"], "UpscaleModelLoader": ["UPSCALE_MODEL"],
    "ImageUpscaleWithModel": ["IMAGE"], "VAEDecode": ["IMAGE"],
    "VAEDecodeTiled": ["IMAGE"], "SaveImage": [], "PreviewImage": [], "ImageCrop": ["IMAGE"],
    "SamplerCustomAdvanced": ["LATENT", "LATENT"], "RandomNoise": ["NOISE"], "CFGGuider": ["GUIDER"],
    "BasicGuider": ["GUIDER"], "KSamplerSelect": ["SAMPLER"],
    "SplitSigmas": ["SIGMAS", "SIGMAS"], "ETN_LoadImageBase64": ["IMAGE", "MASK"], "ETN_LoadMaskBase64": ["MASK"],
    "ETN_LoadImageCache": ["IMAGE", "MASK"], "ETN_CropImage": ["IMAGE"], "ETN_ApplyMaskToImage": ["IMAGE"],
    "MaskToImage": ["IMAGE"], "DifferentialDiffusion": ["MODEL"], "INPAINT_MaskedFill": ["IMAGE"],
    "INPAINT_MaskedBlur": ["IMAGE"],
    "CropMask": ["MASK"], "ThresholdMask": ["MASK"], "ImageToMask": ["MASK"], "INPAINT_ExpandMask": ["MASK"],
    "INPAINT_ShrinkMask": ["MASK"], "INPAINT_StabilizeMask": ["MASK"], "INPAINT_DenoiseToCompositingMask": ["MASK"],
    "INPAINT_VAEEncodeInpaintConditioning": ["CONDITIONING", "CONDITIONING", "LATENT", "LATENT"],
    "ETN_TileLayout": ["TILE_LAYOUT"], "ETN_ExtractImageTile": ["IMAGE"], "ETN_ExtractMaskTile": ["MASK"],
    "ETN_GenerateTileMask": ["MASK"], "ETN_MergeImageTile": ["IMAGE"],
    "ETN_SendImageWebSocket": [], "ETN_SaveImageCache": [],
}  # fmt: skip


def node_info(kind: str, lists: dict[str, list[str]]) -> dict[str, Any]:
    """A node's inputs and outputs, as ComfyUI describes them."""

    def input_of(name: str) -> list[Any]:
        if (kind, name) in OWN:
            return OWN[kind, name]
        if name in lists and (name != "image" or kind.startswith("LoadImage")):
            return [lists[name]]
        if kind.startswith("ETN_Load"):
            return ["STRING"]
        return [TYPES.get(name) or ("IMAGE" if name == "image" else "FLOAT" if name in FLOATS else "INT")]

    return {
        "input": {"required": {name: input_of(name) for name in NODES[kind]}},
        "output": (returns := RETURNS.get(kind, ["LATENT"])),
        "output_name": returns,
        "name": kind,
        "display_name": kind,
        "description": "",
        "category": "inkwash",
        "output_node": kind in (*OUTPUTS, *SENT),
    }


@router.get("/object_info")
async def object_info(request: Request) -> dict[str, Any]:
    """The nodes that graphs may have."""
    lists = choices(dispatcher_of(request))
    return {kind: node_info(kind, lists) for kind in NODES}


@router.get("/object_info/{kind}")
async def object_info_of(request: Request, kind: str) -> dict[str, Any]:
    """One node."""
    return {kind: node_info(kind, choices(dispatcher_of(request)))} if kind in NODES else {}


@router.get("/embeddings")
async def embeddings(request: Request) -> list[str]:
    """Embeddings by name."""
    return dispatcher_of(request).library.named("embeddings")


@router.get("/extensions")
async def extensions() -> list[str]:
    """None."""
    return []
