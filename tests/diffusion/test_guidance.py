"""Laws of every kind of guidance: what is off changes nothing, what is on does what its equation says."""

from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import inkwash
from inkwash.diffusion.guidance import (
    Guided,
    cfg,
    classifier_guidance,
    compose,
    dynamic_threshold,
    interval,
    keep_known,
    perturbed_attention_guidance,
    rescale,
    self_attention_guidance,
)
from inkwash.diffusion.guidance.attention import attention_received, blurred, looking_at_itself, map_size
from inkwash.diffusion.samplers import SAMPLERS
from inkwash.diffusion.schedules import NoiseSchedule, karras, sqrt_linear_betas
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.denoising.guidance import GuidanceFields, guide, middle_attentions
from inkwash.pipeline.denoising.prompting import resolve
from inkwash.pipeline.run import start
from inkwash.pipeline.task_requests import TextToImageRequest

SD = NoiseSchedule.from_betas(sqrt_linear_betas())
SIGMAS = karras(8, SD)


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


START = 14 * randn(0, 2, 3, 6, 6)


class Counted:
    """A denoiser that is not linear in x, differs for each condition, and counts the rows it was called with."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: dict[str, Tensor]) -> Tensor:
        self.calls.append(len(x))
        sigma = sigma.reshape(-1, 1, 1, 1)
        return torch.tanh((x + 3 * cond["context"].reshape(-1, 3, 1, 1)) / (1 + sigma))


def cond(seed: int) -> dict[str, Tensor]:
    return {"context": randn(seed, 2, 1, 3)}


def guided(scale: float, denoise: Counted | None = None) -> Guided:
    return cfg(denoise or Counted(), cond(1), cond(2), scale)


def end(D, sampler: str = "euler") -> Tensor:
    x = START
    for step in SAMPLERS[sampler](D, x, SIGMAS):
        x = step.x
    return x


def same(one: Tensor, other: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


@pytest.fixture(scope="module")
def mini() -> Pipeline:
    return inkwash.load("mini")


def of_model(model: Pipeline, **options: object) -> Guided:
    request = TextToImageRequest(
        prompt=("a taxi", "a rocket"), negative_prompt="rain", batch_size=2, **options
    )  # type: ignore[arg-type]
    D = start(model, resolve(model, request))[0]
    assert isinstance(D, Guided)
    return D


X = 3 * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
SIGMA = torch.tensor(2.5, dtype=torch.float64)

# ---------------------------------------------------------------- all kinds


MAPS = {
    "interval": lambda D: interval(D, 1.0, 5.0),
    "rescale": lambda D: rescale(D, 0.7),
    "dynamic_threshold": lambda D: dynamic_threshold(D, 3.0, 0.95),
    "classifier": lambda D: classifier_guidance(
        D, lambda x, s: x.mean(dim=(2, 3)), torch.tensor([0, 2]), 2.0
    ),
    "kept": lambda D: keep_known(D, randn(5, 2, 3, 6, 6), torch.ones(1, 1, 6, 6), randn(6, 2, 3, 6, 6)),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_what_guides_hands_on_its_parts(name: str, scale: float) -> None:
    """So that CFG++, which needs the unguided prediction, works with all of it."""
    D = MAPS[name](guided(scale))
    for sigma in (SIGMAS[0], SIGMAS[4]):
        parts = D.predict(START, sigma, "all")
        if (name, scale) != ("dynamic_threshold", 1.0):  # which has nothing to do where nothing guides
            same(parts.guided, D(START, sigma))
        same(D.predict(START, sigma, "cond").cond, guided(1.0)(START, sigma))
        same(D.predict(START, sigma, "uncond").uncond, guided(0.0)(START, sigma))
    assert torch.isfinite(end(D, "ddim_cfgpp")).all()
    if scale > 1 and name != "kept":
        assert not torch.allclose(end(D), end(guided(scale)))


@pytest.mark.parametrize(
    "options",
    [
        {"cfg_rescale": 0.7},
        {"guidance_start": 0.3, "guidance_end": 0.7},
        {"mimic_scale": 3.0, "threshold_percentile": 0.9},
        {"perp_neg": 1.0},
        {"sag_scale": 0.75},
        {"pag_scale": 3.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_option_changes_the_picture_and_off_is_the_plain_one(mini: Pipeline, options: dict) -> None:
    common = {"negative_prompt": "rain", "seed": 3, "steps": 3, "cfg_scale": 6, "width": 64, "height": 64}
    draw = lambda **more: mini.text_to_image("a taxi", **common | more)[0].tobytes()  # noqa: E731
    plain, made = draw(), draw(**options)
    assert made != plain
    defaults = GuidanceFields()
    assert draw(**{name: getattr(defaults, name) for name in options}) == plain
    assert not any(module._forward_hooks for module in mini.unet.modules())
    assert draw() == plain


def test_all_together_with_cfgpp(model: Pipeline) -> None:
    options = {"cfg_rescale": 0.5, "guidance_end": 0.8, "mimic_scale": 4.0, "perp_neg": 1.0}
    options |= {"sag_scale": 0.5, "pag_scale": 2.0, "sampler": "ddim_cfgpp", "seed": 5, "steps": 5}
    image, again = (model.text_to_image("a [taxi:rocket:2]", "rain", **options)[0] for _ in range(2))
    assert image.tobytes() == again.tobytes()
    assert len(set(image.tobytes())) > 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cfg_rescale": 1.5}, "cfg_rescale"),
        ({"cfg_rescale": float("nan")}, "cfg_rescale"),
        ({"guidance_start": 0.6, "guidance_end": 0.5}, "0.5 is not above guidance_start 0.6"),
        ({"threshold_percentile": 0}, "threshold_percentile"),
        ({"mimic_scale": -1}, "mimic_scale"),
        ({"perp_neg": -1}, "perp_neg"),
        ({"sag_scale": float("inf")}, "sag_scale"),
    ],
)
def test_what_is_out_of_range_is_refused(model: Pipeline, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.text_to_image("a taxi", **options)


# ---------------------------------------------------------------- the interval


def test_outside_its_interval_guidance_costs_nothing() -> None:
    denoise = Counted()
    D = interval(guided(6.0, denoise), low=float(SIGMAS[5]), high=float(SIGMAS[2]))
    for i, sigma in enumerate(SIGMAS[:-1]):
        wanted = guided(6.0 if 2 <= i < 5 else 1.0)(START, sigma)
        denoise.calls.clear()
        assert torch.equal(D(START, sigma), wanted)
        assert denoise.calls == [4 if 2 <= i < 5 else 2]


def test_an_interval_over_all_steps_changes_nothing() -> None:
    assert torch.equal(end(interval(guided(6.0), -1.0, float("inf"))), end(guided(6.0)))
    assert torch.equal(end(interval(guided(6.0), 100.0, 200.0)), end(guided(1.0)))
    with pytest.raises(ValueError, match="sigma 2 is not less than 1"):
        interval(guided(6.0), 2, 1)


def test_pictures_at_different_levels_are_guided_each_by_its_own() -> None:
    D = interval(guided(6.0), 1.0, 5.0)
    together = D(START, torch.tensor([3.0, 9.0], dtype=torch.float64))
    same(together[0], guided(6.0)(START, torch.tensor(3.0))[0])
    same(together[1], guided(1.0)(START, torch.tensor(9.0))[1])


def test_parts_of_the_steps_are_whole_steps(model: Pipeline) -> None:
    calls: list[int] = []
    hook = model.unet.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    for begin, finish, wanted in [(0, 1, [2] * 5), (0.2, 0.7, [1, 2, 2, 2, 1]), (0, 0.3, [2, 2, 1, 1, 1])]:
        calls.clear()
        model.text_to_image("a", steps=5, sampler="euler", guidance_start=begin, guidance_end=finish)
        assert calls == wanted
    hook.remove()


# ---------------------------------------------------------------- rescale, threshold, Perp-Neg


def test_rescaled_guidance_has_the_conditions_spread() -> None:
    sigma = SIGMAS[3]

    def spread(x0: Tensor) -> Tensor:
        v = START / (1 + sigma**2).sqrt() - x0 * (1 + sigma**2).sqrt()
        return v.std(dim=(1, 2, 3))

    parts = rescale(guided(6.0), 1.0).predict(START, sigma, "all")
    same(spread(parts.guided), spread(parts.cond), 1e-9)
    half = rescale(guided(6.0), 0.5)(START, sigma)
    same(half, (parts.guided + guided(6.0)(START, sigma)) / 2, 1e-9)
    same(rescale(guided(1.0), 1.0)(START, sigma), guided(1.0)(START, sigma))
    D = guided(6.0)
    assert rescale(D, 0.0) is D
    with pytest.raises(ValueError, match="cfg_rescale 2 is not in 0 to 1"):
        rescale(D, 2)


@given(scale=st.floats(0, 20), mimic=st.floats(0, 20), percentile=st.floats(0.5, 1))
def test_a_threshold_bounds_every_channel(scale: float, mimic: float, percentile: float) -> None:
    sigma = SIGMAS[3]

    def centred(x0: Tensor) -> Tensor:
        return (x0 - x0.mean(dim=(2, 3), keepdim=True)).abs().amax(dim=(2, 3))

    made = dynamic_threshold(guided(scale), mimic, percentile).predict(START, sigma, "all")
    plain = guided(scale).predict(START, sigma, "all")
    end = centred(made.uncond + mimic * (made.cond - made.uncond))
    mean = plain.guided.mean(dim=(2, 3), keepdim=True)
    assert ((made.guided - mean).abs().amax(dim=(2, 3)) <= end + 1e-9).all()
    if percentile == 1:  # then it is a scaling about the mean
        ratio = (end / centred(plain.guided).maximum(end)).clamp(max=1)[..., None, None]
        same(made.guided, mean + ratio * (plain.guided - mean), 1e-9)


def test_a_threshold_at_the_same_scale_changes_nothing() -> None:
    same(dynamic_threshold(guided(6.0), 6.0)(START, SIGMAS[3]), guided(6.0)(START, SIGMAS[3]))
    with pytest.raises(ValueError, match="threshold_percentile 0 is not above 0"):
        dynamic_threshold(guided(6.0), 6.0, 0)


def opposed(weight: float, negative: int, perpendicular: bool, scale: float = 4.0) -> Guided:
    pick = lambda seed, k: {"context": cond(seed)["context"][k]}  # noqa: E731
    conds = [[(pick(1, k), 1.0), (pick(negative, k), weight)] for k in range(2)]
    return compose(Counted(), conds, [pick(2, k) for k in range(2)], scale, perpendicular=perpendicular)


def test_a_negative_prompt_takes_nothing_along_the_prompt() -> None:
    """Its part along the prompt is none of what is taken away; the prompt against itself takes nothing at all."""
    sigma = SIGMAS[3]
    plain = guided(4.0)(START, sigma)
    taken = plain - opposed(-1.5, 3, True)(START, sigma)
    along = plain - guided(0.0)(START, sigma)
    assert taken.abs().amax() > 0.01
    same((taken * along).sum(dim=(1, 2, 3)), torch.zeros(2, dtype=torch.float64), 1e-9)
    same(opposed(-1.5, 1, True)(START, sigma), plain)
    assert not torch.allclose(opposed(-1.5, 1, False)(START, sigma), plain)
    assert torch.equal(opposed(0.5, 3, True)(START, sigma), opposed(0.5, 3, False)(START, sigma))


def test_perp_neg_without_a_negative_prompt_is_plain(model: Pipeline) -> None:
    draw = lambda **more: model.text_to_image("a taxi", seed=3, steps=3, **more)[0].tobytes()  # noqa: E731
    assert draw(perp_neg=1.0) == draw()


def test_perp_neg_starts_from_the_empty_prompt(model: Pipeline) -> None:
    """The prompt as its own negative one is guidance without a negative prompt."""
    made = of_model(model, cfg_scale=4.0, perp_neg=1.0)
    plain = TextToImageRequest(prompt="rain", batch_size=2, cfg_scale=4.0)
    opposed = plain.model_copy(update={"negative_prompt": "rain", "perp_neg": 1.0})
    alike, wanted = (start(model, resolve(model, request))[0] for request in (opposed, plain))
    with torch.inference_mode():
        torch.testing.assert_close(alike(X, SIGMA), wanted(X, SIGMA), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(made(X, SIGMA), of_model(model, cfg_scale=4.0)(X, SIGMA))


# ---------------------------------------------------------------- attention


@torch.inference_mode()
def test_hooks_leave_no_trace(model: Pipeline) -> None:
    """Neither after a call, nor where one fails within."""
    D, attentions = of_model(model, cfg_scale=3.0), middle_attentions(model)
    before = D(X, SIGMA)
    pag = perturbed_attention_guidance(D, attentions, 2.0)
    sag = self_attention_guidance(D, "uncond", attentions[0], 0.75)
    for guided in (pag, sag):
        assert not torch.equal(guided(X, SIGMA), before)
    for context in (looking_at_itself(attentions), attention_received(attentions[0])):
        with pytest.raises(KeyError), context:
            raise KeyError
    assert not any(chain.from_iterable(m._forward_hooks.values() for m in model.unet.modules()))
    assert torch.equal(D(X, SIGMA), before)


@torch.inference_mode()
def test_pag_needs_no_prompt_and_costs_one_call(model: Pipeline) -> None:
    calls: list[int] = []
    hook = model.unet.register_forward_hook(lambda module, args, out: calls.append(len(out)))
    for scale, wanted in ((1.0, [2, 2]), (3.0, [4, 2])):
        D = perturbed_attention_guidance(of_model(model, cfg_scale=scale), middle_attentions(model), 2.0)
        calls.clear()
        D(X, SIGMA)
        assert calls == wanted
    hook.remove()
    D = of_model(model, cfg_scale=3.0)
    pag = [perturbed_attention_guidance(D, middle_attentions(model), s)(X, SIGMA) for s in (0.0, 1.0, 2.0)]
    torch.testing.assert_close(pag[0], D(X, SIGMA))
    torch.testing.assert_close(
        pag[2] - pag[0], 2 * (pag[1] - pag[0]), rtol=1e-3, atol=1e-4
    )  # linear in its scale


@torch.inference_mode()
def test_attention_looks_at_itself(model: Pipeline) -> None:
    attention = middle_attentions(model)[0]
    x = torch.randn(2, 9, attention.to_q.in_features)
    with looking_at_itself([attention]):
        mixed = torch.cat([x[:, :4], torch.randn_like(x[:, 4:])], dim=1)
        torch.testing.assert_close(attention(x)[:, :4], attention(mixed)[:, :4])
    assert not torch.allclose(attention(x)[:, :4], attention(mixed)[:, :4])
    with attention_received(attention) as maps:
        attention(x)
    torch.testing.assert_close(maps[0].sum(dim=1), torch.full((2,), 9.0))  # each token gives 1


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 4))
def test_the_map_has_the_middles_size(height: int, width: int, levels: int) -> None:
    low, wide = height, width
    for _ in range(levels):
        low, wide = -(-low // 2), -(-wide // 2)
    found = map_size(low * wide, (height, width))
    assert found[0] * found[1] == low * wide


def test_a_blur_keeps_what_is_flat() -> None:
    flat = torch.full((1, 2, 7, 3), 0.7, dtype=torch.float64)
    same(blurred(flat, 1.0), flat)
    x = randn(1, 1, 2, 16, 16)
    assert blurred(x, 1.0).std() < 0.5 * x.std()


def test_a_model_without_attention_in_its_middle_says_so(model: Pipeline) -> None:
    class Without:
        name, unet = "small", type("UNet", (), {"middle_block": torch.nn.Sequential()})

    with pytest.raises(ValueError, match="small has no attention in its middle"):
        guide(guided(3.0), Without(), GuidanceFields(pag_scale=1.0), 3.0, SIGMAS)  # type: ignore[arg-type]


# ---------------------------------------------------------------- a classifier

CENTRES = torch.tensor([[-2.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.5, -3.0, 0.0]], dtype=torch.float64)
SPREAD, PRIOR = 0.6, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def log_joint(x: Tensor, sigma: Tensor) -> Tensor:
    """log p(x, y) of a mixture of Gaussians, each pixel (B, 3, H, W) its own draw of one class a picture."""
    variance = SPREAD**2 + sigma.reshape(-1, 1).double() ** 2
    distance = (x[:, None] - CENTRES[None, :, :, None, None]).square().sum(dim=(2, 3, 4))
    return PRIOR.log() - distance / (2 * variance)


def exact(x: Tensor, sigma: Tensor, weights: Tensor) -> Tensor:
    sigma = sigma.expand(len(x)).reshape(-1, 1, 1, 1, 1).double()
    shrink = SPREAD**2 / (SPREAD**2 + sigma**2)
    centres = CENTRES[None, :, :, None, None]
    return (weights[:, :, None, None, None] * (centres + shrink * (x[:, None] - centres))).sum(dim=1)


@pytest.mark.parametrize("inference", [True, False])
def test_bayes_rule(inference: bool) -> None:
    """An exact classifier at scale 1 makes of the mixture's denoiser that of one of its classes."""
    x, label = 2 * randn(7, 3, 3, 2, 2), torch.tensor([0, 2, 1])
    with torch.inference_mode(inference):
        x = x.clone()
        for sigma in (torch.tensor(0.5), torch.tensor([4.0, 1.0, 9.0])):
            mixture = lambda x, s: exact(x, s, log_joint(x, s.expand(len(x))).softmax(dim=1))  # noqa: E731
            D = classifier_guidance(mixture, log_joint, label, 1.0)
            same(D(x, sigma), exact(x, sigma, torch.eye(3, dtype=torch.float64)[label]), 1e-9)
            same(classifier_guidance(mixture, log_joint, label, 0.0)(x, sigma), mixture(x, sigma))


@pytest.mark.parametrize("label", [[3, 0], [-1, 0], [0], [0, 1, 2]])
def test_a_label_is_one_of_the_classes(label: list[int]) -> None:
    D = classifier_guidance(lambda x, s: x, lambda x, s: x.mean(dim=(2, 3)), torch.tensor(label), 1.0)
    with pytest.raises(ValueError, match="should be 2 of 0 to 2"):
        D(START, SIGMAS[3])


def test_the_network_is_called_as_often_as_said() -> None:
    """Of classifier-free guidance: in one call of twice the batch, or in two, with the same numbers."""
    one, two = Counted(), Counted()
    a = cfg(one, cond(1), cond(2), 5.0)(START, SIGMAS[2])
    b = cfg(two, cond(1), cond(2), 5.0, batched=False)(START, SIGMAS[2])
    assert (one.calls, two.calls) == ([4], [2, 2])
    same(a, b)


def test_two_passes_draw_the_same_picture(model: Pipeline) -> None:
    draw = lambda **more: model.text_to_image("a taxi", "rain", seed=3, steps=4, **more)[0]  # noqa: E731
    one, two = (torch.tensor(list(draw(cfg_batched=b).tobytes())).int() for b in (True, False))
    assert (one - two).abs().max() <= 1
