"""Conditions of a latent diffusion model besides text. B batch, D width, H W picture size."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.models.clip import CLIPVision, CLIPVisionConfig


@dataclass(frozen=True)
class ClassConfig:
    """Config of a class condition. Defaults are ImageNet's classes, and a last one that stands for none of them."""

    num_classes: int = 1001
    width: int = 512


class ClassEmbedder(nn.Module):
    """A class to a context of one vector (Rombach et al. 2022, appendix E.2.1)."""

    def __init__(self, config: ClassConfig = ClassConfig()):
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
    """Config of a semantic map condition. Defaults are those of latent diffusion's landscapes."""

    num_labels: int = 182
    channels: int = 3
    halvings: int = 2  # so often is the map's size halved


class SemanticRescaler(nn.Module):
    """A map of labels to channels beside the latent (Rombach et al. 2022, section 4.3.2)."""

    def __init__(self, config: SemanticConfig = SemanticConfig()):
        super().__init__()
        self.config = config
        self.channel_mapper = nn.Conv2d(config.num_labels, config.channels, 1, bias=False)

    def forward(self, labels: Tensor) -> Tensor:
        """(B, channels, H/f, W/f), f = 2^halvings, of one-hot labels (B, num_labels, H, W) as floats."""
        for _ in range(self.config.halvings):
            labels = F.interpolate(labels, scale_factor=0.5, mode="bilinear")
        return self.channel_mapper(labels)


@dataclass(frozen=True)
class VectorConfig:
    """Config of `VectorStatistics`. The default is the width of CLIP ViT-L/14's vectors."""

    vector_dim: int = 768


class VectorStatistics(nn.Module):
    """Statistics for noising CLIP's vectors, of Stable unCLIP with a prior and no picture tower."""

    def __init__(self, config: VectorConfig = VectorConfig()):
        super().__init__()
        self.config = config
        self.mean = nn.Parameter(torch.zeros(1, config.vector_dim))
        self.std = nn.Parameter(torch.ones(1, config.vector_dim))


@dataclass(frozen=True)
class PictureConfig:
    """Config of a picture condition. Defaults are those of Stable unCLIP with CLIP ViT-L/14."""

    vision: CLIPVisionConfig = CLIPVisionConfig()
    noised: bool = True  # unCLIP; False: image variations of SD1, whose vectors are the context


class PictureEmbedder(nn.Module):
    """A picture to CLIP's vector, with what noise is added by: its mean and std over pictures (Ramesh et al. 2022)."""

    def __init__(self, config: PictureConfig = PictureConfig()):
        super().__init__()
        self.config = config
        self.vision = CLIPVision(config.vision)
        if config.noised:
            width = config.vision.projection_dim or config.vision.width
            self.mean = nn.Parameter(torch.zeros(1, width))
            self.std = nn.Parameter(torch.ones(1, width))

    def forward(self, pixels: Tensor) -> Tensor:
        """Vectors (B, D) of pixels (B, 3, S, S), as `CLIPVision` takes them."""
        return self.vision(pixels)[1]
