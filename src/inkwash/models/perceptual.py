"""Perceptual distance over the features of any network. B batch, C channels, H W picture size."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
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


class Trunk(nn.Module):
    """A chain of layers and the maps that LPIPS reads from it: those after the layers of the numbers `taps`."""

    def __init__(self, layers: Sequence[nn.Module], taps: Sequence[int]) -> None:
        super().__init__()
        self.features, self.taps = nn.Sequential(*layers), taps
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


class VGG16Features(Trunk):
    """The five feature maps that LPIPS reads from VGG16 (torchvision's key names, `features.N`)."""

    def __init__(self) -> None:
        super().__init__(vgg16_layers(lambda dim: [nn.MaxPool2d(2)]), (3, 8, 15, 22, 29))


class BlurPool(nn.Module):
    """Halving after a binomial filter of 3x3, with two mirrored pixels around (Zhang 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        binomial = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("filt", torch.outer(binomial, binomial).expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            F.pad(x, (2, 2, 2, 2), "reflect"), self.get_buffer("filt"), stride=2, groups=x.shape[1]
        )


class ShiftTolerantVGG16Features(Trunk):
    """VGG16's maps, of a network that blurs before it halves (Ghildyal and Liu 2022)."""

    def __init__(self) -> None:
        layers = vgg16_layers(lambda dim: [nn.MaxPool2d(2, stride=1), BlurPool(dim)])
        super().__init__(layers, (3, 9, 17, 25, 33))


class ShiftTolerantAlexNetFeatures(Trunk):
    """AlexNet's five maps, of a network that steps by one pixel and blurs before it halves (Ghildyal and Liu 2022)."""

    def __init__(self) -> None:
        def halving(dim: int) -> list[nn.Module]:
            return [nn.MaxPool2d(3, stride=1), BlurPool(dim)]

        layers = [
            *(nn.Conv2d(3, 64, 11, padding=2), BlurPool(64), nn.ReLU(), *halving(64)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), *halving(192)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        ]
        super().__init__(layers, (2, 6, 10, 12, 14))


def vgg16_layers(halving: Callable[[int], Sequence[nn.Module]]) -> list[nn.Module]:
    """The convolutional layers of VGG16 (Simonyan and Zisserman 2015, configuration D), halved between stages."""
    layers: list[nn.Module] = []
    dim = 3
    for stage, (width, num) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        layers += halving(dim) if stage else []
        for _ in range(num):
            layers += [nn.Conv2d(dim, width, 3, padding=1), nn.ReLU()]
            dim = width
    return layers
