"""Noise levels by Align Your Steps: the shortest way against all ways, and a denoiser whose answer is known."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

import inkwash
from inkwash.models.clip import CLIPVision, CLIPVisionConfig
from recipes.mini.align import aligned, changes, costs
from recipes.mini.fast import Captioned
from recipes.mini.ip_adapter import normalised


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_no_other_levels_cost_less(steps: int) -> None:
    random = torch.Generator().manual_seed(1)
    sigmas = torch.linspace(0.1, 5, 9, dtype=torch.float64)
    cost = torch.rand(9, 9, generator=random, dtype=torch.float64).fill_diagonal_(torch.inf)
    cost[torch.tril_indices(9, 9).unbind()] = torch.inf  # no step goes up
    found = aligned(sigmas, cost, steps)

    def total(way: tuple[int, ...]) -> float:
        return sum(cost[low, high].item() for high, low in itertools.pairwise(way))

    ways = [(8, *reversed(middle), 0) for middle in itertools.combinations(range(1, 8), steps - 2)]
    best = min(ways, key=total)
    assert found.tolist() == sigmas[list(best)].tolist()
    with pytest.raises(ValueError, match="steps 10 is not in 2 to 9"):
        aligned(sigmas, cost, 10)


def test_the_integral_of_a_known_change() -> None:
    """A change of c sigma^3 where it is not 0 adds c times the step's length."""
    sigmas = torch.linspace(1, 3, 41, dtype=torch.float64)
    changed = 2 * sigmas.pow(3)[:, None] * torch.ones(41, 41, dtype=torch.float64)
    cost = costs(sigmas, changed)
    assert cost[10, 30].item() == pytest.approx(2 * (sigmas[30] - sigmas[10]).item())
    assert torch.isinf(cost[30, 10]) and torch.isinf(cost[5, 5])


def test_changes_are_those_of_one_path(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoiser that gives x itself changes by the variance between two levels; one of t alone by nothing random."""
    model = inkwash.load(tiny)
    random = torch.Generator().manual_seed(0)
    means, contexts = (torch.randn(s, generator=random) for s in ((6, 4, 16, 16), (7, 77, 8)))
    cached = (means, torch.zeros_like(means), contexts, [[i + 1] for i in range(6)], torch.ones(6))
    data = Captioned(cached, torch.device("cpu"))

    def itself(*args: object) -> object:
        def denoise(x: Tensor, sigma: Tensor, cond: object) -> Tensor:
            return x

        return denoise

    monkeypatch.setattr("recipes.mini.align.precondition", itself)
    sigmas, changed = changes(model, data, 128, 5)
    wanted = (sigmas.square()[:, None] - sigmas.square()[None]).abs()
    torch.testing.assert_close(changed, wanted, rtol=0.05, atol=1e-3)
    monkeypatch.undo()
    sigmas, changed = changes(model, data, 4, 5, batch=4)
    assert (changed.diagonal() == 0).all() and torch.equal(changed, changed.T) and changed[0, 4] > 0


@torch.no_grad()
def test_a_tower_for_other_pixels_sees_the_same() -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        width=16, num_layers=2, num_heads=2, mlp_width=16, image_size=16, patch_size=8, projection_dim=8
    )
    vision, other = CLIPVision(config).eval(), CLIPVision(config).eval()
    other.load_state_dict(normalised(vision, 3.0))
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    clip_pixels = ((pixels + 1) / 2 - mean) / std
    torch.testing.assert_close(other(clip_pixels)[1], 3 * vision(pixels)[1], rtol=1e-4, atol=1e-4)
