"""Methods against formulas that others wrote: peft's merges, scipy's filters and rotations, numpy."""

import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from scipy import ndimage, spatial
from torch import Tensor

from inkwash.merge import methods, modes, tasks
from inkwash.merge.methods import METHODS


def given(*shape: int, num: int = 3) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=random) for _ in range(num)]


def near(made: Tensor, wanted: Tensor | np.ndarray) -> None:
    torch.testing.assert_close(made, torch.as_tensor(wanted).to(made.dtype), rtol=1e-6, atol=1e-6)


def test_sums() -> None:
    a, b, c = given(4, 5)
    near(methods.weighted_sum(a, b, alpha=0.3), 0.7 * a + 0.3 * b)
    near(methods.add_difference(a, b, c, alpha=0.3), a + 0.3 * (b - c))
    near(methods.triple_sum(a, b, c, alpha=0.2, beta=0.5), 0.3 * a + 0.2 * b + 0.5 * c)
    near(methods.sum_twice(a, b, c, alpha=0.2, beta=0.5), 0.5 * (0.8 * a + 0.2 * b) + 0.5 * c)
    near(methods.average(a, b, c, shares=(1, 2, 1)), (a + 2 * b + c) / 4)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 1.0])
def test_slerp_is_scipy_s(alpha: float) -> None:
    a, b = (torch.nn.functional.normalize(x.double(), dim=0) for x in given(6, num=2))
    near(methods.slerp(a, b, alpha=alpha), spatial.geometric_slerp(a.numpy(), b.numpy(), alpha))


@pytest.mark.parametrize("shape", [(7,), (4, 5), (4, 3, 3, 3)])
def test_smooth_add_is_scipy_s(shape: tuple[int, ...]) -> None:
    a, b, c = given(*shape)
    smooth = ndimage.gaussian_filter(ndimage.median_filter((b - c).numpy(), size=3), sigma=1)
    near(modes.smooth_add(a, b, c, alpha=0.7), a.numpy() + 0.7 * smooth)


@pytest.mark.parametrize("density", [0.3, 0.8])
def test_ties_is_peft_s(density: float) -> None:
    a, *models = given(6, 5, num=4)
    shares = (1.0, 0.5, -0.3)
    theirs = merge_utils.ties([model - a for model in models], torch.tensor(shares), density)
    near(tasks.ties(a, *models, alpha=0.4, density=density, shares=shares), a + 0.4 * theirs)


@pytest.mark.parametrize("name", ["dare", "dare_ties", "della"])
def test_what_is_dropped_by_chance_is_right_on_average(name: str) -> None:
    a, b = torch.zeros(1), torch.ones(1)
    random = torch.Generator().manual_seed(0)
    more = {"epsilon": 0.0} if name == "della" else {}
    run = METHODS[name].run
    made = run(
        a.expand(100_000), b.expand(100_000), alpha=1.0, density=0.25, shares=(1.0,), random=random, **more
    )
    assert set(made.unique().tolist()) == {0.0, 4.0}
    assert made.mean() == pytest.approx(1, abs=0.02)


@pytest.mark.filterwarnings("ignore:The density")
def test_with_a_density_of_1_nothing_is_dropped() -> None:
    a, b, c = given(5, 4)
    random = torch.Generator().manual_seed(0)
    plain = tasks.task_arithmetic(a, b, c, alpha=0.5, shares=(1, 1))
    near(tasks.dare(a, b, c, alpha=0.5, density=1, shares=(1, 1), random=random), plain)
    theirs = merge_utils.dare_ties([b - a, c - a], torch.ones(2), 1.0)
    near(tasks.dare_ties(a, b, c, alpha=1, density=1, shares=(1, 1), random=random), a + theirs)


def test_della_keeps_large_values_more_often() -> None:
    a, b = torch.zeros(2000, 10), torch.arange(1.0, 11).expand(2000, 10)
    random = torch.Generator().manual_seed(0)
    made = tasks.della(a, b, alpha=1, density=0.5, epsilon=0.6, shares=(1,), random=random)
    kept = (made != 0).float().mean(0)
    assert kept[0] == pytest.approx(0.2, abs=0.05)
    assert kept[-1] == pytest.approx(0.8, abs=0.05)
    assert torch.allclose(made.mean(0) / b[0], torch.ones(10), atol=0.15)


def test_the_geometric_median_has_the_least_sum_of_distances() -> None:
    points = given(3, num=5)
    made = methods.geometric_median(*points, shares=(1,) * 5)

    def far(x: Tensor) -> float:
        return float(sum((x - point).norm() for point in points))

    assert all(far(made) <= far(made + 0.01 * step) for step in given(3, num=50))


def test_model_stock_of_two_is_the_paper_s() -> None:
    a, b, c = given(6)
    u, v = (b - a).numpy(), (c - a).numpy()
    cosine = float(np.dot(u, v) / np.linalg.norm(u) / np.linalg.norm(v))
    share = 2 * cosine / (1 + cosine)
    near(methods.model_stock(a, b, c), share * (b + c) / 2 + (1 - share) * a)


def test_train_difference_value_by_value() -> None:
    a, b, c = given(4, 5)
    wanted = np.zeros((4, 5))
    for i, (x, y, z) in enumerate(zip(a.flatten(), b.flatten(), c.flatten(), strict=True)):
        near_c, near_a = abs(float(y - z)), abs(float(y - x))
        wanted.flat[i] = float(x) + 1.8 * 0.5 * np.sign(float(y - z)) * near_a / (near_a + near_c) * near_c
    near(modes.train_difference(a, b, c, alpha=0.5), wanted)
    assert modes.train_difference(a, b, b, alpha=0.5).equal(a)
    assert modes.train_difference(a, a, a, alpha=0.5).equal(a)


@pytest.mark.parametrize(
    ("alpha", "beta", "from_b"),
    [(0.5, 0, [0, 1]), (0.5, 0.25, [1, 2]), (0.5, 0.75, [0, 3]), (1, 0, [0, 1, 2, 3])],
)
def test_swapped_slices(alpha: float, beta: float, from_b: list[int]) -> None:
    a, b = torch.zeros(4, 4), torch.ones(4, 4)
    rows = modes.swap_rows(a, b, alpha=alpha, beta=beta)
    assert rows[:, 0].nonzero().flatten().tolist() == from_b
    assert modes.swap_columns(a, b, alpha=alpha, beta=beta).equal(rows.T)


def test_cosine_modes_are_between_both_models() -> None:
    a, b, _ = given(6, 5)
    found = modes.middle_range(modes.cosines(a, b))
    for mode in (modes.cosine_a, modes.cosine_b):
        assert mode(a, b, alpha=1.0, found=found).equal(b)
        made = mode(a, b, alpha=0.0, found=found)
        share = (made - b) / (a - b)
        assert share.min() > -1e-5
        assert share.max() < 1 + 1e-5
        near(share, share[0].expand(6, 5).clone())  # one weight for each column


def test_extract_of_one_difference_twice_is_that_difference() -> None:
    a, b, _ = given(4, 5)
    near(modes.extract(a, b, b, alpha=0.3, beta=0.0, gamma=15.0), b)
    near(modes.extract(a, b, b, alpha=0.3, beta=1.0, gamma=15.0), a)
