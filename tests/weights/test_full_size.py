"""Networks of full size equal those of diffusers and transformers (`make test-full`; up to 12 GiB, minutes)."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from benchmarks.parity import CASES


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_same_output_at_full_size(name: str) -> None:
    with torch.no_grad():
        made = CASES[name]()
    assert made.error < 1e-5
