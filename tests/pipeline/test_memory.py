"""Little memory, large pictures, no edges: what must stay the same does."""

import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import inkwash
from inkwash.diffusion.windows import blended, spans, windowed
from inkwash.metrics.fidelity import psnr
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL, Pixels
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.denoising.prompting import resolve
from inkwash.pipeline.denoising.seamless import seamless
from inkwash.pipeline.memory.offload import Offload
from inkwash.pipeline.memory.tiling import TiledAutoencoder, tiled_if_needed
from inkwash.pipeline.run import start
from inkwash.pipeline.task_requests import TextToImageRequest


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return inkwash.load("mini")


def pixels_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1


# ---------------------------------------------------------------- windows


@given(st.integers(1, 200), st.integers(1, 64), st.floats(0, 0.95))
def test_windows_cover_everything_and_overlap(size: int, window: int, part: float) -> None:
    overlap = int(window * part)
    found = spans(size, window, overlap)
    assert (found[0].start, found[-1].stop) == (0, size)
    for before, after in pairwise(found):
        assert before.stop - after.start >= overlap and after.start > before.start
    assert {span.stop - span.start for span in found} == {min(size, window)}


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.integers(1, 3), st.data())
def test_what_does_not_depend_on_the_window_is_whole(height, width, window, s, data) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    whole = torch.arange(s * s * height * width).reshape(1, 1, s * height, s * width).double()
    cut = lambda rows, cols: whole[:, :, s * rows.start : s * rows.stop, s * cols.start : s * cols.stop]  # noqa: E731
    torch.testing.assert_close(blended(cut, height, width, window, overlap), whole, rtol=1e-6, atol=1e-6)


def test_no_window_is_taken_for_an_overlap_as_large() -> None:
    with pytest.raises(ValueError, match="overlap 4 is not in 0 to 3"):
        blended(lambda *_: torch.zeros(1), 8, 8, 4, 4)


def test_a_network_of_pixels_is_the_same_in_windows() -> None:
    """With its conditions, of which maps are cut as x is; and each call sees a window."""
    seen = []

    def D(x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        seen.append(x.shape[2:])
        return x * sigma + cond["map"] * cond["context"].mean()

    x, conds = torch.randn(2, 3, 9, 14), {"map": torch.randn(2, 3, 9, 14), "context": torch.randn(2, 9, 14)}
    made = windowed(D, 4, 2)(x, torch.tensor(2.0), conds)
    assert len(seen) == 4 * 6 and set(seen) == {(4, 4)}
    torch.testing.assert_close(made, D(x, torch.tensor(2.0), conds))


def test_a_window_that_holds_all_changes_nothing(model: Pipeline) -> None:
    draw = lambda **more: model.text_to_image("a taxi", seed=3, steps=3, width=48, **more)[0].tobytes()  # noqa: E731
    plain = draw()
    assert draw(window=48) == plain != draw(window=32)
    assert draw(window=32, window_overlap=0.2) != draw(window=32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 33}, "window 33 is not a multiple of 2"),
        ({"window": 32, "sag_scale": 0.5}, "sag_scale needs the whole picture"),
        ({"window": 32, "seamless": "x"}, "seamless needs the whole picture"),
        ({"seamless": "z"}, "seamless"),
        ({"window_overlap": 1.0}, "window_overlap"),
        ({"window": 8}, "window"),
    ],
)
def test_layouts_that_cannot_be(model: Pipeline, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.text_to_image("a taxi", steps=1, **options)


# ---------------------------------------------------------------- no edges


@torch.inference_mode()
@pytest.mark.parametrize("axes", ["x", "y", "both"])
def test_a_seamless_network_does_not_know_where_an_edge_is(mini: Pipeline, axes: str) -> None:
    """Moving what it sees around the torus moves what it makes, by multiples of what it halves to."""
    D, _, x, _ = start(mini, resolve(mini, TextToImageRequest(prompt="a taxi", width=64, height=96, seed=3)))
    latent = 0.1 * x
    shift = {"x": (0, 4), "y": (8, 0), "both": (8, 4)}[axes]
    roll = lambda x, f=1: torch.roll(x, (f * shift[0], f * shift[1]), (2, 3))  # noqa: E731
    sigma = torch.tensor(3.0)
    plain = D(x, sigma), mini.autoencoder.decode(latent)
    with seamless((mini.unet, mini.autoencoder), axes):
        torch.testing.assert_close(D(roll(x), sigma), roll(D(x, sigma)), rtol=1e-3, atol=2e-4)
        rolled = mini.autoencoder.decode(roll(latent))
        torch.testing.assert_close(rolled, roll(mini.autoencoder.decode(latent), 8), rtol=1e-3, atol=2e-4)
        assert not torch.allclose(D(x, sigma), plain[0], atol=1e-2)
    assert not torch.allclose(D(roll(x), sigma), roll(D(x, sigma)), atol=1e-2)
    assert torch.equal(D(x, sigma), plain[0]) and torch.equal(mini.autoencoder.decode(latent), plain[1])
    assert not any(module._forward_pre_hooks for module in mini.unet.modules())


def test_no_hook_is_left_after_an_error() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    with pytest.raises(KeyError), seamless([conv], "both"):
        assert conv._forward_pre_hooks and conv._forward_hooks
        raise KeyError
    assert not conv._forward_pre_hooks and not conv._forward_hooks


@torch.inference_mode()
def test_only_the_wanted_axis_wraps() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    x = torch.randn(1, 1, 5, 6)
    wrapped = torch.nn.functional.conv2d(
        torch.nn.functional.pad(torch.nn.functional.pad(x, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1)),
        conv.weight,
    )
    with seamless([conv], "x"):
        torch.testing.assert_close(conv(x), wrapped)
    with seamless([conv], "none"):
        assert not conv._forward_pre_hooks


def test_opposite_edges_fit(mini: Pipeline) -> None:
    """The step over the edge is no larger than steps within; without, it is."""

    def over_edge(**options: object) -> float:
        image = mini.text_to_image("a red taxi on a blue background", seed=2, steps=6, **options)[0]
        x = np.asarray(image, dtype=float)
        return np.abs(x[:, 0] - x[:, -1]).mean() / np.abs(np.diff(x, axis=1)).mean()

    assert over_edge(seamless="x") < 1.5
    assert over_edge() > 1.5 * over_edge(seamless="x")


# ---------------------------------------------------------------- the first stage


def test_tiles_show_no_seams(mini: Pipeline) -> None:
    """A picture of 512 x 512, in tiles of 256 there and back: near to the whole, also at the tiles' edges."""
    shapes = mini.text_to_image(("a red taxi", "a rocket"), seed=3, steps=4, batch_size=2)
    image = Image.new("RGB", (512, 512), "white")
    for k in range(16):
        image.paste(shapes[k % 2].rotate(90 * k), (128 * (k % 4), 128 * (k // 4)))
    tiled = TiledAutoencoder(mini.autoencoder, tile=256)  # type: ignore[arg-type]
    with torch.inference_mode():
        latent = mini.autoencoder.encode(pixels_of(image)).mean
        whole, parts = (stage.decode(latent).clamp(-1, 1) for stage in (mini.autoencoder, tiled))
        assert psnr(parts, whole) > 40
        # the second differences across each column: of the difference between both, no column stands out
        bend = (parts - whole).diff(dim=3).diff(dim=3).abs().mean(dim=(0, 1, 2))
        assert bend.max() < 8 * bend.median()
        again = tiled.encode(pixels_of(image))
        assert (again.mean - latent).std() < 0.1 * latent.std()
        assert again.std.shape == latent.shape and (again.std > 0).all()


@torch.inference_mode()
def test_what_fits_a_tile_is_as_it_was(model: Pipeline) -> None:
    latent = torch.randn(3, 4, 16, 16)
    pixels = torch.rand(3, 3, 64, 64) * 2 - 1
    stage = TiledAutoencoder(model.autoencoder, tile=64)  # type: ignore[arg-type]
    assert torch.equal(stage.decode(latent), model.autoencoder.decode(latent))
    assert torch.equal(stage.encode(pixels).mean, model.autoencoder.encode(pixels).mean)
    with pytest.raises(ValueError, match="size 65x64 is not a multiple of 2"):
        stage.encode(torch.rand(1, 3, 64, 65))
    for tile in (60, 32, 0, -64):
        with pytest.raises(ValueError, match=f"vae_tile {tile} is not a multiple of 8 from 64"):
            TiledAutoencoder(model.autoencoder, tile=tile)  # type: ignore[arg-type]


def test_slices_are_the_same_pictures(tiny: Path, model: Pipeline) -> None:
    sliced, rows = inkwash.load(tiny, vae_slicing=True), []
    sliced.autoencoder.autoencoder.decoder.register_forward_pre_hook(
        lambda module, args: rows.append(len(args[0]))
    )
    options = {"seed": 3, "steps": 2, "batch_size": 3}
    made, wanted = (m.text_to_image("a taxi", **options) for m in (sliced, model))
    assert rows == [1, 1, 1]
    for a, b in zip(made, wanted, strict=True):
        assert np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max() <= 1


def test_an_overflow_in_half_precision_is_decoded_again(caplog: pytest.LogCaptureFixture) -> None:
    """A network whose activations lie above 65504, as those of SDXL's first stage do."""
    torch.manual_seed(0)
    network = AutoencoderKL(
        AutoencoderConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4)
    ).eval()
    with torch.no_grad():
        network.decoder.conv_in.weight *= 2e5
    half, latent = network.half(), torch.randn(2, 4, 8, 8).half()
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        assert not torch.isfinite(half.decode(latent)).all()
        made = TiledAutoencoder(half, slicing=True).decode(latent)
        assert "overflowed in torch.float16" in caplog.text
        assert {p.dtype for p in half.parameters()} == {torch.float16}
        torch.testing.assert_close(made, half.float().decode(latent.float()), rtol=1e-4, atol=1e-4)
        caplog.clear()
        assert not torch.isfinite(TiledAutoencoder(half.half()).decode(latent * torch.nan)).any()
        assert not caplog.text  # nothing that another precision would help


def test_half_precision_is_watched_by_itself(tiny: Path) -> None:
    assert isinstance(inkwash.load(tiny, dtype=torch.float16).autoencoder, TiledAutoencoder)
    assert isinstance(inkwash.load(tiny).autoencoder, AutoencoderKL)
    assert isinstance(tiled_if_needed(Pixels(), None, False), Pixels)  # which has no precision


# ---------------------------------------------------------------- offload


def test_one_network_at_a_time_is_on_the_device() -> None:
    networks = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval() for _ in range(2)]
    before = [dict(network.state_dict()) for network in networks]
    offload = Offload("meta", networks)
    with torch.inference_mode():
        for resident in (0, 1, 0):
            assert networks[resident](torch.ones(1, 2)).device.type == "meta"
            for i, network in enumerate(networks):
                devices = {value.device.type for value in network.state_dict().values()}
                assert devices == {"meta" if i == resident else "cpu"}
    offload.leave()
    for network, state in zip(networks, before, strict=True):
        assert all(value.data_ptr() == state[key].data_ptr() for key, value in network.state_dict().items())


def test_an_offloaded_model_draws_the_same(
    tiny: Path, model: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, enter = [], Offload.enter

    def counted(self: Offload, network: nn.Module) -> None:
        if network is not self.resident:
            entered.append(type(network).__name__)
        enter(self, network)

    monkeypatch.setattr(Offload, "enter", counted)
    opened = inkwash.load(tiny, offload=True)
    weights = [p.data_ptr() for p in opened.unet.parameters()]
    made = opened.text_to_image("a taxi", seed=3, steps=4)[0]
    assert made.tobytes() == model.text_to_image("a taxi", seed=3, steps=4)[0].tobytes()
    assert entered == ["CLIPText", "UNet", "AutoencoderKL"]
    opened.image_to_image("a taxi", made, seed=3, steps=4)
    assert entered[3:].count("UNet") == 1 and entered[-1] == "AutoencoderKL"
    assert [p.data_ptr() for p in opened.unet.parameters()] == weights
    both = inkwash.load(tiny, offload=True, refiner=tiny)
    entered.clear()
    both.text_to_image("a taxi", seed=3, steps=4, refiner_switch_at=0.5)
    assert entered == ["CLIPText", "CLIPText", "UNet", "UNet", "AutoencoderKL"]
    assert both.refiner and both.refiner.offload is both.offload


def test_a_device_that_is_not_there_is_named(tiny: Path) -> None:
    for device in ("cuda:99", "nowhere"):
        with pytest.raises(ValueError, match=f"device '{device}' can't be used"):
            inkwash.load(tiny, device)
