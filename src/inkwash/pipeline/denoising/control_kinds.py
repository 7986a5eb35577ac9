"""What each kind of control does in a call of the U-Net. B batch, C channels, H W latent size, T tokens, n layers."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.adapters.ip_adapter import IPAdapter, attentions
from inkwash.adapters.lllite import LLLite
from inkwash.adapters.names import underscored
from inkwash.models.clip import CLIPVision
from inkwash.models.controlnet import ControlNet
from inkwash.models.t2i_adapter import T2IAdapter
from inkwash.models.unet import UNet
from inkwash.nn.attention import Context, CrossAttention, attend
from inkwash.pipeline.controls import Control
from inkwash.pipeline.denoising.hints import FACTOR, to_hint
from inkwash.pipeline.images import in_mode, to_clip

SOFT = 0.825  # by which each layer before the last is weaker (A1111's soft injection)
SOFT_FEATURES = (0.25, 0.62, 0.825, 1.0)  # the same of a T2I-Adapter's


@dataclass
class Call:
    """A call of the U-Net that is about to be made. context and vector are the U-Net's."""

    x: Tensor
    t: Tensor
    context: Context | None
    vector: Tensor | None
    residuals: list[Tensor] = field(default_factory=list)  # of the skip connections and the middle
    features: dict[nn.Module, Tensor] = field(default_factory=dict)  # that are added to what modules give
    stack: ExitStack = field(default_factory=ExitStack)  # ends with the call

    def add(self, residuals: Sequence[Tensor]) -> None:
        """Add to the skip connections and the middle."""
        pairs = zip(self.residuals, residuals, strict=True)
        self.residuals = [a + b for a, b in pairs] if self.residuals else list(residuals)

    def add_features(self, features: Mapping[nn.Module, Tensor]) -> None:
        for module, feature in features.items():
            self.features[module] = self.features[module] + feature if module in self.features else feature

    def hook(self) -> None:
        """Let the features be added."""
        for module, feature in self.features.items():
            hook = module.register_forward_hook(lambda m, args, out, feature=feature: out + feature)
            self.stack.callback(hook.remove)


class Acting(Protocol):
    """A control with its network."""

    @property
    def control(self) -> Control: ...

    @property
    def network(self) -> nn.Module: ...

    @property
    def cond_only(self) -> bool:
        """Whether it is not there with the negative prompt."""
        ...

    def given(self, latent_size: tuple[int, int], negative: bool) -> dict[str, Tensor]:
        """What each row of the batch gets for it, without a batch axis; maps have x's size, and are cut as x is."""
        ...

    def act(self, call: Call, given: Mapping[str, Tensor], rows: list[int]) -> None:
        """Steer the given rows of a call."""
        ...


def layer_weights(control: Control, n: int, soft: Sequence[float] | None = None) -> list[float]:
    """The weight of each of n layers.

    mode prompt and control: soft, by default 0.825^(n - 1 - i), as in A1111; guess: from 0.1 to 1 on a logarithmic
    scale, as in diffusers. Raises ValueError for another number of layer_weights.
    """
    given = control.layer_weights
    if given and len(given) != n:
        raise ValueError(f"{control.name} has {n} layers, and {len(given)} layer_weights are given")
    layers = list(given) or [1.0] * n
    scales = [1.0] * n
    if control.mode in ("prompt", "control"):
        scales = soft or [SOFT ** (n - 1 - i) for i in range(n)]
    elif control.mode == "guess":
        scales = torch.logspace(-1, 0, n).tolist()
    return [layer * scale * control.weight for layer, scale in zip(layers, scales, strict=True)]


def within(value: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """A value (B, C, h, w) inside the region that a control acts in."""
    if "region" not in given:
        return value
    size = value.shape[2], value.shape[3]
    return value * F.adaptive_avg_pool2d(given["region"][:1].to(value), size)


def spread(value: Tensor, rows: list[int], batch: int) -> Tensor:
    """Rows (len(rows), ...), or one for all of them, at their places in a batch, zeros elsewhere."""
    if len(rows) == batch:
        return value
    whole = value.new_zeros(batch, *value.shape[1:])
    whole[rows] = value
    return whole


class Hinted:
    """A ControlNet (Zhang et al. 2023)."""

    def __init__(self, control: Control, network: ControlNet):
        self.control, self.network = control, network
        self.cond_only = control.mode in ("control", "guess") or network.global_pool
        self.see = lru_cache(maxsize=2)(lambda hint: network.see(F.pixel_shuffle(hint[:1], FACTOR)))
        self.rows = lru_cache(maxsize=2)(lambda context, rows: Context(context.tokens[list(rows)]))

    def given(self, latent_size: tuple[int, int], negative: bool) -> dict[str, Tensor]:
        weight = next(self.network.parameters())
        return {"hint": to_hint(self.control, self.network.hint_channels, latent_size, weight)}

    def act(self, call: Call, given: Mapping[str, Tensor], rows: list[int]) -> None:
        x, t, context, vector = call.x, call.t, call.context, call.vector
        if len(rows) < len(x):
            x, t = x[rows], t[rows]
            context = None if context is None else self.rows(context, tuple(rows))
            vector = None if vector is None else vector[rows]
        takes_vector = self.network.config.vector_dim is not None
        residuals = self.network(x, t, self.see(given["hint"]), context, vector if takes_vector else None)
        flat = self.network.global_pool and self.control.mode == "guess"  # as diffusers
        control = self.control.model_copy(update={"mode": "balanced"}) if flat else self.control
        weights = layer_weights(control, len(residuals))
        weighed = [within(value * w, given) for value, w in zip(residuals, weights, strict=True)]
        call.add([spread(value, rows, len(call.x)) for value in weighed])


class Featured:
    """A T2I-Adapter (Mou et al. 2023), whose features are the same in every step."""

    def __init__(self, control: Control, network: T2IAdapter, unet: UNet):
        self.control, self.network, self.places = control, network, levels(unet)
        self.cond_only = control.mode in ("control", "guess")
        self.see = lru_cache(maxsize=2)(lambda hint: network(F.pixel_shuffle(hint[:1], FACTOR)))

    def given(self, latent_size: tuple[int, int], negative: bool) -> dict[str, Tensor]:
        weight = next(self.network.parameters())
        return {"hint": to_hint(self.control, self.network.hint_channels, latent_size, weight)}

    def act(self, call: Call, given: Mapping[str, Tensor], rows: list[int]) -> None:
        features = self.see(given["hint"])
        weights = layer_weights(self.control, len(features), SOFT_FEATURES)
        pairs = zip(self.places, features, weights, strict=False)  # SD1 has nothing for the middle
        call.add_features(
            {place: spread(within(value * w, given), rows, len(call.x)) for place, value, w in pairs}
        )


def levels(unet: UNet) -> list[nn.Module]:
    """What a T2I-Adapter's features are added to: the end of each level, and the middle block.

    A level with attention ends before its downsampling, one without behind it.
    """
    c = unet.config
    ends = []
    for level, depth in enumerate(c.transformer_depth):
        last = level * (c.res_blocks[0] + 1) + c.res_blocks[0]
        is_last_level = level == len(c.transformer_depth) - 1
        ends.append(unet.input_blocks[last if depth or is_last_level else last + 1])
    return [*ends, unet.middle_block]


class Pictured:
    """An IP-Adapter (Ye et al. 2023): each cross-attention's output, and that of attention to the picture's tokens."""

    def __init__(self, control: Control, network: IPAdapter, vision: CLIPVision, unet: UNet):
        self.control, self.network, self.vision = control, network, vision
        self.cond_only = control.mode in ("control", "guess")
        self.layers = attentions(unet)
        self.keys_values = lru_cache(maxsize=2)(network.keys_values)

    def given(self, latent_size: tuple[int, int], negative: bool) -> dict[str, Tensor]:
        weight = next(self.network.parameters())
        side = self.vision.config.image_size
        pixels = to_clip(in_mode(self.control.image, "RGB"), side).to(weight)
        return {"tokens": self.network.tokens(self.vision, pixels, negative)[0]}

    def act(self, call: Call, given: Mapping[str, Tensor], rows: list[int]) -> None:
        pairs = self.keys_values(given["tokens"])
        weights = layer_weights(self.control, len(pairs))
        acting = spread(torch.ones(len(rows), 1, 1).to(call.x), rows, len(call.x))
        for layer, (k, v), weight in zip(self.layers, pairs, weights, strict=True):
            attached(call, layer, k, v, acting * weight, given.get("region"))


class Layered:
    """A ControlNet-LLLite, which changes what linear layers see."""

    def __init__(self, control: Control, network: LLLite, unet: UNet):
        self.control, self.network = control, network
        self.cond_only = control.mode in ("control", "guess")
        self.layers = {underscored(name): layer for name, layer in unet.named_modules()}
        self.see = lru_cache(maxsize=2)(self.seen)

    def seen(self, hint: Tensor) -> list[Tensor]:
        pixels = 2 * F.pixel_shuffle(hint[:1], FACTOR) - 1
        return [module.see(pixels) for module in self.network.values()]  # type: ignore[operator]

    def given(self, latent_size: tuple[int, int], negative: bool) -> dict[str, Tensor]:
        return {"hint": to_hint(self.control, 3, latent_size, next(self.network.parameters()))}

    def act(self, call: Call, given: Mapping[str, Tensor], rows: list[int]) -> None:
        embeddings = self.see(given["hint"])
        weights = layer_weights(self.control, len(embeddings), [1.0] * len(embeddings))
        acting = spread(torch.ones(len(rows), 1, 1).to(call.x), rows, len(call.x))
        region = given.get("region")
        for (name, module), seen, weight in zip(self.network.items(), embeddings, weights, strict=True):
            amount = acting * weight
            if region is not None:
                amount = amount * tokens_of(region[:1].to(call.x), seen.shape[1])

            def add(layer: nn.Module, args: tuple[Any, ...], module=module, seen=seen, amount=amount) -> Any:
                return (args[0] + amount * module(args[0], seen), *args[1:])

            call.stack.callback(self.layers[name].register_forward_pre_hook(add).remove)


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


def tokens_of(region: Tensor, num: int) -> Tensor:
    """A region (1, 1, H, W) at the level that has so many tokens: (1, num, 1)."""
    height, width = region.shape[2:]
    while height * width > num:
        height, width = -(-height // 2), -(-width // 2)
    return F.adaptive_avg_pool2d(region, (height, width)).flatten(2).transpose(1, 2)
