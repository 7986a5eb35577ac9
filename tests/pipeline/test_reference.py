"""Reference-only: its laws, what it shows the layers, texts and errors; against the extension's formulas in plain torch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import inkwash
from inkwash.models.unet import UNet
from inkwash.nn.attention import CrossAttention
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.controls import REFERENCES, Control, read_a1111, read_control
from inkwash.pipeline.denoising.reference import Referenced, adopt, attend_too, attending, normed
from inkwash.pipeline.record.a1111 import parse_parameters
from inkwash.pipeline.record.metadata import RECIPE
from inkwash.pipeline.replay import again, recorded
from inkwash.weights.families import SD1, SDXL
from tests.support.small_controls import picture, write_model
from tests.support.tiny_models import BOTH

OPTIONS = {"steps": 4, "seed": 4, "cfg_scale": 3}


@pytest.fixture(scope="module")
def model(module_path: Path) -> Pipeline:
    for name in ("sd1", "inpainting"):
        write_model(name, module_path)
    return inkwash.load(module_path / "sd1")


def draw(model: Pipeline, *controls: Control, **options: object) -> Image.Image:
    return model.text_to_image("a taxi", "rain", controls=controls, **OPTIONS | options)[0]


def reference(name: str = "reference_only", seed: int = 0, **values: Any) -> Control:
    return Control(**{"file": name, "image": picture(seed), **values})


@pytest.mark.parametrize("name", REFERENCES)
def test_it_matters_unless_its_weight_is_0_or_it_is_outside_its_interval(model: Pipeline, name: str) -> None:
    without = draw(model).tobytes()
    steered = draw(model, reference(name)).tobytes()
    assert steered != without and draw(model, reference(name, 1)).tobytes() != steered
    for values in ({"weight": 0}, {"start": 0.9}, {"end": 0.2}):
        assert draw(model, reference(name, **values)).tobytes() == without
    assert draw(model).tobytes() == without  # nothing stays attached


def test_kinds_weights_and_fidelity_differ(model: Pipeline) -> None:
    every = [reference(name) for name in REFERENCES]
    every += [reference(weight=0.3), reference("reference_adain", weight=2)]
    every += [reference(style_fidelity=fidelity) for fidelity in (0, 1)]
    assert len({draw(model, each).tobytes() for each in every}) == len(every)
    # the modes are fidelities
    for mode, fidelity in (("prompt", 0), ("control", 1)):
        a, b = (draw(model, reference(**values)) for values in ({"mode": mode}, {"style_fidelity": fidelity}))
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", REFERENCES)
def test_a_picture_of_a_batch_is_the_one_drawn_alone(model: Pipeline, name: str) -> None:
    options = {"controls": [reference(name)], **OPTIONS}
    batch = model.text_to_image("a taxi", "rain", batch_size=2, **options)
    alone = model.text_to_image("a taxi", "rain", **options | {"seed": 5})[0]
    assert np.abs(np.asarray(batch[1], int) - np.asarray(alone, int)).max() <= 1
    other = model.text_to_image("a taxi", "rain", cfg_batched=False, **options)[0]
    assert np.abs(np.asarray(batch[0], int) - np.asarray(other, int)).max() <= 1


def test_the_order_does_not_matter(model: Pipeline) -> None:
    both = [reference(), reference("reference_adain+attn", 1, weight=0.7)]
    assert (
        draw(model, *both).tobytes() == draw(model, *both[::-1]).tobytes() != draw(model, both[0]).tobytes()
    )


def test_it_goes_with_what_changes_calls(model: Pipeline) -> None:
    for options in ({"token_merging": 0.3}, {"deep_cache": 2}, {"seamless": "both"}, {"hires": 1.5}):
        options |= {"width": 64, "height": 64}
        assert draw(model, reference(), **options).tobytes() != draw(model, **options).tobytes()
    windows = {"width": 96, "height": 64, "window": 64}
    assert draw(model, reference(), **windows).tobytes() != draw(model, **windows).tobytes()


def test_a_model_for_inpainting_sees_the_whole_picture(model: Pipeline) -> None:
    other = inkwash.load(model.files[0].parent.parent.parent / "inpainting")
    made, without = (
        other.inpaint("a", BOTH["image"], BOTH["mask"], controls=controls, steps=3)[0]
        for controls in ([reference()], [])
    )
    assert made.tobytes() != without.tobytes()


def test_layers_get_what_the_extension_computes() -> None:
    """Its formulas in torch's own functions: softmax over both pictures' tokens, and AdaIN."""
    torch.manual_seed(0)
    layer = CrossAttention(16, 2).eval().requires_grad_(False)
    x, other = torch.randn(2, 3, 5, 16).unbind()
    amount = torch.tensor([1.0, 0.25, 0.0])
    plain = layer(x)

    def attention(context: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            each.unflatten(2, (2, 8)).transpose(1, 2)
            for each in (layer.to_q(x), layer.to_k(context), layer.to_v(context))
        )
        return layer.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    made = attend_too([other], amount, layer, (x, None), plain)
    both = attention(torch.cat([x, other], dim=1))
    share = amount[:, None, None]
    torch.testing.assert_close(made, share * both + (1 - share) * plain)
    assert torch.equal(made[2], plain[2])

    maps, wanted = torch.randn(2, 3, 4, 6, 6).unbind()
    wanted = 2 * wanted + 1
    moments = torch.stack([wanted.mean((2, 3), True), wanted.var((2, 3), keepdim=True, correction=0)])
    made = adopt([moments], torch.ones(3), layer, (), maps)
    torch.testing.assert_close(made.mean((2, 3)), wanted.mean((2, 3)))
    torch.testing.assert_close(made.std((2, 3), correction=0), wanted.std((2, 3), correction=0))
    torch.testing.assert_close(
        F.instance_norm(made), F.instance_norm(maps), atol=1e-4, rtol=1e-4
    )  # the picture stays, its statistics do not


def test_which_layers_take_part_in_sd1() -> None:
    with torch.device("meta"):
        sd1, sdxl = UNet(SD1.unet), UNet(replace(SDXL.unet, transformer_depth=(0, 1, 1)))
    # of the extension's input_blocks 4, 5, 7, 8, 10, 11, the first never acts; the middle, output_blocks 0 to 7
    expected = [sd1.input_blocks[i] for i in (5, 7, 8, 10, 11)] + [sd1.output_blocks[i] for i in range(8)]
    assert set(normed(sd1, 2.0)) == {sd1.middle_block, *expected}
    # with a weight of 1, those whose share of it is below a half
    assert set(normed(sd1, 1.0)) == {
        sd1.middle_block,
        *(sd1.input_blocks[i] for i in (10, 11)),
        *(sd1.output_blocks[i] for i in range(4)),
    }
    assert len(attending(sd1, 1.0)) == 16 and len(attending(sd1, 0.25)) == 4
    assert all(layer.to_q.in_features == 1280 for layer in attending(sd1, 0.25))
    assert set(normed(sdxl, 2.0)) == {
        sdxl.middle_block,
        *(sdxl.input_blocks[i] for i in (5, 7, 8)),
        *(sdxl.output_blocks[i] for i in range(6)),
    }


def test_the_picture_is_noised_as_the_schedule_says(model: Pipeline) -> None:
    one = Referenced(reference(), model, [4, 5])
    given = one.given((8, 8), negative=False)
    assert given["latent"].shape == (1, 4, 8, 8) and given["noise"].shape == (2, 4, 8, 8)
    t = torch.tensor([10.0, 700.0])
    latent = given["latent"].expand(2, -1, -1, -1)
    made = one.noised(t, latent, given["noise"])
    alpha_bar = model.schedule.alphas_cumprod[t.long()].float().view(2, 1, 1, 1)
    torch.testing.assert_close(made, alpha_bar.sqrt() * latent + (1 - alpha_bar).sqrt() * given["noise"])
    assert not torch.equal(*given["noise"])


def test_a_recipe_holds_it_and_replays_to_the_byte(model: Pipeline) -> None:
    control = reference("reference_adain+attn", weight=0.8, style_fidelity=0.25)
    image = draw(model, control)
    recipe = json.loads(image.info[RECIPE])
    assert recipe["files"].get("controls", {}) == {}
    known = recorded({RECIPE: recipe})
    made = again(model, known, {"control-0": picture()})
    assert made.tobytes() == image.tobytes() and made.info == image.info
    text = parse_parameters(image.info["parameters"])[2]["ControlNet 0"]
    assert text.startswith("Module: reference_adain+attn, Model: None, Weight: 0.8")
    assert Control(**read_a1111(text)) == control.model_copy(update={"image": None})
    assert recorded({"parameters": image.info["parameters"]}).not_applied == ()


def test_text() -> None:
    made = Control.model_validate(read_control("reference_adain+attn=b.png:0.5:style_fidelity=1"))
    assert (made.file, made.weight, made.style_fidelity, made.is_reference) == (
        "reference_adain+attn",
        0.5,
        1,
        True,
    )


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"mask": Image.new("L", (8, 8))}, "so mask is not for it"),
        ({"layer_weights": (1, 1)}, "so layer_weights is not for it"),
        ({"annotator": "canny"}, "so annotator is not for it"),
        ({"mode": "guess"}, "so mode is not for it"),
        ({"type": "pose"}, "so it takes no type=pose"),
        ({"image": None}, "reference_only has no picture"),
    ],
)
def test_what_it_does_not_take(model: Pipeline, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        draw(model, reference(**values))


def test_calls_are_as_many_as_without_but_for_the_looks(model: Pipeline) -> None:
    """One look a call while it acts, none outside its interval."""
    counted: list[int] = []
    hook = model.unet.register_forward_hook(lambda *args: counted.append(1))
    try:
        draw(model)
        plain = len(counted)
        draw(model, reference(end=0.5))
    finally:
        hook.remove()
    assert len(counted) - plain == plain + plain // 2
