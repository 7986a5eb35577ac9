"""The trainings of `mini`, as tasks of the loop. B batch, S picture side, T tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.models.autoencoder import AutoencoderKL
from inkwash.models.clip import CLIPText, CLIPVision
from inkwash.models.discriminator import PatchDiscriminator
from inkwash.models.perceptual import PerceptualDistance
from inkwash.models.tokenizer import Tokenizer
from inkwash.models.unet import UNet
from inkwash.training.objectives import (
    adaptive_weight,
    contrastive_loss,
    hinge_loss,
    kl_to_normal,
    min_snr_weight,
    prediction_error,
)
from recipes.mini.classifier import Classifier, augment
from recipes.mini.pictures import Pictures
from recipes.mini.recipe import FULL

Losses = Iterator[tuple[str, Tensor, dict[str, float]]]


def bf16(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def fitting_attention(device: torch.device) -> AbstractContextManager:
    """On a CPU plain matrix products train these few tokens a quarter faster than the flash kernel."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def on_device(rng: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator of the device's own that `rng` seeds, so that batches are drawn where they are used."""
    if device.type == "cpu":
        return rng
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=rng)))


def draw(indices: Tensor, batch: int, rng: torch.Generator) -> Tensor:
    """A random batch of these indices, with replacement."""
    return indices.to(rng.device)[torch.randint(len(indices), (batch,), generator=rng, device=rng.device)]


def crops(pictures: Pictures, batch: int, size: int, rng: torch.Generator) -> Tensor:
    """Random crops of random pictures, mirrored at random: (batch, 3, size, size) on the generator's device."""
    device = rng.device
    pixels = pictures.pixels(draw(torch.arange(len(pictures.records)), batch, rng)).to(device)
    room = pixels.shape[-1] - size + 1
    top, left = torch.randint(room, (2, batch, 1), generator=rng, device=device)
    rows, columns = (start + torch.arange(size, device=device) for start in (top, left))
    mirrored = torch.rand(batch, 1, generator=rng, device=device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    picture = torch.arange(batch, device=device)[:, None, None]
    cut = pixels.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2)  # channels last in memory


def device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


class ClassifierTask:
    """Names of the common drawings and styles of all, cross-entropy."""

    def __init__(
        self, model: Classifier, pictures: Pictures, names: list[str], styles: list[str], batch: int
    ):
        self.modules: Mapping[str, nn.Module] = {"classifier": model}
        self.model, self.pictures, self.batch = model, pictures, batch
        index = {name: i for i, name in enumerate(names)}
        self.names = torch.tensor([index.get(r.get("slug") or "", -1) for r in pictures.records])
        self.styles = torch.tensor(
            [styles.index(r["style"]) if r["style"] in styles else -1 for r in pictures.records]
        )
        kinds = np.array([r["kind"] in ("single", "recoloured") for r in pictures.records])
        taught = kinds & (self.styles >= 0).numpy() & (self.names >= 0).numpy()
        device = device_of(model)
        self.indices, self.names, self.styles = (
            x.to(device) for x in (torch.from_numpy(np.flatnonzero(taught)), self.names, self.styles)
        )

    def losses(self, step: int, micro: int, rng: torch.Generator) -> Losses:
        device = device_of(self.model)
        rng = on_device(rng, device)
        chosen = draw(self.indices, self.batch, rng)
        pixels = augment(self.pictures.pixels(chosen).to(device), rng)
        target, style = self.names[chosen], self.styles[chosen]
        with bf16(device):
            name_logits, style_logits = self.model(pixels.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(name_logits.float(), target, label_smoothing=0.05)
        loss = loss + 0.3 * F.cross_entropy(style_logits.float(), style)
        right = (name_logits.argmax(1) == target).float().mean().item()
        yield "classifier", loss, {"top-1": right}


class AutoencoderTask:
    """L1, L2, perceptual distance and KL, and from `disc_start` on a PatchGAN (Rombach et al. 2022, appendix G)."""

    def __init__(
        self,
        model: AutoencoderKL,
        discriminator: PatchDiscriminator,
        perceptual: PerceptualDistance,
        pictures: Pictures,
        batch: int,
        crop: int = 64,
        kl_weight: float = 1e-6,
        l2_weight: float = 0.0,
        perceptual_weight: float = 0.05,
        disc_start: int | None = 50_001,
        disc_weight: float = 0.1,
    ):
        self.modules: Mapping[str, nn.Module] = {"autoencoder": model, "discriminator": discriminator}
        self.model, self.discriminator, self.perceptual = model, discriminator, perceptual
        self.pictures, self.batch, self.crop = pictures, batch, crop
        self.kl_weight, self.l2_weight, self.perceptual_weight = kl_weight, l2_weight, perceptual_weight
        self.disc_start, self.disc_weight = disc_start, disc_weight

    def losses(self, step: int, micro: int, rng: torch.Generator) -> Losses:
        device = device_of(self.model)
        rng = on_device(rng, device)
        pixels = crops(self.pictures, self.batch, self.crop, rng)
        with bf16(device):
            mean, logvar = self.model.moments(pixels)
            noise = torch.randn(mean.shape, generator=rng, device=device)
            unscaled = mean + (0.5 * logvar).exp() * noise
            made = self.model.decoder(self.model.post_quant_conv(unscaled))
            perceptual = (
                self.perceptual(made, pixels).mean() if self.perceptual_weight else made.new_zeros(())
            )
        l1, l2 = (made.float() - pixels).abs().mean(), (made.float() - pixels).square().mean()
        kl = kl_to_normal(mean.float(), logvar.float()).mean()
        loss = l1 + self.l2_weight * l2 + self.perceptual_weight * perceptual
        logs = {"l1": l1.item(), "perceptual": perceptual.item(), "kl": kl.item()}
        adversarial = self.disc_start is not None and step >= self.disc_start
        if adversarial:
            with bf16(device):
                fooled = -self.discriminator(made).float().mean()
            weight = adaptive_weight(loss, fooled, self.model.decoder.conv_out.weight)
            loss = loss + self.disc_weight * weight * fooled
        # as in the LDM code the KL is summed over a latent, and weighed against a mean over pixels
        yield "autoencoder", loss + self.kl_weight * kl, logs
        if adversarial:
            with bf16(device):
                real, fake = self.discriminator(pixels).float(), self.discriminator(made.detach()).float()
            yield (
                "discriminator",
                hinge_loss(real, fake),
                {"real": real.mean().item(), "fake": fake.mean().item()},
            )


@dataclass(frozen=True)
class Choices:
    """Several numbers for each of N things, of which one is picked at random: a table (N, K) and how many count (N,)."""

    table: Tensor
    counts: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: torch.device) -> "Choices":
        counts = torch.tensor([len(row) for row in rows])
        table = torch.zeros(len(rows), int(counts.max()), dtype=torch.long)
        for filled, row in zip(table, rows, strict=True):
            filled[: len(row)] = torch.tensor(row)
        return cls(table.to(device), counts.to(device))

    def pick(self, chosen: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """One number (B,) for each of the things (B,). rng: by default torch's own generator."""
        u = torch.rand(len(chosen), generator=rng, device=self.counts.device)
        return self.table[chosen, (u * self.counts[chosen]).long()]


class CLIPPair(nn.Module):
    """Both towers, the text side's projection and the temperature: what the contrastive loss trains."""

    def __init__(self, text: CLIPText, vision: CLIPVision):
        super().__init__()
        self.text, self.vision = text, vision
        dim = vision.config.projection_dim or vision.config.width
        self.text_projection = nn.Linear(text.config.width, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # ln(1 / 0.07)


class CLIPTask:
    """Pictures against their captions. The vision tower sees pictures at its own, smaller size."""

    def __init__(self, pair: CLIPPair, tokenizer: Tokenizer, pictures: Pictures, batch: int):
        self.modules: Mapping[str, nn.Module] = {"clip": pair}
        self.pair, self.pictures, self.batch = pair, pictures, batch
        device = device_of(pair)
        captions = [[record["caption"], *record["captions"]] for record in pictures.records]
        number = {text: k for k, text in enumerate(dict.fromkeys(chain.from_iterable(captions)))}
        tokens = torch.tensor([tokenizer([text])[0] for text in number])
        longest = int((tokens == tokenizer.end).int().argmax(1).max()) + 1
        self.indices, self.tokens = (
            torch.from_numpy(pictures.captioned).to(device),
            tokens[:, :longest].to(device),
        )
        self.captions = Choices.of([[number[text] for text in texts] for texts in captions], device)

    def losses(self, step: int, micro: int, rng: torch.Generator) -> Losses:
        device = device_of(self.pair)
        rng = on_device(rng, device)
        chosen = draw(self.indices, self.batch, rng)
        size = self.pair.vision.config.image_size
        pixels = F.interpolate(self.pictures.pixels(chosen).to(device), size=(size, size), mode="area")
        texts = self.captions.pick(chosen, rng)
        with bf16(device):
            images = self.pair.vision(augment(pixels, rng))[1]
            pooled = self.pair.text_projection(self.pair.text(self.tokens[texts])[1])
        same = texts[:, None] == texts[None]
        loss = contrastive_loss(images.float(), pooled.float(), self.pair.logit_scale.clamp(max=4.6052), same)
        yield "clip", loss, {"scale": self.pair.logit_scale.exp().item()}


@dataclass(frozen=True)
class Beside:
    """The network's inputs for a batch besides its noised latents and captions.

    concat: (B, C', H, W), channels after the latent's own. vector: (B,) classes. hint: (B, 3, S, S), a ControlNet's.
    latent: (B, C, H, W), of pictures that were changed, in place of the cached ones. described: the latents whose captions
    say what is to be drawn, where they are not the batch's own.
    """

    concat: Tensor | None = None
    vector: Tensor | None = None
    hint: Tensor | None = None
    latent: Tensor | None = None
    described: Sequence[int] | None = None


class TextToImageTask:
    """v or eps of noised latents with 10 % of the captions dropped, over latents and contexts cached beforehand.

    latents: (N, C, H, W) scaled, as means and stds. contexts: (M, T, D), the first one that of the empty text.
    choices: for each latent the rows of `contexts` that describe it. beside: what else is seen of some latents (B,).
    teacher: a U-Net whose predictions are the target in the pictures' place. loss_weight: beside another task's loss.
    """

    def __init__(
        self,
        unet: UNet,
        means: Tensor,
        stds: Tensor,
        contexts: Tensor,
        choices: list[list[int]],
        weights: Tensor,
        schedule: NoiseSchedule,
        batch: int,
        prediction: str,
        caption_dropout: float = 0.1,
        min_snr_gamma: float = 5.0,
        timestep_power: float = FULL.unet.timestep_power,
        beside: Callable[[Tensor, torch.Generator], Beside] | None = None,
        teacher: UNet | None = None,
        loss_weight: float = 1.0,
    ):
        self.modules: Mapping[str, nn.Module] = {"unet": unet}
        self.teacher, self.loss_weight, device = teacher, loss_weight, device_of(unet)
        self.unet, self.choices = unet, Choices.of(choices, device)
        self.means, self.stds, self.contexts, self.weights = (
            x.to(device) for x in (means, stds, contexts, weights)
        )
        self.schedule, self.batch, self.prediction = schedule, batch, prediction
        self.caption_dropout, self.beside = caption_dropout, beside
        self.min_snr_gamma, self.timestep_power = min_snr_gamma, timestep_power

    def losses(self, step: int, micro: int, rng: torch.Generator) -> Losses:
        device = device_of(self.unet)
        given, rng = rng, on_device(rng, device)
        chosen = torch.multinomial(self.weights, self.batch, replacement=True, generator=rng)
        latent = self.latents(chosen, rng)
        seen = self.beside(chosen.cpu(), given) if self.beside else Beside()
        latent = latent if seen.latent is None else seen.latent.to(device)
        described = chosen if seen.described is None else torch.tensor(seen.described, device=device)
        kept = torch.rand(self.batch, generator=rng, device=device) >= self.caption_dropout
        cond = {"context": self.contexts[self.choices.pick(described, rng) * kept]}
        if seen.vector is not None:
            cond["vector"] = seen.vector.to(device)
        extra = [] if seen.concat is None else [seen.concat.to(device)]

        def network(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
            return self.unet(torch.cat([x, *extra], dim=1), t, **cond)

        loss, logs = self.objective(network, latent, cond, rng, self.teacher)
        yield "unet", self.loss_weight * loss, logs

    def latents(self, chosen: Tensor, rng: torch.Generator) -> Tensor:
        """Latents (B, C, H, W) of pictures, sampled from their posteriors."""
        mean, std = self.means[chosen].float(), self.stds[chosen].float()
        return mean + std * torch.randn(mean.shape, generator=rng, device=rng.device)

    def objective(
        self,
        network: Callable[..., Tensor],
        latent: Tensor,
        cond: Mapping[str, Tensor],
        rng: torch.Generator,
        teacher: Callable[..., Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a network on latents, and what is logged. teacher: a network whose prediction is the target."""
        device, num = latent.device, len(latent)
        # stratified over the batch: the same law, less variance of the gradient
        u = (torch.arange(num, device=device) + torch.rand(num, generator=rng, device=device)) / num
        t = (u**self.timestep_power * len(self.schedule.alphas_cumprod)).long()
        noise = torch.randn(latent.shape, generator=rng, device=device)
        latent, noise = (x.contiguous(memory_format=torch.channels_last) for x in (latent, noise))
        given = (latent, noise, t, cond, self.schedule, self.prediction)
        with bf16(device), fitting_attention(device):
            error = prediction_error(network, *given)
            if teacher is not None:
                with torch.no_grad():
                    wanted = prediction_error(teacher, *given)
                error = error - wanted
        losses = error.square().mean(dim=(1, 2, 3))
        # the errors of x0 are weighed alike whatever is predicted: by min(SNR + 1, gamma)
        weights = min_snr_weight(self.schedule, t, self.min_snr_gamma, 1.0, self.prediction)
        return (losses * weights).mean(), {self.prediction: losses.mean().item()}
