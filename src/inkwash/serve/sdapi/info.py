"""AUTOMATIC1111's texts about pictures: the `info` of an answer."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import inkwash
from inkwash.pipeline.names import SAMPLER_NAMES, SCHEDULE_NAMES
from inkwash.serve.models import Served
from inkwash.serve.queue import Job
from inkwash.serve.sdapi.fields import Drawing


def info(jobs: Sequence[Job], body: Drawing, model: Served, comments: Sequence[str]) -> str:
    """The `info` of an answer: JSON in a text."""
    pictures = [picture for job in jobs for picture in job.pictures]
    request = jobs[0].request
    notes = [note for picture in pictures for note in picture.get("notes", [])]
    seeds = [picture["seed"] for picture in pictures]
    first = pictures[0]["recipe"].get("request", request) if pictures else request
    subseeds = [job.request["variation_seed"] + k for job in jobs for k in range(len(job.pictures))]
    prompts = [text_of(picture, "prompt") for picture in pictures]
    negatives = [text_of(picture, "negative_prompt") for picture in pictures]
    seed_resize = request["seed_resize_from"] or (0, 0)
    width, height = (
        (pictures[0]["width"], pictures[0]["height"]) if pictures else (request["width"], request["height"])
    )
    return json.dumps(
        {
            "prompt": prompts[0] if prompts else request["prompt"],
            "all_prompts": prompts,
            "negative_prompt": negatives[0] if negatives else request["negative_prompt"],
            "all_negative_prompts": negatives,
            "seed": seeds[0] if seeds else request["seed"],
            "all_seeds": seeds,
            "subseed": request["variation_seed"],
            "all_subseeds": subseeds,
            "subseed_strength": request["variation_strength"],
            "width": width,
            "height": height,
            "sampler_name": SAMPLER_NAMES[first["sampler"]],
            "cfg_scale": request["cfg_scale"],
            "steps": request["steps"],
            "batch_size": request["batch_size"],
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": model.name,
            "sd_model_hash": model.hash,
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "seed_resize_from_w": seed_resize[0],
            "seed_resize_from_h": seed_resize[1],
            "denoising_strength": request.get("strength") or request.get("hires_strength"),
            "extra_generation_params": {"Schedule type": SCHEDULE_NAMES[first["schedule"]]},
            "index_of_first_image": 0,
            "infotexts": [picture["parameters"] for picture in pictures],
            "styles": body.styles or [],
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(jobs[0].created)),
            "clip_skip": request["clip_skip"] or 1,
            "is_using_inpainting_conditioning": "inpainting" in model.name,
            "version": f"inkwash {inkwash.__version__}",
            "comments": list(dict.fromkeys([*comments, *notes])),
        }
    )


def text_of(picture: Mapping[str, Any], name: str) -> str:
    """A picture's own prompt, with its styles and choices."""
    text, k = picture["recipe"]["request"][name], picture["recipe"]["picture"]
    return text if isinstance(text, str) else text[k]
