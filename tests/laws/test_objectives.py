"""Losses against their formulas, and against what torch computes for the same thing."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from inkwash.diffusion.schedules import NoiseSchedule, sqrt_linear_betas
from inkwash.models.perceptual import PerceptualDistance
from inkwash.training.objectives import (
    adaptive_weight,
    contrastive_loss,
    diffusion_loss,
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
    loss = diffusion_loss(network, latent, noise, t, cond, SCHEDULE, prediction)  # type: ignore[arg-type]
    assert loss.shape == (3,)
    torch.testing.assert_close(loss, torch.zeros(3), rtol=0, atol=1e-8)
    offset = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    loss = diffusion_loss(network, latent, noise, t, cond, SCHEDULE, prediction)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, torch.tensor([1.0, 4.0, 9.0]), rtol=1e-4, atol=1e-4)


def test_another_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="'score' is not one of eps, v, x0"):
        diffusion_loss(
            lambda x, t: x, draw(1, 4, 2, 2), draw(1, 4, 2, 2), torch.tensor([1]), {}, SCHEDULE, "score"
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
