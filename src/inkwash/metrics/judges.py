"""Judges of single objects by file, and scenes by file, for `scenes.scene_figures`. W crops, K names, D feature width."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from inkwash.files import ModelFileError
from inkwash.metrics.clip import CLIPJudge, linear_layers
from inkwash.metrics.networks import FeatureNetwork, digest
from inkwash.metrics.objects import on_white
from inkwash.metrics.scenes import CropJudge, Scene
from inkwash.weights.bytes.tensor_file import read_tensors

SIDE = 128  # pixels of a crop
SHARPNESS = 100.0  # of CLIP's cosines as logits, at which its training is stopped from going further


def read_scenes(path: Path) -> dict[str, Scene]:
    """Scenes by their captions, of a file of JSON objects, one a line: `Scene.of`'s fields and `caption`.

    Raises ModelFileError naming the line that is none.
    """
    scenes: dict[str, Scene] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{path} can't be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = json.loads(line)
                scenes.setdefault(" ".join(str(record["caption"]).split()), Scene.of(record))
            except (ValueError, KeyError, TypeError) as error:
                raise ModelFileError(f"{path}, line {number}: no scene with a caption: {error}") from error
    if not scenes:
        raise ModelFileError(f"{path} holds no scenes")
    return scenes


def clip_crop_judge(clip: CLIPJudge, scenes: Iterable[Scene]) -> CropJudge:
    """A CLIP as a judge of the names that scenes have, each as "a picture of NAME"."""
    names = sorted({one.name for scene in scenes for one in scene.objects})
    texts = clip.text_vectors([f"a picture of {name}" for name in names])
    return CropJudge(
        names,
        SIDE,
        lambda crops: SHARPNESS * clip.picture_vectors(crops) @ texts.T,
        f'{clip.pictures.identity}, of {len(names)} names as "a picture of NAME"',
    )


def head_judge(path: Path, network: FeatureNetwork) -> CropJudge:
    """Linear layers over a network's features as a judge.

    A safetensors file of one or more `weight` and `bias`, in the order of the numbers in their names, between which GELU is
    applied. Its metadata say `names`, a JSON list for the last layer's outputs; `background`, "white" where the layers
    learnt from objects on white, which crops are then put on; and `network`, which has to be the one given. Raises
    ModelFileError for anything else.
    """
    file = read_tensors(path)
    try:
        names = [str(name) for name in json.loads(file.metadata["names"])]
    except (KeyError, ValueError, TypeError):
        raise ModelFileError(f"{path} is not a judge: its metadata have no JSON list of names") from None
    background = file.metadata.get("background", "")
    wanted = file.metadata.get("network", network.identity.name)
    if wanted != network.identity.name:
        raise ModelFileError(f"{path} is a judge over {wanted}, and the network is {network.identity.name}")
    layers = linear_layers(file.tensors, f"{path} is not a judge")
    if layers[-1][0].shape[0] != len(names):
        raise ModelFileError(f"{path} has {layers[-1][0].shape[0]} outputs, and {len(names)} names")

    def classify(crops: Tensor) -> Tensor:
        x = network(on_white(crops) if background == "white" else crops).pooled
        if x.shape[1] != layers[0][0].shape[1]:
            raise ModelFileError(
                f"{path} reads {layers[0][0].shape[1]} features, and {network.identity.name} has {x.shape[1]}"
            )
        for weight, bias in layers[:-1]:
            x = F.gelu(F.linear(x, weight, bias))
        return F.linear(x, *layers[-1])

    white = ", on white" if background == "white" else ""
    return CropJudge(
        names, SIDE, classify, f"{digest(path)} of {len(names)} names over {network.identity}{white}"
    )
