"""Laws of every adapter: detached is as before, baked in is as attached, and no tensor of a file goes unreported."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import inkwash
from inkwash.adapters.kinds import BOFT, GLoRA, Replaced, change_of
from inkwash.adapters.low_rank import Attachment, attach, bake, prepare, read_adapter
from inkwash.files import ModelFileError
from inkwash.pipeline.api import Pipeline

BLOCK = "lora_unet_input_blocks_1_1_transformer_blocks_0"
TEXT = "lora_te_text_model_encoder_layers_0"


@pytest.fixture
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.3


MANY = {
    f"{BLOCK}_attn2_to_k.lora_down.weight": randn(2, 8),
    f"{BLOCK}_attn2_to_k.lora_up.weight": randn(8, 2),
    f"{BLOCK}_attn2_to_k.alpha": torch.tensor(1.0),
    f"{BLOCK}_attn1_to_q.hada_w1_a": randn(8, 2),
    f"{BLOCK}_attn1_to_q.hada_w1_b": randn(2, 8),
    f"{BLOCK}_attn1_to_q.hada_w2_a": randn(8, 3),
    f"{BLOCK}_attn1_to_q.hada_w2_b": randn(3, 8),
    f"{BLOCK}_attn1_to_v.lokr_w1": randn(2, 2),
    f"{BLOCK}_attn1_to_v.lokr_w2": randn(4, 4),
    f"{BLOCK}_attn2_to_v.lora_down.weight": randn(2, 8),
    f"{BLOCK}_attn2_to_v.lora_up.weight": randn(8, 2),
    f"{BLOCK}_attn2_to_v.dora_scale": randn(8, 1),
    f"{BLOCK}_norm1.w_norm": randn(8),
    f"{BLOCK}_norm1.b_norm": randn(8),
    "lora_unet_input_blocks_0_0.diff": randn(8, 4, 3, 3),
    "lora_unet_input_blocks_0_0.diff_b": randn(8),
    "lora_unet_out_2.lora_down.weight": randn(2, 8, 3, 3),
    "lora_unet_out_2.lora_up.weight": randn(4, 2, 1, 1),
    "lora_unet_middle_block_0_out_layers_0.w_norm": randn(16),
    "lora_unet_time_embed_2.weight": randn(32),
    "lora_unet_time_embed_2.on_input": torch.tensor(True),
    f"{TEXT}_self_attn_q_proj.lora_down.weight": randn(2, 8),
    f"{TEXT}_self_attn_q_proj.lora_up.weight": randn(8, 2),
    f"{TEXT}_mlp_fc1.oft_blocks": randn(4, 4, 4),
    f"{TEXT}_mlp_fc2.oft_blocks": randn(2, 2, 4, 4),
}


@pytest.fixture
def many(tmp_path: Path) -> Path:
    save_file(MANY, tmp_path / "many.safetensors")
    return tmp_path / "many.safetensors"


def seen(model: Pipeline) -> list[Tensor]:
    with torch.inference_mode():
        tokens = torch.tensor(model.text_encoders[0].tokenizer(["a taxi"]))
        context = model.text_encoders[0].model(tokens)[0]
        return [context, model.unet(randn(1, 4, 16, 16), torch.tensor([300.0]), context)]


def test_detached_is_as_before_bitwise(model: Pipeline, many: Path) -> None:
    before = seen(model)
    adapter = read_adapter(many, model)
    handle = attach(model, adapter, 0.8)
    changed = seen(model)
    handle.attach()  # once more changes nothing
    assert all(map(torch.equal, seen(model), changed))
    handle.detach()
    handle.detach()
    assert all(map(torch.equal, seen(model), before))
    with handle, pytest.raises(KeyError):
        assert all(map(torch.equal, seen(model), changed))
        raise KeyError
    assert all(map(torch.equal, seen(model), before))
    assert all((a - b).abs().max() > 0.05 for a, b in zip(changed, before, strict=True))
    assert not any(layer._forward_hooks for layer in model.unet.modules())


@pytest.mark.parametrize("strengths", [(1.0, None), (0.6, -0.4), (0.0, 1.0), (1.0, 0.0)])
def test_baked_in_is_as_attached(tiny: Path, many: Path, strengths: tuple) -> None:
    first, second = inkwash.load(tiny), inkwash.load(tiny)
    adapter = read_adapter(many, first)
    before = seen(first)
    with attach(first, adapter, *strengths):
        attached = seen(first)
    bake(second, adapter, *strengths)
    for a, b in zip(attached, seen(second), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert torch.equal(attached[0], before[0]) is (strengths[1] == 0)


def test_adapters_add_up(model: Pipeline, many: Path) -> None:
    """In any order, and two halves of one are the whole but for BOFT, each of whose stages has the strength."""
    adapter = read_adapter(many, model)
    changes = {key: change for key, change in adapter.changes.items() if not isinstance(change, BOFT)}
    assert len(changes) == len(adapter.changes) - 1
    adapter = replace(adapter, changes=changes)
    with attach(model, adapter, 0.7):
        wanted = seen(model)
    with attach(model, adapter, 0.3), attach(model, adapter, 0.4):
        for a, b in zip(seen(model), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_prepared_one_is_not_attached(model: Pipeline, many: Path) -> None:
    before = seen(model)
    made = prepare(model, read_adapter(many, model))
    assert isinstance(made, Attachment) and all(map(torch.equal, seen(model), before))
    assert len(made.changes) == len({key.split(".")[0] for key in MANY})


def test_half_precision_is_taken(tiny: Path, tmp_path: Path) -> None:
    save_file({key: value.half() for key, value in MANY.items() if value.is_floating_point()} | {
        "lora_unet_time_embed_2.on_input": torch.tensor(True)}, tmp_path / "half.safetensors")  # fmt: skip
    model = inkwash.load(tiny, dtype=torch.bfloat16)
    with attach(model, read_adapter(tmp_path / "half.safetensors", model)), torch.inference_mode():
        context = torch.zeros(1, 7, 8, dtype=torch.bfloat16)
        out = model.unet(randn(1, 4, 16, 16).bfloat16(), torch.tensor([300.0]), context)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()


def test_glora_in_either_order_and_a_weight_that_is_set() -> None:
    a1, a2, b1, b2, weight = randn(6, 2), randn(2, 6), randn(8, 2), randn(2, 6), randn(8, 6)
    new, old = GLoRA(a1=a1, a2=a2, b1=b1, b2=b2), GLoRA(a1=a2, a2=a1, b1=b2, b2=b1)
    torch.testing.assert_close(new.delta(weight), weight @ a1 @ a2 + b1 @ b2)
    torch.testing.assert_close(old.delta(weight), new.delta(weight))
    torch.testing.assert_close(weight + Replaced(set_weight=b1 @ b2).delta(weight), b1 @ b2)
    with pytest.raises(ValueError, match="alpha, lora_up are together no change"):
        change_of({"lora_up": b1, "alpha": 1.0})


DOWN, UP = f"{BLOCK}_attn2_to_k.lora_down.weight", f"{BLOCK}_attn2_to_k.lora_up.weight"
BROKEN = {
    "nothing known": ({"lora_unet_output_blocks_9_x.lora_down.weight": randn(2, 8)}, "1 tensors not known"),
    "near": ({DOWN.replace("to_k", "to_kk"): randn(2, 8)}, f"nearest: {BLOCK}_attn"),
    "an ending that says nothing": ({DOWN: randn(2, 8), UP: randn(8, 2), f"{BLOCK}.magic": randn(2)}, "magic"),
    "half": ({DOWN: randn(2, 8)}, "lora_down are together no change"),
    "another width": ({DOWN: randn(2, 9), UP: randn(8, 2)}, "attn2.to_k: its LoRA does not fit"),
    "another rank": ({DOWN: randn(2, 8), UP: randn(8, 3)}, "attn2.to_k: its LoRA does not fit"),
    "an odd kronecker": (
        {f"{BLOCK}_attn2_to_k.lokr_w1": randn(3, 2), f"{BLOCK}_attn2_to_k.lokr_w2": randn(4, 4)},
        "its LoKr does not fit a weight of shape (8, 8)",
    ),
    "half a kronecker": ({f"{BLOCK}_attn2_to_k.lokr_w1": randn(2, 2)}, "a factor of the product is missing"),
    "an odd butterfly": (
        {f"{BLOCK}_attn2_to_k.oft_blocks": randn(3, 2, 4, 4)},
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k: ",
    ),
    "not finite": ({DOWN: randn(2, 8) / 0, UP: randn(8, 2)}, "not finite"),
    "a bias where there is none": ({f"{BLOCK}_attn2_to_k.diff_b": randn(8)}, "the layer has none"),
    "twice": (
        {DOWN: randn(2, 8), UP: randn(8, 2), UP.replace("lora_unet", "lycoris"): randn(8, 2)},
        "twice",
    ),
    "an alpha that is many": ({DOWN: randn(2, 8), UP: randn(8, 2), DOWN.replace("lora_down.weight", "alpha"): randn(2)},
                              "one number is wanted"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_said(model: Pipeline, tmp_path: Path, name: str) -> None:
    tensors, message = BROKEN[name]
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(ModelFileError) as caught:
        read_adapter(tmp_path / "broken.safetensors", model)
    assert message in str(caught.value) and "broken.safetensors" in str(caught.value)


def test_an_adapter_can_be_trained(model: Pipeline, many: Path) -> None:
    """Gradients reach its tensors, and nothing of the model."""
    adapter = read_adapter(many, model)
    for change in adapter.changes.values():
        for value in vars(change).values():
            if isinstance(value, Tensor):
                value.requires_grad_()
    with attach(model, adapter):
        tokens = torch.tensor(model.text_encoders[0].tokenizer(["a taxi"]))
        context = model.text_encoders[0].model(tokens)[0]
        model.unet(randn(1, 4, 16, 16), torch.tensor([300.0]), context).square().mean().backward()
    for change in adapter.changes.values():
        for value in vars(change).values():
            assert not isinstance(value, Tensor) or (value.grad is not None and value.grad.abs().sum() > 0)
    assert all(parameter.grad is None for parameter in model.unet.parameters())
