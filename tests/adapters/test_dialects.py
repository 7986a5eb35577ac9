"""Adapters as kohya, ComfyUI, peft, diffusers and OneTrainer write them, and what they leave behind."""

import json
import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import inkwash
from inkwash.adapters.embeddings import vectors_of
from inkwash.adapters.kinds import IA3, InputOFT, LoRA
from inkwash.adapters.low_rank import Adapter, read_adapter
from inkwash.adapters.peft import Settings
from inkwash.files import ModelFileError
from inkwash.pipeline.model import Model
from inkwash.weights.kinds import kind_of
from inkwash.weights.names.tables import unet_paths

OURS = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return inkwash.load(tiny)


def pair(
    model: Model, module: str, down: str = "lora_down", up: str = "lora_up", alpha: float | None = 2
) -> dict:
    layer = (model.text_encoders[0].model if "text" in module else model.unet).get_submodule(
        TEXT if "text" in module else OURS
    )
    outputs, inputs = layer.weight.shape
    random = torch.Generator().manual_seed(1)
    tensors = {f"{module}.{down}.weight": torch.randn(4, inputs, generator=random)}
    tensors |= {f"{module}.{up}.weight": torch.randn(outputs, 4, generator=random)}
    return tensors | ({f"{module}.alpha": torch.tensor(float(alpha))} if alpha is not None else {})


def read(
    model: Model, tmp_path: Path, tensors: dict[str, Tensor], config: dict | None = None, **metadata
) -> Adapter:
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata or None)
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return read_adapter(tmp_path / "adapter_model.safetensors", model)


def theirs(model: Model) -> str:
    return unet_paths(model.unet)[OURS]


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("lora_unet_{kohya}", ("lora_down", "lora_up")),
        ("lora_unet_{original_kohya}", ("lora_down", "lora_up")),
        ("diffusion_model.{original}", ("lora_down", "lora_up")),
        ("diffusion_model.{original}", ("lora_A", "lora_B")),
        ("model.diffusion_model.{original}", ("lora_down", "lora_up")),
        ("lora_unet_model_diffusion_model_{original_kohya}", ("lora_down", "lora_up")),
        ("unet.{diffusers}", ("lora_A", "lora_B")),
        ("base_model.model.{diffusers}", ("lora_A.default", "lora_B.default")),
        ("base_model.model.{diffusers}", ("lora_A.my_style", "lora_B.my_style")),
    ],
)
def test_every_programs_name_of_a_unet_layer_is_known(
    model: Model, tmp_path: Path, prefix: str, names: tuple
) -> None:
    module = prefix.format(
        original=OURS,
        original_kohya=OURS.replace(".", "_"),
        diffusers=theirs(model),
        kohya=theirs(model).replace(".", "_"),
    )
    (target, change), *rest = read(model, tmp_path, pair(model, module, *names)).changes.items()
    assert (target.part, target.path, rest) == ("unet", OURS, []) and change.scale == 0.5


@pytest.mark.parametrize(
    "module",
    [
        "lora_te_" + TEXT.replace(".", "_"),
        "lora_te_wrapped_transformer_" + TEXT.replace(".", "_"),
        "text_encoder." + TEXT,
        "text_encoders.clip_l.transformer." + TEXT,
        "base_model.model." + TEXT,
    ],
)
def test_every_programs_name_of_a_text_layer_is_known(model: Model, tmp_path: Path, module: str) -> None:
    (target,) = read(model, tmp_path, pair(model, module)).changes
    assert (target.part, target.path) == ("text_encoder", TEXT)


def test_kohyas_oft_is_read(model: Model, tmp_path: Path) -> None:
    name = "oft_unet_" + theirs(model).replace(".", "_")
    width = model.unet.get_submodule(OURS).weight.shape[0] // 2
    tensors = {f"{name}.oft_blocks": torch.randn(2, width, width), f"{name}.alpha": torch.tensor(1e-3)}
    (change,) = read(model, tmp_path, tensors).changes.values()
    assert type(change).__name__ == "OFT"


def test_pefts_settings_beside_the_file_give_the_scale(model: Model, tmp_path: Path) -> None:
    module = f"base_model.model.{theirs(model)}"
    tensors = pair(model, module, "lora_A", "lora_B", alpha=None)
    base = {"peft_type": "LORA", "r": 4, "lora_alpha": 32, "target_modules": ["to_k"]}
    for more, scale in (
        ({}, 8.0),
        ({"use_rslora": True}, 16.0),
        ({"alpha_pattern": {"attn2.to_k": 2}}, 0.5),
        ({"alpha_pattern": {"attn2.to_q": 2}}, 8.0),
        ({"rank_pattern": {"to_k": 4}, "r": 16}, 8.0),  # the rank is the tensors'
    ):
        (change,) = read(model, tmp_path, tensors, base | more).changes.values()
        assert isinstance(change, LoRA) and change.scale == pytest.approx(scale)
    for more, message in (
        ({"peft_type": "ADALORA"}, "peft_type 'ADALORA' is not one of LORA, IA3, OFT, BOFT"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_alpha": "many"}, "lora_alpha 'many' is not a number"),
        ({"alpha_pattern": {"to_k": None}}, "alpha_pattern.to_k None is not a number"),
    ):
        with pytest.raises(ModelFileError, match=message):
            read(model, tmp_path, tensors, base | more)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"adapter_config\.json can't be read"):
        read(model, tmp_path, tensors)


def test_settings_in_metadata_stand_above_those_beside(model: Model, tmp_path: Path) -> None:
    tensors = pair(model, f"unet.{theirs(model)}", "lora_A", "lora_B", alpha=None)
    inside = json.dumps({"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {theirs(model): 2}})
    (change,) = read(
        model, tmp_path, tensors, {"lora_alpha": 99}, lora_adapter_metadata=inside
    ).changes.values()
    assert change.scale == 0.5


def test_two_adapters_in_one_file_are_an_error(model: Model, tmp_path: Path) -> None:
    module = f"base_model.model.{theirs(model)}"
    tensors = pair(model, module, "lora_A.one", "lora_B.one", None) | pair(
        model, module, "lora_A.two", "lora_B.two", None
    )
    with pytest.raises(ModelFileError, match="it holds the adapters one, two; save one of them alone"):
        read(model, tmp_path, tensors)


def trained(config: Any, layer: nn.Linear) -> tuple[nn.Module, dict[str, Tensor]]:
    """peft's layer with random values, and its tensors."""
    wrapped = peft.get_peft_model(nn.Sequential(layer), config)
    torch.manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "ia3" in name or "oft" in name:
            nn.init.normal_(parameter, std=0.1)
    return wrapped, peft.get_peft_model_state_dict(wrapped)


@pytest.mark.parametrize(
    ("config", "own"),
    [
        (peft.IA3Config(target_modules=["0"], feedforward_modules=[]), {}),
        (peft.IA3Config(target_modules=["0"], feedforward_modules=["0"]), {}),
        *(
            (peft.OFTConfig(target_modules=["0"], r=4, oft_block_size=0, **own), own)
            for own in (
                {},
                {"use_cayley_neumann": False},
                {"num_cayley_neumann_terms": 3},
                {"num_cayley_neumann_terms": 2},
                {"block_share": True},
            )
        ),
    ],
)
def test_pefts_ia3_and_oft_change_a_layer_as_peft_does(config: Any, own: dict) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(16, 24)
    weight, x = layer.weight.detach().clone(), torch.randn(3, 16)
    wrapped, state = trained(config, layer)
    tensors = {key(name): value for name, value in state.items()}
    fields = Settings({"": own}).applied(tensors, "unet", "0", layer)
    change = (IA3 if "ia3_l" in tensors else InputOFT)(**fields)
    wanted = wrapped(x)
    bias = layer_bias(wrapped) + (0 if change.diff_b is None else change.diff_b)
    made = x @ (weight + change.difference(weight)).T + bias
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


def key(name: str) -> str:
    return next(part for part in ("ia3_l", "oft_R") if part in name)


def layer_bias(wrapped: nn.Module) -> Tensor:
    return next(value for name, value in wrapped.named_parameters() if name.endswith("bias"))


def test_old_oft_blocks_are_cayley_transforms_of_the_inputs() -> None:
    random = torch.Generator().manual_seed(0)
    blocks, weight = torch.randn(2, 3, 3, generator=random), torch.randn(5, 6, generator=random)
    change = InputOFT(**Settings({}).applied({"oft_r": blocks}, "unet", "x", nn.Linear(6, 5)))
    skew = 0.5 * (blocks - blocks.mT)
    eye = torch.eye(3)
    turns = torch.block_diag(*[(eye - s) @ torch.linalg.inv(eye + s) for s in skew])
    torch.testing.assert_close(weight + change.difference(weight), weight @ turns.T)


def test_leftovers_without_effect_are_passed_over_and_said(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = pair(model, "lora_unet_" + theirs(model).replace(".", "_"))
    other = "lora_unet_no_such_module"
    for more in (
        {f"{other}.alpha": torch.tensor(4.0)},
        {f"{other}.lora_down.weight": torch.zeros(0, 8), f"{other}.lora_up.weight": torch.zeros(8, 0),
         f"{other}.alpha": torch.tensor(0.0)},
    ):  # fmt: skip
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(read(model, tmp_path, whole | more).changes) == 1
        assert "passed over, since it has no effect: lora_unet_no_such_module" in caplog.text
    with pytest.raises(ModelFileError, match="lora_unet_no_such_module"):
        read(model, tmp_path, whole | {f"{other}.lora_down.weight": torch.zeros(4, 8)})


def test_a_bundled_embedding_may_have_dots_in_its_name(model: Model, tmp_path: Path) -> None:
    vectors = torch.randn(2, 8)
    tensors = pair(model, "lora_unet_" + theirs(model).replace(".", "_"))
    tensors |= {
        "bundle_emb.my.name.v2.string_to_param.*": vectors,
        "bundle_emb.plain.emb_params": vectors + 1,
    }
    embeddings = read(model, tmp_path, tensors).embeddings
    assert set(embeddings) == {"my.name.v2", "plain"}
    assert torch.equal(vectors_of(embeddings["my.name.v2"], (8,))[0], vectors)


def test_onetrainers_output_vectors_are_not_taken_for_tokens(caplog: pytest.LogCaptureFixture) -> None:
    vectors = torch.randn(3, 768)
    with caplog.at_level(logging.WARNING):
        (read_vectors,) = vectors_of({"emp_params": vectors, "emp_params_out": torch.randn(3, 768)}, (768,))
    assert torch.equal(read_vectors, vectors) and "emp_params_out is not used" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.lora_down.weight",
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.ia3_l",
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.oft_R.default.weight",
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.oft_r",
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.boft_R",
    ],
)
def test_files_of_adapters_are_known_as_such(name: str) -> None:
    assert kind_of({name: torch.zeros(1)}) == "lora"
    assert (
        kind_of({"model.diffusion_model.input_blocks.0.0.weight": 0, "first_stage_model.x": 0})
        == "checkpoint"
    )
