"""ComfyUI's graphs of nodes, in its API format, as requests of ours: what its default workflows are made of.

A link is [node, output]. A node that is not known here is an error that names it, and so is a graph that no request means.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from PIL import Image

from inkwash.prompts.tags import written
from inkwash.serve.comfy.conditions import hints, prompt_of, same_sizes, varied
from inkwash.serve.comfy.links import Links, NodeError
from inkwash.serve.comfy.sampling import Sampling, predicted, sampling_of, switch_at
from inkwash.serve.comfy.table import (
    AFTER,
    ENCODERS,
    ENLARGING,
    INPAINTING,
    LOADED,
    MASKED,
    MERGE,
    MOST_CONTROLS,
    MOST_SIDE,
    OUTPUTS,
    PASSED,
    PIXEL_UPSCALERS,
    PROMPTS,
    SAMPLERS,
    SENT,
    UNCLIP,
    UPSCALERS,
)
from inkwash.serve.comfy.tiling import Drawing, tiled

MOST_ENLARGED = 4  # times, a side, by a network
SLACK = 16  # pixels by which the sides of a second pass may differ from those of the first, enlarged


class Meant(NamedTuple):
    """Content of a graph: what is drawn, the nodes that take it, and the one that gives it, where that is no decoder."""

    drawing: Drawing
    outputs: list[str]
    makers: list[str]


class Reader(Links):
    """A graph that is read from its outputs back to its loaders."""

    def meant(self) -> Meant:
        """The request of the whole graph. Raises NodeError."""
        outputs = [id for id in self.graph if self.kind(id) in (*OUTPUTS, *SENT)]
        if not outputs:
            raise NodeError("", "", "Prompt has no outputs")
        sources = {self.drawn_by(id) for id in outputs}
        makers = [id for id in sources if self.kind(id) in (MERGE, ENLARGING)]
        if makers and self.kind(maker := self.only(sources)) == ENLARGING:
            drawing = self.enlargement(maker)
        elif makers:
            drawing = tiled(self, self.only(sources), lambda decoder: self.drawing(self.sampler({decoder})))
        else:
            drawing = self.drawing(self.sampler(sources))
        width, height = (
            round(drawing.values.get(side, 0) * drawing.values.get("hires", 1))
            for side in ("width", "height")
        )
        size = (width, height) if width else drawing.images["image"].size
        if drawing.task == "upscale":  # by how much, its file alone says
            size = min(size[0] * MOST_ENLARGED, MOST_SIDE), min(size[1] * MOST_ENLARGED, MOST_SIDE)
        if max(size) > MOST_SIDE:
            raise self.fail(
                drawing.sampler, f"{size[0]}x{size[1]} is more than {MOST_SIDE} a side", "latent_image"
            )
        sent = Links(self.graph, self.pictures, Image.new("RGB", size), makers)
        for id in outputs:  # fails now for what could not be sent later
            sent.finished(id)
        self.only(sent.decoders) if makers else self.sampler(sent.decoders)
        return Meant(drawing, outputs, makers)

    def drawing(self, id: str) -> Drawing:
        """The request of a sampler. Raises NodeError."""
        before = self.link(id, "latent_image")[0]
        if self.kind(id) == self.kind(before) == "KSamplerAdvanced":
            return self.refined(id, before)
        sampling = sampling_of(self, id)
        if sampling.leftover is not None:
            raise self.fail(id, "a picture is drawn to its last step here, or by a refiner", "end_at_step")
        return self.request_of(sampling)

    def refined(self, id: str, base: str) -> Drawing:
        """The request of a base model's sampler and a refiner's, which goes on with the noise that the first one leaves."""
        first, after = sampling_of(self, base), sampling_of(self, id, goes_on=True)
        if not self.pictures.is_refiner(name := self.chain(*after.model)[0]):
            raise self.fail(id, f"{name} is not the refiner that this server was started with", "model")
        start, steps = (self.value(id, input, int) for input in ("start_at_step", "steps"))
        if first.leftover != start or first.values["steps"] != steps or after.leftover:
            raise self.fail(
                id, f"the refiner must go on at step {first.leftover} of the same", "start_at_step"
            )
        for key, theirs in (("sampler", "sampler_name"), ("schedule", "scheduler"), ("cfg_scale", "cfg")):
            if first.values[key] != after.values[key]:
                raise self.fail(id, f"{theirs}: base and refiner must have the same", theirs)
        drawing, scores = self.request_of(first), dict[str, Any]()
        for prompt in first.prompts:
            (text, _), (other, told) = (
                prompt_of(self, self.conditioning(each, prompt)[0], prompt) for each in (first, after)
            )
            if text != other:
                raise self.fail(id, f"{prompt}: base and refiner must read the same text", prompt)
            own = drawing.values.get("original_size", (drawing.values["width"], drawing.values["height"]))
            cropped = "crop" in told or drawing.values.get("crop", (0, 0)) != (0, 0)
            if told.pop("original_size", own) != own or cropped:
                raise self.fail(id, f"{prompt}: base and refiner must be told the same size", prompt)
            scores |= told
        if drawing.task != "text_to_image":
            raise self.fail(id, "only a picture that is drawn from nothing is refined", "latent_image")
        share = switch_at(self, base, first.values["schedule"], steps, start)
        return drawing._replace(values=drawing.values | scores | {"refiner_switch_at": share}, sampler=id)

    def request_of(self, sampling: Sampling) -> Drawing:
        """The request of one sampler's settings. Raises NodeError."""
        task, values, images = self.sampled(sampling)
        model, tags, _ = self.chain(*sampling.model)
        prompts, applied, told = {"negative": ""}, {}, {}
        for name in sampling.prompts:
            encoder, applied[name] = self.conditioning(sampling, name)
            prompts[name], told[name] = prompt_of(self, encoder, name)
            _, of_clip, skip = self.chain(*self.link(encoder, "clip"))
            if name == "positive":
                tags = joined(tags, of_clip)
                values |= {"clip_skip": skip} if skip else {}
        text = prompts["positive"] + "".join(
            f"<lora:{written(lora)}:{te:g}:{unet:g}>" for lora, (unet, te) in tags.items()
        )
        values |= {"prompt": text, "negative_prompt": prompts["negative"], "prompt_language": "comfy"}
        values |= same_sizes(self, sampling.node, told)
        if patch := self.patched(sampling.model[0], "ModelSamplingDiscrete"):
            values |= predicted(self, patch, values.get("schedule"), model)
        both = [id for id in applied["positive"] if self.kind(id) == "ControlNetApplyAdvanced"]
        if applied.get("negative", both) != both:
            raise self.fail(sampling.node, "the controls of both prompts must be the same", "negative")
        if seen := [id for id in applied["positive"] if self.kind(id) == UNCLIP]:
            task, more, images = varied(self, sampling.node, seen, task, values, model)
            values |= more
        controls = [
            hint for id in reversed(applied["positive"]) if id not in seen for hint in hints(self, id)
        ]
        return Drawing(task, values, model, images, controls, sampling.node)

    def enlargement(self, id: str) -> Drawing:
        """A picture that is enlarged by a network and not drawn over."""
        name, image = self.upscaler(id), self.image(*self.link(id, "image"))
        return Drawing("upscale", {"prompt": ""}, name, {"image": image}, [], id)

    def only(self, sources: Collection[str]) -> str:
        """The one of several that a graph may draw."""
        if len(sources) > 1:
            raise self.fail(
                max(sources), "one graph draws one batch here; send the others as graphs of their own"
            )
        return next(iter(sources))

    def sampler(self, decoders: Collection[str]) -> str:
        """The one sampler whose latents all of these decode."""
        return self.only({self.source(id, "samples", *SAMPLERS) for id in decoders})

    def drawn_by(self, output: str) -> str:
        """The node that gives what an output takes: a decoder, the last merge of several tiles, or an enlarging network.

        What is sent may be cut, enlarged and masked on the way.
        """
        ways = ("VAEDecode", "VAEDecodeTiled", ENLARGING, *(AFTER if self.kind(output) in SENT else (MERGE,)))
        found = self.source(output, "images", *ways)
        for _ in self.graph:
            kind = self.kind(found)
            if kind not in AFTER or (kind == MERGE and self.layout(found).num > 1):
                return found
            found = self.source(found, AFTER[kind], *ways)
        raise self.fail(output, "the links go in a circle", "images")

    def conditioning(self, sampling: Sampling, name: str) -> tuple[str, list[str]]:
        """From a prompt back to the node that encodes its text, and the nodes on the way that apply controls."""
        applied: list[str] = []
        found, output = sampling.prompts[name]
        passed = 0
        while (kind := self.kind(found)) in (
            "ControlNetApply",
            "ControlNetApplyAdvanced",
            INPAINTING,
            UNCLIP,
        ):
            passed += 1
            if passed > MOST_CONTROLS + 1:
                raise self.fail(
                    found, f"there are more than {MOST_CONTROLS} controls, or the links go in a circle"
                )
            if kind != INPAINTING:
                applied.append(found)
            way = (
                "conditioning"
                if kind in ("ControlNetApply", UNCLIP)
                else ("positive", "negative")[output == 1]
            )
            found, output = self.link(found, way)
        if kind not in PROMPTS:
            raise self.fail(sampling.node, f"{name} comes from {kind}; here it must be CLIPTextEncode", name)
        return found, applied

    def chain(self, id: str, output: int) -> tuple[str, dict[str, tuple[float, float]], int | None]:
        """From a model's or a CLIP's link back to its checkpoint: its name, the LoRAs' strengths, and the layer."""
        tags: dict[str, tuple[float, float]] = {}
        skip, clip, steps = None, output == 1, 0
        while (kind := self.kind(id)) not in LOADED:
            steps += 1
            if steps > 100:
                raise self.fail(id, "the links go in a circle")
            if kind in ("LoraLoader", "LoraLoaderModelOnly"):
                name = self.value(id, "lora_name", str).rpartition(".")[0] or self.value(id, "lora_name", str)
                strength = self.number(id, "strength_clip" if clip else "strength_model")
                tags[name] = (0.0, strength) if clip else (strength, 0.0)
                id, output = self.link(id, "clip" if clip else "model")
            elif kind in PASSED:
                id, output = self.link(id, "model")
            elif kind == "CLIPSetLastLayer":
                skip, clip = -self.value(id, "stop_at_clip_layer", int), True
                id, output = self.link(id, "clip")
            else:
                raise self.fail(id, f"{kind} is no loader")
            clip = clip or output == 1
        return self.value(id, "ckpt_name", str), dict(reversed(tags.items())), skip

    def sampled(self, sampling: Sampling) -> tuple[str, dict[str, Any], dict[str, Image.Image]]:
        """The task, the options and the pictures of a sampler."""
        id, values, latent, denoise = sampling.node, dict(sampling.values), sampling.latent, sampling.denoise
        if self.kind(latent) == "RepeatLatentBatch":
            values["batch_size"] = self.value(latent, "amount", int)
            latent = self.link(latent, "samples")[0]
        kind = self.kind(latent)
        if kind == "EmptyLatentImage":
            if denoise != 1 and "sigmas" not in values:
                raise self.fail(id, "denoise below 1 needs a picture, and the latent is empty", "denoise")
            values |= {side: self.side(latent, side) for side in ("width", "height")}
            values["batch_size"] = self.value(latent, "batch_size", int)
            return "text_to_image", values, {}
        if first := self.enlarged(latent):
            return self.second_pass(id, latent, first, values, denoise)
        values |= {"strength": denoise, "step_rule": "exact"}
        if kind in ENCODERS:
            image = self.image(*self.link(latent, "pixels"))
            image = image.convert("RGB")
            return "image_to_image", values | {"width": image.width, "height": image.height}, {"image": image}
        if kind not in MASKED:
            raise self.fail(id, f"latent_image can't come from {kind} here", "latent_image")
        image, mask = self.masked(latent)
        soft = self.differential(sampling.model[0])
        values |= {"mask_blur": 0.0, "soft_mask": soft, "blend_mask": not soft}
        return "inpaint", values, {"image": image, "mask": mask}

    def differential(self, model: str) -> bool:
        """Whether a model draws each pixel of a grey mask from its own noise level on."""
        found = self.patched(model, "DifferentialDiffusion")
        if found and self.graph[found]["inputs"].get("strength", 1) != 1:
            raise self.fail(found, "strength must be 1 here, for which the mask is not blended", "strength")
        return found is not None

    def patched(self, model: str, kind: str) -> str | None:
        """The last node of a kind that a model passes through, if any."""
        for _ in self.graph:
            if (found := self.kind(model)) == kind:
                return model
            if found not in ("LoraLoader", "LoraLoaderModelOnly", *PASSED):
                break
            model = self.link(model, "model")[0]
        return None

    def enlarged(self, latent: str) -> tuple[str, dict[str, Any]] | None:
        """The sampler whose latent, or whose decoded picture, a latent is an enlarged one of, and how; else None.

        How is a request's upscaler, and the factor or the new size.
        """
        kind = self.kind(latent)
        if kind == "LatentUpscaleBy":
            how: dict[str, Any] = {"factor": self.number(latent, "scale_by")}
        elif kind == "LatentUpscale":
            how = {side: self.side(latent, side) for side in ("width", "height")}
        elif kind in ENCODERS:
            return self.enlarged_picture(self.link(latent, "pixels")[0])
        else:
            return None
        method = self.one_of(latent, "upscale_method", UPSCALERS)
        return self.source(latent, "samples", *SAMPLERS), how | {"upscaler": method}

    def enlarged_picture(self, picture: str) -> tuple[str, dict[str, Any]] | None:
        """The sampler of an enlarged picture; as `enlarged`."""
        scale, how = picture, dict[str, Any]()
        if self.kind(scale) == "ImageScale":
            how |= {side: self.side(scale, side) for side in ("width", "height")}
            picture = self.link(scale, "image")[0]
        if self.kind(picture) == ENLARGING:
            how["upscaler"] = self.upscaler(picture)
            picture = self.link(picture, "image")[0]
        if self.kind(picture) not in ("VAEDecode", "VAEDecodeTiled"):
            return None
        if "width" not in how:
            raise self.fail(picture, "what was drawn is drawn over only at a size that ImageScale gives")
        if "upscaler" not in how:
            how["upscaler"] = self.one_of(scale, "upscale_method", PIXEL_UPSCALERS)
        return self.source(picture, "samples", *SAMPLERS), how

    def second_pass(
        self,
        id: str,
        latent: str,
        first: tuple[str, dict[str, Any]],
        values: dict[str, Any],
        denoise: float,
    ) -> tuple[str, dict[str, Any], dict[str, Image.Image]]:
        """A sampler that goes on with what another one gave, enlarged; both must have the same settings."""
        before, how = first
        task, drawn, images = self.sampled(sampling_of(self, before))
        if task != "text_to_image" or "hires" in drawn:
            raise self.fail(id, "only a picture that is drawn from nothing is enlarged", "latent_image")
        if "schedule" not in values or "schedule" not in drawn:
            raise self.fail(id, "a second pass has a scheduler by name, as the first one", "sigmas")
        for name in ("sampler", "schedule", "cfg_scale"):
            if values[name] != drawn[name]:
                raise self.fail(id, f"{name}: both passes must have the same", name)
        factor = how.get("factor") or how["width"] / drawn["width"] + 1e-9  # what is cut off is no pixel
        if (height := how.get("height")) and abs(height - factor * drawn["height"]) >= SLACK:
            raise self.fail(latent, "width and height must be enlarged by the same factor", "height")
        hires = {"hires": factor, "hires_strength": denoise, "hires_steps": values["steps"]}
        return task, drawn | hires | {"hires_upscaler": how["upscaler"]}, images


def joined(
    one: Mapping[str, tuple[float, float]], other: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """The strengths of LoRAs for the U-Net and for the text encoders, of both chains."""
    names = [*one, *(name for name in other if name not in one)]
    none = (0.0, 0.0)
    return {name: (one.get(name, none)[0], other.get(name, none)[1]) for name in names}
