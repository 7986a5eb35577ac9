"""InceptionV3 against what torchvision's documentation says of it, and FID's resizing against its rule."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from inkwash.models.inception import InceptionV3, resized_as_tensorflow


def test_it_has_the_parameters_and_products_of_torchvisions() -> None:
    """23,834,568 with 1,000 classes and without the auxiliary head, and 5.71 billion multiplications at 299x299."""
    with torch.device("meta"):
        network = InceptionV3(1000).eval()
        counter = FlopCounterMode(display=False)
        with counter:
            pooled, logits, spatial = network(torch.empty(1, 3, 299, 299))
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_834_568
    again = 768 * 192 * 17**2  # the branch that sFID reads
    assert (counter.get_total_flops() / 2 - again) / 1e9 == pytest.approx(5.71, abs=0.005)
    assert (pooled.shape, logits.shape, spatial.shape) == ((1, 2048), (1, 1000), (1, 7 * 17 * 17))


def test_its_names_are_those_of_pytorch_fid() -> None:
    with torch.device("meta"):
        names = InceptionV3().state_dict()
    for name, shape in {
        "Conv2d_2b_3x3.conv.weight": (64, 32, 3, 3),
        "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3dbl_3.bn.running_var": (96,),
        "Mixed_6c.branch7x7dbl_4.conv.weight": (160, 160, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
        "fc.weight": (1008, 2048),
    }.items():
        assert names[name].shape == shape


def test_resizing_reads_a_ramp_at_the_left_of_each_pixel() -> None:
    ramp = torch.arange(100.0).expand(1, 1, 100, 100)
    found = resized_as_tensorflow(ramp)[0, 0]
    expected = (torch.arange(299) * 100 / 299).clamp_max(99)
    torch.testing.assert_close(found, expected.expand(299, 299), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        resized_as_tensorflow(ramp.mT)[0, 0], expected.expand(299, 299).T, rtol=1e-5, atol=1e-4
    )
