"""Effects of controls that see a picture's meaning, by CLIP or by a face's vector. B batch, T tokens, C channels."""

import base64
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inkwash.adapters.ip_adapter import IPAdapter, attentions
from inkwash.models.clip import CLIPVision
from inkwash.models.style_adapter import StyleAdapter
from inkwash.models.unet import UNet
from inkwash.nn.attention import Context, CrossAttention, attend
from inkwash.pipeline.controls import Control, no_picture
from inkwash.pipeline.denoising.control_kinds import (
    Call,
    layer_weights,
    spread,
    tokens_of,
    with_negative,
)
from inkwash.pipeline.images import in_mode, to_clip


def clip_pixels(control: Control, vision: CLIPVision) -> Tensor:
    """A control's picture as a vision tower takes it, (1, 3, S, S). Raises ValueError where there is none."""
    if control.image is None:
        raise no_picture(control)
    return to_clip(in_mode(control.image, "RGB"), vision.config.image_size)


def faces_of(control: Control, width: int) -> Tensor:
    """The vectors (F, width) of a control's faces. Raises ValueError where there are none, or they do not fit."""
    if control.face is None:
        raise ValueError(f"{control.name} sees vectors of faces; give face=FILE")
    values = torch.from_numpy(np.frombuffer(base64.b64decode(control.face), "<f4").copy())
    if len(values) % width:
        raise ValueError(f"face holds {len(values)} numbers, and {control.name} takes {width} a face")
    return values.view(-1, width)


class Pictured:
    """An IP-Adapter (Ye et al. 2023): each cross-attention's output, and that of attention to the picture's tokens.

    vision: None of one that sees faces alone, or no picture. imagined: gives the vectors (B, D) seen where there is no
    picture. The low-rank changes that a file of FaceID holds have no weight: they act whole wherever the control does.
    """

    order = 2

    def __init__(
        self,
        control: Control,
        network: IPAdapter,
        vision: CLIPVision | None,
        unet: UNet,
        imagined: Callable[[], Tensor] | None = None,
    ):
        self.control, self.network, self.vision, self.imagined = control, network, vision, imagined
        self.with_negative = with_negative(control)
        self.layers, self.changes = attentions(unet), network.changes(unet)
        self.keys_values = lru_cache(maxsize=2)(network.keys_values)
        # keys and values of the prompt that are made by changed layers
        self.context = lru_cache(maxsize=2)(lambda context, rows: Context(context.tokens))

    def given(self, latent_size: tuple[int, int], negative: bool) -> dict[str, Tensor]:
        like = next(self.network.parameters())
        if self.control.image is None and self.control.face is None and self.imagined:
            return {"tokens": self.network.imagined(self.imagined().to(like), negative, self.control.name)}
        seen = None if self.vision is None else clip_pixels(self.control, self.vision).to(like)
        faces = None if self.network.faces is None else faces_of(self.control, self.network.faces).to(like)
        return {"tokens": self.network.tokens(self.vision, seen, negative, faces)}

    def act(self, call: Call, given: Mapping[str, Tensor], rows: list[int]) -> None:
        pairs = self.keys_values(given["tokens"])
        weights = layer_weights(self.control, len(pairs))
        acting = spread(torch.ones(len(rows), 1, 1).to(call.x), rows, len(call.x))
        if self.changes and call.context is not None:
            call.context = self.context(call.context, tuple(rows))
        for linear, change in self.changes:

            def add(linear: nn.Module, args: tuple[Any, ...], out: Tensor, change=change) -> Tensor:
                return out + acting * change(args[0])

            call.stack.callback(linear.register_forward_hook(add).remove)
        for layer, (k, v), weight in zip(self.layers, pairs, weights, strict=True):
            attached(call, layer, k, v, acting * weight, given.get("region"))


class Styled:
    """A style adapter, whose tokens stand behind those of the prompt.

    The negative prompt's rows get their own last tokens once more, as in T2I-Adapter's code, so that all are as long.
    """

    order, with_negative = 1, 0.0

    def __init__(self, control: Control, network: StyleAdapter, vision: CLIPVision):
        self.control, self.network, self.vision = control, network, vision
        self.longer = lru_cache(maxsize=2)(self.appended)

    def given(self, latent_size: tuple[int, int], negative: bool) -> dict[str, Tensor]:
        like = next(self.network.parameters())
        patches, _ = self.vision(clip_pixels(self.control, self.vision).to(like))
        return {"tokens": self.network(patches) * layer_weights(self.control, 1)[0]}

    def act(self, call: Call, given: Mapping[str, Tensor], rows: list[int]) -> None:
        assert call.context is not None
        call.context = self.longer(call.context, given["tokens"], tuple(rows))

    def appended(self, context: Context, tokens: Tensor, rows: tuple[int, ...]) -> Context:
        text = context.tokens
        last = text[:, -tokens.shape[1] :].clone()
        last[list(rows)] = tokens[list(rows)].to(text.dtype)
        return Context(torch.cat([text, last], dim=1))


def attend_to_vectors(
    call: Call, layers: Sequence[CrossAttention], network: IPAdapter, vectors: Tensor
) -> None:
    """Let a U-Net's layers attend to the tokens that an adapter makes of vectors (B, V), while the call is made."""
    amount = torch.ones(len(call.x), 1, 1).to(call.x)
    for layer, (k, v) in zip(layers, network.keys_values(network.image_proj(vectors)), strict=True):
        attached(call, layer, k.to(call.x.dtype), v.to(call.x.dtype), amount, None)


def attached(
    call: Call, layer: CrossAttention, k: Tensor, v: Tensor, amount: Tensor, region: Tensor | None
) -> None:
    """Let a layer attend to keys and values (B, T, C) beside its own, while the call is made. amount: (B, 1, 1)."""
    queries: list[Tensor] = []

    def keep(module: nn.Module, args: Any, out: Tensor) -> None:
        queries[:] = [out]

    def add(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        part = attend(queries[0], k, v, layer.num_heads)
        if region is not None:
            part = part * tokens_of(region[:1].to(part), part.shape[1])
        return (args[0] + amount * part, *args[1:])

    call.stack.callback(layer.to_q.register_forward_hook(keep).remove)
    call.stack.callback(layer.to_out[0].register_forward_pre_hook(add).remove)
