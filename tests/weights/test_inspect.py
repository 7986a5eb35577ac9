"""Files that are no checkpoints are named by what they hold, with the family that they are for."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inkwash.cli import main
from inkwash.files import ModelFileError
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.inspect import inspect

KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
PEFT = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
BLOCK = "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"

# name -> (tensors by shape, kind, family)
FILES: dict[str, tuple[dict[str, tuple[int, ...]], str, str | None]] = {
    "kohya": ({f"{KOHYA}.lora_down.weight": (4, 768), f"{KOHYA}.lora_up.weight": (320, 4)}, "lora", "sd1"),
    "peft": ({f"{PEFT}.lora_A.weight": (4, 2048), f"{PEFT}.lora_B.weight": (640, 4)}, "lora", "sdxl"),
    "loha": ({"lora_unet_mid.hada_w1_a": (4, 4)}, "lora", None),
    "lokr": ({"lycoris_mid.lokr_w1": (4, 4)}, "lora", None),
    "kohya's embedding": ({"emb_params": (3, 768)}, "embedding", "sd1"),
    "sdxl's embedding": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "embedding", "sdxl"),
    "diffusers' embedding": ({"<cat>": (1024,)}, "embedding", "sd2"),
    "controlnet": (
        {"control_model.input_hint_block.0.weight": (16, 3, 3, 3), f"control_model.{BLOCK}": (640, 1024)},
        "controlnet",
        "sd2",
    ),
    "diffusers' controlnet": (
        {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "conv_in.weight": (320, 4, 3, 3)},
        "controlnet",
        None,
    ),
    "controlnet union": (
        {"task_embedding": (6, 320), "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)},
        "controlnet-union",
        None,
    ),
    "style adapter": ({"style_embedding": (1, 8, 1024)}, "style-adapter", None),
    "control-lora": ({"lora_controlnet": (1,)}, "control-lora", None),
    "t2i-adapter": ({"adapter.body.0.in_conv.weight": (4, 4, 1, 1)}, "t2i-adapter", None),
    "ip-adapter": (
        {"ip_adapter.1.to_k_ip.weight": (320, 768), "image_proj.proj.weight": (4, 4)},
        "ip-adapter",
        None,
    ),
    "vae": (
        {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)},
        "vae",
        None,
    ),
    "unet": ({"input_blocks.0.0.weight": (320, 4, 3, 3), BLOCK: (640, 2048)}, "unet", "sdxl"),
    "text encoder": ({"text_model.embeddings.token_embedding.weight": (9, 8)}, "text-encoder", None),
    "image encoder": (
        {"vision_model.embeddings.patch_embedding.weight": (8, 3, 14, 14)},
        "image-encoder",
        None,
    ),
    "prior": ({"prd_embedding": (1, 1, 8)}, "prior", None),
    "upscaler": ({"conv_first.weight": (64, 3, 3, 3)}, "upscaler", None),
    "hypernetwork": ({"768.0.linear.0.weight": (1536, 768)}, "hypernetwork", None),
    "hypernetwork of another width": ({"256.0.linear.0.weight": (512, 256)}, "hypernetwork", None),
    "something else": ({"lstm.weight": (3, 3)}, "unknown", None),
}


@pytest.mark.parametrize("name", FILES)
def test_kind_and_family(tmp_path: Path, name: str) -> None:
    shapes, kind, family = FILES[name]
    tensors = {key: torch.ones(shape, dtype=torch.float16) for key, shape in shapes.items()}
    save_file(tensors, tmp_path / "file.safetensors", metadata={"ss_network_dim": "4"})
    report = inspect(tmp_path / "file.safetensors")
    assert (report["kind"], report["family"]) == (kind, family)
    parameters = sum(value.numel() for value in tensors.values())
    assert report["components"] == {kind: {"parameters": parameters, "dtype": "float16"}}
    assert len(report["keys"]["unknown"]) == (len(tensors) if kind == "unknown" else 0)
    assert report["metadata"] == {"ss_network_dim": "4"}


@pytest.mark.parametrize(("part", "kind", "family"), [("unet", "unet", None), ("vae", "vae", None)])
def test_a_folder_of_one_network(part: str, kind: str, family: str | None) -> None:
    whole, alone = inspect(model_path("mini")), inspect(model_path("mini") / part)
    assert (alone["kind"], alone["family"]) == (kind, family)
    assert alone["components"] == {kind: whole["components"][part]}
    assert alone["keys"]["used"] > 100 and len(alone["hashes"]["sha256"]) == 64


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mini-canny", "controlnet"), ("mini-ip-adapter", "ip-adapter"), ("mini-turbo", "lora")],
)
def test_what_is_shipped_is_known_by_its_name(name: str, kind: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", name, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == kind and report["keys"]["unknown"] == []


def test_hashes_are_those_that_other_programs_show(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({f"{KOHYA}.lora_down.weight": torch.randn(700, 768)}, path)  # 2 MB
    data = path.read_bytes()
    whole = hashlib.sha256(data).hexdigest()
    payload = data[8 + int.from_bytes(data[:8], "little") :]
    assert inspect(path)["hashes"] == {
        "sha256": whole,
        "autov1": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
        "autov2": whole[:10],
        "autov3": hashlib.sha256(payload).hexdigest()[:12],
    }


def test_an_embedding_that_torch_saved(tmp_path: Path) -> None:
    content = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.ones(2, 768)},
        "name": "cat",
        "step": 9,
    }
    torch.save(content, tmp_path / "cat.pt")
    report = inspect(tmp_path / "cat.pt")
    assert (report["kind"], report["family"]) == ("embedding", "sd1")
    assert report["metadata"]["name"] == "cat"


def test_no_model_at_all(tmp_path: Path) -> None:
    (tmp_path / "notes.safetensors").write_text("<html>")
    with pytest.raises(ModelFileError, match="a web page"):
        inspect(tmp_path / "notes.safetensors")
