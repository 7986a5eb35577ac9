"""IP-Adapters: attention to CLIP's features of a picture, beside attention to the prompt.

B batch, P patches, T tokens of the picture, D width of the context. Names are those of the published files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inkwash.adapters.control import as_placed, placed
from inkwash.adapters.image_projections import (
    FacePlusProjection,
    FaceProjection,
    Projection,
    projection_of,
)
from inkwash.files import ModelFileError
from inkwash.models.clip import CLIPVision
from inkwash.models.unet import UNet
from inkwash.nn.attention import CrossAttention
from inkwash.nn.layers import Linear
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.checkpoint import Parts, build, check_finite, fill
from inkwash.weights.models.clip_folder import is_clip, read_clip
from inkwash.weights.models.component import read_component
from inkwash.weights.names.wrappers import read_model_file

KINDS = ("attn1", "attn2")  # of even and of odd numbers
ENCODER = "image_encoder"  # the folder that published adapters have beside them


class LowRank(nn.Module):
    """A change of a linear layer's output."""

    def __init__(self, dim_in: int, rank: int, dim: int):
        super().__init__()
        self.down, self.up = Linear(dim_in, rank, bias=False), Linear(rank, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Layer(nn.Module):
    """Keys and values of the picture's tokens, for one attention of the U-Net."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.to_k_ip, self.to_v_ip = (Linear(width, channels, bias=False) for _ in range(2))


class IPAdapter(nn.Module):
    """A projection of a picture to tokens, and the keys and values of them for each cross-attention of a U-Net.

    layers: by the number of an attention, two for each transformer block: the even ones attend to the picture itself, and
    have low-rank changes at most.
    """

    def __init__(self, projection: Any, layers: Mapping[str, nn.Module]):
        super().__init__()
        self.image_proj, self.ip_adapter = projection, nn.ModuleDict(layers)

    @property
    def faces(self) -> int | None:
        """The width of a face's vector, None of an adapter that sees none."""
        return self.image_proj.seen if isinstance(self.image_proj, FaceProjection) else None

    @property
    def sees_pictures(self) -> bool:
        return self.faces is None or isinstance(self.image_proj, FacePlusProjection)

    @property
    def numbered(self) -> list[tuple[int, nn.Module]]:
        return sorted((int(name), layer) for name, layer in self.ip_adapter.items())

    def tokens(
        self,
        vision: CLIPVision | None,
        pixels: Tensor | None,
        negative: bool,
        faces: Tensor | None = None,
    ) -> Tensor:
        """Tokens (1, T, D) of pixels as `CLIPVision` takes them, of faces (F, width), or of both; negative: of none."""
        seen: list[Tensor] = []
        if faces is not None:
            seen.append(torch.zeros_like(faces) if negative else faces)
        if vision is not None and pixels is not None:
            skip = self.image_proj.skip
            if skip is None:
                vector = vision(pixels)[1]
                seen.append(torch.zeros_like(vector) if negative else vector)
            else:
                seen.append(vision(torch.zeros_like(pixels) if negative else pixels, skip)[0])
        made = self.image_proj(*seen)
        return made if faces is None else made.flatten(0, 1)[None]

    def imagined(self, vectors: Tensor, negative: bool, name: str) -> Tensor:
        """Tokens (B, T, D) of CLIP's vectors (B, V); negative: of none.

        name: for errors. Raises ValueError for vectors of another width, and where it reads patches or faces.
        """
        if not isinstance(self.image_proj, Projection):
            raise ValueError(f"{name} reads a picture's patches or faces, and a prior makes its vector alone")
        if vectors.shape[1] != (width := self.image_proj.proj.in_features):
            raise ValueError(
                f"{name} sees vectors of {width} numbers, and the prior's have {vectors.shape[1]}"
            )
        return self.image_proj(torch.zeros_like(vectors) if negative else vectors)

    def keys_values(self, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of picture tokens for each of `attentions`, in that order."""
        layers: Any = [layer for _, layer in self.numbered if hasattr(layer, "to_k_ip")]
        return [(layer.to_k_ip(tokens), layer.to_v_ip(tokens)) for layer in layers]

    def changes(self, unet: UNet) -> list[tuple[nn.Module, LowRank]]:
        """The U-Net's linear layers that change by what the file holds beside, and by what."""
        found = []
        for number, layer in self.numbered:
            own = attentions(unet, KINDS[number % 2])[number // 2]
            linears = {"to_q": own.to_q, "to_k": own.to_k, "to_v": own.to_v, "to_out": own.to_out[0]}
            found += [
                (linears[name.removesuffix("_lora")], change)
                for name, change in layer.named_children()
                if isinstance(change, LowRank)
            ]
        return found


def attentions(unet: UNet, kind: str = "attn2") -> list[CrossAttention]:
    """A U-Net's attentions of a kind, by default to the prompt, in the order of the files: inputs, outputs, middle."""
    blocks = [*unet.input_blocks, *unet.output_blocks, unet.middle_block]
    return [
        module
        for block in blocks
        for name, module in block.named_modules()
        if name.endswith(kind) and isinstance(module, CrossAttention)
    ]


def open_ip_adapter(path: Path, model: Parts) -> IPAdapter:
    """The adapter of a file, on the model's device and in its dtype. Raises ModelFileError where it does not fit."""
    tensors = as_placed(read_model_file(path).tensors, model)
    check_finite(tensors, path.name)
    projection = projection_of(path.name, tensors)
    found = attentions(model.unet)
    parts = [name.split(".") for name in tensors if name.startswith("ip_adapter.")]
    if bad := [".".join(part) for part in parts if not part[1].isdigit()]:
        raise ModelFileError(f"{path.name} has a tensor that nothing takes: {bad[0]}")
    numbers = sorted({int(number) for _, number, *rest in parts if rest[0] == "to_k_ip"})
    width = tensors[f"ip_adapter.{numbers[0]}.to_k_ip.weight"].shape[1] if numbers else 0
    wanted = model.unet.config.context_dim
    if len(numbers) != len(found) or width != wanted:
        raise ModelFileError(
            f"{path.name} is for {len(numbers)} cross-attentions to a context of {width}, and the model has "
            f"{len(found)} to one of {wanted}"
        )
    lora = {(int(number), rest[0]) for _, number, *rest in parts if rest[0].endswith("_lora")}
    if lora and numbers != list(range(1, 2 * len(found), 2)):
        raise ModelFileError(f"{path.name} numbers its attentions in a way that is not known")

    def make() -> IPAdapter:
        pairs = zip(numbers, found, strict=True)
        layers: dict[str, nn.Module] = {str(n): Layer(width, layer.to_q.out_features) for n, layer in pairs}
        for number, name in sorted(lora):
            layer = layers.setdefault(str(number), nn.Module())
            down, up = (tensors[f"ip_adapter.{number}.{name}.{part}.weight"] for part in ("down", "up"))
            layer.add_module(name, LowRank(down.shape[1], down.shape[0], up.shape[0]))
        return IPAdapter(projection(), layers)

    device, dtype = placed(model)
    try:
        adapter = fill(make, tensors, path.name).to(device, dtype)  # type: ignore[arg-type]
        for linear, change in adapter.changes(model.unet):
            if (change.down.in_features, change.up.out_features) != (linear.in_features, linear.out_features):
                raise ModelFileError(f"{path.name} is for another model: a low-rank change does not fit")
    except (KeyError, IndexError) as error:
        raise ModelFileError(f"{path.name} lacks {error.args[0]}") from None
    return adapter


def open_encoder(path: Path, named: str | None, model: Parts) -> CLIPVision:
    """The vision tower that an adapter sees through: `named`, also of a whole CLIP, or the folder image_encoder beside it or
    above it.

    Raises ModelFileError where there is none.
    """
    places = [Path(folder) / ENCODER for folder in (path.parent, path.parent.parent / "models")]
    found = model_path(named) if named else next((place for place in places if place.is_dir()), None)
    if found is None:
        raise ModelFileError(f"{path.name} sees by a CLIP vision tower; name it by encoder=PATH")
    if is_clip(found):
        return read_clip(found)[1].to(*placed(model))
    network = build(read_component(found), *placed(model))
    if not isinstance(network, CLIPVision):
        raise ModelFileError(f"{found.name} is not a CLIP vision tower")
    return network
