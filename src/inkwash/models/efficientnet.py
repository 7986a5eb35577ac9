"""EfficientNet-Lite0, ImageNet's classes. B batch, C channels, H W picture size, K classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# expansion, kernel, stride, channels, repeats (Tan and Le 2019, table 1)
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
EPS = 1e-3


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": where a side is uneven, the end gets the more."""

    def forward(self, input: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(
            input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        even = pads[0] == pads[1] and pads[2] == pads[3]
        padding = (pads[2], pads[0]) if even else 0  # without a copy where it can be
        x = input if even else F.pad(input, pads)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)


def conv(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> SameConv:
    return SameConv(channels, out, kernel, stride, groups=groups, bias=False)


class Block(nn.Module):
    """Expanded, convolved channel by channel, projected; residual where the shapes agree."""

    def __init__(self, channels: int, expansion: int, kernel: int, stride: int, out: int):
        super().__init__()
        inner = channels * expansion
        self.residual = stride == 1 and channels == out
        self.expand_conv, self.bn0 = None, None
        if expansion > 1:
            self.expand_conv, self.bn0 = conv(channels, inner), nn.BatchNorm2d(inner, EPS)
        self.depthwise_conv = conv(inner, inner, kernel, stride, groups=inner)
        self.bn1 = nn.BatchNorm2d(inner, EPS)
        self.project_conv, self.bn2 = conv(inner, out), nn.BatchNorm2d(out, EPS)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        if self.expand_conv is not None and self.bn0 is not None:
            h = F.relu6(self.bn0(self.expand_conv(h)), inplace=True)
        h = F.relu6(self.bn1(self.depthwise_conv(h)), inplace=True)
        h = self.bn2(self.project_conv(h))
        return x + h if self.residual else h


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 without squeeze-and-excitation, with ReLU6 (Tan and Le 2019; TensorFlow's "lite" models)."""

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.conv_stem, self.bn0 = conv(3, 32, 3, 2), nn.BatchNorm2d(32, EPS)
        blocks, channels = [], 32
        for expansion, kernel, stride, out, repeats in STAGES:
            for n in range(repeats):
                blocks.append(Block(channels, expansion, kernel, 1 if n else stride, out))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = conv(channels, 1280), nn.BatchNorm2d(1280, EPS)
        self.fc = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 1280) and logits (B, K) of pictures (B, 3, H, W), (value - 127) / 128 of 0 to 255."""
        h = self.blocks(F.relu6(self.bn0(self.conv_stem(x)), inplace=True))
        pooled = F.relu6(self.bn1(self.conv_head(h)), inplace=True).mean(dim=(2, 3))
        return pooled, self.fc(pooled)


@torch.no_grad()
def without_norms(network: nn.Module) -> nn.Module:
    """Fold each batch norm's scale and shift into the convolution before it, for inference; the function stays the same.

    Norms follow the convolutions that they belong to in the order of the modules.
    """
    for module in list(network.modules()):
        before = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                mean, var = child.running_mean, child.running_var
                assert mean is not None and var is not None
                scale = child.weight / (var + child.eps).sqrt()
                before.weight.mul_(scale[:, None, None, None])
                before.bias = nn.Parameter(child.bias - mean * scale)
                setattr(module, name, nn.Identity())
            before = child
    return network
