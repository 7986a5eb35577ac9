"""Detection of models and adapters that were distilled to draw in few steps, by their files."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# a word in a name or in metadata -> the preset; the first that fits decides
WORDS = {
    r"dmd2?": "dmd2",
    r"hyper[-_ ]?sd(xl|\d+)?": "hyper",
    r"lightning": "lightning",
    r"tcd": "tcd",
    r"lcm|latent[-_ ]consistency": "lcm-lora",
    r"turbo": "turbo",
}
TITLES = (
    "modelspec.title",
    "modelspec.architecture",
    "modelspec.description",
    "ss_output_name",
    "ss_sd_model_name",
)
KEY = "inkwash.few_steps"  # in metadata: preset and steps, as "lcm-lora 4"
SCHEDULERS = {"LCMScheduler": "lcm-lora", "TCDScheduler": "tcd"}
EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
STEPS = re.compile(r"(?<!\d)(\d{1,2})[-_ ]?steps?(?![a-z])")
X0 = re.compile(r"(?<![a-z0-9])x0(?![a-z0-9])")


@dataclass(frozen=True)
class FewSteps:
    """A model's distillation: the preset that suits it, the steps if its name has them, and the evidence."""

    preset: str
    why: str
    steps: int | None = None
    prediction: str | None = None  # x0, where the name says it: Lightning's of one step

    @classmethod
    def parse(cls, text: str) -> "FewSteps | None":
        """Read the text that `written` put into a file; None for anything else."""
        preset, _, steps = text.partition(" ")
        if preset not in {*WORDS.values(), "lcm", "guided"} or not steps.isdecimal():
            return None
        return cls(preset, f"{KEY} is {text!r}", int(steps))

    @property
    def written(self) -> dict[str, str]:
        """The metadata that record it."""
        return {KEY: f"{self.preset} {self.steps}"}


def few_steps_of(
    paths: Iterable[Path],
    metadata: Mapping[str, Any],
    scheduler: Mapping[str, Any] = {},
    guidance_input: bool = False,
) -> FewSteps | None:
    """A model's distillation; None where nothing says that there was one.

    paths: of its files, whose names are asked last. scheduler: its `scheduler_config.json`. guidance_input: whether the
    U-Net takes an embedded guidance scale, as Luo et al. 2023 distilled it.
    """
    if said_outright := FewSteps.parse(str(metadata.get(KEY, ""))):
        return said_outright
    # a LoRA's own name is often only that of its folder
    names = {f"the name {'/'.join(path.parts[-2:])}": "/".join(path.parts[-2:]).lower() for path in paths}
    said = {f"{key} {value!r}"[:120]: str(value).lower() for key in TITLES if (value := metadata.get(key))}
    steps = next(
        (int(match[1]) for text in (*names.values(), *said.values()) if (match := STEPS.search(text))), None
    )
    if guidance_input:
        return FewSteps("lcm", "the U-Net takes an embedded guidance scale", steps)
    kind = scheduler.get("_class_name")
    if kind in SCHEDULERS:
        return FewSteps(SCHEDULERS[kind], f"scheduler_config.json names {kind}", steps)
    for why, text in (said | names).items():
        for pattern, preset in WORDS.items():
            if re.search(rf"(?<![a-z])({pattern})(?![a-z])", text):
                prediction = "x0" if preset == "lightning" and X0.search(text) else None
                return FewSteps(preset, why, steps, prediction)
    plain = scheduler.get("prediction_type", "epsilon") == "epsilon"
    if kind in EULER and scheduler.get("timestep_spacing") == "trailing" and plain:
        return FewSteps("turbo", f"scheduler_config.json names {kind} with trailing timesteps", steps)
    return None
