"""A graph of nodes: values, links from an input to a node's output, and what nodes do with pictures and masks."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from PIL import Image, ImageChops

from inkwash.serve.comfy.table import LOADERS, METHODS, NODES
from inkwash.serve.errors import Refusal

Graph = Mapping[str, Any]
T = TypeVar("T")
CHANNELS = {"alpha": "A", "red": "R", "green": "G", "blue": "B"}


class NodeError(Refusal):
    """An error in a node: its id, its class, and the input that it is about."""

    def __init__(self, node: str, kind: str, message: str, name: str | None = None):
        super().__init__(400, message, name)
        self.node, self.kind = node, kind


class Links:
    """A graph, where its inputs come from, and the pictures on the way.

    load: a picture by how it comes into the graph ("name", "base64" or "id"), and the text that a node has for it. drawn:
    the picture that the sampler has made, for what comes after it.
    """

    def __init__(
        self, graph: Graph, load: Callable[[str, str], Image.Image], drawn: Image.Image | None = None
    ):
        self.graph, self.load, self.drawn = graph, load, drawn
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
        return self.load(way, self.value(id, name, str))

    def image(self, id: str, output: int) -> Image.Image:
        """The picture that a node gives."""
        kind = self.kind(id)
        if kind in ("VAEDecode", "VAEDecodeTiled") and self.drawn:
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
        if kind == "ETN_ApplyMaskToImage":
            image = self.image(*self.link(id, "image")).convert("RGBA")
            image.putalpha(resized(self.mask(*self.link(id, "mask")), image.size))
            return image
        raise self.fail(id, f"{kind} gives no picture")

    def mask(self, id: str, output: int) -> Image.Image:
        """The mask that a node gives, white where to draw: what is transparent, a channel, or all of a grey picture."""
        kind = self.kind(id)
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


def resized(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    return mask if mask.size == size else mask.resize(size)
