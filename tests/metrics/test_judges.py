"""Judges by file: heads over features as torch computes them, CLIP as transformers does, and scenes by their captions."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inkwash.files import ModelFileError
from inkwash.metrics.clip import clip_judge
from inkwash.metrics.judges import clip_crop_judge, head_judge, read_scenes
from inkwash.metrics.networks import FeatureNetwork, Identity
from inkwash.metrics.objects import on_white
from inkwash.metrics.scenes import Scene
from inkwash.models.tokenizer import Tokenizer
from tests.support.tiny_models import write_clip

NAMES = ["cherry", "leaf", "sea"]


class Means(nn.Module):
    """Three features: the colour's means."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


NETWORK = FeatureNetwork(Identity("means", "0" * 10, "as it is"), Means(), lambda x: x)


def head(path: Path, metadata: dict[str, str], *sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    save_file(
        {
            f"layers.{i}.{name}": value
            for i, each in enumerate(layers)
            for name, value in each.state_dict().items()
        },
        path,
        metadata,
    )
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.GELU())][:-1])


@pytest.mark.parametrize("sizes", [(3, 3), (3, 7, 3)])
@pytest.mark.parametrize("background", ["", "white"])
def test_a_head_is_its_layers_over_the_features(
    tmp_path: Path, sizes: tuple[int, ...], background: str
) -> None:
    said = {"names": json.dumps(NAMES), "network": "means"} | (
        {"background": background} if background else {}
    )
    layers = head(tmp_path / "judge.safetensors", said, *sizes)
    judge = head_judge(tmp_path / "judge.safetensors", NETWORK)
    crops = torch.rand(4, 3, 16, 16) * 2 - 1
    seen = on_white(crops) if background else crops
    torch.testing.assert_close(judge.classify(crops), layers(seen.mean(dim=(2, 3))))
    assert list(judge.names) == NAMES
    assert ("on white" in judge.about) == bool(background)
    assert "means 0000000000" in judge.about


@pytest.mark.parametrize(
    ("metadata", "sizes", "said"),
    [
        ({}, (3, 3), "its metadata have no JSON list of names"),
        ({"names": "cherry"}, (3, 3), "its metadata have no JSON list of names"),
        ({"names": '["cherry"]'}, (3, 3), "has 3 outputs, and 1 names"),
        (
            {"names": json.dumps(NAMES), "network": "dinov2"},
            (3, 3),
            "is a judge over dinov2, and the network is means",
        ),
    ],
)
def test_what_is_no_judge_is_refused(
    tmp_path: Path, metadata: dict[str, str], sizes: tuple[int, ...], said: str
) -> None:
    head(tmp_path / "judge.safetensors", metadata, *sizes)
    with pytest.raises(ModelFileError, match=said):
        head_judge(tmp_path / "judge.safetensors", NETWORK)


def test_a_head_for_other_features_says_so(tmp_path: Path) -> None:
    head(tmp_path / "judge.safetensors", {"names": json.dumps(NAMES)}, 5, 3)
    with pytest.raises(ModelFileError, match="reads 5 features, and means has 3"):
        head_judge(tmp_path / "judge.safetensors", NETWORK).classify(torch.zeros(1, 3, 8, 8))


@torch.no_grad()
def test_clip_names_crops_as_transformers_does(tmp_path: Path) -> None:
    model = write_clip(tmp_path)
    scenes = [
        Scene.of({"objects": [{"name": name} for name in names]}) for names in (["sea", "leaf"], ["cherry"])
    ]
    clip = clip_judge(tmp_path)
    judge = clip_crop_judge(clip, scenes)
    assert list(judge.names) == NAMES
    crops = torch.rand(2, 3, 32, 32) * 2 - 1
    theirs = model(
        input_ids=torch.tensor(Tokenizer([])([f"a picture of {name}" for name in NAMES])),
        pixel_values=clip.pictures.prepare(crops),
    )
    wanted = theirs.logits_per_image / model.logit_scale.exp() * 100
    torch.testing.assert_close(judge.classify(crops), wanted, rtol=1e-4, atol=1e-3)


def test_scenes_are_read_by_their_captions(tmp_path: Path) -> None:
    file = tmp_path / "scenes.jsonl"
    record = {"caption": " a red  apple\n", "objects": [{"name": "apple", "colour": "red"}]}
    file.write_text(json.dumps(record) + "\n\n" + json.dumps({"caption": "b", "objects": []}) + "\n")
    assert read_scenes(file) == {"a red apple": Scene.of(record), "b": Scene(())}
    for text, said in (
        ("", "holds no scenes"),
        ("{", "line 1: no scene with a caption"),
        ('{"objects": []}', "line 1: no scene with a caption"),
        (json.dumps(record) + '\n{"caption": "c"}', "line 2: no scene with a caption"),
        ("[]", "line 1"),
    ):
        file.write_text(text)
        with pytest.raises(ModelFileError, match=said) as error:
            read_scenes(file)
        assert "\n" not in str(error.value)
    with pytest.raises(ModelFileError, match="can't be read"):
        read_scenes(tmp_path / "none.jsonl")
