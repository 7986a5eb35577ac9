"""Controls that learn beside a U-Net that stays as it is: the networks that `--control` opens.

B batch, C channels, H W latent size, T tokens, D width of the context.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inkwash.adapters.image_projections import Projection
from inkwash.adapters.ip_adapter import IPAdapter, Layer, attentions, open_encoder
from inkwash.adapters.lllite import PREFIX, LLLite
from inkwash.adapters.names import underscored
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from inkwash.models.unet import UNetConfig
from inkwash.nn.blocks import Downsample, channels_last
from inkwash.nn.layers import Linear
from inkwash.pipeline.annotate import annotate
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.denoising.control_kinds import Call, levels
from inkwash.pipeline.denoising.hints import FACTOR
from inkwash.pipeline.denoising.picture_kinds import attend_to_vectors
from inkwash.pipeline.images import to_clip, to_pixels
from inkwash.pipeline.model import Model
from inkwash.training.config_methods import (
    ControlNetOptions,
    ControlOptions,
    HintedOptions,
    IPAdapterOptions,
    LLLiteOptions,
    T2IAdapterOptions,
)
from inkwash.training.inputs import Inputs, Seen, kept
from inkwash.training.trainable import Trainable, Weights
from inkwash.weights.bytes.tensor_file import write_tensors
from inkwash.weights.checkpoint import DTYPES, Component
from inkwash.weights.models.component import write_component

SEEN = "seen"  # what a control is given of each picture, among what the network is


class ControlTrainable(Trainable):
    """A control. `act` steers a call, with what the batch has for it; hooks stay until gradients are computed, since
    checkpointing calls layers again for them."""

    name = "control"

    def __init__(self, config: ControlOptions):
        self.config, self.hooks = config, ExitStack()

    @abstractmethod
    def act(self, call: Call, seen: Tensor) -> None:
        """Steer a call by the features of its pictures."""

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as self.hooks:
            yield

    @contextmanager
    def steered(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Iterator[dict[str, Any]]:
        rest = {name: value for name, value in cond.items() if name != SEEN}
        call = Call(x, t, cond.get("context"), cond.get("vector"), stack=self.hooks)
        self.act(call, cond[SEEN].to(next(self.module.parameters()).dtype))
        call.hook()
        yield rest | ({"control": call.residuals} if call.residuals else {})

    def saved(self, weights: Weights) -> Weights:
        """The weights as they are written."""
        dtype = DTYPES[self.config.save_dtype]
        return {name: value.detach().to("cpu", dtype).contiguous() for name, value in weights.items()}


def hints(config: HintedOptions) -> Inputs:
    """Hints (B, 3, 8H, 8W) in [0, 1] for a control, as drawing makes them."""

    def make(model: Model, seen: Seen) -> dict[str, Tensor]:
        f, made = model.autoencoder.config.factor, []
        for example, view, _ in seen:
            if config.hint == "pictures":
                image = view.apply(example.open("hint"))
            else:
                image = annotate(config.hint, view.apply(example.open()))
            size = [side // f * FACTOR for side in image.size]
            pixels = to_pixels(image if list(image.size) == size else image.resize((size[0], size[1])))
            made.append((pixels + 1) / 2)
        return {SEEN: torch.cat(made)}

    return Inputs(lambda model: 0, make, "hint" if config.hint == "pictures" else None)


class ControlNetTrainable(ControlTrainable):
    """A copy of the U-Net's first half, which begins with residuals of zero."""

    def __init__(self, model: Pipeline, config: ControlNetOptions):
        super().__init__(config)
        self.layout = config.layout
        torch.manual_seed(config.seed)
        self.parts = ControlNetConfig(of_size(model.unet.config, config.size))
        network = ControlNet.start(self.parts, model.unet)
        self.module: ControlNet = channels_last(network).to(model.device)
        self.inputs = hints(config)

    def act(self, call: Call, seen: Tensor) -> None:
        x = call.x.to(seen.dtype)
        residuals = self.module(x, call.t, seen, call.context, call.vector)
        call.add([residual.to(call.x.dtype) for residual in residuals])

    def write(self, folder: Path, weights: Weights, metadata: dict[str, str]) -> Path:
        single = self.layout == "single"
        path = folder / (f"{folder.name}.safetensors" if single else "controlnet")
        write_component(Component(self.parts, self.saved(weights)), path, self.layout, metadata)
        return path


def of_size(unet: UNetConfig, size: str) -> UNetConfig:
    """The config of a ControlNet's half: with all of the U-Net's attention, at most one layer in each place, or, as SDXL's
    small ones, none and one block in the middle."""
    if size == "full":
        return unet
    most = 1 if size == "mid" else 0
    depths = tuple(min(depth, most) for depth in unet.transformer_depth)
    middle = min(unet.transformer_depth_middle or 0, most) or None
    changes: dict[str, Any] = {"transformer_depth": depths, "transformer_depth_middle": middle}
    return replace(unet, transformer_depth_output=None, **changes)


class T2IAdapterTrainable(ControlTrainable):
    """A network of its own, whose features are added to the U-Net's levels."""

    def __init__(self, model: Pipeline, config: T2IAdapterOptions):
        super().__init__(config)
        unet = model.unet.config
        widths = [unet.channels * mult for mult in unet.channel_mult]
        # SDXL's first level ends behind its downsampling, and its middle has features too
        late = unet.transformer_depth[0] == 0
        channels = (*widths, widths[-1]) if late else tuple(widths)
        self.parts = T2IAdapterConfig(channels, factor=16 if late else 8, light=config.light)
        torch.manual_seed(config.seed)
        self.module: T2IAdapter = T2IAdapter(self.parts).to(model.device)
        self.places, self.inputs = levels(model.unet), hints(config)

    def act(self, call: Call, seen: Tensor) -> None:
        features = self.module(seen)
        call.add_features(
            {place: f.to(call.x.dtype) for place, f in zip(self.places, features, strict=False)}
        )

    def write(self, folder: Path, weights: Weights, metadata: dict[str, str]) -> Path:
        single = len(self.parts.channels) == 4  # a file of other levels says too little of itself
        path = folder / (f"{folder.name}.safetensors" if single else "t2i-adapter")
        layout = "single" if single else "diffusers"
        write_component(Component(self.parts, self.saved(weights)), path, layout, metadata)
        return path


CHANGED = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q")  # ends of the paths of what LLLite changes


class LLLiteTrainable(ControlTrainable):
    """Small networks that change what the attentions' layers see, which begin with no change."""

    def __init__(self, model: Pipeline, config: LLLiteOptions):
        super().__init__(config)
        self.layers: dict[str, Linear] = {}
        shapes = {}
        for name, layer, level in attention_layers(model):
            own = underscored(name)
            self.layers[own] = layer
            shapes[own] = lllite_shapes(layer.in_features, level, config.hint_width, config.rank)
        torch.manual_seed(config.seed)
        self.module: LLLite = LLLite(shapes).to(model.device)
        for network in self.module.values():
            nn.init.zeros_(network.up[0].weight)  # type: ignore[index]
            nn.init.zeros_(network.up[0].bias)  # type: ignore[index]
        self.inputs = hints(config)

    def act(self, call: Call, seen: Tensor) -> None:
        for name, module in self.module.items():

            def add(layer: nn.Module, args: tuple[Any, ...], module=module) -> Any:
                change = module(args[0], module.see(2 * seen - 1))  # type: ignore[operator]
                return (args[0] + change.to(args[0].dtype), *args[1:])

            call.stack.callback(self.layers[name].register_forward_pre_hook(add).remove)

    def write(self, folder: Path, weights: Weights, metadata: dict[str, str]) -> Path:
        path = folder / f"{folder.name}.safetensors"
        named = {f"{PREFIX}{name}": value for name, value in self.saved(weights).items()}
        write_tensors(path, named, metadata)
        return path


def attention_layers(model: Pipeline) -> Iterator[tuple[str, Linear, int]]:
    """Layers that a hint changes, as kohya has it: queries, keys and values of attention to itself, queries of that to the
    prompt; with the level of each."""
    level = 0
    for name, layer in chain(
        model.unet.input_blocks.named_modules(prefix="input_blocks"),
        model.unet.middle_block.named_modules(prefix="middle_block"),
    ):
        level += isinstance(layer, Downsample)
        if isinstance(layer, Linear) and name.endswith(CHANGED):
            yield name, layer, level


def lllite_shapes(width: int, level: int, hint_width: int, rank: int) -> Mapping[str, torch.Size]:
    """The weights of a layer's network. Its convolutions bring the hint, 8 times the latent's size, to the level's."""
    strides = {0: (4, 2), 1: (4, 4), 2: (4, 4, 2), 3: (4, 4, 4)}[level]
    widths = [3, *[hint_width // 2] * (len(strides) - 1), hint_width]
    sizes: dict[str, tuple[int, ...]] = {
        f"conditioning1.{2 * i}.weight": (widths[i + 1], widths[i], stride, stride)
        for i, stride in enumerate(strides)
    }
    sizes |= {
        "down.0.weight": (rank, width),
        "mid.0.weight": (rank, rank + hint_width),
        "up.0.weight": (width, rank),
    }
    return {name: torch.Size(size) for name, size in sizes.items()}


class IPAdapterTrainable(ControlTrainable):
    """Attention to a picture beside that to the prompt; its keys and values begin as the prompt's."""

    def __init__(self, model: Pipeline, config: IPAdapterOptions):
        super().__init__(config)
        self.vision = open_encoder(Path(config.encoder), config.encoder, model)
        self.layers = attentions(model.unet)
        if not self.layers:
            raise ValueError(f"{model.name} has no attention to a prompt that an IP-Adapter could be beside")
        width = model.unet.config.context_dim or 0
        torch.manual_seed(config.seed)
        c = self.vision.config
        projection = Projection(c.projection_dim or c.width, width, config.num_tokens)
        numbered = {str(2 * k + 1): layer for k, layer in enumerate(self.layers)}
        own = {number: Layer(width, layer.to_k.out_features) for number, layer in numbered.items()}
        self.module: IPAdapter = IPAdapter(projection, own).to(model.device)
        with torch.no_grad():
            for number, layer in numbered.items():
                own[number].to_k_ip.weight.copy_(layer.to_k.weight)
                own[number].to_v_ip.weight.copy_(layer.to_v.weight)
        self.inputs = Inputs(lambda model: 0, self.vectors)

    @torch.no_grad()
    def vectors(self, model: Model, seen: Seen) -> dict[str, Tensor]:
        """CLIP's vectors (B, D) of the pictures, or of those of the role hint; zeros where a picture is left out."""
        assert isinstance(self.config, IPAdapterOptions)
        side, like = self.vision.config.image_size, next(self.vision.parameters())
        pixels = [
            to_clip(example.open("hint" if "hint" in example.pictures else None), side)
            for example, _, _ in seen
        ]
        found = self.vision(torch.cat(pixels).to(like))[1]
        return {SEEN: found * kept(seen, found, self.config.picture_dropout)[:, None]}

    def act(self, call: Call, seen: Tensor) -> None:
        attend_to_vectors(call, self.layers, self.module, seen)

    def write(self, folder: Path, weights: Weights, metadata: dict[str, str]) -> Path:
        path = folder / f"{folder.name}.safetensors"
        write_tensors(path, self.saved(weights), metadata)
        return path
