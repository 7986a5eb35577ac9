"""Reference-only: the U-Net looks at a picture, and what its layers saw there steers them where it draws.

B batch, C channels, H W latent size, T tokens. Source: Zhang's reference-only of the ControlNet extension for A1111.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from inkwash.diffusion.denoiser import EDM, shaped
from inkwash.diffusion.noise import NoiseSource
from inkwash.models.unet import UNet
from inkwash.nn.attention import BasicTransformerBlock, Context, CrossAttention
from inkwash.nn.blocks import Downsample
from inkwash.pipeline.controls import Control
from inkwash.pipeline.denoising.control_kinds import Call, spread
from inkwash.pipeline.denoising.hints import fit
from inkwash.pipeline.images import in_mode, to_pixels
from inkwash.pipeline.model import Model

Saw = list[tuple[Tensor, Tensor]]  # what references had in a layer, and how much of each acts (B,)
OWN_SEEDS = 2**62  # how far the seeds of their noise are from those of the pictures
FEW = 1e-6  # the least variance


class Referenced:
    """A picture that the U-Net looks at, noised as what it draws is, before each call.

    With the prompt it acts wholly, with the negative one by 1 - style_fidelity: mode=prompt makes that 0, mode=control 1.
    The weight, 0 to 2, says how many of the layers take part. Raises ValueError for what has no meaning here.
    """

    order, network = 0, None

    def __init__(self, control: Control, model: Model, seeds: Sequence[int]):
        self.control, self.model, self.seeds = control, model, seeds
        check(control, model)
        fidelity = {"prompt": 0.0, "control": 1.0}.get(control.mode, control.style_fidelity)
        self.with_negative = 1.0 - fidelity
        name, unet = control.file, model.unet
        self.attentions = attending(unet, control.weight) if name != "reference_adain" else []
        self.blocks = normed(unet, control.weight) if name != "reference_only" else []

    def given(self, latent_size: tuple[int, int], negative: bool) -> dict[str, Tensor]:
        model, f = self.model, self.model.autoencoder.config.factor
        size = latent_size[1] * f, latent_size[0] * f
        pixels = to_pixels(fit(in_mode(self.control.image, "RGB"), size, self.control.resize))
        latent = model.autoencoder.encode(pixels.to(model.device, model.dtype)).mean.float()
        seeds = [(seed + OWN_SEEDS) % 2**63 for seed in self.seeds]
        noise = NoiseSource(seeds, tuple(latent.shape[1:]), device=model.device)()
        return {"latent": latent, "noise": noise}

    def act(self, call: Call, given: Mapping[str, Tensor], rows: list[int]) -> None:
        to = (call, rows, given["amount"])
        with ExitStack() as stack:
            for layer in self.attentions:
                stack.callback(layer.register_forward_pre_hook(partial(self.keep_tokens, *to)).remove)
            for block in self.blocks:
                stack.callback(block.register_forward_hook(partial(self.keep_moments, *to)).remove)
            context = None if call.context is None else Context(call.context.tokens[rows])
            others = {"vector": call.vector, "time_cond": call.time_cond}
            own = {name: value[rows] for name, value in others.items() if value is not None}
            x = self.noised(call.t[rows], given["latent"][rows], given["noise"][rows]).to(call.x)
            self.model.unet(x.contiguous(memory_format=torch.channels_last), call.t[rows], context, **own)

    def noised(self, t: Tensor, latent: Tensor, noise: Tensor) -> Tensor:
        """The picture as the network sees it at t."""
        edm = self.model.prediction in EDM
        sigma = (4 * t.double()).exp() if edm else self.model.schedule.sigma(t.cpu())
        std = EDM[self.model.prediction][0] if edm else 1.0
        sigma = sigma.cpu()
        x = (latent + shaped(sigma, latent) * noise) / shaped((sigma.square() + std**2).sqrt(), latent)
        if self.model.inputs.kind != "inpainting":
            return x
        hole = torch.zeros_like(latent[:, :1])
        return torch.cat([x, self.model.inputs.concat({"mask": hole, "known picture": latent})], dim=1)

    def keep_tokens(
        self, call: Call, rows: list[int], amount: Tensor, layer: nn.Module, args: tuple[Any, ...]
    ) -> None:
        call.attended.setdefault(layer, []).append((spread(args[0], rows, len(call.x)), amount))

    def keep_moments(
        self, call: Call, rows: list[int], amount: Tensor, block: nn.Module, args: Any, out: Tensor
    ) -> None:
        moments = torch.var_mean(out, dim=(2, 3), keepdim=True, correction=0)
        var, mean = (spread(each, rows, len(call.x)) for each in moments)
        call.moments.setdefault(block, []).append((torch.stack([mean, var]), amount))


def check(control: Control, model: Model) -> None:
    """Check a reference control's options and the model's U-Net; raise ValueError for what references don't support."""
    taken = {
        "mask": control.mask is None,
        "encoder": control.encoder is None,
        "layer_weights": not control.layer_weights,
        "face": control.face is None,
        "annotator": control.annotator in ("auto", "none"),
        "type": control.type == "auto",
        "mode": control.mode != "guess",
    }
    if wrong := [name for name, fits in taken.items() if not fits]:
        raise ValueError(f"{control.file} shows the picture to the U-Net itself, so {wrong[0]} is not for it")
    if (needed := model.inputs.needed) or not attending(model.unet, 2):
        what = f"sees an input of kind {needed} beside the latent" if needed else "has no transformers"
        raise ValueError(f"{control.file} is not for {model.name}, which {what}")


def attending(unet: UNet, weight: float) -> list[CrossAttention]:
    """The attentions to the picture itself that take part: the share `weight` of all, the widest first."""
    blocks = [
        module
        for module in unet.modules()
        if isinstance(module, BasicTransformerBlock) and not module.only_cross
    ]
    blocks.sort(key=lambda block: -block.norm1.normalized_shape[0])
    return [block.attn1 for i, block in enumerate(blocks) if weight > i / len(blocks)]


def normed(unet: UNet, weight: float) -> list[nn.Module]:
    """The blocks whose means and variances take part, those next to the middle first; at 2 all but one.

    They are those of the lower levels on the way down, the middle, and two thirds of those on the way up: in SD1 what
    the extension has, of other U-Nets as much.
    """
    first_level = unet.config.res_blocks[0] + 1
    down = [
        block
        for block in list(unet.input_blocks)[first_level + 1 :]
        if not isinstance(block[0], Downsample)  # type: ignore[index]
    ]
    up = list(unet.output_blocks)[: 2 * len(unet.output_blocks) // 3]
    least: list[tuple[nn.Module, float]] = [(unet.middle_block, 0.0)]
    least += [(block, 1 - i / len(down)) for i, block in enumerate(down)]
    least += [(block, i / len(up)) for i, block in enumerate(up)]
    return [block for block, share in least if weight > 2 * share]


def steer(call: Call) -> None:
    """Let the layers of a call be steered by what references had there."""
    for layer, saw in call.attended.items():
        hook = layer.register_forward_hook(partial(attend_too, *together(saw)), prepend=True)
        call.stack.callback(hook.remove)
    for block, saw in call.moments.items():
        call.stack.callback(block.register_forward_hook(partial(adopt, *together(saw))).remove)


def together(saw: Saw) -> tuple[list[Tensor], Tensor]:
    """The union of what all had, and the mean (B,) of how much of each acts."""
    return [value for value, _ in saw], torch.stack([amount for _, amount in saw]).mean(dim=0)


def attend_too(
    bank: list[Tensor], amount: Tensor, layer: nn.Module, args: tuple[Any, ...], out: Tensor
) -> Tensor:
    """Attention to the references' tokens beside its own. prepend: before tokens that were merged are parted again."""
    assert isinstance(layer, CrossAttention)
    made = CrossAttention.forward(layer, args[0], Context(torch.cat([args[0], *bank], dim=1)))
    return mixed(out, made, amount)


def adopt(bank: list[Tensor], amount: Tensor, block: nn.Module, args: Any, out: Tensor) -> Tensor:
    """The output with the references' mean and variance in each channel (AdaIN, Huang and Belongie 2017)."""
    var, mean = torch.var_mean(out, dim=(2, 3), keepdim=True, correction=0)
    wanted_mean, wanted_var = torch.stack(bank).mean(dim=0)
    made = (out - mean) / var.clamp(min=FEW).sqrt() * wanted_var.clamp(min=FEW).sqrt() + wanted_mean
    return mixed(out, made, amount)


def mixed(out: Tensor, made: Tensor, amount: Tensor) -> Tensor:
    """Each row's share of `made`, exactly either one at 0 and 1."""
    share = shaped(amount, out)
    return (1 - share) * out + share * made
