"""Diffusers' scheduler_config.json: a model's noise schedule and its prediction type, read and written."""

from collections.abc import Mapping
from typing import Any

from inkwash.diffusion.denoiser import EDM
from inkwash.diffusion.schedules import NoiseSchedule, cosine_betas, linear_betas, sqrt_linear_betas
from inkwash.files import ModelFileError

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}  # diffusers' names and ours
EDM_PREDICTIONS = {"epsilon": "edm", "v_prediction": "edm_v"}  # with a scheduler of EDM's
PREDICTION_TYPES = {ours: theirs for theirs, ours in PREDICTIONS.items()}
BETAS = {
    "linear": linear_betas,
    "scaled_linear": sqrt_linear_betas,
    "squaredcos_cap_v2": lambda num, *_: cosine_betas(num),  # which has no start and end
}


def is_edm(scheduler: Mapping[str, Any]) -> bool:
    """Return True if a scheduler steps in EDM's sigmas rather than in a schedule of betas."""
    return str(scheduler.get("_class_name", "")).startswith("EDM")


def read_schedule(scheduler: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule of a scheduler. Raises ModelFileError naming the first field that has no such value."""
    if is_edm(scheduler):
        low, high = scheduler.get("sigma_min", 0.002), scheduler.get("sigma_max", 80.0)
        if {type(low), type(high)} - {int, float} or not 0 < low < high < 1e6:
            raise ModelFileError(f"sigma_min {low!r} and sigma_max {high!r} are not rising levels above 0")
        return NoiseSchedule.log_uniform(low, high)
    kind, num = scheduler.get("beta_schedule", "linear"), scheduler.get("num_train_timesteps", 1000)
    if not isinstance(kind, str) or kind not in BETAS:
        raise ModelFileError(f"beta_schedule {kind!r} is not one of {', '.join(BETAS)}")
    if type(num) is not int or not 2 <= num <= 100_000:
        raise ModelFileError(f"num_train_timesteps {num!r} is not a whole number in 2 to 100,000")
    start, end = scheduler.get("beta_start", 0.0001), scheduler.get("beta_end", 0.02)
    for name, beta in (("beta_start", start), ("beta_end", end)):
        if type(beta) not in (int, float) or not 0 < beta < 1:
            raise ModelFileError(f"{name} {beta!r} is not a number between 0 and 1")
    try:
        schedule = NoiseSchedule.from_betas(BETAS[kind](num, start, end))
    except ValueError as error:
        raise ModelFileError(f"{num} betas from {start} to {end}: {error}") from error
    return schedule.zero_terminal_snr() if scheduler.get("rescale_betas_zero_snr") else schedule


def read_prediction(scheduler: Mapping[str, Any]) -> str:
    """The prediction type under our name. Raises ModelFileError for one that is not covered."""
    name, edm = scheduler.get("prediction_type", "epsilon"), is_edm(scheduler)
    known = EDM_PREDICTIONS if edm else PREDICTIONS
    if not isinstance(name, str) or name not in known:
        raise ModelFileError(f"prediction_type {name!r} is not one of {', '.join(known)}")
    std = scheduler.get("sigma_data", 0.5)
    if edm and std != EDM[known[name]][0]:
        raise ModelFileError(f"sigma_data {std!r} is not covered with {name}: {EDM[known[name]][0]} is")
    return known[name]


def scheduler_json(
    prediction: str | None,
    betas: tuple[float, float] = (0.00085, 0.012),
    zero_terminal_snr: bool = False,
    beta_schedule: str = "scaled_linear",
) -> dict[str, Any]:
    """`scheduler/scheduler_config.json` of 1000 steps. prediction: eps, v, x0 or None. beta_schedule: one of BETAS."""
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": beta_schedule,
        "beta_start": betas[0],
        "beta_end": betas[1],
        "prediction_type": PREDICTION_TYPES.get(prediction or "", prediction),
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    } | ({"rescale_betas_zero_snr": True} if zero_terminal_snr else {})


def edm_scheduler_json(prediction: str, sigma_min: float = 0.002, sigma_max: float = 80.0) -> dict[str, Any]:
    """`scheduler/scheduler_config.json` of a network that is preconditioned as EDM. prediction: edm or edm_v."""
    names = {ours: theirs for theirs, ours in EDM_PREDICTIONS.items()}
    return {
        "_class_name": "EDMEulerScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": names[prediction],
        "sigma_data": EDM[prediction][0],
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
    }
