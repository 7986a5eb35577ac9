"""Distilled models: their guidance input, and a word where the settings do not suit them. B batch."""

import logging

import torch
from torch import Tensor

from inkwash.nn.embeddings import timestep_embedding
from inkwash.pipeline.model import Model
from inkwash.pipeline.presets import PRESETS
from inkwash.pipeline.request import Request
from inkwash.prompts.language import LANGUAGES
from inkwash.prompts.tags import extract_tags
from inkwash.weights.bytes.tensor_file import read_tensors
from inkwash.weights.few_steps import FewSteps, few_steps_of

log = logging.getLogger(__name__)


def embedded_scale(cfg_scale: float, dim: int, num: int) -> Tensor:
    """The guidance scale (num, dim) as a distilled network sees it (Meng et al. 2023; Luo et al. 2023, appendix).

    What is embedded is w of (1 + w) cond - w uncond, which is cfg_scale - 1, times 1000.
    """
    w = torch.full((num,), 1000 * (cfg_scale - 1))
    return timestep_embedding(w, dim, sin_first=True, freq_shift=1)


def distilled(model: Model, request: Request) -> tuple[str, FewSteps] | None:
    """The name and the kind of what was distilled: the model, a LoRA in a prompt, or what the request's preset is for.

    None where nothing is known to be.
    """
    if model.few_steps:
        return model.name, model.few_steps
    if LANGUAGES[request.prompt_language].names and model.folders.loras is not None:
        tags = dict.fromkeys(tag for prompt in request.prompts for tag in extract_tags(prompt)[1])
        for tag in tags:
            if tag.kind == "lora":
                path = model.folders.lora(tag.name)
                if found := few_steps_of([path], read_tensors(path).metadata):
                    return tag.name, found
    if request.preset:
        return f"a model for preset {request.preset}", FewSteps(request.preset, "the preset")
    return None


def note_misfit(model: Model, request: Request) -> None:
    """Warn where steps or guidance are not those that the model was distilled for."""
    sees_scale = model.unet.config.time_cond_dim is not None
    if request.preset and PRESETS[request.preset].guided and not sees_scale:
        log.warning(
            "preset %s is for networks that see the guidance scale, and %s does not; use --preset lcm-lora",
            *(request.preset, model.name),
        )
    if (found := distilled(model, request)) is None:
        return
    note_steps(*found, request)
    note_guidance(*found, request, sees_scale)


def note_steps(name: str, few: FewSteps, request: Request) -> None:
    """Warn of steps that are too many, or not at the timestep of a network of one step."""
    # a network of one step has seen nothing but noise
    most = 1 if few.steps == 1 else max(few.steps or 0, PRESETS[few.preset].most_steps)
    if request.steps > most:
        numbers = "1 step" if most == 1 else f"1 to {most} steps"
        log.warning("%s draws in %s, and %s were asked for; use %s", name, numbers, request.steps, few.hint)
    elif few.timesteps and request.timesteps != few.timesteps:
        log.warning("%s draws at timestep %s alone; use %s", name, few.timesteps[0], few.hint)


def note_guidance(name: str, few: FewSteps, request: Request, sees_scale: bool) -> None:
    """Warn of guidance that is too strong or too weak, and of a negative prompt that nothing sees."""
    preset, scale = PRESETS[few.preset], request.cfg_scale
    most = 15.0 if sees_scale or preset.guided else 8.0 if few.cfg_scale else preset.most_cfg
    if scale > most:
        log.warning(
            "%s has guidance in its weights, and cfg_scale %g burns colours; use at most %g, or %s",
            *(name, scale, most, few.hint),
        )
    elif sees_scale and scale <= 1:
        log.warning("%s sees cfg_scale, and %g is no guidance; use %s", name, scale, few.hint)
    elif scale < 1:
        log.warning(
            "cfg_scale %g follows the prompt less than 1, no guidance, does; guidance_scale 0 of diffusers is 1",
            scale,
        )
    if any(request.negative_prompts) and (sees_scale or scale == 1):
        log.warning("%s is drawn without a second prediction, so the negative prompt does nothing", name)
