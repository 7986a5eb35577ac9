"""The objective of CLIP: pictures beside their captions. B batch of a process, N of all, D width."""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.models.clip import MEAN, STD, CLIPText, CLIPVision
from inkwash.models.tokenizer import Tokenizer
from inkwash.training.distributed import World
from inkwash.training.tasks.denoising import computing

MAX_SCALE = 4.6052  # ln 100


class CLIP(nn.Module):
    """Both towers, the text's projection and the temperature, under transformers' names."""

    def __init__(self, text: CLIPText, vision: CLIPVision):
        super().__init__()
        self.config = (text.config, vision.config)
        self.text_model, self.vision_model = text.text_model, vision.vision_model
        self.text_projection, self.visual_projection = text.text_projection, vision.visual_projection
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # ln(1 / 0.07)
        self.towers = [text, vision]  # no submodules: their parts are, above

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, D) of length 1 of pictures (B, 3, S, S) in [-1, 1], and of texts' tokens (B, T)."""
        text, vision = self.towers
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        images, texts = vision(((pixels + 1) / 2 - mean) / std)[1], text(tokens)[1]
        return F.normalize(images.float(), dim=1), F.normalize(texts.float(), dim=1)


class ContrastiveTask:
    """Contrastive training: match a batch's pictures with their captions (Radford et al. 2021, figure 3).

    Each process compares its own rows with all processes' columns, so that none holds the N x N similarities, and the
    gradients' mean is that of one process with the whole batch. Captions that are equal belong to all of their pictures.
    """

    def __init__(
        self,
        model: CLIP,
        tokenizer: Tokenizer,
        source,  # whatever has size and batch, such as PixelSource
        num_micro_batches: int = 1,
        precision: str = "fp32",
        world: World = World(),
    ):
        self.modules: Mapping[str, nn.Module] = {"clip": model}
        self.model, self.tokenizer, self.source = model, tokenizer, source
        self.num_micro_batches, self.precision, self.world = num_micro_batches, precision, world

    def losses(
        self, step: int, micro: int, rng: torch.Generator
    ) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        device = self.model.logit_scale.device
        rows, number = self.world.rows(self.source.size), step * self.num_micro_batches + micro
        batch = self.source.batch(number, rng, rows)
        tokens = torch.tensor(self.tokenizer(batch.captions), device=device)
        with computing(device, self.precision):
            images, texts = self.model(batch.pixels.to(device), tokens)
        with torch.autocast(device.type, enabled=False):
            loss, right = sharded_contrastive_loss(
                images, texts, tokens, self.model.logit_scale.clamp(max=MAX_SCALE), self.world
            )
        yield "clip", loss, {"error": loss.item(), "top-1": right}


def sharded_contrastive_loss(
    images: Tensor, texts: Tensor, tokens: Tensor, scale: Tensor, world: World
) -> tuple[Tensor, float]:
    """The symmetric cross-entropy of these rows among those of all processes, and how often the best text is right.

    images, texts: (B, D) of length 1. tokens (B, T): of the texts, by which equal ones are known. scale: of the logits, as
    its logarithm.
    """
    columns = [world.gathered(images), world.gathered(texts)]
    same = (tokens[:, None] == world.gathered(tokens)[None]).all(dim=2).float()  # (B, N)
    target = same / same.sum(dim=1, keepdim=True)
    to_texts = scale.exp() * images @ columns[1].T
    to_images = scale.exp() * texts @ columns[0].T
    loss = (F.cross_entropy(to_texts, target) + F.cross_entropy(to_images, target)) / 2
    best = to_texts.argmax(dim=1, keepdim=True)
    return loss, same.gather(1, best).mean().item()
