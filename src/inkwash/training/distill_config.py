"""The options of distillation. Imports no torch, as `config`."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from inkwash.pipeline.option import option
from inkwash.pipeline.presets import PRESETS
from inkwash.training.config import MODEL, OPTIMIZER, as_numbers
from inkwash.training.config_methods import FinetuneConfig, LoRAConfig

DISTILLATION = "Distillation"


Scales = Annotated[tuple[Annotated[float, Field(ge=1, le=100)], ...], BeforeValidator(as_numbers)]


class DistillConfig(LoRAConfig, FinetuneConfig):
    """A model that draws in few steps, taught by the model itself."""

    whole: bool = option(False, "Train all weights of the U-Net in place of a LoRA.", group=MODEL)
    objective: Literal["consistency", "progressive", "guidance", "adversarial", "dmd"] = option(
        "consistency",
        "What is learned: consistency (Luo et al. 2023), progressive steps (Salimans and Ho 2022), guidance alone "
        "(Meng et al. 2023), adversarial (Sauer et al. 2023), or dmd (Yin et al. 2024).",
        group=DISTILLATION,
    )
    draw_steps: int = option(
        4, "Steps in which it is to draw.", group=DISTILLATION, unset="4, of guidance 20", ge=1, le=64
    )
    guidance: Scales = option(
        (5.0,),
        "Scale of the teacher's guidance, or two between which each picture's is drawn, as 6,16.",
        group=DISTILLATION,
        min_length=1,
        max_length=2,
    )
    guidance_input: bool = option(
        False,
        "Have the U-Net see the scale, so that cfg_scale acts without a second prediction; needs --whole.",
        group=DISTILLATION,
    )
    solver_steps: int = option(
        50,
        "Of consistency, the steps of the teacher's solver, one at a time.",
        group=DISTILLATION,
        ge=2,
        le=1000,
    )
    teacher_steps: int = option(
        2, "Of progressive, how many of the teacher's steps become one.", group=DISTILLATION, ge=1, le=64
    )
    distance_weight: float = option(
        2.5, "Of adversarial, the weight of the distance to the teacher.", group=DISTILLATION, ge=0, le=1000
    )
    critic_steps: int = option(
        5, "Of dmd, the critic's steps for each of the student's.", group=DISTILLATION, ge=1, le=100
    )
    lr: float = option(1e-5, "Learning rate.", group=OPTIMIZER, gt=0, le=100)

    @model_validator(mode="before")
    @classmethod
    def usual_steps(cls, values: Any) -> Any:
        """Guidance alone leaves the number of steps as it is."""
        alone = values.get("objective") == "guidance"
        return {"draw_steps": PRESETS["guided"].steps} | values if alone else values

    @model_validator(mode="after")
    def check_objective(self) -> Self:
        if self.guidance_input and not (self.whole and self.objective in ("consistency", "guidance")):
            raise ValueError("guidance_input needs whole, and the objective consistency or guidance")
        if self.text_lr or self.from_scratch:
            raise ValueError(
                "text_lr and from_scratch: the student starts as the teacher, and its text encoders stay"
            )
        if self.weighting != "none":
            raise ValueError(f"weighting {self.weighting!r}: distillation has its own; leave it at none")
        return self
