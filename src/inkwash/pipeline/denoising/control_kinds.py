"""Effects of controls with a hint in a call of the U-Net. B batch, C channels, H W latent size, T tokens, n layers."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.adapters.lllite import LLLite
from inkwash.adapters.names import underscored
from inkwash.files import ModelFileError
from inkwash.models.controlnet import ControlNet
from inkwash.models.controlnet_union import TYPES, ControlNetUnion
from inkwash.models.t2i_adapter import T2IAdapter
from inkwash.models.unet import UNet
from inkwash.nn.attention import Context
from inkwash.pipeline.controls import TYPE_OF, Control
from inkwash.pipeline.denoising.hints import FACTOR, to_hint

SOFT = 0.825  # by which each layer before the last is weaker (A1111's soft injection)
SOFT_FEATURES = (0.25, 0.62, 0.825, 1.0)  # the same of a T2I-Adapter's


@dataclass
class Call:
    """A call of the U-Net that is about to be made. context, vector and time_cond are the U-Net's."""

    x: Tensor
    t: Tensor
    context: Context | None
    vector: Tensor | None
    time_cond: Tensor | None = None
    residuals: list[Tensor] = field(default_factory=list)  # of the skip connections and the middle
    features: dict[nn.Module, Tensor] = field(default_factory=dict)  # that are added to what modules give
    # what references had in attentions and blocks: see `reference`
    attended: dict[nn.Module, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    moments: dict[nn.Module, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
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

    order: int  # of acting: those that want the call as it was before those that change it

    @property
    def control(self) -> Control: ...

    @property
    def network(self) -> nn.Module | None:
        """The network that runs beside the U-Net, if there is one."""
        ...

    @property
    def with_negative(self) -> float:
        """Share of it with the negative prompt, 0 to 1."""
        ...

    def given(self, latent_size: tuple[int, int], negative: bool) -> dict[str, Tensor]:
        """The control's inputs, one for all rows of the batch or one a row; maps have x's size, and are cut as x is."""
        ...

    def act(self, call: Call, given: Mapping[str, Tensor], rows: list[int]) -> None:
        """Steer the given rows of a call."""
        ...


def with_negative(control: Control) -> float:
    """The value that the control's mode gives."""
    return 0.0 if control.mode in ("control", "guess") else 1.0


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

    order = 3

    def __init__(self, control: Control, network: ControlNet):
        self.control, self.network = control, network
        self.with_negative = 0.0 if network.global_pool else with_negative(control)
        self.see = lru_cache(maxsize=2)(lambda hint: self.seen(F.pixel_shuffle(hint[:1], FACTOR)))
        self.rows = lru_cache(maxsize=2)(lambda context, rows: Context(context.tokens[list(rows)]))

    def given(self, latent_size: tuple[int, int], negative: bool) -> dict[str, Tensor]:
        return {"hint": self.hint_of(self.control, latent_size)[None]}

    def hint_of(self, control: Control, latent_size: tuple[int, int]) -> Tensor:
        return to_hint(control, self.network.hint_channels, latent_size, next(self.network.parameters()))

    def seen(self, hint: Tensor) -> Tensor:
        return self.network.see(hint)

    def added(self, x: Tensor) -> Tensor | None:
        """The vector that is added to the time's embedding."""
        return None

    def act(self, call: Call, given: Mapping[str, Tensor], rows: list[int]) -> None:
        x, t, context, vector = call.x, call.t, call.context, call.vector
        if len(rows) < len(x):
            x, t = x[rows], t[rows]
            context = None if context is None else self.rows(context, tuple(rows))
            vector = None if vector is None else vector[rows]
        takes_vector = self.network.config.vector_dim is not None
        vector = vector if takes_vector else None
        residuals = self.network(x, t, self.see(given["hint"]), context, vector, self.added(x))
        flat = self.network.global_pool and self.control.mode == "guess"  # as diffusers
        control = self.control.model_copy(update={"mode": "balanced"}) if flat else self.control
        weights = layer_weights(control, len(residuals))
        weighed = [within(value * w, given) for value, w in zip(residuals, weights, strict=True)]
        call.add([spread(value, rows, len(call.x)) for value in weighed])


class United(Hinted):
    """A ControlNet union, of one control or of several at once.

    The weight of one is its residuals'; those of several are their hints', as in diffusers. Raises ModelFileError for a
    hint whose type is not said, or that the network does not know.
    """

    def __init__(self, controls: Sequence[Control], network: ControlNetUnion):
        several = len(controls) > 1
        super().__init__(controls[0].model_copy(update={"weight": 1.0}) if several else controls[0], network)
        self.controls, self.union = controls, network
        self.types = [type_number(control, network.num_types) for control in controls]
        self.weights = [control.weight if several else 1.0 for control in controls]

    def given(self, latent_size: tuple[int, int], negative: bool) -> dict[str, Tensor]:
        # pixels of one hint's channels lie together when they are unshuffled
        return {"hint": torch.cat([self.hint_of(each, latent_size) for each in self.controls])[None]}

    def seen(self, hint: Tensor) -> Tensor:
        return self.union.see(hint, self.types, self.weights)

    def added(self, x: Tensor) -> Tensor | None:
        return self.union.embed_types(self.types, x)


def type_number(control: Control, num: int) -> int:
    """The number by which a union knows a hint's type: as said, or as follows from what makes the hint."""
    name = TYPE_OF.get(control.annotator) if control.type == "auto" else control.type
    known = TYPES[:num]
    if name not in known:
        said = "whose hint is of no type" if name is None else f"which knows no hints of type={name}"
        raise ModelFileError(f"{control.name} is a union, {said}; give type=, one of {', '.join(known)}")
    return known.index(name)


class Featured:
    """A T2I-Adapter (Mou et al. 2023), whose features don't depend on the step."""

    order = 3

    def __init__(self, control: Control, network: T2IAdapter, unet: UNet):
        self.control, self.network, self.places = control, network, levels(unet)
        self.with_negative = with_negative(control)
        self.see = lru_cache(maxsize=2)(lambda hint: network(F.pixel_shuffle(hint[:1], FACTOR)))

    def given(self, latent_size: tuple[int, int], negative: bool) -> dict[str, Tensor]:
        weight = next(self.network.parameters())
        return {"hint": to_hint(self.control, self.network.hint_channels, latent_size, weight)[None]}

    def act(self, call: Call, given: Mapping[str, Tensor], rows: list[int]) -> None:
        features = self.see(given["hint"])
        weights = layer_weights(self.control, len(features), SOFT_FEATURES)
        pairs = zip(self.places, features, weights, strict=False)  # SD1 has nothing for the middle
        call.add_features(
            {place: spread(within(value * w, given), rows, len(call.x)) for place, value, w in pairs}
        )


def levels(unet: UNet) -> list[nn.Module]:
    """The places that a T2I-Adapter's features are added to: the end of each level, and the middle block.

    A level with attention ends before its downsampling, one without behind it.
    """
    c = unet.config
    ends = []
    for level, depth in enumerate(c.transformer_depth):
        last = level * (c.res_blocks[0] + 1) + c.res_blocks[0]
        is_last_level = level == len(c.transformer_depth) - 1
        ends.append(unet.input_blocks[last if depth or is_last_level else last + 1])
    return [*ends, unet.middle_block]


class Layered:
    """A ControlNet-LLLite, which changes the inputs of linear layers."""

    order = 3

    def __init__(self, control: Control, network: LLLite, unet: UNet):
        self.control, self.network = control, network
        self.with_negative = with_negative(control)
        self.layers = {underscored(name): layer for name, layer in unet.named_modules()}
        self.see = lru_cache(maxsize=2)(self.seen)

    def seen(self, hint: Tensor) -> list[Tensor]:
        pixels = 2 * F.pixel_shuffle(hint[:1], FACTOR) - 1
        return [module.see(pixels) for module in self.network.values()]  # type: ignore[operator]

    def given(self, latent_size: tuple[int, int], negative: bool) -> dict[str, Tensor]:
        return {"hint": to_hint(self.control, 3, latent_size, next(self.network.parameters()))[None]}

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


def tokens_of(region: Tensor, num: int) -> Tensor:
    """A region (1, 1, H, W) at the level that has so many tokens: (1, num, 1)."""
    height, width = region.shape[2:]
    while height * width > num:
        height, width = -(-height // 2), -(-width // 2)
    return F.adaptive_avg_pool2d(region, (height, width)).flatten(2).transpose(1, 2)
