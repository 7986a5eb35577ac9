"""ComfyUI's graphs of nodes, in its API format, as requests of ours: what its default workflows are made of.

A link is [node, output]. A node that is not known here is an error that names it, and so is a graph that no request means.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from PIL import Image, ImageChops, ImageFilter

from inkwash.prompts.tags import written
from inkwash.serve.errors import Refusal

Graph = Mapping[str, Any]
OUTPUTS = ("SaveImage", "PreviewImage")
# class -> its inputs that are needed, in ComfyUI's order
NODES: dict[str, tuple[str, ...]] = {
    "CheckpointLoaderSimple": ("ckpt_name",),
    "LoraLoader": ("model", "clip", "lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("model", "lora_name", "strength_model"),
    "CLIPSetLastLayer": ("clip", "stop_at_clip_layer"),
    "CLIPTextEncode": ("text", "clip"),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "KSampler": (
        "model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image", "denoise",
    ),
    "ControlNetLoader": ("control_net_name",),
    "ControlNetApply": ("conditioning", "control_net", "image", "strength"),
    "ControlNetApplyAdvanced": (
        "positive", "negative", "control_net", "image", "strength", "start_percent", "end_percent",
    ),
    "LatentUpscale": ("samples", "upscale_method", "width", "height"),
    "LatentUpscaleBy": ("samples", "upscale_method", "scale_by"),
    "LoadImage": ("image",),
    "LoadImageMask": ("image", "channel"),
    "InvertMask": ("mask",),
    "ImageScale": ("image", "upscale_method", "width", "height"),
    "VAEDecode": ("samples", "vae"),
    "VAEDecodeTiled": ("samples", "vae"),
    "VAEEncode": ("pixels", "vae"),
    "VAEEncodeForInpaint": ("pixels", "vae", "mask"),
    "SetLatentNoiseMask": ("samples", "mask"),
    "SaveImage": ("images",),
    "PreviewImage": ("images",),
}  # fmt: skip
MOST_CONTROLS = 16
UPSCALERS = {"bilinear": "latent", "nearest-exact": "latent_nearest_exact", "bicubic": "latent_bicubic"}


class NodeError(Refusal):
    """What is wrong with a node: its id, its class, and the input that it is about."""

    def __init__(self, node: str, kind: str, message: str, name: str | None = None):
        super().__init__(400, message, name)
        self.node, self.kind = node, kind


class Meant(NamedTuple):
    """What a graph asks for: a task's request, its model, its pictures, the name, the numbers and the picture of each of its
    controls, and the nodes that take what is drawn."""

    task: str
    values: dict[str, Any]
    model: str
    images: dict[str, Image.Image]
    controls: list[tuple[str, dict[str, Any], Image.Image]]
    outputs: list[str]
    sampler: str


class Reader:
    """A graph that is read from its outputs back to its loaders. load: a picture by the name that a node gives it."""

    def __init__(self, graph: Graph, load: Callable[[str], Image.Image]):
        self.graph, self.load = graph, load
        for id, node in graph.items():
            if not isinstance(node, Mapping) or not isinstance(node.get("inputs"), Mapping):
                raise NodeError(id, "", f"node {id} has no class_type or no inputs")
            kind = node.get("class_type")
            if kind not in NODES:
                raise NodeError(id, str(kind), f"node {str(kind)[:100]} is not known to this server")
            for name in NODES[kind]:
                if name not in node["inputs"]:
                    raise NodeError(id, kind, f"Required input is missing: {name}", name)

    def fail(self, id: str, message: str, name: str | None = None) -> NodeError:
        return NodeError(id, self.kind(id), message, name)

    def kind(self, id: str) -> str:
        return str(self.graph[id]["class_type"])

    def value(self, id: str, name: str, kind: type | tuple[type, ...]) -> Any:
        """A value that stands in a node."""
        value = self.graph[id]["inputs"].get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.fail(id, f"{name} {str(value)[:60]!r} is not what is needed there", name)
        return value

    def link(self, id: str, name: str) -> tuple[str, int]:
        """The node, and the number of its output, that an input comes from."""
        link = self.graph[id]["inputs"].get(name)
        if not (isinstance(link, list) and len(link) == 2 and str(link[0]) in self.graph):
            raise self.fail(id, f"{name} is no link to a node", name)
        return str(link[0]), link[1]

    def source(self, id: str, name: str, *kinds: str) -> str:
        """The node that an input comes from, which must be one of these."""
        found = self.link(id, name)[0]
        if self.kind(found) not in kinds:
            raise self.fail(
                id, f"{name} comes from {self.kind(found)}; here it must be {' or '.join(kinds)}", name
            )
        return found

    def meant(self) -> Meant:
        """The request of the whole graph. Raises NodeError."""
        outputs = [id for id in self.graph if self.kind(id) in OUTPUTS]
        if not outputs:
            raise NodeError("", "", "Prompt has no outputs")
        decoders = {self.source(id, "images", "VAEDecode", "VAEDecodeTiled") for id in outputs}
        samplers = {self.source(id, "samples", "KSampler") for id in decoders}
        if len(samplers) > 1:
            raise self.fail(
                outputs[1], "one graph draws one batch here; send the others as graphs of their own"
            )
        sampler = samplers.pop()
        task, values, images = self.sampled(sampler)
        model, tags, _ = self.chain(*self.link(sampler, "model"))
        prompts, applied = {}, {}
        for name in ("positive", "negative"):
            encoder, applied[name] = self.conditioning(sampler, name)
            prompts[name] = self.value(encoder, "text", str)
            _, of_clip, skip = self.chain(*self.link(encoder, "clip"))
            if name == "positive":
                tags = joined(tags, of_clip)
                values |= {"clip_skip": skip} if skip else {}
        text = prompts["positive"] + "".join(
            f"<lora:{written(lora)}:{te:g}:{unet:g}>" for lora, (unet, te) in tags.items()
        )
        values |= {"prompt": text, "negative_prompt": prompts["negative"], "prompt_language": "comfy"}
        both = [id for id in applied["positive"] if self.kind(id) == "ControlNetApplyAdvanced"]
        if applied["negative"] != both:
            raise self.fail(sampler, "the controls of both prompts must be the same", "negative")
        controls = [control for id in reversed(applied["positive"]) for control in self.control(id)]
        return Meant(task, values, model, images, controls, outputs, sampler)

    def conditioning(self, id: str, name: str) -> tuple[str, list[str]]:
        """From a sampler's prompt back to the node that encodes its text, and the nodes on the way that apply controls."""
        applied: list[str] = []
        found, output = self.link(id, name)
        while (kind := self.kind(found)) in ("ControlNetApply", "ControlNetApplyAdvanced"):
            if len(applied) > MOST_CONTROLS:
                raise self.fail(
                    found, f"there are more than {MOST_CONTROLS} controls, or the links go in a circle"
                )
            applied.append(found)
            way = "conditioning" if kind == "ControlNetApply" else ("positive", "negative")[output == 1]
            found, output = self.link(found, way)
        if kind != "CLIPTextEncode":
            raise self.fail(id, f"{name} comes from {kind}; here it must be CLIPTextEncode", name)
        return found, applied

    def control(self, id: str) -> list[tuple[str, dict[str, Any], Image.Image]]:
        """The control that a node applies; none where its strength is 0."""
        loader = self.source(id, "control_net", "ControlNetLoader")
        values: dict[str, Any] = {
            "annotator": "none",
            "weight": float(self.value(id, "strength", (int, float))),
        }
        for ours, theirs in (("start", "start_percent"), ("end", "end_percent")):
            if theirs in NODES[self.kind(id)]:
                values[ours] = float(self.value(id, theirs, (int, float)))
        name = self.value(loader, "control_net_name", str)
        return [(name, values, self.image(*self.link(id, "image")))] if values["weight"] else []

    def chain(self, id: str, output: int) -> tuple[str, dict[str, tuple[float, float]], int | None]:
        """From a model's or a CLIP's link back to its checkpoint: its name, the LoRAs' strengths, and the layer."""
        tags: dict[str, tuple[float, float]] = {}
        skip, clip, steps = None, output == 1, 0
        while (kind := self.kind(id)) != "CheckpointLoaderSimple":
            steps += 1
            if steps > 100:
                raise self.fail(id, "the links go in a circle")
            if kind in ("LoraLoader", "LoraLoaderModelOnly"):
                name = self.value(id, "lora_name", str).rpartition(".")[0] or self.value(id, "lora_name", str)
                strength = float(self.value(id, "strength_clip" if clip else "strength_model", (int, float)))
                tags[name] = (0.0, strength) if clip else (strength, 0.0)
                id, output = self.link(id, "clip" if clip else "model")
            elif kind == "CLIPSetLastLayer":
                skip, clip = -self.value(id, "stop_at_clip_layer", int), True
                id, output = self.link(id, "clip")
            else:
                raise self.fail(id, f"{kind} is no loader")
            clip = clip or output == 1
        return self.value(id, "ckpt_name", str), dict(reversed(tags.items())), skip

    def sampled(self, id: str) -> tuple[str, dict[str, Any], dict[str, Image.Image]]:
        """The task, the options and the pictures of a sampler."""
        values: dict[str, Any] = {
            "seed": self.value(id, "seed", int) % 2**63,
            "steps": self.value(id, "steps", int),
            "cfg_scale": float(self.value(id, "cfg", (int, float))),
            "sampler": self.value(id, "sampler_name", str),
            "schedule": self.value(id, "scheduler", str),
        }
        denoise = float(self.value(id, "denoise", (int, float)))
        latent = self.link(id, "latent_image")[0]
        kind = self.kind(latent)
        if kind == "EmptyLatentImage":
            if denoise != 1:
                raise self.fail(id, "denoise below 1 needs a picture, and the latent is empty", "denoise")
            for name in ("width", "height", "batch_size"):
                values[name] = self.value(latent, name, int)
            return "text_to_image", values, {}
        if kind in ("LatentUpscale", "LatentUpscaleBy"):
            return self.second_pass(id, latent, values, denoise)
        values |= {"strength": denoise, "step_rule": "exact"}
        if kind == "VAEEncode":
            image = self.image(*self.link(latent, "pixels"))
            return "image_to_image", values | {"width": image.width, "height": image.height}, {"image": image}
        if kind == "VAEEncodeForInpaint":
            image, mask = self.image(*self.link(latent, "pixels")), self.mask(*self.link(latent, "mask"))
            if grow := int(self.graph[latent]["inputs"].get("grow_mask_by", 6)):
                mask = mask.filter(ImageFilter.MaxFilter(2 * min(grow, 32) + 1))
        elif kind == "SetLatentNoiseMask":
            encoder = self.source(latent, "samples", "VAEEncode")
            image, mask = self.image(*self.link(encoder, "pixels")), self.mask(*self.link(latent, "mask"))
        else:
            raise self.fail(id, f"latent_image can't come from {kind} here", "latent_image")
        mask = mask if mask.size == image.size else mask.resize(image.size)
        return "inpaint", values | {"mask_blur": 0.0}, {"image": image, "mask": mask}

    def second_pass(self, id: str, upscaler: str, values: dict[str, Any], denoise: float) -> Any:
        """A sampler that goes on with the enlarged latent of another one, which must have the same settings."""
        first = self.source(upscaler, "samples", "KSampler")
        task, drawn, images = self.sampled(first)
        if task != "text_to_image" or "hires" in drawn:
            raise self.fail(id, "only a picture that is drawn from nothing is enlarged", "latent_image")
        for name in ("sampler", "schedule", "cfg_scale"):
            if values[name] != drawn[name]:
                raise self.fail(id, f"{name}: both passes must have the same", name)
        method = self.value(upscaler, "upscale_method", str)
        if method not in UPSCALERS:
            raise self.fail(
                upscaler,
                f"upscale_method {method[:40]!r} is not one of {', '.join(UPSCALERS)}",
                "upscale_method",
            )
        if self.kind(upscaler) == "LatentUpscaleBy":
            factor = float(self.value(upscaler, "scale_by", (int, float)))
        else:
            factor = self.value(upscaler, "width", int) / drawn["width"]
        hires = {"hires": factor, "hires_strength": denoise, "hires_steps": values["steps"]}
        return task, drawn | hires | {"hires_upscaler": UPSCALERS[method]}, images

    def image(self, id: str, output: int) -> Image.Image:
        """The picture that a node gives."""
        if self.kind(id) == "LoadImage" and output == 0:
            return self.load(self.value(id, "image", str)).convert("RGB")
        if self.kind(id) == "ImageScale":
            size = self.value(id, "width", int), self.value(id, "height", int)
            if not all(1 <= side <= 4096 for side in size):
                raise self.fail(id, "width and height must be 1 to 4096", "width")
            return self.image(*self.link(id, "image")).resize(size, Image.Resampling.BICUBIC)
        raise self.fail(id, f"{self.kind(id)} gives no picture")

    def mask(self, id: str, output: int) -> Image.Image:
        """The mask that a node gives, white where to draw: what is transparent, or a channel."""
        kind = self.kind(id)
        if kind == "InvertMask":
            return ImageChops.invert(self.mask(*self.link(id, "mask")))
        if kind == "LoadImageMask" and (channel := self.value(id, "channel", str)) != "alpha":
            channels = {"red": "R", "green": "G", "blue": "B"}
            if channel not in channels:
                raise self.fail(
                    id, f"channel {channel[:40]!r} is not one of alpha, red, green, blue", "channel"
                )
            return self.load(self.value(id, "image", str)).convert("RGB").getchannel(channels[channel])
        if kind == "LoadImageMask" or (kind == "LoadImage" and output == 1):
            return ImageChops.invert(self.load(self.value(id, "image", str)).convert("RGBA").getchannel("A"))
        raise self.fail(id, f"{kind} gives no mask")


def joined(
    one: Mapping[str, tuple[float, float]], other: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """The strengths of LoRAs for the U-Net and for the text encoders, of both chains."""
    names = [*one, *(name for name in other if name not in one)]
    none = (0.0, 0.0)
    return {name: (one.get(name, none)[0], other.get(name, none)[1]) for name in names}
