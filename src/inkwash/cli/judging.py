"""The networks that judge pictures, as `inkwash evaluate` and `evaluate-pictures` take them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from inkwash.cli import options

if TYPE_CHECKING:
    from inkwash.metrics.clip import CLIPJudge
    from inkwash.metrics.evaluation import Judges
    from inkwash.metrics.networks import FeatureNetwork
    from inkwash.metrics.scenes import CropJudge, Scene


@Parameter(name="*")
@dataclass(frozen=True)
class JudgeOptions:
    """The networks that judge pictures."""

    network: Annotated[
        Literal["dinov2", "efficientnet-lite0", "inception", "inception-tf", "none"] | None,
        Parameter(
            help="Whose features are compared; none: pairs only. Default: the protocol's, else efficientnet-lite0."
        ),
    ] = None
    weights: Annotated[
        Path | None,
        Parameter(help="The feature network's file; efficientnet-lite0's comes by `inkwash fetch-metrics`."),
    ] = None
    features_dtype: Annotated[
        Literal["fp32", "bf16"], Parameter(help="Of the feature network; figures of the two do not compare.")
    ] = "fp32"
    lpips: Annotated[
        Literal["st-alex", "st-vgg", "none"],
        Parameter(help="Perceptual distance of pairs: shift-tolerant LPIPS, by `inkwash fetch-metrics`."),
    ] = "none"
    clip: Annotated[
        Path | None,
        Parameter(
            help="A CLIP of both towers, a file or transformers' folder: adds the CLIP score and CMMD."
        ),
    ] = None
    aesthetic: Annotated[
        Path | None,
        Parameter(
            help="With --clip: the linear layers of an aesthetic predictor over its pictures' vectors."
        ),
    ] = None
    scenes: Annotated[
        Path | None,
        Parameter(
            help="JSON lines of what captions ask for: counts how many objects, colours and places are right."
        ),
    ] = None
    scene_judge: Annotated[
        Path | None,
        Parameter(help="With --scenes: a classifier over the feature network; default: the CLIP of --clip."),
    ] = None
    in_boxes: Annotated[
        bool,
        Parameter(
            negative="", help="With --scenes: look for objects in their boxes alone, and not everywhere."
        ),
    ] = False
    device: Annotated[str, Parameter(help="Of these networks, such as cpu or cuda.")] = "cpu"


DEFAULTS = JudgeOptions()


def open_judges(judging: JudgeOptions, network: str, watch: Callable[[int], object]) -> "Judges":
    """The networks that the options name, opened."""
    import torch

    from inkwash.metrics.clip import aesthetic_head, clip_judge
    from inkwash.metrics.evaluation import Judges
    from inkwash.metrics.fetch import fetched
    from inkwash.metrics.networks import digest, open_network, st_lpips
    from inkwash.pipeline.api import usable

    name = judging.network or network
    if judging.aesthetic and not judging.clip:
        raise options.usage_error("--aesthetic needs --clip, whose vectors it reads")
    if (judging.scene_judge or judging.in_boxes) and not judging.scenes:
        raise options.usage_error("--scene-judge and --in-boxes need --scenes, which says what to look for")
    if judging.scenes and not (judging.scene_judge or judging.clip):
        raise options.usage_error("--scenes needs --scene-judge, or --clip, which then judges")
    with options.opening():
        usable(judging.device)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[judging.features_dtype]
        opened = None if name == "none" else open_network(name, judging.weights, judging.device, dtype)
        distance, said = None, ""
        if judging.lpips != "none":
            trunk = judging.lpips.removeprefix("st-")
            distance, said = st_lpips(trunk=trunk), f"ST-LPIPS {trunk} {digest(fetched(f'stlpips-{trunk}'))}"
        clip = clip_judge(judging.clip) if judging.clip else None
        head = aesthetic_head(judging.aesthetic) if judging.aesthetic else None
        scenes, crops = scene_judge(judging, opened, clip)
        return Judges(opened, clip, head, distance, said, crops, scenes, judging.in_boxes, watch)


def scene_judge(
    judging: JudgeOptions, network: "FeatureNetwork | None", clip: "CLIPJudge | None"
) -> tuple[dict[str, "Scene"], "CropJudge | None"]:
    """The scenes that the options name, by caption, and who judges them."""
    from inkwash.metrics.judges import clip_crop_judge, head_judge, read_scenes

    if judging.scenes is None:
        return {}, None
    scenes = read_scenes(judging.scenes)
    if judging.scene_judge is None:
        assert clip
        return scenes, clip_crop_judge(clip, scenes.values())
    if network is None:
        raise options.usage_error("--scene-judge reads the features of --network, which is none")
    return scenes, head_judge(judging.scene_judge, network)
