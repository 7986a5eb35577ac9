"""The PatchGAN of the first stage's training. B batch, C channels, H W picture size."""

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Scores each patch of a picture as real (high) or made (low): (B, 3, H, W) -> (B, 1, ~H/2^n, ~W/2^n).

    Source: Isola et al. 2017, with the module names of the LDM checkpoints (`main.N`). GroupNorm stands in
    for BatchNorm, so that a picture's score does not depend on the others of its batch.
    """

    def __init__(self, channels: int = 64, num_layers: int = 3, in_channels: int = 3):
        super().__init__()
        dims = [channels * min(2**i, 8) for i in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, dims[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(num_layers):
            stride = 2 if i < num_layers - 1 else 1
            layers += [
                nn.Conv2d(dims[i], dims[i + 1], 4, stride, 1, bias=False),
                nn.GroupNorm(8, dims[i + 1]),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(dims[-1], 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.main(pixels)
