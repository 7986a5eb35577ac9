"""A model with a part exchanged: a U-Net, an autoencoder or half of one, a text encoder."""

from dataclasses import replace
from typing import Any

from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderConfig
from inkwash.models.clip import CLIPTextConfig
from inkwash.models.t5 import T5Config
from inkwash.models.tiny import TinyAutoencoderConfig
from inkwash.models.unet import UNetConfig
from inkwash.weights.checkpoint import Checkpoint, Component, TextComponent
from inkwash.weights.models.component import AutoencoderHalf


def with_part(checkpoint: Checkpoint, part: Component[Any]) -> Checkpoint:
    """The model with another U-Net, autoencoder or text encoder. Raises ModelFileError where it does not fit."""
    c, config = checkpoint, part.config
    if isinstance(config, UNetConfig):
        fits(config, c.unet.config, "context_dim", "vector_dim", "num_classes", "out_channels")
        return replace(c, unet=part)
    if isinstance(config, AutoencoderHalf):
        old = c.autoencoder
        fits(config, old.config, "latent_channels")
        others = {name: value for name, value in old.tensors.items() if not config.holds(name)}
        return replace(c, autoencoder=Component(old.config, others | dict(part.tensors)))
    if isinstance(config, AutoencoderConfig | TinyAutoencoderConfig):
        old = c.autoencoder
        fits(config, old.config, "latent_channels", "factor")
        if (
            isinstance(config, TinyAutoencoderConfig)
            and isinstance(old.config, TinyAutoencoderConfig)
            and (config.encodes, config.decodes) == (old.config.decodes, old.config.encodes)  # two halves
        ):
            whole = replace(config, encodes=True, decodes=True)
            return replace(c, autoencoder=Component(whole, {**old.tensors, **part.tensors}))
        if isinstance(config, AutoencoderConfig):  # no file says its own factor
            config = replace(config, scale_factor=c.autoencoder.config.scale_factor)
        return replace(c, autoencoder=Component(config, part.tensors))
    if isinstance(config, T5Config) and c.text and isinstance(old := c.text[0].config, T5Config):
        fits(config, old, "vocab_size", "width")
        config = replace(config, max_length=old.max_length)
        return replace(c, text=(replace(c.text[0], config=config, tensors=part.tensors),))
    if isinstance(config, CLIPTextConfig):
        towers = {text.config.width: text for text in c.text}
        if config.width not in towers:
            widths = " and ".join(map(str, towers))
            raise ModelFileError(f"the text encoder is {config.width} wide, and the model's {widths}")
        old = towers[config.width]
        return replace(c, text=tuple(fitted(part, old) if text is old else text for text in c.text))
    raise ModelFileError(
        "a model draws with a U-Net, an autoencoder and text encoders, and with no other part"
    )


def fitted(part: Component[CLIPTextConfig], old: TextComponent) -> TextComponent:
    """A tower in another's place. A projection that the old one had none of is left out."""
    config, tensors = part.config, dict(part.tensors)
    if old.config.projection_dim is None:
        config = replace(config, projection_dim=None)
        tensors.pop("text_projection.weight", None)
    skip = old.skip - (old.config.num_layers - config.num_layers)
    fits(config, old.config, "vocab_size", "projection_dim", "max_length")
    if skip < 1:
        raise ModelFileError(f"the text encoder has {config.num_layers} layers, too few")
    return replace(old, config=replace(config, eos_token=old.config.eos_token), tensors=tensors, skip=skip)


def fits(new: object, old: object, *fields: str) -> None:
    for field in fields:
        a, b = getattr(new, field), getattr(old, field)
        if a != b:
            raise ModelFileError(f"{field} is {a}, and the model's {b}")
