"""What conditions a latent diffusion model besides text. B batch, D width, H W picture size."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ClassConfig:
    """Defaults are ImageNet's classes, and a last one that stands for none of them."""

    num_classes: int = 1001
    width: int = 512


class ClassEmbedder(nn.Module):
    """A class to a context of one vector (Rombach et al. 2022, appendix E.2.1)."""

    def __init__(self, config: ClassConfig = ClassConfig()):  # noqa: B008  frozen
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_classes, config.width)

    def forward(self, classes: Tensor) -> Tensor:
        """Context (B, 1, D) of class indices (B,). Raises ValueError for an index out of range."""
        num = self.config.num_classes
        if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < num:
            raise ValueError(f"classes {classes.tolist()} are not all in 0 to {num - 1}")
        return self.embedding(classes)[:, None]


@dataclass(frozen=True)
class SemanticConfig:
    """Defaults are latent diffusion's landscapes."""

    num_labels: int = 182
    channels: int = 3
    halvings: int = 2  # so often is the map's size halved


class SemanticRescaler(nn.Module):
    """A map of labels to channels beside the latent (Rombach et al. 2022, section 4.3.2)."""

    def __init__(self, config: SemanticConfig = SemanticConfig()):  # noqa: B008  frozen
        super().__init__()
        self.config = config
        self.channel_mapper = nn.Conv2d(config.num_labels, config.channels, 1, bias=False)

    def forward(self, labels: Tensor) -> Tensor:
        """(B, channels, H/f, W/f), f = 2^halvings, of one-hot labels (B, num_labels, H, W) as floats."""
        for _ in range(self.config.halvings):
            labels = F.interpolate(labels, scale_factor=0.5, mode="bilinear")
        return self.channel_mapper(labels)
