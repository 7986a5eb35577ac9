"""Losses against their formulas, and against what torch computes for the same thing."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.distributions import Normal, kl_divergence

from inkwash.diffusion.schedules import NoiseSchedule, sqrt_linear_betas
from inkwash.metrics.networks import lpips
from inkwash.models.perceptual import PerceptualDistance, VGG16Features
from inkwash.training.objectives import (
    Objective,
    adaptive_weight,
    contrastive_loss,
    hinge_loss,
    kl_to_normal,
    min_snr_weight,
)

SCHEDULE = NoiseSchedule.from_betas(sqrt_linear_betas())


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_what_a_network_should_give(prediction: str) -> None:
    """The target that diffusers' scheduler makes of the same latent and noise has no loss; another has."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000
    )
    latent, noise, t = draw(3, 4, 5, 6), draw(3, 4, 5, 6, seed=1), torch.tensor([0, 500, 999])
    target = {"eps": noise, "v": scheduler.get_velocity(latent, noise, t), "x0": latent}[prediction]

    def network(x: torch.Tensor, at: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        assert torch.equal(at, t) and context == "words"
        torch.testing.assert_close(x, scheduler.add_noise(latent, noise, t), rtol=1e-4, atol=1e-5)
        return target + offset

    cond = {"context": "words"}
    offset = torch.zeros(())
    loss = Objective(prediction).losses(network, latent, noise, t, cond, SCHEDULE)[0]  # type: ignore[arg-type]
    assert loss.shape == (3,)
    torch.testing.assert_close(loss, torch.zeros(3), rtol=0, atol=1e-8)
    offset = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    loss = Objective(prediction).losses(network, latent, noise, t, cond, SCHEDULE)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(loss, torch.tensor([1.0, 4.0, 9.0]), rtol=1e-4, atol=1e-4)


def test_another_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="'score' is not one of eps, v, x0"):
        Objective("score").losses(
            lambda x, t: x, draw(1, 4, 2, 2), draw(1, 4, 2, 2), torch.tensor([1]), {}, SCHEDULE
        )


def test_min_snr_weights() -> None:
    diffusers_training = pytest.importorskip("diffusers.training_utils")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    t = torch.tensor([0, 10, 200, 500, 999])
    snr = diffusers_training.compute_snr(scheduler, t)
    torch.testing.assert_close(
        min_snr_weight(SCHEDULE, t), snr.clamp(max=5) / snr, rtol=1e-3, atol=1e-6, check_dtype=False
    )
    assert min_snr_weight(SCHEDULE, t)[-1] == 1
    # with plus 1 and no bound: what the v objective makes of the same error of eps
    eps_error = draw(5, 4, 3, 3)
    a = SCHEDULE.alphas_cumprod[t].view(-1, 1, 1, 1)
    x0_error = eps_error * ((1 - a) / a).sqrt()
    v_error = a.sqrt() * eps_error + (1 - a).sqrt() * x0_error
    for gamma in (5.0, 1e9):  # the same weight of x0's errors, whatever is predicted
        counted = [
            min_snr_weight(SCHEDULE, t, gamma, 1.0, name) * error.square().mean(dim=(1, 2, 3))
            for name, error in (("eps", eps_error), ("v", v_error), ("x0", x0_error))
        ]
        for other in counted[1:]:
            torch.testing.assert_close(other, counted[0], rtol=1e-3, atol=0, check_dtype=False)
    weighed = min_snr_weight(SCHEDULE, t, 1e9, plus=1.0) * eps_error.square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(weighed, v_error.square().mean(dim=(1, 2, 3)).float(), rtol=1e-3, atol=0)


def test_contrastive_loss_is_that_of_clip() -> None:
    """With one positive a row it is transformers' loss; a caption that two share is no false negative."""
    clip = pytest.importorskip("transformers.models.clip.modeling_clip")
    images, texts, scale = draw(6, 8), draw(6, 8, seed=1), torch.tensor(2.0)
    similarity = scale.exp() * F.normalize(texts) @ F.normalize(images).T
    expected = clip.image_text_contrastive_loss(similarity)
    torch.testing.assert_close(contrastive_loss(images, texts, scale, torch.eye(6).bool()), expected)

    shared = torch.eye(6).bool()
    shared[0, 1] = shared[1, 0] = True
    logits = similarity.T
    terms = []
    for log_probabilities in (logits.log_softmax(1), logits.T.log_softmax(1)):
        rows = [log_probabilities[i][shared[i]].mean() for i in range(6)]
        terms.append(-torch.stack(rows).mean())
    torch.testing.assert_close(contrastive_loss(images, texts, scale, shared), sum(terms) / 2)


def test_kl_of_gaussians() -> None:
    mean, logvar = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(kl_to_normal(mean, logvar), expected)
    assert not kl_to_normal(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)).any()


def test_hinge() -> None:
    assert hinge_loss(torch.tensor([2.0]), torch.tensor([-2.0])) == 0
    assert hinge_loss(torch.tensor([0.0]), torch.tensor([0.0])) == 1
    assert hinge_loss(torch.tensor([-1.0]), torch.tensor([1.0])) == 2


def test_adaptive_weight_balances_the_gradients_of_the_last_layer() -> None:
    last = torch.nn.Conv2d(4, 3, 3, padding=1)
    made = last(draw(2, 4, 8, 8))
    reconstruction, adversarial = made.square().mean(), made.mean()
    weight = adaptive_weight(reconstruction, adversarial, last.weight)
    sizes = [
        torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm()
        for loss in (reconstruction, weight * adversarial)
    ]
    torch.testing.assert_close(sizes[0], sizes[1], rtol=1e-2, atol=0)
    assert not weight.requires_grad


def test_perceptual_distance() -> None:
    """Zero for equal pictures, growing with the difference, blind to the features' size, for any network."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, 2), torch.nn.Conv2d(8, 16, 3, 2)]

    def features(pixels: torch.Tensor) -> list[torch.Tensor]:
        first = layers[0](pixels).relu()
        return [first, layers[1](first).relu()]

    distance = PerceptualDistance(features)
    pixels = draw(2, 3, 32, 32).clamp(-1, 1).requires_grad_()
    near, far = pixels + 0.05 * draw(2, 3, 32, 32, seed=1), draw(2, 3, 32, 32, seed=2)
    assert not distance(pixels, pixels).any()
    assert (distance(near, pixels) < distance(far, pixels)).all()
    scaled = PerceptualDistance(lambda p: [100 * f for f in features(p)])
    torch.testing.assert_close(scaled(far, pixels), distance(far, pixels))
    weighted = PerceptualDistance(features, [torch.ones(1, 8, 1, 1), torch.zeros(1, 16, 1, 1)])
    only_first = PerceptualDistance(lambda p: features(p)[:1])
    torch.testing.assert_close(weighted(far, pixels), only_first(far, pixels))
    distance(pixels, far).sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


def test_lpips_from_files(tmp_path: Path) -> None:
    """VGG16's layers and LPIPS' formula, written out once more."""
    torch.manual_seed(0)
    network = VGG16Features()
    heads = [torch.rand(1, width, 1, 1) for width in (64, 128, 256, 512, 512)]
    weights = {key: value * 3 for key, value in network.state_dict().items()}  # signals that do not die away
    save_file(weights | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg.safetensors")
    save_file(
        {f"lin{i}.model.1.weight": head for i, head in enumerate(heads)}, tmp_path / "heads.safetensors"
    )

    def features(pixels: torch.Tensor) -> list[torch.Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x, n, maps = (pixels - shift[:, None, None]) / scale[:, None, None], 0, []
        for stage, layers in enumerate((2, 2, 3, 3, 3)):
            x, n = (F.max_pool2d(x, 2), n + 1) if stage else (x, n)
            for _ in range(layers):
                x = F.conv2d(
                    x, weights[f"features.{n}.weight"], weights[f"features.{n}.bias"], padding=1
                ).relu()
                n += 2
            maps.append(x)
        return maps

    a, b = draw(2, 3, 48, 32).clamp(-1, 1), draw(2, 3, 48, 32, seed=1).clamp(-1, 1)
    expected = torch.zeros(2)
    for head, x, y in zip(heads, features(a), features(b), strict=True):
        expected += (head * (F.normalize(x) - F.normalize(y)).square()).sum(1).mean(dim=(1, 2))
    distance = lpips(tmp_path / "vgg.safetensors", tmp_path / "heads.safetensors")
    torch.testing.assert_close(distance(a, b), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="is not VGG16Features"):
        lpips(tmp_path / "heads.safetensors", tmp_path / "vgg.safetensors")
    with pytest.raises(ValueError, match="none.safetensors"):
        lpips(tmp_path / "none.safetensors", tmp_path / "heads.safetensors")
