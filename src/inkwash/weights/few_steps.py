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
# in metadata: preset and steps, as "lcm-lora 4", and the guidance scale of a network that sees it, as "lcm 4 7.5"
KEY = "inkwash.few_steps"
WRITTEN = re.compile(r"(\S+) (\d+)(?: (\d+(?:\.\d+)?))?")
SCHEDULERS = {"LCMScheduler": "lcm-lora", "TCDScheduler": "tcd"}
EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
STEPS = re.compile(r"(?<!\d)(\d{1,2})[-_ ]?steps?(?![a-z])")
X0 = re.compile(r"(?<![a-z0-9])x0(?![a-z0-9])")
KEPT_GUIDANCE = re.compile(r"(?<![a-z])cfg(?![a-z])")  # Hyper-SD's LoRAs that are drawn with guidance


@dataclass(frozen=True)
class FewSteps:
    """A model's distillation: the preset that suits it, the steps if its name has them, and the evidence."""

    preset: str
    why: str
    steps: int | None = None
    prediction: str | None = None  # x0, where the name says it: Lightning's of one step
    timesteps: tuple[int, ...] = ()  # where it draws at others than its preset's
    cfg_scale: float | None = None  # where it is drawn with guidance, or sees the scale

    @classmethod
    def parse(cls, text: str) -> "FewSteps | None":
        """Read the text that `written` put into a file; None for anything else."""
        match = WRITTEN.fullmatch(text)
        if match is None or match[1] not in {*WORDS.values(), "lcm", "guided"}:
            return None
        scale = float(match[3]) if match[3] else None
        return cls(match[1], f"{KEY} is {text!r}", int(match[2]), cfg_scale=scale)

    @classmethod
    def named(cls, preset: str, why: str, text: str, steps: int | None) -> "FewSteps":
        """Read what a file's name or a title, in small letters, says beside the preset."""
        if preset == "lightning" and X0.search(text):
            return cls(preset, why, steps, "x0")
        if preset == "dmd2" and steps == 1:
            return cls(preset, why, steps, timesteps=(399,))
        if preset == "hyper" and steps == 1 and "unet" in text:
            return cls(preset, why, steps, timesteps=(800,))
        if preset == "hyper" and steps == 1 and "lora" in text:  # it draws in 1 to 8 steps, all by TCD
            return cls("tcd", why)
        kept = preset == "hyper" and KEPT_GUIDANCE.search(text)
        return cls(preset, why, steps, cfg_scale=5.0 if kept else None)

    @property
    def written(self) -> dict[str, str]:
        """The metadata that record it."""
        scale = "" if self.cfg_scale is None else f" {self.cfg_scale:g}"
        return {KEY: f"{self.preset} {self.steps}{scale}"}

    @property
    def options(self) -> dict[str, Any]:
        """The options to draw with."""
        steps = {"timesteps": ",".join(map(str, self.timesteps))} if self.timesteps else {"steps": self.steps}
        given = {"preset": self.preset, **steps, "cfg_scale": self.cfg_scale}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def hint(self) -> str:
        """The options, as the command line has them."""
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.options.items())


def name_of(path: Path) -> str:
    """The name of a file with its folder's, which alone names some LoRAs; in the hub's cache with its repository's."""
    home = next((part for part in path.parts if part.startswith("models--")), None)
    inner = path.parts[path.parts.index("snapshots") + 2 :] if home and "snapshots" in path.parts else None
    return "/".join(path.parts[-2:]) if inner is None else "/".join([*str(home).split("--")[1:], *inner])


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
    names = {f"the name {name}": name.lower() for name in map(name_of, paths)}
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
                return FewSteps.named(preset, why, text, steps)
    plain = scheduler.get("prediction_type", "epsilon") == "epsilon"
    if kind in EULER and scheduler.get("timestep_spacing") == "trailing" and plain:
        return FewSteps("turbo", f"scheduler_config.json names {kind} with trailing timesteps", steps)
    return None
