"""Two processes see what one sees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from inkwash.metrics.frechet import frechet_estimate, group_moments
from inkwash.metrics.networks import FeatureNetwork, Features, Identity
from inkwash.metrics.pictures import picture_set
from inkwash.metrics.ranks import interleaved, joined, seen_by_all, share, wait
from tests.support.processes import run_ranks


def see(pictures: Path, to: Path) -> None:
    """Write the features of all pictures, and how many this process has seen."""
    torch.manual_seed(0)
    pooling = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), *pooling)
    identity = Identity("small", "0", "none")
    judge = FeatureNetwork(identity, network, lambda x: x, lambda x: Features(x, 2 * x))
    watched: list[int] = []
    with joined() as first:
        found = seen_by_all(judge, picture_set(pictures), watched.append)
        wait()
        if first:
            num = torch.tensor(sum(watched))
            save_file({"pooled": found.pooled, "logits": found.logits, "num": num}, to)


def test_two_processes_see_what_one_sees(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for k in range(41):  # which two can't divide
        Image.fromarray(random.integers(0, 255, (16, 16, 3)).astype(np.uint8)).save(
            tmp_path / f"pictures/{k:02}.png"
        )
    see(tmp_path / "pictures", tmp_path / "one")
    run_ranks(2, see, tmp_path / "pictures", tmp_path / "two")
    found = {name: load_file(tmp_path / name) for name in ("one", "two")}
    assert (found["one"]["num"], found["two"]["num"]) == (41, 21)  # each of two sees half
    one, two = (found[name]["pooled"] for name in ("one", "two"))
    torch.testing.assert_close(two, one)
    torch.testing.assert_close(found["two"]["logits"], 2 * two)
    figures = [frechet_estimate(group_moments(x[:20]), group_moments(x[20:])) for x in (one, two)]
    assert figures[0].value == pytest.approx(figures[1].value, rel=1e-5)


@pytest.mark.parametrize(("num", "size"), [(10, 2), (11, 3), (3, 3)])
def test_shares_come_back_in_order(num: int, size: int) -> None:
    rows = torch.arange(2 * num).view(num, 2)
    assert torch.equal(interleaved([rows[rank::size] for rank in range(size)]), rows)


def test_alone_there_is_one_share() -> None:
    with joined() as first:
        assert first and share() == (0, 1)
