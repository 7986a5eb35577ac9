"""Nodes of sampling: a sampler's settings, its noise levels, and where its model, prompts and latent come from.

n steps.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from inkwash.pipeline.names import SCHEDULE_ALIASES
from inkwash.serve.comfy.links import Links
from inkwash.serve.comfy.table import LEVELS, SAMPLINGS

NUMBERS = (int, float)
MOST_STEPS = 500  # of a request
LARGEST = 14.61  # sigma of Stable Diffusion, as rounded as nodes have it
# of Stable Diffusion's training, rising
SIGMAS = np.sqrt(1 / np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2) - 1)


class Levels(NamedTuple):
    """Noise levels: the fields of a request that give them, how many there are, and the share of all that they walk."""

    values: dict[str, Any]
    num: int
    denoise: float


class Sampling(NamedTuple):
    """A graph's sampler: the node, the options of a request, and where its model, prompts and latent come from.

    leftover: the step from which another sampler goes on with what this one leaves; None where it draws to the end.
    """

    node: str
    values: dict[str, Any]
    model: tuple[str, int]
    prompts: dict[str, tuple[str, int]]
    latent: str
    denoise: float
    leftover: int | None = None


def sampling_of(links: Links, id: str, goes_on: bool = False) -> Sampling:
    """The settings of a sampler: of all settings in one node, or of nodes for each. Raises NodeError.

    goes_on: whether it goes on where another one stopped, and so adds no noise.
    """
    kind, guider, select, leftover = links.kind(id), id, id, None
    if kind == "SamplerCustomAdvanced":
        guider = links.source(id, "guider", "CFGGuider", "BasicGuider")
        seed = links.value(links.source(id, "noise", "RandomNoise"), "noise_seed", int)
    else:
        seed = links.value(id, "seed" if kind == "KSampler" else "noise_seed", int)
        adds = links.graph[id]["inputs"].get("add_noise", True)
        if adds not in ((False, "disable") if goes_on else (True, "enable")):
            raise links.fail(
                id,
                f"add_noise {str(adds)[:20]}: only a refiner goes on without noise of its own, "
                "from a KSamplerAdvanced of the base model",
                "add_noise",
            )
    if kind.startswith("SamplerCustom"):
        select = links.source(id, "sampler", "KSamplerSelect")
        levels = linked_levels(links, id)
    else:
        levels = named_levels(links, id)
    if kind == "KSamplerAdvanced":
        levels, leftover = stage(links, id, levels)
    alone = links.kind(guider) == "BasicGuider"
    values = levels.values | {
        "seed": seed % 2**63,
        "cfg_scale": 1.0 if alone else links.number(guider, "cfg"),
        "sampler": links.value(select, "sampler_name", str),
    }
    ways = {"positive": "conditioning"} if alone else {"positive": "positive", "negative": "negative"}
    prompts = {name: links.link(guider, way) for name, way in ways.items()}
    latent = links.link(id, "latent_image")[0]
    return Sampling(id, values, links.link(guider, "model"), prompts, latent, levels.denoise, leftover)


def named_levels(links: Links, id: str) -> Levels:
    """The levels of a schedule that is named."""
    steps, schedule = links.value(id, "steps", int), links.value(id, "scheduler", str)
    denoise = 1.0 if links.kind(id) == "KSamplerAdvanced" else links.number(id, "denoise")
    return Levels({"steps": steps, "schedule": schedule}, steps, denoise)


def stage(links: Links, id: str, levels: Levels) -> tuple[Levels, int | None]:
    """The levels of a KSamplerAdvanced from its first step on, and the step at which it leaves off with noise, if any."""
    first, last = (links.value(id, name, int) for name in ("start_at_step", "end_at_step"))
    leaves = links.value(id, "return_with_leftover_noise", str) == "enable"
    if last < levels.num and not (leaves and 0 == first < last):
        raise links.fail(
            id,
            f"end_at_step {last} of {levels.num} steps: a picture is drawn to its end here, or to where a refiner goes on",
            "end_at_step",
        )
    return split(links, id, levels, first, "start_at_step"), last if last < levels.num else None


def linked_levels(links: Links, sampler: str) -> Levels:
    """The levels that come to a sampler from a node of their own, split or whole."""
    found, output = links.link(sampler, "sigmas")
    if (kind := links.kind(found)) not in ("SplitSigmas", "SplitSigmasDenoise"):
        return given_levels(links, links.source(sampler, "sigmas", *LEVELS))
    if output != 1:
        raise links.fail(sampler, "of split sigmas the low ones are sampled here", "sigmas")
    whole = given_levels(links, links.source(found, "sigmas", *LEVELS))
    if kind == "SplitSigmas":
        return split(links, sampler, whole, links.value(found, "step", int), "sigmas")
    kept = round(whole.num * links.within(found, "denoise", 1, NUMBERS))
    return split(links, sampler, whole, whole.num - kept, "sigmas")


def split(links: Links, id: str, levels: Levels, step: int, name: str) -> Levels:
    """The levels from a step on. name: the input that an error is about."""
    if not step:
        return levels
    num, by_name = levels.num - step, "schedule" in levels.values
    if not 0 < step < levels.num or (by_name and levels.denoise != 1):
        raise links.fail(id, f"sigmas of {levels.num} steps can't be split at {step}", name)
    denoise = num / levels.num
    if int(num / denoise) != levels.num:  # by rounding; the request's rule must find all steps again
        denoise = math.nextafter(denoise, 0)
    if by_name:
        return Levels(levels.values | {"steps": num}, num, denoise)
    return Levels({key: some[step:] for key, some in levels.values.items()}, num, denoise * levels.denoise)


def given_levels(links: Links, id: str) -> Levels:
    """The levels of a node that gives some, as k-diffusion and ComfyUI compute them."""
    kind = links.kind(id)
    if kind == "BasicScheduler":
        return named_levels(links, id)
    if kind == "ManualSigmas":
        return explicit(links, id, manual(links, id))
    steps = links.value(id, "steps", int)
    if not 1 <= steps <= MOST_STEPS:
        raise links.fail(id, f"steps {steps} is not 1 to {MOST_STEPS}", "steps")
    if kind == "SDTurboScheduler":
        denoise = links.within(id, "denoise", 1, NUMBERS)
        timesteps = tuple(range(999, 0, -100))[10 - int(10 * denoise) :][:steps]
        if not timesteps:
            raise links.fail(id, f"denoise {denoise} is below 0.1, which leaves no step", "denoise")
        return Levels({"timesteps": timesteps}, len(timesteps), float(denoise))
    if kind == "BetaSamplingScheduler":
        for name in ("alpha", "beta"):
            if links.value(id, name, NUMBERS) != 0.6:
                raise links.fail(id, f"{name} must be 0.6 here", name)
        return Levels({"steps": steps, "schedule": "beta"}, steps, 1.0)
    high, low = (links.within(id, name, 5000, NUMBERS) for name in ("sigma_max", "sigma_min"))
    if not 0 < low < high:
        raise links.fail(id, f"sigma_min {low} is not between 0 and sigma_max {high}", "sigma_min")
    rho = 1 if kind == "ExponentialScheduler" else links.within(id, "rho", 100, NUMBERS)
    if rho < 0.1:
        raise links.fail(id, f"rho {rho} is not 0.1 to 100", "rho")
    return explicit(links, id, spread(kind, steps, high, low, rho).tolist())


def spread(kind: str, num: int, high: float, low: float, rho: float) -> np.ndarray:
    """num sigmas from high to low: Karras', else (poly)exponential ones."""
    if kind == "KarrasScheduler":
        return np.linspace(high ** (1 / rho), low ** (1 / rho), num) ** rho
    return np.exp(np.linspace(1, 0, num) ** rho * math.log(high / low) + math.log(low))


def manual(links: Links, id: str) -> list[float]:
    """The sigmas of a text, which ends with 0."""
    text = links.value(id, "sigmas", str)
    try:
        *sigmas, last = (float(part) for part in text.split(","))
    except ValueError:
        last, sigmas = math.nan, []
    if last != 0 or not sigmas:
        raise links.fail(id, f"sigmas {text[:60]!r} are not falling numbers that end with 0", "sigmas")
    return sigmas


def explicit(links: Links, id: str, sigmas: Sequence[float]) -> Levels:
    """Levels by their sigmas, n of them; the share that they walk is that of the largest sigma."""
    if len(sigmas) > MOST_STEPS or any(
        not math.inf > a > b > 0 for a, b in zip(sigmas, [*sigmas[1:], 1e-12], strict=True)
    ):
        raise links.fail(id, "sigmas must be up to 500 numbers above 0 that fall", "sigmas")
    return Levels({"sigmas": tuple(sigmas)}, len(sigmas), min(1.0, sigmas[0] / LARGEST))


def predicted(links: Links, id: str, schedule: str | None, model: str) -> dict[str, Any]:
    """The fields of a request by which a ModelSamplingDiscrete acts on a model. Raises NodeError.

    lcm: only the timesteps that a student of latent consistency was taught; else what the model predicts anyway.
    """
    about, means = links.pictures.about(model), links.one_of(id, "sampling", SAMPLINGS)
    zsnr = links.graph[id]["inputs"]["zsnr"] is True
    if means == "lcm":
        if zsnr or schedule not in ("simple", "sgm_uniform"):
            wrong, name = ("zsnr", "zsnr") if zsnr else (f"scheduler {str(schedule)[:40]}", "sampling")
            raise links.fail(id, f"{wrong}: sampling lcm is for simple and sgm_uniform, without zsnr", name)
        return {"schedule": "lcm"}
    for name, wanted in (("sampling", means), ("zsnr", zsnr)):
        if (known := about.get(name)) not in (None, wanted):
            raise links.fail(
                id,
                f"{name} of {model} is {known}, as its file says; a request can't change it",
                name,
            )
    return {}


def switch_at(links: Links, id: str, schedule: str, steps: int, step: int) -> float:
    """The share of the training's noise levels at which a refiner takes over before a step of a schedule.

    It lies between the timesteps of that step and of the one before. Raises NodeError for a schedule that is not known here.
    """
    name, i = SCHEDULE_ALIASES.get(schedule, schedule), np.arange(steps)
    if name in ("karras", "exponential"):
        kind, rho = ("KarrasScheduler", 7) if name == "karras" else ("", 1)
        sigmas = spread(kind, steps, SIGMAS[-1], SIGMAS[0], rho)
        t = np.interp(np.log(sigmas), np.log(SIGMAS), np.arange(1000))
    elif name in ("uniform", "sgm_uniform", "simple"):
        t = {"uniform": 999 - 999 * i / max(steps - 1, 1), "sgm_uniform": 999 - 999 * i / steps}.get(
            name, 999 - i * 1000 // steps
        )
    else:
        known = "normal, sgm_uniform, simple, karras, exponential"
        raise links.fail(id, f"scheduler {schedule[:40]!r} with a refiner is not one of {known}", "scheduler")
    middle = round(float(t[step - 1] + t[step]) / 2)
    if not t[step] < middle <= t[step - 1]:
        raise links.fail(
            id, f"steps {step} and {step + 1} of {steps} are too close for a refiner between them", "steps"
        )
    return 1 - middle / 1000
