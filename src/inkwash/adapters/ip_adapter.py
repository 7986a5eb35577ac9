"""IP-Adapters: attention to what CLIP sees in a picture, beside attention to the prompt.

B batch, P patches, T tokens of the picture, D width of the context. Names are those of the published files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inkwash.adapters.control import placed
from inkwash.files import ModelFileError
from inkwash.models.clip import CLIPVision
from inkwash.models.unet import UNet
from inkwash.nn.attention import CrossAttention, attend
from inkwash.nn.layers import Linear
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.checkpoint import Parts, build, check_finite, fill
from inkwash.weights.models.component import read_component
from inkwash.weights.names.wrappers import read_model_file

HEAD = 64  # channels of a resampler's head
ENCODER = "image_encoder"  # the folder that published adapters have beside them


class Projection(nn.Module):
    """CLIP's vector of a picture to tokens (Ye et al. 2023, section 3.2.1)."""

    skip: int | None = None  # of the vision tower: it is the picture's vector that is read

    def __init__(self, seen: int, width: int, num_tokens: int):
        super().__init__()
        self.num_tokens = num_tokens
        self.proj = Linear(seen, num_tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, vector: Tensor) -> Tensor:
        return self.norm(self.proj(vector).unflatten(1, (self.num_tokens, -1)))


class FullProjection(nn.Module):
    """Each patch of a picture to a token, of the adapters for whole faces."""

    skip: int | None = 2

    def __init__(self, seen: int, width: int):
        super().__init__()
        self.proj = nn.Sequential(Linear(seen, seen), nn.GELU(), Linear(seen, width), nn.LayerNorm(width))

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(patches)


class PerceiverAttention(nn.Module):
    """From latents (B, T, C) to patches and to themselves (Alayrac et al. 2022, figure 5)."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = Linear(width, inner, bias=False)
        self.to_kv = Linear(width, 2 * inner, bias=False)
        self.to_out = Linear(inner, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        x, normed = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, normed], dim=1)).chunk(2, dim=-1)
        q = self.to_q(normed)
        return latents + self.to_out(attend(q, k.contiguous(), v.contiguous(), q.shape[-1] // HEAD))


class Resampler(nn.Module):
    """A picture's patches to few tokens: IP-Adapter Plus."""

    skip: int | None = 2

    def __init__(
        self, seen: int, width: int, hidden: int, inner: int, depth: int, num_tokens: int, feed: int
    ):
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(1, num_tokens, hidden))
        self.proj_in, self.proj_out = Linear(seen, hidden), Linear(hidden, width)
        self.norm_out = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(hidden, inner), feed_forward(hidden, feed)])
            for _ in range(depth)
        )

    def forward(self, patches: Tensor) -> Tensor:
        x, latents = self.proj_in(patches), self.latents.expand(len(patches), -1, -1)
        for layer in self.layers:
            attention, feed = layer.children()
            latents = attention(x, latents)
            latents = latents + feed(latents)
        return self.norm_out(self.proj_out(latents))


def feed_forward(width: int, inner: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), Linear(width, inner, bias=False), nn.GELU(), Linear(inner, width, bias=False)
    )


class Layer(nn.Module):
    """Keys and values of the picture's tokens, for one attention of the U-Net."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.to_k_ip, self.to_v_ip = (Linear(width, channels, bias=False) for _ in range(2))


class IPAdapter(nn.Module):
    """A projection of a picture to tokens, and the keys and values of them for each cross-attention of a U-Net."""

    def __init__(self, projection: Any, layers: Mapping[str, Layer]):
        super().__init__()
        self.image_proj, self.ip_adapter = projection, nn.ModuleDict(layers)

    def tokens(self, vision: CLIPVision, pixels: Tensor, negative: bool) -> Tensor:
        """Tokens (B, T, D) of pixels as `CLIPVision` takes them; negative: of no picture."""
        skip = self.image_proj.skip
        if skip is None:
            vector = vision(pixels)[1]
            return self.image_proj(torch.zeros_like(vector) if negative else vector)
        return self.image_proj(vision(torch.zeros_like(pixels) if negative else pixels, skip)[0])

    def keys_values(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each attention of `attentions`, in its order."""
        layers: Any = sorted(self.ip_adapter.items(), key=lambda item: int(item[0]))
        return [(layer.to_k_ip(tokens), layer.to_v_ip(tokens)) for _, layer in layers]


def attentions(unet: UNet) -> list[CrossAttention]:
    """A U-Net's cross-attentions in the order of the files: inputs, outputs, middle."""
    blocks = [*unet.input_blocks, *unet.output_blocks, unet.middle_block]
    return [
        module
        for block in blocks
        for name, module in block.named_modules()
        if name.endswith("attn2") and isinstance(module, CrossAttention)
    ]


def open_ip_adapter(path: Path, model: Parts) -> IPAdapter:
    """The adapter of a file, on the model's device and in its dtype. Raises ModelFileError where it does not fit."""
    tensors = dict(read_model_file(path).tensors)
    check_finite(tensors, path.name)
    projection = projection_of(path.name, tensors)
    found = attentions(model.unet)
    numbers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("ip_adapter.")})
    width = tensors[f"ip_adapter.{numbers[0]}.to_k_ip.weight"].shape[1] if numbers else 0
    wanted = model.unet.config.context_dim
    if len(numbers) != len(found) or width != wanted:
        raise ModelFileError(
            f"{path.name} is for {len(numbers)} cross-attentions to a context of {width}, and the model has "
            f"{len(found)} to one of {wanted}"
        )

    def make() -> IPAdapter:
        pairs = zip(numbers, found, strict=True)
        layers = {str(n): Layer(width, layer.to_q.out_features) for n, layer in pairs}
        return IPAdapter(projection(), layers)

    device, dtype = placed(model)
    return fill(make, tensors, path.name).to(device, dtype)  # type: ignore[arg-type]


def projection_of(name: str, tensors: Mapping[str, Tensor]):
    """A function that makes the network of a file's `image_proj`. Raises ModelFileError for one of faces' vectors."""
    shapes = {
        key.removeprefix("image_proj."): value.shape for key, value in tensors.items() if "image_proj." in key
    }
    if "proj.weight" in shapes:
        width = shapes["norm.weight"][0]
        return lambda: Projection(shapes["proj.weight"][1], width, shapes["proj.weight"][0] // width)
    if "proj.3.weight" in shapes:
        return lambda: FullProjection(shapes["proj.0.weight"][1], shapes["proj.3.weight"][0])
    if "latents" in shapes:
        depth = len({key.split(".")[1] for key in shapes if key.startswith("layers.")})
        return lambda: Resampler(
            seen=shapes["proj_in.weight"][1],
            width=shapes["proj_out.weight"][0],
            hidden=shapes["latents"][2],
            inner=shapes["layers.0.0.to_q.weight"][0],
            depth=depth,
            num_tokens=shapes["latents"][1],
            feed=shapes["layers.0.1.1.weight"][0],
        )
    raise ModelFileError(
        f"{name} sees vectors of faces (FaceID), which take a network that inkwash does not have"
    )


def open_encoder(path: Path, named: str | None, model: Parts) -> CLIPVision:
    """The vision tower that an adapter sees through: `named`, or the folder image_encoder beside it or above it.

    Raises ModelFileError where there is none.
    """
    places = [Path(folder) / ENCODER for folder in (path.parent, path.parent.parent / "models")]
    found = model_path(named) if named else next((place for place in places if place.is_dir()), None)
    if found is None:
        raise ModelFileError(f"{path.name} sees by a CLIP vision tower; name it by encoder=PATH")
    network = build(read_component(found), *placed(model))
    if not isinstance(network, CLIPVision):
        raise ModelFileError(f"{found.name} is no CLIP vision tower")
    return network
