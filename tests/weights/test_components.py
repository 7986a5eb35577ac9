"""Networks in files of their own: read in each dialect, written in either layout, and put in a model's place."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import inkwash
from inkwash.cli import main
from inkwash.files import ModelFileError
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL, AutoencoderVQ, PixelConfig
from inkwash.models.bert import BERTConfig
from inkwash.models.clip import CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from inkwash.models.compact import CompactConfig
from inkwash.models.conditions import ClassConfig, PictureConfig, SemanticConfig, VectorConfig
from inkwash.models.controlnet import ControlNet, ControlNetConfig
from inkwash.models.controlnet_union import ControlNetUnion, ControlNetUnionConfig
from inkwash.models.hed import HEDConfig
from inkwash.models.prior import PriorConfig
from inkwash.models.rrdb import RRDBConfig
from inkwash.models.swinir import SwinIRConfig
from inkwash.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from inkwash.models.t5 import T5, T5Config
from inkwash.models.tiny import TinyAutoencoder, TinyAutoencoderConfig
from inkwash.models.unet import UNet
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.checkpoint import NETWORKS, build
from inkwash.weights.inspect import inspect
from inkwash.weights.models.component import KINDS, read_component, write_component
from inkwash.weights.models.convert import convert, read_checkpoint
from inkwash.weights.names import tables
from inkwash.weights.names.keymap import translate
from tests.models.test_autoencoder import older
from tests.models.test_unet import CONFIGS, randomise

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

# what shapes can't say has the published value
XL = replace(CONFIGS["sdxl"], channels=64, head_dim=64)
VISION = CLIPVisionConfig(
    width=64, num_layers=2, num_heads=1, mlp_width=128, image_size=28, activation="gelu", projection_dim=32
)
NETS: dict[str, nn.Module] = {
    "unet": UNet(XL),
    "controlnet": ControlNet(
        ControlNetConfig(replace(XL, transformer_depth=(0, 1, 1), transformer_depth_middle=1, out_channels=4))
    ),
    "controlnet-union": ControlNetUnion(
        ControlNetUnionConfig(
            replace(XL, transformer_depth=(0, 1, 1), transformer_depth_middle=1, out_channels=4), num_types=8
        )
    ),
    "t2i-adapter": T2IAdapter(T2IAdapterConfig((32, 64, 128, 128))),
    "vae": AutoencoderKL(AutoencoderConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1)),
    "tiny-vae": TinyAutoencoder(TinyAutoencoderConfig(channels=8, latent_channels=8)),
    "text-encoder": CLIPText(
        CLIPTextConfig(
            width=64, num_layers=2, num_heads=1, mlp_width=128, activation="gelu", projection_dim=32
        )
    ),
    "image-encoder": CLIPVision(VISION),
    "t5-encoder": T5(T5Config(vocab_size=40, width=24, num_layers=2, num_heads=2, head_dim=16, mlp_width=32)),
}
CLASSES = {
    "unet": diffusers.UNet2DConditionModel,
    "controlnet": diffusers.ControlNetModel,
    "controlnet-union": diffusers.ControlNetUnionModel,
    "t2i-adapter": diffusers.T2IAdapter,
    "vae": diffusers.AutoencoderKL,
    "tiny-vae": diffusers.AutoencoderTiny,
    "text-encoder": transformers.CLIPTextModelWithProjection,
    "image-encoder": transformers.CLIPVisionModelWithProjection,
    "t5-encoder": transformers.T5EncoderModel,
}


@pytest.fixture(scope="module", autouse=True)
def random_weights() -> None:
    for net in NETS.values():
        randomise(net)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_every_kind_is_covered() -> None:
    assert NETS.keys() == KINDS.keys()
    only_in_models = {PixelConfig, BERTConfig, ClassConfig, SemanticConfig, PictureConfig}
    only_in_models |= {VectorConfig}
    own_readers = {RRDBConfig, CompactConfig, SwinIRConfig, HEDConfig, PriorConfig}
    assert {kind.config_type for kind in KINDS.values()} == NETWORKS.keys() - only_in_models - own_readers


@pytest.mark.parametrize("attention", [(), (1,)], ids=str)
def test_an_autoencoder_with_a_codebook(attention: tuple[int, ...], tmp_path: Path) -> None:
    """From latent diffusion's own names to diffusers' folder and bare file, and back."""
    config = AutoencoderConfig(
        channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        latent_channels=3,
        scale_factor=1.0,
        attention=attention,
        codebook_size=20,
    )
    net = AutoencoderVQ(config)
    randomise(net)
    own = net.state_dict()
    with_loss = {"loss.discriminator.main.0.weight": torch.zeros(2)}
    save_file(own | with_loss, tmp_path / "vq.safetensors")
    assert inspect(tmp_path / "vq.safetensors")["kind"] == "vae"
    convert(tmp_path / "vq.safetensors", tmp_path / "vqvae", "diffusers")
    theirs = diffusers.VQModel.from_pretrained(tmp_path / "vqvae").eval()
    with torch.no_grad():
        latent = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(net.decode(latent), theirs.decode(latent).sample, atol=1e-5)
    bare = tmp_path / "vqvae/diffusion_pytorch_model.safetensors"
    for path in (tmp_path / "vqvae", *([bare] if not attention else [])):
        part = read_component(path)
        assert part.config == config and same(dict(part.tensors), own)
        assert type(build(part)) is AutoencoderVQ


@pytest.mark.parametrize("kind", NETS)
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    """From the bare names to the library that others use, which opens it, and back; both ways of reading agree."""
    tensors = NETS[kind].state_dict()
    save_file(tensors, tmp_path / "bare.safetensors")
    convert(tmp_path / "bare.safetensors", tmp_path / "folder", "diffusers")
    theirs = CLASSES[kind].from_pretrained(tmp_path / "folder", local_files_only=True)
    theirs.save_pretrained(tmp_path / "again")
    convert(tmp_path / "again", tmp_path / "single.safetensors", "single")
    for path in ("bare.safetensors", "folder", "again", "single.safetensors"):
        part = read_component(tmp_path / path)
        assert same(dict(part.tensors), tensors), path
        assert sum(p.numel() for p in build(part).parameters()) == sum(t.numel() for t in tensors.values())
    (other,) = (tmp_path / "again").glob("*.safetensors")  # without its config.json
    assert same(dict(read_component(other).tensors), tensors)
    report = inspect(tmp_path / "single.safetensors")
    assert (report["kind"], report["keys"]["used"]) == (kind, len(tensors))


def open_clip(tensors: dict[str, Tensor], table: dict) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in translate(tensors, table, inverse=True).items()}


def prefixed(prefix: str) -> Callable[[dict], dict]:
    return lambda tensors: {f"{prefix}{key}": value for key, value in tensors.items()}


DIALECTS: dict[str, tuple[str, Callable[[dict], dict]]] = {
    "a U-Net as checkpoints name it": ("unet", prefixed("model.diffusion_model.")),
    "a ControlNet as its authors name it": ("controlnet", prefixed("control_model.")),
    "an autoencoder with what its training left": (
        "vae",
        lambda tensors: tensors | {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.zeros(1)},
    ),
    "an autoencoder of diffusers before 0.17": (
        "vae",
        lambda tensors: older(
            translate(
                tensors,
                tables.autoencoder_table(AutoencoderConfig(channel_mult=(1, 2), middle_attention=True)),
            )
        ),
    ),
    "a tiny autoencoder as ComfyUI names it": ("tiny-vae", prefixed("taesd_")),
    "OpenCLIP's text tower": (
        "text-encoder",
        lambda tensors: open_clip(tensors, tables.OPEN_CLIP_TEXT) | {"logit_scale": torch.tensor(1.0)},
    ),
    "OpenCLIP's vision tower": (
        "image-encoder",
        lambda tensors: prefixed("visual.")(open_clip(tensors, tables.OPEN_CLIP_VISION)),
    ),
    "a text tower of transformers before 5": (
        "text-encoder",
        lambda tensors: tensors | {"text_model.embeddings.position_ids": torch.arange(77)},
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(dialect: str, tmp_path: Path) -> None:
    kind, change = DIALECTS[dialect]
    tensors = NETS[kind].state_dict()
    written = {key: value.contiguous() for key, value in change(dict(tensors)).items()}
    save_file(written, tmp_path / "model.safetensors")
    part = read_component(tmp_path / "model.safetensors")
    assert same(dict(part.tensors), tensors)


def test_open_clips_vision_tower_sees_as_transformers_does() -> None:
    theirs = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=1,
            intermediate_size=128,
            image_size=28,
            patch_size=14,
            hidden_act="gelu",
            projection_dim=32,
        )
    ).eval()
    ours = NETS["image-encoder"].eval()
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours(pixels)[1], theirs(pixels).image_embeds, atol=1e-5)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mini`'s own autoencoder and text encoder, and others."""
    folder = tmp_path_factory.mktemp("parts")
    mini = read_checkpoint(model_path("mini"))
    write_component(mini.autoencoder, folder / "same-vae", "diffusers")
    decoder = {name: value * 0.9 for name, value in mini.autoencoder.tensors.items()}
    write_component(replace(mini.autoencoder, tensors=decoder), folder / "other-vae", "diffusers")
    write_component(mini.text[0], folder / "text", "diffusers")
    save_file(NETS["tiny-vae"].state_dict(), folder / "tiny.safetensors")
    save_file(NETS["unet"].state_dict(), folder / "unet.safetensors")
    save_file(NETS["text-encoder"].state_dict(), folder / "clip.safetensors")
    save_file(NETS["controlnet"].state_dict(), folder / "control.safetensors")
    return folder


def test_parts_take_their_place(files: Path) -> None:
    def drawn(*parts: str) -> Image.Image:
        model = inkwash.load("mini", parts=[files / part for part in parts])
        return model.text_to_image("a red apple", steps=2, seed=1)[0]

    plain = drawn()
    assert drawn("same-vae", "text").tobytes() == plain.tobytes()
    assert ImageChops.difference(drawn("other-vae"), plain).getbbox()
    assert drawn("tiny.safetensors").size == plain.size


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("unet.safetensors", "context_dim is 24, and the model's 256"),
        ("clip.safetensors", "the text encoder is 64 wide, and the model's 256"),
        ("control.safetensors", "and with no other part"),
        ("nothing.safetensors", "there is no model"),
    ],
)
def test_parts_that_do_not_fit(
    files: Path, part: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ModelFileError, match=said):
        inkwash.load("mini", parts=[files / part])
    out = tmp_path / "picture.png"
    code = main(["generate", "a", "--steps", "1", "--part", str(files / part), "--output", str(out)])
    assert code == 1 and said in capsys.readouterr().err and not out.exists()


def test_a_picture_names_its_parts(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, again, other = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    tiny = str(files / "tiny.safetensors")
    run = ["generate", "an apple", "--steps", "2", "--seed", "3", "--part", tiny, "--output", str(out)]
    assert main(run) == 0
    assert main(["replay", str(out), "--part", tiny, "--output", str(again)]) == 0
    assert out.read_bytes() == again.read_bytes()
    assert "made with the parts" not in capsys.readouterr().err
    assert main(["replay", str(out), "--output", str(other)]) == 0
    assert "made with the parts {'tiny'" in capsys.readouterr().err


def test_differences_are_refused(tmp_path: Path) -> None:
    tensors = NETS["controlnet"].state_dict() | {"difference": torch.zeros(())}
    save_file(tensors, tmp_path / "control.safetensors")
    with pytest.raises(ModelFileError, match="differences from a base model's weights"):
        read_component(tmp_path / "control.safetensors")


def test_written_files_are_whole(tmp_path: Path) -> None:
    save_file(NETS["vae"].state_dict(), tmp_path / "vae.safetensors")
    convert(tmp_path / "vae.safetensors", tmp_path / "half.safetensors", "single", torch.float16)
    half = load_file(tmp_path / "half.safetensors")
    assert {value.dtype for value in half.values()} == {torch.float16}
    assert all(key.startswith("first_stage_model.") for key in half)
