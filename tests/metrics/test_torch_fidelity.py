"""InceptionV3, its resizing and the figures over it against torch-fidelity's own code."""

import importlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch

from inkwash.metrics.estimates import GROUPS
from inkwash.metrics.frechet import frechet_distance
from inkwash.metrics.inception_score import inception_score
from inkwash.metrics.kernel import kid
from inkwash.metrics.networks import open_network
from inkwash.models.inception import InceptionV3, resized_as_tensorflow
from tests.support.samples import features

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ModuleType]]:
    """A module of torch-fidelity by its name, out of its wheel.

    It can't be installed: its own first import, and torchmetrics' where it is there, is torchvision, for data sets alone.
    """
    folder = tmp_path_factory.mktemp("torch-fidelity")
    command = ["pip", "download", "--no-deps", "-q", "-d", str(folder), "torch-fidelity==0.3.0"]
    if subprocess.run([sys.executable, "-m", *command], capture_output=True).returncode:
        pytest.skip("the package can't be fetched")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    package = ModuleType("torch_fidelity")
    package.__path__ = [str(folder / "torch_fidelity")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", package)
        patch.setitem(sys.modules, "torch_fidelity.utils", MagicMock())
        yield lambda name: importlib.import_module(f"torch_fidelity.{name}")
    for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights and statistics under which all layers matter."""
    torch.manual_seed(0)
    network = InceptionV3()
    for name, value in network.state_dict().items():
        if name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("bn.bias", "running_mean")):
            value.uniform_(-0.2, 0.2)
        elif name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(value)
    path = tmp_path_factory.mktemp("weights") / "fid.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("size", [(64, 48), (400, 320)])
def test_features_and_logits_are_theirs(
    theirs: Callable[[str], ModuleType], weights: Path, size: tuple[int, int]
) -> None:
    module = theirs("feature_extractor_inceptionv3")
    network = module.FeatureExtractorInceptionV3(
        "inception", ["2048", "logits_unbiased"], str(weights)
    ).eval()
    levels = torch.randint(
        0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    levels = torch.nn.functional.avg_pool2d(levels.float(), 5, 1, 2).byte()
    with torch.no_grad():
        pooled, logits = network(levels)
    found = open_network("inception-tf", weights)(levels.float() / 127.5 - 1)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-3, atol=1e-4 * float(pooled.abs().max()))
    torch.testing.assert_close(found.logits, logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max()))


@pytest.mark.parametrize("size", [(64, 48), (400, 320)])
def test_resizing_is_theirs(theirs: Callable[[str], ModuleType], size: tuple[int, int]) -> None:
    pixels = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 255
    resize = theirs("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    expected = resize(pixels, size=(299, 299), align_corners=False)
    torch.testing.assert_close(resized_as_tensorflow(pixels), expected, rtol=1e-5, atol=2e-3)


def test_figures_are_theirs_to_a_millionth(theirs: Callable[[str], ModuleType]) -> None:
    a, b = features(400, 16, seed=0).double(), features(300, 16, seed=1, shift=0.5).double()
    fid, isc, mmd = theirs("metric_fid"), theirs("metric_isc"), theirs("metric_kid")
    both = [fid.fid_features_to_statistics(side) for side in (a, b)]
    (expected,) = fid.fid_statistics_to_metric(*both, verbose=False).values()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    options = {"kid_subsets": 1, "kid_subset_size": 300, "verbose": False}  # all of both
    expected = mmd.kid_features_to_metric(a[:300], b, **options)["kernel_inception_distance_mean"]
    assert kid(a[:300], b).value == pytest.approx(expected, rel=1e-6)
    in_parts = torch.cat([a[g::GROUPS] for g in range(GROUPS)])  # they cut what follows each other
    expected = isc.isc_features_to_metric(in_parts, shuffle=False)["inception_score_mean"]
    assert inception_score(a).value == pytest.approx(expected, rel=1e-6)
