"""Recipes that other programs leave in pictures: ComfyUI, InvokeAI, NovelAI, SwarmUI, Fooocus, Easy Diffusion.

Each is found by where it is stored, and translated into AUTOMATIC1111's fields as far as it goes.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from inkwash.pipeline.names import A1111_ETAS, ETAS, resolve

Json = dict[str, Any]
Translation = tuple[str, str, dict[str, str]]  # prompt, negative prompt, A1111's fields

COMFY_TAG = re.compile(r"(prompt|workflow)\s*:\s*(\{.*)", re.DOTALL | re.IGNORECASE)


def find(texts: Mapping[str, str]) -> dict[str, Any]:
    """The recipes of other programs among a picture's texts, by the program's name."""
    found: dict[str, Any] = {}
    tagged = [COMFY_TAG.match(texts.get(key, "")) for key in ("exif.make", "exif.model", "exif.description")]
    comfy = {match[1].lower(): match[2] for match in tagged if match}
    for key, name in (("prompt", "comfyui"), ("workflow", "comfyui workflow")):
        if isinstance(content := parsed(texts.get(key, comfy.get(key, ""))), dict):
            found[name] = content
    for key in ("invokeai_metadata", "sd-metadata", "dream_metadata"):
        if isinstance(content := parsed(texts.get(key, "")), dict):
            found.setdefault("invokeai", content)
    comment = parsed(texts.get("Comment", ""))
    makers = texts.get("Software", "") + texts.get("Source", "")
    if isinstance(comment, dict) and ("uc" in comment or "NovelAI" in makers):
        found["novelai"] = comment
    parameters = parsed(texts.get("parameters", "") or texts.get("exif.comment", ""))
    if isinstance(parameters, dict) and isinstance(swarm := parameters.get("sui_image_params"), dict):
        found["swarmui"] = swarm
    elif isinstance(parameters, dict) and ("base_model" in parameters or "fooocus_scheme" in texts):
        found["fooocus"] = parameters
    elif isinstance(parameters, dict) and "num_inference_steps" in parameters:
        found["easydiffusion"] = parameters
    if "num_inference_steps" in texts and "prompt" in texts:
        found["easydiffusion"] = dict(texts)
        found.pop("comfyui", None)
    return found


def parsed(text: str) -> Any:
    """The JSON of a text without NaN and infinities, which are no JSON; None where it is none."""
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None


def translate(program: str, content: Json) -> Translation:
    """A program's recipe as prompts and A1111's fields, with the sampler's own eta, from which A1111's may differ.

    Raises ValueError where it can't be drawn again.
    """
    if program == "comfyui workflow":
        raise ValueError("it holds the editor's workflow of ComfyUI, but not the graph that was run")
    try:
        prompt, negative_prompt, made = TRANSLATORS[program](content)
        sampler, _ = resolve(made["Sampler"])
        if sampler in ETAS:
            made.setdefault(A1111_ETAS[sampler][0], str(ETAS[sampler]))
        return prompt, negative_prompt, made
    except (AttributeError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError(f"its {program} recipe does not say enough: {error}") from error


def fields(**values: object) -> dict[str, str]:
    """A1111's fields by names with underscores; None is left out."""
    return {key.replace("_", " "): str(value) for key, value in values.items() if value is not None}


def novelai(c: Json) -> Translation:
    made = fields(
        Steps=c["steps"],
        Sampler=c["sampler"],
        Schedule_type={"native": None}.get(c.get("noise_schedule", "native"), c.get("noise_schedule")),
        CFG_scale=c.get("scale", 1),
        Seed=c["seed"],
        Size=f"{c['width']}x{c['height']}",
    )
    made |= fields(SMEA=c.get("sm") or None, CFG_rescale_of_NovelAI=c.get("cfg_rescale") or None)
    return c["prompt"], c.get("uc") or "", made


def invokeai(c: Json) -> Translation:
    if isinstance(image := c.get("image"), dict):  # before version 3
        prompt = image["prompt"] if isinstance(image["prompt"], str) else image["prompt"][0]["prompt"]
        negative = "".join(re.findall(r"\[([^\[\]]*)\]", prompt))
        made = fields(
            Steps=image["steps"], Sampler=image["sampler"], CFG_scale=image["cfg_scale"], Seed=image["seed"]
        )
        made |= fields(Size=f"{image['width']}x{image['height']}", Model=c.get("model_weights"))
        return re.sub(r"\[[^\[\]]*\]", "", prompt).strip(), negative, made
    model = c.get("model") or {}
    made = fields(
        Steps=c["steps"],
        Sampler=c["scheduler"],
        CFG_scale=c.get("cfg_scale", 1),
        Seed=c["seed"],
        Size=f"{c['width']}x{c['height']}",
        Model=model.get("name") or model.get("model_name"),
    )
    tags = "".join(f"<lora:{lora_name(lora)}:{lora.get('weight', 1)}>" for lora in c.get("loras") or ())
    made |= fields(ControlNet_0=json.dumps(c["controlnets"]) if c.get("controlnets") else None)
    return c["positive_prompt"] + tags, c.get("negative_prompt") or "", made


def lora_name(lora: Json) -> str:
    about = lora.get("model") or lora.get("lora") or {}
    return about.get("name") or about["model_name"]


def swarmui(c: Json) -> Translation:
    made = fields(
        Steps=c["steps"],
        Sampler=c.get("sampler", "euler"),
        Schedule_type=c.get("scheduler"),
        CFG_scale=c.get("cfgscale", 7),
        Seed=c["seed"],
        Size=f"{c['width']}x{c['height']}",
        Model=c.get("model"),
    )
    tags = zip(c.get("loras") or (), c.get("loraweights") or (), strict=False)
    prompt = c["prompt"] + "".join(f"<lora:{name}:{weight}>" for name, weight in tags)
    return prompt, c.get("negativeprompt") or "", made


def fooocus(c: Json) -> Translation:
    size = re.findall(r"\d+", str(c["resolution"]))
    made = fields(
        Steps=c["steps"],
        Sampler=c["sampler"],
        Schedule_type=c.get("scheduler"),
        CFG_scale=c.get("guidance_scale", 1),
        Seed=c["seed"],
        Size="x".join(size[:2]),
        Model=c.get("base_model"),
        Fooocus_styles=c.get("styles") or None,
        Sharpness=c.get("sharpness"),
    )
    return c["prompt"], c.get("negative_prompt") or "", made


def easydiffusion(c: Json) -> Translation:
    made = fields(
        Steps=c["num_inference_steps"],
        Sampler=c.get("sampler_name") or c["sampler"],
        CFG_scale=c.get("guidance_scale", 1),
        Seed=c["seed"],
        Size=f"{c['width']}x{c['height']}",
        Model=c.get("use_stable_diffusion_model"),
        VAE=c.get("use_vae_model") or None,
        Tiling={"x": "x", "y": "y", "xy": "True"}.get(str(c.get("tiling"))),
        Hypernet=c.get("use_hypernetwork_model") or None,
    )
    return c["prompt"], c.get("negative_prompt") or "", made


def comfyui(graph: Json) -> Translation:
    """The graph of one sampler over an empty latent, with LoRAs; every other node that it uses is named."""
    samplers = [node for node in graph.values() if str(node.get("class_type", "")).startswith("KSampler")]
    if len(samplers) != 1:
        raise ValueError(f"its ComfyUI graph has {len(samplers)} samplers; one can be drawn again")
    inputs = samplers[0]["inputs"]
    latent = follow(graph, inputs["latent_image"])
    if latent["class_type"] != "EmptyLatentImage" or float(inputs.get("denoise", 1)) != 1:
        raise ValueError("it was made from another picture, which its ComfyUI graph only names")
    tags, unknown, node = "", [], follow(graph, inputs["model"])
    while "ckpt_name" not in node["inputs"]:
        of = node["inputs"]
        if node["class_type"] in ("LoraLoader", "LoraLoaderModelOnly"):
            name = re.sub(r"\.\w+$", "", of["lora_name"])
            tags = f"<lora:{name}:{of.get('strength_clip', 0)}:{of['strength_model']}>" + tags
        else:
            unknown.append(node["class_type"])
        node = follow(graph, of["model"])
    made = fields(
        Steps=inputs["steps"],
        Sampler=inputs["sampler_name"],
        Schedule_type=inputs.get("scheduler"),
        CFG_scale=inputs["cfg"],
        Seed=inputs.get("seed", inputs.get("noise_seed")),
        Size=f"{latent['inputs']['width']}x{latent['inputs']['height']}",
        Model=re.sub(r"\.\w+$", "", node["inputs"]["ckpt_name"]),
        Prompt_language="comfy",
        ComfyUI_nodes=", ".join(unknown) or None,
    )
    return encoded(graph, inputs["positive"]) + tags, encoded(graph, inputs["negative"]), made


def follow(graph: Json, link: Any) -> Json:
    """The node that an input is linked to."""
    return graph[str(link[0])]


def encoded(graph: Json, link: Any) -> str:
    """The text of the CLIPTextEncode node that a conditioning comes from."""
    node = follow(graph, link)
    text = node["inputs"].get("text")
    if isinstance(text, list):  # linked to a node that holds it
        values = follow(graph, text)["inputs"].values()
        text = next((value for value in values if isinstance(value, str)), None)
    if node["class_type"] != "CLIPTextEncode" or not isinstance(text, str):
        raise ValueError(f"its ComfyUI graph makes the prompt by {node['class_type']}, which can't be read")
    return text


TRANSLATORS: dict[str, Callable[[Json], Translation]] = {
    "comfyui": comfyui,
    "invokeai": invokeai,
    "novelai": novelai,
    "swarmui": swarmui,
    "fooocus": fooocus,
    "easydiffusion": easydiffusion,
}
