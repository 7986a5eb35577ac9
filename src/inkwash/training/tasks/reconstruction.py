"""The objective of autoencoders: pictures that come back. B batch, H W picture size."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inkwash.models.autoencoder import AutoencoderKL, AutoencoderVQ, FirstStage
from inkwash.models.discriminator import PatchDiscriminator
from inkwash.models.tiny import TinyAutoencoder
from inkwash.training.distributed import World
from inkwash.training.objectives import adaptive_weight, hinge_loss, kl_to_normal
from inkwash.training.pixels import PixelBatch
from inkwash.training.tasks.denoising import computing

COMMITMENT = (
    0.25  # how much latents move to codes beside codes to latents (van den Oord et al. 2017, equation 3)
)


@dataclass(frozen=True)
class Reconstruction:
    """Pictures that came back (B, 3, H, W), what else is minimised of how they did, and values to log."""

    pixels: Tensor
    penalty: Tensor
    logs: dict[str, float]


Reconstruct = Callable[
    [Tensor, torch.Generator, slice, int], Reconstruction
]  # of pixels, rows of so many, and noise


def by_kl(model: AutoencoderKL, weight: float, encodes: bool = True) -> Reconstruct:
    """Through a sample of the posterior, whose KL divergence from a standard normal costs. encodes: whether the encoder
    learns; where it does not, nothing costs."""

    def reconstruct(pixels: Tensor, rng: torch.Generator, rows: slice, num: int) -> Reconstruction:
        with torch.set_grad_enabled(encodes and torch.is_grad_enabled()):
            mean, logvar = model.moments(pixels)
        noise = torch.randn(num, *mean.shape[1:], generator=rng)[rows].to(mean)
        unscaled = mean + (0.5 * logvar).exp() * noise
        # as in latent diffusion the divergence is summed over a latent, and weighed against a mean over pixels
        kl = kl_to_normal(mean.float(), logvar.float()).mean()
        made = model.decoder(model.post_quant_conv(unscaled))
        return Reconstruction(made, weight * kl if encodes else kl.detach() * 0, {"kl": kl.item()})

    return reconstruct


def by_codes(model: AutoencoderVQ, weight: float, encodes: bool = True) -> Reconstruct:
    """Through the nearest codes, which move to the latents, and these to them."""

    def reconstruct(pixels: Tensor, rng: torch.Generator, rows: slice, num: int) -> Reconstruction:
        with torch.set_grad_enabled(encodes and torch.is_grad_enabled()):
            latent = model.encoded(pixels)
        rounded, indices = model.quantize(latent)
        codes = model.quantize.codes(indices)
        moved = (codes.float() - latent.detach().float()).square().mean()
        bound = (latent.float() - codes.detach().float()).square().mean()
        used = indices.unique().numel() / model.quantize.embedding.num_embeddings
        made = model.decoder(model.post_quant_conv(rounded))
        penalty = weight * (moved + COMMITMENT * bound) if encodes else moved.detach() * 0
        return Reconstruction(made, penalty, {"codes": moved.item(), "used": used})

    return reconstruct


def by_teacher(model: TinyAutoencoder, teacher: FirstStage, weight: float) -> Reconstruct:
    """The teacher's latents of a picture, and the picture of the teacher's latents."""
    like = next(teacher.parameters(), torch.empty(0))

    def reconstruct(pixels: Tensor, rng: torch.Generator, rows: slice, num: int) -> Reconstruction:
        with torch.no_grad():
            wanted = teacher.encode(pixels.to(like)).mean.to(pixels)
        error = (model.encode(pixels).mean.float() - wanted.float()).square().mean()
        return Reconstruction(model.decode(wanted), weight * error, {"latent": error.item()})

    return reconstruct


@dataclass(frozen=True)
class ReconstructionLoss:
    """Settings of a reconstruction loss. perceptual: of pictures (B, 3, H, W) and targets, distances (B,); None for none."""

    kind: str = "l1"
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    perceptual_weight: float = 1.0
    disc_start: int = 50_001
    disc_weight: float = 0.5

    def of_pixels(self, made: Tensor, pixels: Tensor) -> Tensor:
        error = made.float() - pixels.float()
        return error.abs().mean() if self.kind == "l1" else error.square().mean()


class ReconstructionTask:
    """Errors of pixels and of features, a penalty of the bottleneck, and later a PatchGAN (Esser et al. 2021, section 3.1;
    Rombach et al. 2022, appendix G).

    source: has `size` and `batch(number, rng, rows)`. last_layer: where the PatchGAN's gradient is given the others' size.
    discriminator: None does without.
    """

    def __init__(
        self,
        model: nn.Module,
        reconstruct: Reconstruct,
        last_layer: Tensor,
        source,  # whatever has size and batch, such as PixelSource
        loss: ReconstructionLoss,
        discriminator: PatchDiscriminator | None = None,
        num_micro_batches: int = 1,
        precision: str = "fp32",
        world: World = World(),
    ):
        self.modules: Mapping[str, nn.Module] = {"autoencoder": model}
        if discriminator is not None:
            self.modules = {**self.modules, "discriminator": discriminator}
        self.model, self.reconstruct, self.last_layer = model, reconstruct, last_layer
        self.source, self.loss, self.discriminator = source, loss, discriminator
        self.num_micro_batches, self.precision, self.world = num_micro_batches, precision, world

    def losses(
        self, step: int, micro: int, rng: torch.Generator
    ) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        device, loss = self.last_layer.device, self.loss
        rows, number = self.world.rows(self.source.size), step * self.num_micro_batches + micro
        batch: PixelBatch = self.source.batch(number, rng, rows)
        pixels = batch.pixels.to(device)
        with computing(device, self.precision):
            made = self.reconstruct(pixels, rng, rows, self.source.size)
            total = error = loss.of_pixels(made.pixels, pixels)
            logs = {"error": error.item()} | made.logs
            if loss.perceptual:
                distance = loss.perceptual(made.pixels, pixels).float().mean()
                total = total + loss.perceptual_weight * distance
                logs["perceptual"] = distance.item()
            judge = self.discriminator if step >= loss.disc_start else None
            if judge is not None:
                fooled = -judge(made.pixels).float().mean()
                total = total + loss.disc_weight * adaptive_weight(total, fooled, self.last_layer) * fooled
        yield "autoencoder", total + made.penalty, logs
        if judge is not None:
            with computing(device, self.precision):
                real, fake = judge(pixels).float(), judge(made.pixels.detach()).float()
            yield (
                "discriminator",
                hinge_loss(real, fake),
                {"real": real.mean().item(), "fake": fake.mean().item()},
            )
