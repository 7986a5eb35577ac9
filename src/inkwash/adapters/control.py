"""Control networks in files of their own, opened for a model."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from inkwash.models.unet import UNetConfig
from inkwash.weights.checkpoint import Component, Parts, build
from inkwash.weights.families import FAMILIES
from inkwash.weights.models.component import component_of, read_component
from inkwash.weights.names.wrappers import read_model_file

# keys of a file that holds differences from a base model's weights
DIFFERENCE = "difference"
MARKER = "lora_controlnet"  # of a file of low-rank changes, Stability AI's Control-LoRA
# what no shape tells, and what a copy of the model's own U-Net has as it has
UNSEEN = "num_heads head_dim norm_groups norm_eps sin_first freq_shift downsample_padding".split()


def open_control(path: Path, model: Parts) -> ControlNet | T2IAdapter:
    """The ControlNet or T2I-Adapter of a file or a folder, on the model's device and in its dtype.

    A file of differences is added to the model's own weights. One whose file is named after shuffled pictures has its
    residuals pooled. Raises ModelFileError where it does not fit the model.
    """
    if path.is_dir():
        component = read_component(path)
        component = Component(component.config, as_placed(component.tensors, model))
    else:
        file = read_model_file(path)
        file = replace(file, tensors=as_placed(file.tensors, model))
        if DIFFERENCE in file.tensors:
            file = replace(file, tensors=added(file.tensors, model.unet.state_dict()))
        component = (
            control_lora(path.name, file.tensors, model) if MARKER in file.tensors else component_of(file)
        )
    config = component.config
    if isinstance(config, T2IAdapterConfig):
        check_levels(path.name, config, model.unet.config)
        return build(component, *placed(model))
    if not isinstance(config, ControlNetConfig):
        raise ModelFileError(f"{path.name} is not a control; its config is a {type(config).__name__}")
    check_family(path.name, config.unet, model.unet.config)
    if not path.is_dir():
        own = {field: getattr(model.unet.config, field) for field in UNSEEN}
        pooled = "shuffle" in path.stem.lower()
        config = replace(config, unet=replace(config.unet, **own), global_pool=pooled)
    return build(Component(config, component.tensors), *placed(model))


def placed(model: Parts) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype of a model's U-Net."""
    weight = next(model.unet.parameters())
    return weight.device, weight.dtype


def as_placed(tensors: Mapping[str, Tensor], model: Parts) -> dict[str, Tensor]:
    """A file's tensors; their shapes alone for a model on the meta device, with which nothing is drawn."""
    if placed(model)[0].type != "meta":
        return dict(tensors)
    return {name: torch.empty_like(value, device="meta") for name, value in tensors.items()}


def added(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ControlNet's weights from their differences, where the base has such a tensor."""
    whole = {}
    for name, value in tensors.items():
        if name != DIFFERENCE:
            own = base.get(name.removeprefix("control_model."))
            whole[name] = value if own is None or own.shape != value.shape else value + own.to(value)
    return whole


def control_lora(name: str, tensors: Mapping[str, Tensor], model: Parts) -> Component[ControlNetConfig]:
    """A ControlNet from low-rank changes of the model's own weights: up @ down beside each, and whole tensors.

    Raises ModelFileError where a tensor does not fit the model, or has no place.
    """
    hint = tensors.get("input_hint_block.0.weight")
    if hint is None:
        raise ModelFileError(f"{name} lacks input_hint_block.0.weight")
    channels = getattr(model.autoencoder.config, "latent_channels", 4)
    config = ControlNetConfig(replace(model.unet.config, in_channels=channels), hint.shape[1])
    base, whole = model.unet.state_dict(), {}
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in ControlNet(config).state_dict().items()}
    for key, shape in shapes.items():
        path = key.removesuffix(".weight")
        up, down = (tensors.get(f"{path}.{part}") if path != key else None for part in ("up", "down"))
        value = tensors.get(key, base.get(key))
        if value is not None and up is not None and down is not None:
            if (up.shape[0], down[0].numel()) != (shape[0], shape[1:].numel()):
                raise ModelFileError(f"{name} is for another model: {path} does not fit {tuple(shape)}")
            value = value + (up.flatten(1).float() @ down.flatten(1).float()).view(shape).to(value)
        if value is not None:
            whole[key] = value
    known = {key.removesuffix(".weight") + part for key in shapes for part in (".up", ".down", ".weight")} | {
        *shapes
    }
    if surplus := tensors.keys() - known - {MARKER}:
        raise ModelFileError(f"{name} has a tensor that nothing takes: {min(surplus)}")
    return Component(config, whole)


def check_family(name: str, config: UNetConfig, wanted: UNetConfig) -> None:
    """Check that a network beside the U-Net was made for this U-Net; raise ModelFileError otherwise."""
    for field in ("context_dim", "channels", "channel_mult", "num_res_blocks", "vector_dim"):
        ours, theirs = getattr(config, field), getattr(wanted, field)
        if ours != theirs:
            names = family_name(config), family_name(wanted)
            of = f"{names[0]} and the model is {names[1]}" if names[0] != names[1] else "another model"
            raise ModelFileError(f"{name} is for {of}: its {field} is {ours}, and the model's {theirs}")


def check_levels(name: str, config: T2IAdapterConfig, wanted: UNetConfig) -> None:
    """Check that an adapter's features are as wide as the U-Net's levels and middle; raise ModelFileError otherwise."""
    widths = [wanted.channels * mult for mult in wanted.channel_mult]
    widths.append(widths[-1])
    if list(config.channels) != widths[: len(config.channels)]:
        raise ModelFileError(
            f"{name} is for levels of {config.channels} channels, and the model's are {widths[:-1]}"
        )


def family_name(config: UNetConfig) -> str:
    """The family of a U-Net of this context and width, where one is known."""
    fields = ("context_dim", "channels", "vector_dim")
    for family in FAMILIES.values():
        if all(getattr(family.unet, field) == getattr(config, field) for field in fields):
            return family.name
    return "another family"
