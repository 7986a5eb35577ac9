"""Perceptual distance over the features of any network. B batch, C channels, H W picture size."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

Features = Callable[[Tensor], Sequence[Tensor]]  # pixels (B, 3, H, W) in [-1, 1] -> maps (B, C_l, H_l, W_l)


class PerceptualDistance(nn.Module):
    """Mean squared distance of unit-normed features, weighted per channel and summed over layers.

    With VGG16 features and the learned heads it is LPIPS (Zhang et al. 2018, equation 1); without heads each
    channel weighs the same. `features` is used as it is, frozen.
    """

    def __init__(self, features: Features, heads: Sequence[Tensor] | None = None):
        super().__init__()
        self.features = features
        if isinstance(features, nn.Module):
            features.requires_grad_(False).eval()
        self.num_heads = len(heads) if heads is not None else 0
        for i, head in enumerate(heads or ()):
            self.register_buffer(f"head{i}", head.reshape(1, -1, 1, 1))

    def forward(self, pixels: Tensor, target: Tensor) -> Tensor:
        """Distance (B,) of pictures (B, 3, H, W) in [-1, 1]."""
        total = pixels.new_zeros(pixels.shape[0], dtype=torch.float32)
        with torch.no_grad():
            wanted = self.features(target)
        for i, (a, b) in enumerate(zip(self.features(pixels), wanted, strict=True)):
            squared = (unit(a.float()) - unit(b.float())).square()
            weighted = squared * self.get_buffer(f"head{i}") if self.num_heads else squared
            total = total + weighted.sum(dim=1).mean(dim=(1, 2))
        return total


def unit(features: Tensor, eps: float = 1e-10) -> Tensor:
    """Each pixel's feature vector scaled to length 1."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + eps)


class VGG16Features(nn.Module):
    """The five feature maps that LPIPS reads from VGG16 (torchvision's key names, `features.N`)."""

    taps = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
    widths = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0 is a pooling

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        dim = 3
        for width in self.widths:
            layers += [nn.Conv2d(dim, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
            dim = width or dim
        self.features = nn.Sequential(*layers)
        # LPIPS' shift and scale of [-1, 1] pixels, which is ImageNet's mean and std of [0, 1] ones
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = (pixels - self.get_buffer("mean")) / self.get_buffer("std")
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                maps.append(x)
        return maps


def lpips(vgg: Path, heads: Path) -> PerceptualDistance:
    """LPIPS from files: VGG16 weights (`features.N.weight`) and the heads (`lin{l}.model.1.weight`).

    Both are safetensors. Raises ValueError where one can't be read, or tensors are missing or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network = VGG16Features()
    try:
        weights, table = load_file(vgg), load_file(heads)
        network.load_state_dict({key: weights[key] for key in network.state_dict()})
        return PerceptualDistance(network, [table[f"lin{i}.model.1.weight"] for i in range(5)])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{vgg} and {heads} do not make LPIPS: {error}") from error
