"""EfficientNet-Lite0: its published size, TensorFlow's padding, and what it recognises."""

import os
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
import torch.nn.functional as F
from PIL import Image

from inkwash.metrics.fetch import folder
from inkwash.metrics.networks import open_network
from inkwash.models.efficientnet import EfficientNetLite0, SameConv, without_norms

needs_weights = pytest.mark.skipif(
    not (folder() / "efficientnet-lite0.pth").exists(), reason="needs `inkwash fetch-metrics`"
)


def test_it_has_as_many_parameters_as_published() -> None:
    assert sum(parameter.numel() for parameter in EfficientNetLite0().parameters()) == 4_652_008


@pytest.mark.parametrize(
    ("size", "kernel", "pads"), [(8, 3, (0, 1)), (7, 3, (1, 1)), (8, 5, (1, 2)), (7, 5, (2, 2))]
)
def test_strided_padding_is_tensorflows(size: int, kernel: int, pads: tuple[int, int]) -> None:
    """Its rule for "SAME": the output has ceil(size / stride) pixels, and the end gets the odd one of padding."""
    conv = SameConv(2, 3, kernel, stride=2)
    x = torch.randn(1, 2, size, size, generator=torch.Generator().manual_seed(0))
    expected = F.conv2d(F.pad(x, (*pads, *pads)), conv.weight, conv.bias, stride=2)
    assert expected.shape[-1] == -(-size // 2)
    torch.testing.assert_close(conv(x), expected)


def test_padding_of_stride_one_is_torchs() -> None:
    conv = SameConv(2, 3, 5)
    x = torch.randn(1, 2, 9, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding="same"))


def test_without_norms_it_is_the_same_function() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite0(10)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_var", "running_mean", "bias")) or (".bn" in name and tensor.ndim == 1):
            tensor.uniform_(0.5, 1.5)
    network.eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        found = without_norms(network)(x)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@needs_weights
@pytest.mark.parametrize(
    ("picture", "classes"), [("chelsea.png", {281, 282, 285}), ("coffee.png", {967}), ("rocket.jpg", {657})]
)
def test_it_recognises_photographs(picture: str, classes: set[int]) -> None:
    """scikit-image's cat, espresso and missile, by ImageNet's numbers."""
    image = Image.open(Path(os.path.dirname(skimage.__file__)) / "data" / picture).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    logits = open_network("efficientnet-lite0")(pixels).logits
    assert logits is not None and int(logits.argmax()) in classes
