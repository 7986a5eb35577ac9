"""A graph of nodes: values, links from an input to a node's output, and what nodes do with pictures and masks."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image, ImageChops

from inkwash.pipeline.tiles import TileLayout
from inkwash.serve.comfy.masks import (
    BLURS,
    filled_blurred,
    filled_grey,
    grown,
    image_of,
    resized_mask,
    values_of,
)
from inkwash.serve.comfy.table import ENCODERS, ENLARGING, LOADERS, MASKED, METHODS, MISSING, MOST_SIDE, NODES
from inkwash.serve.errors import Refusal

Graph = Mapping[str, Any]
T = TypeVar("T")
CHANGED_MASKS = ("CropMask", "ThresholdMask", "ETN_ExtractMaskTile", "ETN_GenerateTileMask")
CHANNELS = {"alpha": "A", "red": "R", "green": "G", "blue": "B"}


class NodeError(Refusal):
    """An error in a node: its id, its class, and the input that it is about."""

    def __init__(self, node: str, kind: str, message: str, name: str | None = None):
        super().__init__(400, message, name)
        self.node, self.kind = node, kind


class Pictures(Protocol):
    """Pictures that a server has, and what its networks make of them."""

    def load(self, way: str, text: str) -> Image.Image:
        """A picture by how it comes into the graph ("name", "base64" or "id"), and the text that a node has for it."""
        ...

    def enlarge(self, image: Image.Image, upscaler: str) -> Image.Image:
        """A picture enlarged by a pixel upscaler, by its own factor."""
        ...

    def about(self, model: str) -> Mapping[str, Any]:
        """A model's `sampling` (eps, v or x0) and its `zsnr` (True or False); None where it is not known."""
        ...

    def is_refiner(self, model: str) -> bool:
        """Return True for the model that refines what others draw."""
        ...


class Links:
    """A graph, where its inputs come from, and the pictures on the way.

    pictures: that come into the graph. drawn: the picture that was made, for what comes after it. makers: the nodes that
    give it, where that is no decoder.
    """

    def __init__(
        self,
        graph: Graph,
        pictures: Pictures,
        drawn: Image.Image | None = None,
        makers: Collection[str] = (),
    ):
        self.graph, self.pictures, self.drawn, self.makers = graph, pictures, drawn, makers
        self.decoders: set[str] = set()  # that the drawn picture was taken of
        self.made: dict[tuple[str, str, int], Image.Image | None] = {}
        for id, node in graph.items():
            if not isinstance(node, Mapping) or not isinstance(node.get("inputs"), Mapping):
                raise NodeError(id, "", f"node {id} has no class_type or no inputs")
            kind = node.get("class_type")
            if kind in MISSING:
                raise NodeError(
                    id, kind, f"node {kind} needs {MISSING[kind]}, which this server does not have"
                )
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

    def number(self, id: str, name: str) -> float:
        """A number that stands in a node."""
        value = self.value(id, name, (int, float))
        if not abs(value) < 1e300:
            raise self.fail(id, f"{name} is not finite", name)
        return float(value)

    def side(self, id: str, name: str) -> int:
        """A number of pixels that stands in a node."""
        value = self.value(id, name, int)
        if not 1 <= value <= MOST_SIDE:
            raise self.fail(id, f"{name} is not 1 to {MOST_SIDE}", name)
        return value

    def one_of(self, id: str, name: str, values: Mapping[str, T]) -> T:
        """The value of a name that stands in a node."""
        chosen = self.value(id, name, str)
        if chosen not in values:
            raise self.fail(id, f"{name} {chosen[:40]!r} is not one of {', '.join(values)}", name)
        return values[chosen]

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

    def finished(self, output: str) -> Image.Image:
        """The picture that an output takes, of the one that was drawn."""
        return self.image(*self.link(output, "images"))

    def loaded(self, id: str) -> Image.Image:
        """The picture of a node that loads one."""
        way, name = LOADERS[self.kind(id)]
        return self.pictures.load(way, self.value(id, name, str))

    def image(self, id: str, output: int) -> Image.Image:
        """The picture that a node gives."""
        return self.once(self.made_image, id, output)

    def mask(self, id: str, output: int) -> Image.Image:
        """The mask that a node gives, white where to draw."""
        return self.once(self.made_mask, id, output)

    def once(self, make: Callable[[str, int], Image.Image], id: str, output: int) -> Image.Image:
        """The picture or mask of a node, computed once, however many nodes take it."""
        key = make.__name__, id, output
        if key not in self.made:
            self.made[key] = None  # until it is made
            self.made[key] = make(id, output)
        if (found := self.made[key]) is None:
            raise self.fail(id, "the links go in a circle")
        return found

    def made_image(self, id: str, output: int) -> Image.Image:
        kind = self.kind(id)
        if self.drawn and (kind in ("VAEDecode", "VAEDecodeTiled") or id in self.makers):
            self.decoders.add(id)
            return self.drawn
        if kind in ("LoadImage", "ETN_LoadImageBase64", "ETN_LoadImageCache") and output == 0:
            return self.loaded(id).convert("RGB")
        if kind in ("ImageScale", "ImageCrop", "ETN_CropImage"):
            x, y = (self.value(id, name, int) if kind != "ImageScale" else 0 for name in ("x", "y"))
            width, height = self.value(id, "width", int), self.value(id, "height", int)
            if not (1 <= width <= 4096 and 1 <= height <= 4096):
                raise self.fail(id, "width and height must be 1 to 4096", "width")
            image = self.image(*self.link(id, "image"))
            if kind == "ImageScale":
                method = METHODS.get(self.value(id, "upscale_method", str), Image.Resampling.BICUBIC)
                return image.resize((width, height), method)
            if not (0 <= x < image.width and 0 <= y < image.height):
                raise self.fail(id, f"{x}, {y} lies outside of the picture", "x")
            return image.crop((x, y, min(x + width, image.width), min(y + height, image.height)))
        if kind == ENLARGING:
            return self.pictures.enlarge(self.image(*self.link(id, "image")), self.upscaler(id))
        if kind == "ETN_ApplyMaskToImage":
            image = self.image(*self.link(id, "image")).convert("RGBA")
            image.putalpha(resized(self.mask(*self.link(id, "mask")), image.size))
            return image
        if kind == "MaskToImage":
            return self.mask(*self.link(id, "mask")).convert("RGB")
        if kind.startswith(("INPAINT_Masked", "ETN_ExtractImage", "ETN_Merge")):
            return self.fitting(id, self.changed)
        raise self.fail(id, f"{kind} gives no picture")

    def made_mask(self, id: str, output: int) -> Image.Image:
        """A mask is what is transparent, a channel, or all of a grey picture."""
        kind = self.kind(id)
        if kind in CHANGED_MASKS or kind.startswith("INPAINT"):
            return self.fitting(id, self.changed_mask)
        if kind == "ImageToMask":
            if (channel := self.one_of(id, "channel", CHANNELS)) == "A":
                raise self.fail(id, "channel alpha is not taken of a picture here", "channel")
            return self.image(*self.link(id, "image")).convert("RGB").getchannel(channel)
        if kind == "InvertMask":
            return ImageChops.invert(self.mask(*self.link(id, "mask")))
        if kind == "LoadImageMask" and (channel := self.one_of(id, "channel", CHANNELS)) != "A":
            return self.loaded(id).convert("RGB").getchannel(channel)
        if kind == "LoadImageMask" or (kind in ("LoadImage", "ETN_LoadImageBase64") and output == 1):
            return ImageChops.invert(self.loaded(id).convert("RGBA").getchannel("A"))
        if kind == "ETN_LoadMaskBase64" or (kind == "ETN_LoadImageCache" and output == 1):
            image = self.loaded(id)
            opaque = kind == "ETN_LoadMaskBase64" or "A" not in image.getbands()
            return image.convert("RGB").getchannel("R") if opaque else image.getchannel("A")
        raise self.fail(id, f"{kind} gives no mask")

    def masked(self, latent: str) -> tuple[Image.Image, Image.Image]:
        """The picture and the mask of a latent of which a part is drawn, white where to draw.

        VAEEncodeForInpaint rounds the mask, puts grey in its place, and lets it grow.
        """
        kind = self.kind(latent)
        encoder = latent if kind != MASKED[0] else self.source(latent, "samples", *ENCODERS)
        image = self.image(*self.link(encoder, "pixels")).convert("RGB")
        mask = resized(self.mask(*self.link(latent, "mask")), image.size)
        if kind == "VAEEncodeForInpaint":
            hole = mask.point([0] * 128 + [255] * 128)
            image = Image.composite(Image.new("RGB", image.size, (128, 128, 128)), image, hole)
            if width := min(int(self.graph[latent]["inputs"].get("grow_mask_by", 6)), 64):
                mask = image_of(grown(values_of(hole), width // 2, 1 - width % 2))
            else:
                mask = hole
        return image, mask

    def fitting(self, id: str, change: Callable[[str], Image.Image]) -> Image.Image:
        """The picture or mask that a change makes of a node's inputs; a ValueError of it names the node."""
        try:
            return change(id)
        except ValueError as error:
            raise self.fail(id, str(error)) from None

    def within(self, id: str, name: str, most: float, kind: type | tuple[type, ...] = int) -> Any:
        """A number from 0 that stands in a node."""
        value = self.value(id, name, kind)
        if not 0 <= value <= most:
            raise self.fail(id, f"{name} {value} is not 0 to {most}", name)
        return value

    def changed(self, id: str) -> Image.Image:
        """A picture whose masked part is filled, or a tile of it, or one that a tile is put into."""
        kind, image = self.kind(id), self.image(*self.link(id, "image")).convert("RGB")
        if kind == "ETN_ExtractImageTile":
            return self.layout(id).cut(image, self.value(id, "index", int))
        if kind == "ETN_MergeImageTile":
            tile = self.image(*self.link(id, "tile")).convert("RGB")
            return self.layout(id).merged(image, self.value(id, "index", int), tile)
        mask, falloff = self.mask(*self.link(id, "mask")), self.within(id, "falloff", 8191)
        if mask.size != image.size:
            raise ValueError(f"a mask of {mask.width}x{mask.height} is not of the picture's size")
        if kind == "INPAINT_MaskedFill":
            if (fill := self.value(id, "fill", str)) != "neutral":
                raise self.fail(
                    id,
                    f"fill {fill[:40]!r} needs OpenCV, which is not used here; give neutral",
                    "fill",
                )
            return image_of(filled_grey(values_of(image), values_of(mask), falloff))
        blur = max(3, self.within(id, "blur", 8191))
        return image_of(filled_blurred(values_of(image), values_of(mask), blur, falloff))

    def changed_mask(self, id: str) -> Image.Image:
        """A mask that is changed, or of a tile."""
        kind, inputs = self.kind(id), self.graph[id]["inputs"]
        if kind == "ETN_GenerateTileMask":
            blend = inputs.get("blend", False) is True
            return self.layout(id).mask(self.value(id, "index", int), blend)
        mask = self.mask(*self.link(id, "mask"))
        if kind == "ETN_ExtractMaskTile":
            return self.layout(id).cut(mask, self.value(id, "index", int))
        if kind == "CropMask":
            x, y, width, height = (self.within(id, name, 8192) for name in ("x", "y", "width", "height"))
            if x >= mask.width or y >= mask.height or not (width and height):
                raise self.fail(id, f"{width}x{height} at {x}, {y} lies outside of the mask", "x")
            return mask.crop((x, y, min(x + width, mask.width), min(y + height, mask.height)))
        values, numbers = values_of(mask), (int, float)
        if kind == "ThresholdMask":
            return image_of((values > self.within(id, "value", 1, numbers)).astype(float))
        if kind == "INPAINT_StabilizeMask":
            return image_of(np.where(values > 1 - self.within(id, "epsilon", 1, numbers), 1.0, values))
        if kind == "INPAINT_DenoiseToCompositingMask":
            low, high = (self.within(id, name, 1, numbers) for name in ("offset", "threshold"))
            if low >= high:
                raise self.fail(id, f"threshold {high} is not above offset {low}", "threshold")
            return image_of((values - low) / (high - low))
        if kind not in ("INPAINT_ExpandMask", "INPAINT_ShrinkMask"):
            raise self.fail(id, f"{kind} gives no mask")
        blur_type = inputs.get("blur_type", "gaussian")
        if blur_type not in BLURS:
            raise self.fail(
                id, f"blur_type {str(blur_type)[:40]!r} is not one of {', '.join(BLURS)}", "blur_type"
            )
        blur, grows = self.within(id, "blur", 8096), kind == "INPAINT_ExpandMask"
        change = self.within(id, "grow" if grows else "shrink", 8096)
        return image_of(resized_mask(values, change if grows else -change, blur, blur_type))

    def upscaler(self, id: str) -> str:
        """The name of the network that enlarges at a node."""
        return self.value(self.source(id, "upscale_model", "UpscaleModelLoader"), "model_name", str)

    def layout(self, id: str) -> TileLayout:
        """The layout of tiles that a node takes."""
        made = self.source(id, "layout", "ETN_TileLayout")
        image = self.image(*self.link(made, "image"))
        names = ("min_tile_size", "padding", "blending")
        least, padding, blending = (self.within(made, name, 8192) for name in names)
        # what older versions of the plugin do not send
        multiple = self.within(made, "multiple", 8192) if "multiple" in self.graph[made]["inputs"] else 8
        return TileLayout((image.height, image.width), least, padding, blending, multiple)


def resized(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    return mask if mask.size == size else mask.resize(size)
