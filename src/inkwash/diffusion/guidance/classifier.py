"""Guidance by a classifier of noisy latents. B batch, C channels, H W latent size, K classes."""

from collections.abc import Callable

import torch
from torch import Tensor

from inkwash.diffusion.denoiser import Denoiser, shaped
from inkwash.diffusion.guidance.compose import Guided, Prediction, changed

Classifier = Callable[[Tensor, Tensor], Tensor]  # x (B, C, H, W) and sigma (B,) to logits (B, K)


def classifier_guidance(D: Denoiser, classifier: Classifier, label: Tensor, scale: float) -> Denoiser:
    """D with its x0 moved by scale * sigma^2 * grad log p(label | x, sigma).

    That is the score of p(x) p(label | x)^scale (Dhariwal and Nichol 2021, algorithm 2), so 1 is Bayes' rule and more
    is sharper. classifier: trained on x0 + sigma * noise. label: whole numbers (B,) in [0, K). A `Guided` D stays
    one. Raises ValueError for a label that is not among the classes.
    """

    def change(x: Tensor, sigma: Tensor, x0: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma).expand(len(x))
        with torch.inference_mode(False), torch.enable_grad():
            seen = x.clone().requires_grad_()  # no tensor of inference mode
            log_p = torch.log_softmax(classifier(seen, sigma.clone()), dim=1)
            if label.shape != (len(x),) or not bool(((label >= 0) & (label < log_p.shape[1])).all()):
                wanted = f"{len(x)} of 0 to {log_p.shape[1] - 1}"
                raise ValueError(f"label {label.tolist()} should be {wanted}, one for each picture")
            chosen = log_p.gather(1, label.clone().to(x.device)[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, seen)
        return x0 + scale * shaped(sigma.double().square(), x) * gradient

    if not isinstance(D, Guided):
        return lambda x, sigma: change(x, sigma, D(x, sigma))

    def change_guided(x: Tensor, sigma: Tensor, made: Prediction) -> Tensor:
        return change(x, sigma, made.guided)

    return changed(D, change_guided)
