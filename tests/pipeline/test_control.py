"""Laws of controls, their text forms, recipes and errors."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

import inkwash
from inkwash.adapters.control import check_family
from inkwash.files import ModelFileError
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.controls import Control, read_a1111, read_control
from inkwash.pipeline.denoising.control import span
from inkwash.pipeline.denoising.hints import fit
from inkwash.pipeline.record.a1111 import parse_parameters
from inkwash.pipeline.record.metadata import RECIPE
from inkwash.pipeline.replay import again, recorded
from inkwash.weights.families import SD1, SDXL
from tests.support.small_controls import controlnet, picture, write_controlnet
from tests.support.tiny_models import BOTH, drawn_at_random

OPTIONS = {"steps": 4, "seed": 4, "cfg_scale": 3}


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


@pytest.fixture(scope="module")
def files(model: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three ControlNets for the tiny model, the same but for their scale."""
    folder, made = tmp_path_factory.mktemp("controls"), []
    for k in range(3):
        network = drawn_at_random(ControlNet(ControlNetConfig(model.unet.config)))
        network.zero_convs[0][0].weight.mul_(k + 1)
        made.append(write_controlnet(network, folder / f"net{k}.safetensors"))
    return made


def draw(model: Pipeline, *controls: Control, **options: object) -> bytes:
    return model.text_to_image("a taxi", controls=controls, **OPTIONS | options)[0].tobytes()


def test_it_matters_unless_its_weight_is_0_or_it_is_outside_its_interval(
    model: Pipeline, files: list[Path]
) -> None:
    without = draw(model)
    assert draw(model, Control(file=files[0], image=picture())) != without
    assert draw(model, Control(file=files[0], image=picture(), weight=0)) == without
    assert draw(model, Control(file=files[0], image=picture(), start=0.9)) == without  # between two steps
    assert draw(model, Control(file=files[0], image=picture(), end=0.2)) == without


def test_the_order_of_controls_does_not_matter(model: Pipeline, files: list[Path]) -> None:
    controls = [
        Control(file=path, image=picture(k), weight=0.3 + 0.2 * k, mode=mode)
        for k, (path, mode) in enumerate(zip(files, ("balanced", "control", "prompt"), strict=True))
    ]
    one, *others = (draw(model, *(controls[i] for i in order)) for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)))
    assert others == [one, one]


@pytest.mark.parametrize("mode", ["balanced", "prompt", "control", "guess"])
def test_a_picture_of_a_batch_is_the_one_drawn_alone(model: Pipeline, files: list[Path], mode: str) -> None:
    control = Control(file=files[0], image=picture(), mode=mode)
    batch = model.text_to_image("a taxi", "rain", controls=[control], batch_size=2, **OPTIONS)
    alone = model.text_to_image("a taxi", "rain", controls=[control], **OPTIONS | {"seed": 5})[0]
    assert np.abs(np.asarray(batch[1], int) - np.asarray(alone, int)).max() <= 1
    other = model.text_to_image("a taxi", "rain", controls=[control], cfg_batched=False, **OPTIONS)[0]
    assert np.abs(np.asarray(batch[0], int) - np.asarray(other, int)).max() <= 1


def test_a_region_steers_only_inside(model: Pipeline, files: list[Path]) -> None:
    def masked(colour: int, box: tuple[int, int, int, int] | None = None) -> bytes:
        mask = Image.new("L", (64, 64))
        mask.paste(colour, box or (0, 0, 64, 64))
        return draw(model, Control(file=files[0], image=picture(), mask=mask))

    whole = draw(model, Control(file=files[0], image=picture()))
    assert masked(255) == whole and masked(0) == draw(model)
    assert masked(255, (0, 0, 32, 64)) not in (whole, draw(model))


def test_layer_weights(model: Pipeline, files: list[Path]) -> None:
    n = len(model.unet.input_blocks) + 1
    control = Control(file=files[0], image=picture(), mode="prompt")
    soft = tuple(0.825 ** (n - 1 - i) for i in range(n))
    given = Control(file=files[0], image=picture(), layer_weights=soft)
    assert draw(model, given) == draw(model, control)
    assert draw(model, Control(file=files[0], image=picture(), layer_weights=(0.0,) * n)) == draw(model)
    with pytest.raises(ValueError, match=f"net0.safetensors has {n} layers, and 2 layer_weights are given"):
        draw(model, Control(file=files[0], image=picture(), layer_weights=(1, 1)))


def test_passes_of_a_larger_picture(model: Pipeline, files: list[Path]) -> None:
    hires = {"hires": 1.5, "hires_steps": 2}
    drawn = {
        which: draw(model, Control(file=files[0], image=picture(), passes=which), **hires)
        for which in ("both", "first", "hires")
    }
    assert len({*drawn.values(), draw(model, **hires)}) == 4
    assert draw(model, Control(file=files[0], image=picture(), passes="hires")) == draw(model)


def test_windows_cut_the_hint_too(model: Pipeline, files: list[Path]) -> None:
    control = Control(file=files[0], image=picture())
    options = {"width": 48, "height": 32}
    whole = draw(model, control, **options)
    assert draw(model, control, window=48, **options) == whole  # one window
    assert draw(model, control, window=32, **options) not in (whole, draw(model, window=32, **options))


def test_deep_cache_and_seamless_drawing_go_with_it(model: Pipeline, files: list[Path]) -> None:
    control = Control(file=files[0], image=picture())
    for options in ({"deep_cache": 2}, {"seamless": "both"}):
        assert draw(model, control, **options) not in (draw(model, **options), draw(model, control))


def test_a_control_without_a_picture_sees_the_one_that_is_changed(model: Pipeline, files: list[Path]) -> None:
    image, mask = BOTH["image"], BOTH["mask"]
    for task, inputs in ((model.image_to_image, {}), (model.inpaint, {"mask": mask})):
        alone, given = (
            task("a", image, controls=[Control(file=files[0], image=seen)], steps=2, **inputs)[0]
            for seen in (None, image)
        )
        assert alone.tobytes() == given.tobytes()
    with pytest.raises(ValueError, match="net0.safetensors has no picture"):
        draw(model, Control(file=files[0]))


def test_only_masked_crops_a_hint_of_the_same_size(model: Pipeline, files: list[Path]) -> None:
    image, mask = BOTH["image"], BOTH["mask"]
    options = {"only_masked": True, "padding": 4, "steps": 2}
    box = (4, 2, 30, 24)
    changed = image.copy()
    changed.paste(0, (34, 26, 40, 32))  # far from what is drawn
    a, b, c = (
        model.inpaint("a", image, mask, controls=[Control(file=files[0], image=seen)], **options)[0].tobytes()
        for seen in (image, changed, image.crop(box).resize(image.size))
    )
    assert a == b != c


@pytest.mark.parametrize("how", ["just", "crop", "fill"])
def test_how_a_hint_is_fitted(how: str) -> None:
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (10, 0, 30, 20))
    made = np.asarray(fit(image, (20, 20), how))
    blue = (made[..., 2] > 127).sum(axis=1)
    assert {"just": (10, 10), "crop": (20, 20), "fill": (0, 10)}[how] == (blue[0], blue[10])
    assert fit(image, (40, 20), how) is image
    if how == "fill":  # with the border's colour
        assert made[0, 0].tolist() == [255, 0, 0]


def test_what_does_not_change_is_computed_once(model: Pipeline, files: list[Path]) -> None:
    """The hint's features, and keys and values of the prompt, in the control as in the U-Net."""
    model.controls.clear()
    draw(model, Control(file=files[0], image=picture()), steps=1)  # opens it
    (network,) = (one for one, *_ in model.controls.values() if isinstance(one, ControlNet))
    counted: Counter[str] = Counter()

    def count(name: str, module: nn.Module) -> None:
        hooks.append(module.register_forward_hook(lambda *args: counted.update([name])))

    hooks: list[Any] = []
    for name, part in (("unet", model.unet), ("control", network)):
        count(name, part)
        for path, module in part.named_modules():
            if path.endswith(("attn2.to_k", "attn2.to_v")):
                count(f"{name} {path}", module)
    count("hint", network.input_hint_block[0])
    try:
        draw(model, Control(file=files[0], image=picture()), steps=6)
    finally:
        for hook in hooks:
            hook.remove()
    assert counted.pop("unet") == counted.pop("control") == 6
    assert counted.pop("hint") == 1
    assert len(counted) >= 4 and set(counted.values()) == {1}
    assert {name.split()[0] for name in counted} == {"unet", "control"}


def test_bad_weights_are_named(model: Pipeline, files: list[Path], tmp_path: Path) -> None:
    tensors = load_file(files[0])
    next(value for name, value in tensors.items() if name.endswith("zero_convs.1.0.bias"))[0] = torch.nan
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(ModelFileError, match=r"zero_convs.1.0.bias holds values that are not finite"):
        draw(model, Control(file=tmp_path / "bad.safetensors", image=picture()))


def test_a_hint_of_another_size_is_resized_by_the_rule(model: Pipeline, files: list[Path]) -> None:
    hint, side = picture().resize((90, 50)), 8 * 32 // model.autoencoder.config.factor
    drawn = {
        how: draw(model, Control(file=files[0], image=hint, resize=how), width=32, height=32)
        for how in ("just", "crop", "fill")
    }
    assert len(set(drawn.values())) == 3
    for how, made in drawn.items():
        fitted = fit(hint, (side, side), how)
        assert draw(model, Control(file=files[0], image=fitted), width=32, height=32) == made


def test_the_steps_of_an_interval_are_those_of_diffusers() -> None:
    sigmas = torch.tensor([5.0, 4, 3, 2, 1, 0])
    for start, end in ((0, 1), (0, 0.5), (0.2, 0.8), (0.3, 0.9), (0.5, 0.6)):
        low, high = span(Control(file="a", image=None, start=start, end=end), sigmas)
        steps = [i for i in range(5) if low < sigmas[i] <= high]
        assert steps == [i for i in range(5) if not (i / 5 < start or (i + 1) / 5 > end)]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.pt=b.png", {"file": "a.pt", "image": "b.png"}),
        ("a=C:\\x y\\b.png:0.5", {"file": "a", "image": "C:\\x y\\b.png", "weight": 0.5}),
        ("a=b.png:.8:0-0.5", {"weight": 0.8, "start": 0, "end": 0.5}),
        ("a=b.png:0.2-1:mode=prompt:resize=fill", {"start": 0.2, "mode": "prompt", "resize": "fill"}),
        ("a=b.png:1:mask=m.png:layer_weights=1,0.5", {"mask": "m.png", "layer_weights": (1, 0.5)}),
        ("a:0.5:passes=hires", {"file": "a", "image": None, "weight": 0.5, "passes": "hires"}),
    ],
)
def test_text(text: str, values: dict[str, object]) -> None:
    made = Control.model_validate(read_control(text))
    assert {name: getattr(made, name) for name in values} == values


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a=b.png:nan", "weight"),
        ("a=b.png:3", "weight"),
        ("a=b.png:-1", "weight"),
        ("a=b.png:0.5-0.2", "end 0.2 of a is not after start 0.5"),
        ("a=b.png:0-1.5", "end"),
        ("a=b.png:mode=most", "mode"),
        ("=b.png", "is not a control; it is written FILE=IMAGE"),
    ],
)
def test_bad_text(text: str, problem: str) -> None:
    with pytest.raises((ValueError, ValidationError), match=re.escape(problem)):
        Control.model_validate(read_control(text))


def test_files_that_do_not_fit(model: Pipeline, tiny: Path, tmp_path: Path) -> None:
    other = write_controlnet(controlnet("sd1"), tmp_path / "other.safetensors")
    with pytest.raises(
        ModelFileError, match=r"other.safetensors is for another model: its context_dim is 64"
    ):
        draw(model, Control(file=other, image=picture()))
    with pytest.raises(
        ModelFileError, match="edges.pth is for sdxl and the model is sd1: its context_dim is 2048"
    ):
        check_family("edges.pth", SDXL.unet, SD1.unet)
    with pytest.raises(ModelFileError, match="there is no model"):
        draw(model, Control(file=tmp_path / "none.safetensors", image=picture()))
    with pytest.raises(ModelFileError, match="tiny|vae"):
        draw(model, Control(file=tiny / "vae", image=picture()))
    with pytest.raises(ValueError, match=r"none.png is not a readable picture"):
        draw(model, Control(file=other, image=tmp_path / "none.png"))


def test_a_recipe_holds_its_controls_and_replays_to_the_byte(model: Pipeline, files: list[Path]) -> None:
    mask = Image.new("L", (20, 20), 200)
    controls = [
        Control(file=files[0], image=picture(), weight=0.8, end=0.5, mask=mask),
        Control(file=files[1], image=picture(1), mode="control", resize="fill"),
    ]
    image = model.text_to_image("a taxi", controls=controls, batch_size=2, **OPTIONS)[1]
    recipe = json.loads(image.info[RECIPE])
    assert recipe["files"]["controls"].keys() == {"net0.safetensors", "net1.safetensors"}
    assert recipe["request"]["controls"][0]["file"] == "net0.safetensors"  # no folder of this machine
    known = recorded({RECIPE: recipe})
    given = {"control-0": picture(), "control-0-mask": mask, "control-1": picture(1)}
    assert known.given.keys() == given.keys()
    placed = [
        c.model_copy(update={"file": str(path)})
        for c, path in zip(known.request.controls, files, strict=False)
    ]
    known = known._replace(request=known.request.model_copy(update={"controls": tuple(placed)}))
    made = again(model, known, given)
    assert made.tobytes() == image.tobytes() and made.info == image.info
    with pytest.raises(ValueError, match="this control-0 is not the one that it was made from"):
        again(model, known, given | {"control-0": picture(2)})


def test_a1111s_text_is_written_and_read(model: Pipeline, files: list[Path]) -> None:
    control = Control(file=files[0], image=picture(), weight=0.5, end=0.5, mode="prompt", passes="first")
    image = model.text_to_image("a taxi", controls=[control], **OPTIONS)[0]
    written = parse_parameters(image.info["parameters"])[2]["ControlNet 0"]
    assert re.match(
        r"Module: none, Model: net0 \[[0-9a-f]{8}\], Weight: 0.5, Resize Mode: Crop and Resize", written
    )
    known = recorded({"parameters": image.info["parameters"]})
    kept = known.request.controls[0]
    assert kept == control.model_copy(update={"file": "net0", "image": None})
    assert known.not_applied == ()


def test_a1111s_older_words() -> None:
    text = (
        "preprocessor: canny, model: control_v11p_sd15_canny [d14c016b], weight: 1.2, starting/ending: (0.1, 0.9), "
        "resize mode: Just Resize, pixel perfect: False, control mode: ControlNet is more important, "
        "preprocessor params: (512, 100, 200)"
    )
    expected = {"file": "control_v11p_sd15_canny", "weight": "1.2", "start": "0.1", "end": "0.9"}
    assert read_a1111(text) == expected | {"mode": "control", "resize": "just"}
