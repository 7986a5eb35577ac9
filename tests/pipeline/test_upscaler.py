"""Pictures enlarged by pixel upscalers: tiles without seams, any factor, opacity, what they say of themselves."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import inkwash
from inkwash.diffusion.windows import blended
from inkwash.files import ModelFileError
from inkwash.models.compact import CompactConfig
from inkwash.models.rrdb import RRDBConfig
from inkwash.pipeline.record.a1111 import parse_parameters
from inkwash.pipeline.task_requests import TextToImageRequest, UpscaleRequest
from inkwash.pipeline.tasks import TASKS
from inkwash.pipeline.upscaler import Tile, Upscaler, open_upscaler
from tests.support.upscalers import CONFIGS, network

SMALL = CompactConfig(8, 3)  # looks 5 pixels far


def upscaler(config: Any) -> Upscaler:
    return Upscaler(network(config), config.scale, Path("x.pth"))


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height // 4 + 2, width // 4 + 2, len(mode))
    coarse = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(coarse, mode).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(network(SMALL).state_dict(), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize(("height", "width"), [(150, 201), (64, 300), (30, 20)])
def test_tiles_make_what_the_whole_picture_makes_where_a_network_looks_no_farther(
    height: int, width: int, dtype: torch.dtype, off: float
) -> None:
    pixels = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = network(SMALL)(pixels)
    made = Upscaler(network(SMALL).to(dtype), 4, Path("x.pth")).pixels(pixels, tile=64)
    assert made.shape == (1, 3, 4 * height, 4 * width)
    assert (made - whole).abs().max() < off


def test_what_a_tile_knows_too_little_of_is_left_out() -> None:
    whole = torch.rand(1, 1, 40, 50)

    def make(rows: slice, columns: slice) -> Tensor:
        made = whole[:, :, rows, columns].clone()
        made[:, :, : 3 * (rows.start > 0)] = 9  # what lies at an edge of a tile that is not the picture's
        made[:, :, :, : 3 * (columns.start > 0)] = 9
        made[:, :, made.shape[2] - 3 * (rows.stop < 40) :] = 9
        made[:, :, :, made.shape[3] - 3 * (columns.stop < 50) :] = 9
        return made

    torch.testing.assert_close(blended(make, 40, 50, 16, 8, margin=3), whole)
    with pytest.raises(ValueError, match="margin 4 is not below half the overlap, 8"):
        blended(make, 40, 50, 16, 8, margin=4)


@pytest.mark.parametrize("name", ["real-esrgan x2", "swinir real x4", "swinir jpeg"])
def test_sides_that_do_not_fit_a_network_are_mirrored_on(name: str) -> None:
    config, side = CONFIGS[name], 2 * CONFIGS[name].multiple
    pixels = torch.rand(1, 3, side - 1, 3 * side + 1, generator=torch.Generator().manual_seed(1))
    padded = F.pad(pixels, (0, config.multiple - 1, 0, 1), mode="reflect")
    with torch.inference_mode():
        wanted = network(config)(padded)[:, :, : config.scale * (side - 1), : config.scale * (3 * side + 1)]
    torch.testing.assert_close(upscaler(config).pixels(pixels), wanted, atol=1e-5, rtol=1e-4)


def test_pictures_of_one_pixel_are_enlarged() -> None:
    assert upscaler(CONFIGS["swinir real x4"]).enlarged(picture(1, 1), (4, 4)).size == (4, 4)


def test_every_tile_is_told_and_can_stop_the_run() -> None:
    told: list[Tile] = []
    upscaler(SMALL).pixels(torch.rand(1, 3, 70, 150), 64, told.append)
    assert [tile.index for tile in told] == list(range(told[0].total)) and told[0].total > 4

    def stop(tile: Tile) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        upscaler(SMALL).pixels(torch.rand(1, 3, 70, 150), 64, stop)


@pytest.mark.parametrize(
    ("factor", "size"), [(None, (80, 48)), (1.5, (30, 18)), (4.1, (82, 49)), (9, (180, 108))]
)
def test_any_factor(factor: float | None, size: tuple[int, int]) -> None:
    own, image = upscaler(SMALL), picture(20, 12)
    made = own.enlarged(image, own.size(image, factor))
    assert (own.size(image, factor), made.size) == (size, size)
    if factor == 1.5:
        larger = own.enlarged(image, (80, 48))
        assert np.array_equal(made, larger.resize(size, Image.Resampling.LANCZOS))


def test_too_large_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="20000x16 is larger than 16384"):
        upscaler(SMALL).size(picture(5000, 4))


def test_opacity_is_enlarged_as_a_grey_picture_is() -> None:
    image = picture(24, 16, "RGBA")
    made = upscaler(SMALL).enlarged(image, (96, 64))
    colours, grey = (
        upscaler(SMALL).enlarged(one.convert("RGB"), (96, 64)) for one in (image, image.getchannel("A"))
    )
    assert made.mode == "RGBA" and np.array_equal(made.convert("RGB"), colours)
    assert np.array_equal(made.getchannel("A"), grey.convert("L"))


def test_what_a_picture_says_of_itself_is_kept(file: Path) -> None:
    image = inkwash.load("mini").text_to_image("a red taxi", seed=7, steps=2)[0]
    made = TASKS["upscale"].run(open_upscaler(file), {"image": image}, prompt="", factor=2)[0]
    was, now = (parse_parameters(one.info["parameters"]) for one in (image, made))
    assert now[:2] == was[:2] == ("a red taxi", "")
    assert now[2].items() - was[2].items() == {
        ("Postprocess upscale by", "2"),
        ("Postprocess upscaler", "small"),
    }
    recipe = json.loads(made.info["inkwash"])
    assert recipe["model"] == {"name": "small", "hash": open_upscaler(file).hash, "dtype": "fp32"}
    assert (recipe["task"], recipe["request"]["factor"]) == ("upscale", 2)


@pytest.mark.parametrize("values", [{"batch_size": 2}, {"noise_level": 3}, {"width": 64}])
def test_options_of_models_that_draw_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="not for pixel upscalers"):
        TASKS["upscale"].run(upscaler(SMALL), {"image": picture(8, 8)}, prompt="", **values)


def test_an_upscaler_does_no_other_task(file: Path) -> None:
    with pytest.raises(ValueError, match="small needs the small picture to enlarge"):
        TASKS["text_to_image"].run(open_upscaler(file), {}, prompt="a")


def test_a_second_pass_draws_over_what_the_upscaler_makes(tmp_path: Path, file: Path) -> None:
    model = inkwash.load("mini")
    options: dict[str, Any] = {"seed": 7, "steps": 3, "hires": 1.5, "hires_steps": 2, "hires_strength": 0.3}
    by_network = model.text_to_image("a red taxi", **options, hires_upscaler=str(file))[0]
    by_lanczos = model.text_to_image("a red taxi", **options, hires_upscaler="lanczos")[0]
    assert by_network.size == (192, 192)
    assert np.abs(np.int16(by_network) - np.int16(by_lanczos)).mean() > 2
    # a network that only repeats pixels is as good as the nearest one
    plain = {
        name: torch.zeros_like(value) for name, value in network(CompactConfig(8, 2, 2)).state_dict().items()
    }
    save_file(plain, tmp_path / "plain.safetensors")
    repeated, nearest = (
        model.text_to_image("a red taxi", **options | {"hires": 2}, hires_upscaler=how)[0]
        for how in (str(tmp_path / "plain.safetensors"), "nearest")
    )
    assert np.array_equal(repeated, nearest)
    fields = parse_parameters(by_network.info["parameters"])[2]
    assert (fields["Hires upscaler"], fields["Hires upscale"]) == ("small", "1.5")
    recipe = json.loads(by_network.info["inkwash"])
    assert recipe["request"]["hires_upscaler"] == "small.safetensors"
    assert re.fullmatch(r"[0-9a-f]{12}", recipe["files"]["upscalers"]["small.safetensors"])
    assert len(model.upscalers) == 2


def test_a_missing_upscaler_of_a_second_pass_is_named() -> None:
    model = inkwash.load("mini")
    with pytest.raises(ModelFileError, match=r"hires_upscaler no\.pth: No such file"):
        model.text_to_image("a", steps=1, hires=2, hires_strength=0.5, hires_upscaler="no.pth")


def test_requests_know_files_from_names() -> None:
    for name in ("lanczos", "Latent (bicubic)", "x.pth", "../models/x4.SAFETENSORS", "a.param"):
        request = TextToImageRequest(prompt="a", hires=2, hires_upscaler=name)
        assert (request.upscaler_file is None) == ("." not in name)
    for name in ("no", "x.png", "pth"):
        with pytest.raises(ValueError, match="nor a file that ends in .pth"):
            TextToImageRequest(prompt="a", hires_upscaler=name)
    for values in ({"factor": 0}, {"factor": 17}, {"factor": float("nan")}, {"tile": 8}):
        with pytest.raises(ValueError, match="factor|tile"):
            UpscaleRequest.model_validate({"prompt": ""} | values)


def test_a_deep_network_leaves_no_seam() -> None:
    """Where tiles meet, a pixel differs from the whole picture's no more than elsewhere within them."""
    config = RRDBConfig(8, 32, 4)  # looks 64 pixels far, more than a tile's margin
    image = picture(200, 96)
    own, pixels = upscaler(config), torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    whole, tiled = own.pixels(pixels, tile=1024), own.pixels(pixels, tile=128)
    assert (whole - tiled).abs().max() < 0.02 * whole.std()
