"""CLIP's figures against transformers, on small random towers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from inkwash.files import ModelFileError
from inkwash.metrics.clip import aesthetic_head, clip_judge, clip_scores, directional_similarity
from inkwash.models.tokenizer import Tokenizer

TEXTS = ["a red taxi", "a rocket above a house"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    tokenizer, folder = Tokenizer([]), tmp_path_factory.mktemp("clip")
    size = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = CLIPTextConfig(
        **size, vocab_size=len(tokenizer.vocab), eos_token_id=tokenizer.end, projection_dim=12
    )
    vision = CLIPVisionConfig(**size, image_size=32, patch_size=8, projection_dim=12)
    model = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    )
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def test_both_towers_are_transformers(folder: Path) -> None:
    judge, theirs = clip_judge(folder), CLIPModel.from_pretrained(folder).eval()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = torch.tensor(judge.tokenizer(TEXTS))
    with torch.no_grad():
        found = theirs(input_ids=tokens, pixel_values=judge.pictures.prepare(pixels))
    pictures, texts = judge.picture_vectors(pixels), judge.text_vectors(TEXTS)
    torch.testing.assert_close(pictures, found.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(texts, found.text_embeds, rtol=1e-4, atol=1e-5)
    expected = 100 * torch.cosine_similarity(found.image_embeds, found.text_embeds).clamp_min(0)
    torch.testing.assert_close(clip_scores(pictures, texts), expected, rtol=1e-4, atol=1e-3)


def test_a_picture_that_is_not_square_is_seen_in_its_middle(folder: Path) -> None:
    prepare = clip_judge(folder).pictures.prepare
    wide = torch.zeros(1, 3, 32, 64)
    wide[..., 16:48] = 1
    torch.testing.assert_close(prepare(wide)[..., 4:-4], prepare(torch.ones(1, 3, 32, 32))[..., 4:-4])


def test_directional_similarity_is_one_where_both_change_alike() -> None:
    a, b = torch.eye(4)[:2], torch.eye(4)[2:]
    torch.testing.assert_close(directional_similarity(a, b, a, b), torch.ones(2))
    torch.testing.assert_close(directional_similarity(a, b, b, a), -torch.ones(2))


def test_half_a_clip_is_refused(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "text" not in k}, tmp_path / "vision.safetensors")
    with pytest.raises(ModelFileError, match="is not a CLIP of both towers") as error:
        clip_judge(tmp_path / "vision.safetensors")
    assert "\n" not in str(error.value)


def test_an_aesthetic_head_is_its_linear_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    chain = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1)).eval()
    save_file(
        {f"layers.{name}": value for name, value in chain.state_dict().items()}, tmp_path / "head.safetensors"
    )
    vectors = torch.randn(5, 12)
    torch.testing.assert_close(aesthetic_head(tmp_path / "head.safetensors")(vectors), chain(vectors)[:, 0])
    save_file({"layers.0.weight": torch.zeros(3, 12)}, tmp_path / "cut.safetensors")
    with pytest.raises(ModelFileError, match="there is no layers.0.bias"):
        aesthetic_head(tmp_path / "cut.safetensors")
    save_file(
        {"layers.0.weight": torch.zeros(3, 12), "layers.0.bias": torch.zeros(3)},
        tmp_path / "three.safetensors",
    )
    with pytest.raises(ModelFileError, match="do not lead from a vector to one number"):
        aesthetic_head(tmp_path / "three.safetensors")
