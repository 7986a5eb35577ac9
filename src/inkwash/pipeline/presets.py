"""Presets: the settings that few-step models were distilled for. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Settings of one kind of distillation, and the range in which they make sense."""

    steps: int
    cfg_scale: float
    sampler: str
    schedule: str
    most_steps: int  # more change little, or do harm
    most_cfg: float = 1.5  # guidance is in the weights already: more burns
    guided: bool = False  # the guidance scale is an input of the network

    @property
    def values(self) -> dict[str, int | float | str]:
        """The fields of a request that it sets."""
        names = ("steps", "cfg_scale", "sampler", "schedule")
        return {name: getattr(self, name) for name in names}


PRESETS = {
    # Lin et al. 2024, Yin et al. 2024, Ren et al. 2024, Luo et al. 2023, Zheng et al. 2024, Sauer et al. 2023
    "dmd2": Preset(4, 1.0, "lcm", "turbo", most_steps=4),
    # Meng et al. 2023, section 3.1: guidance alone was distilled
    "guided": Preset(20, 1.0, "dpmpp_2m", "karras", most_steps=1000),
    "hyper": Preset(8, 1.0, "ddim", "turbo", most_steps=16),
    "lcm": Preset(4, 8.0, "lcm", "lcm", most_steps=8, guided=True),
    "lcm-lora": Preset(4, 1.0, "lcm", "lcm", most_steps=8, most_cfg=2.0),
    "lightning": Preset(4, 1.0, "euler", "turbo", most_steps=8),
    "tcd": Preset(4, 1.0, "tcd", "lcm", most_steps=20),
    "turbo": Preset(4, 1.0, "euler_ancestral", "turbo", most_steps=4),
}
