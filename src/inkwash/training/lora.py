"""LoRA of a U-Net, trained on latents and contexts that are computed beforehand. N pictures, B batch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from inkwash.adapters.trainable import TrainableLoRA
from inkwash.models.autoencoder import Posterior
from inkwash.pipeline.images import to_pixels
from inkwash.prompts.conditioning import encode
from inkwash.training.objectives import diffusion_loss, min_snr_weight


class LoRATask:
    """The model's own objective, eps, v or x0, with only the LoRA's matrices to learn.

    pictures: of each a Posterior (1, C, H, W) of its latents, sampled anew each time it is seen; a batch has one size,
    so that with pictures of several sizes it is of 1. contexts (N, T, D) and vectors (N, E), of the captions. empty:
    the empty caption's context (T, D) and, if there are, vector (E,), in the place of `caption_dropout` of them.
    min_snr_gamma: None counts all noise levels alike.
    Raises ValueError where numbers of pictures and captions differ, or the LoRA has more than the U-Net's layers.
    """

    def __init__(
        self,
        lora: TrainableLoRA,
        pictures: Sequence[Posterior],
        contexts: Tensor,
        vectors: Tensor | None = None,
        empty: Sequence[Tensor] = (),
        batch: int = 1,
        caption_dropout: float = 0.0,
        min_snr_gamma: float | None = None,
    ):
        if not len(pictures) == len(contexts) == len(contexts if vectors is None else vectors) > 0:
            raise ValueError(f"{len(pictures)} pictures have {len(contexts)} captions")
        if others := {target.part for target in lora.targets.values()} - {"unet"}:
            raise ValueError(f"contexts that don't change teach {', '.join(sorted(others))} nothing")
        if caption_dropout and not empty:
            raise ValueError(f"caption_dropout {caption_dropout} needs the empty caption's context")
        self.modules: Mapping[str, nn.Module] = {"lora": lora}
        self.parts, self.pictures, self.batch = lora.parts, pictures, batch
        self.contexts, self.vectors, self.empty = contexts, vectors, empty
        self.caption_dropout, self.min_snr_gamma = caption_dropout, min_snr_gamma
        self.attachment = lora.attached()

    @classmethod
    @torch.no_grad()
    def of(
        cls, lora: TrainableLoRA, images: Sequence[Image.Image], captions: Sequence[str], **options: Any
    ) -> "LoRATask":
        """The same of RGB pictures, whose sides are multiples of 8, and their captions, of a chunk each at most.

        Raises ValueError for a longer caption, and for a model that takes a vector, as SDXL does.
        """
        parts = lora.parts
        if parts.unet.config.vector_dim is not None:
            raise ValueError("the model takes vectors beside captions; give LoRATask contexts and vectors")
        made = {text: context for text, (context, _) in encode(parts.text_encoders, ["", *captions]).items()}
        if long := next((text for text in captions if len(made[text]) > len(made[""])), None):
            raise ValueError(f"the caption {long[:60]!r} is longer than a chunk")
        weight = next(parts.autoencoder.parameters())
        latents = [parts.autoencoder.encode(to_pixels(image).to(weight)) for image in images]
        pictures = [Posterior(one.mean.float().cpu(), one.std.float().cpu()) for one in latents]
        contexts = torch.stack([made[text].float().cpu() for text in captions])
        return cls(lora, pictures, contexts, empty=(made[""].float().cpu(),), **options)

    def losses(
        self, step: int, micro: int, rng: torch.Generator
    ) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        weight, schedule = next(self.parts.unet.parameters()), self.parts.schedule
        chosen = torch.randint(len(self.pictures), (self.batch,), generator=rng).tolist()
        seen = [self.pictures[i] for i in chosen]
        latent = torch.cat([one.sample(torch.randn(one.mean.shape, generator=rng)) for one in seen])
        noise = torch.randn(latent.shape, generator=rng)
        t = torch.randint(len(schedule.alphas_cumprod), (self.batch,), generator=rng)
        dropped = torch.rand(self.batch, generator=rng) < self.caption_dropout
        cond = {"context": self.captions(self.contexts, chosen, dropped, 0)}
        if self.vectors is not None:
            cond["vector"] = self.captions(self.vectors, chosen, dropped, 1)

        def network(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
            x = x.to(weight.dtype).contiguous(memory_format=torch.channels_last)
            return self.parts.unet(x, t, **{name: some.to(weight) for name, some in cond.items()})

        latent, noise, t = (some.to(weight.device) for some in (latent, noise, t))
        losses = diffusion_loss(network, latent, noise, t, cond, schedule, self.parts.prediction)
        if self.min_snr_gamma is not None:
            losses = losses * min_snr_weight(
                schedule, t, self.min_snr_gamma, prediction=self.parts.prediction
            )
        yield "lora", losses.mean(), {}

    def captions(self, of: Tensor, chosen: list[int], dropped: Tensor, which: int) -> Tensor:
        """Rows of contexts or vectors, some of them the empty caption's."""
        rows = of[chosen].clone()
        if dropped.any():
            rows[dropped] = self.empty[which].to(rows)
        return rows
