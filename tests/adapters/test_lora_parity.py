"""LoRA and its kin on the same random weights here, in diffusers with peft, and in LyCORIS."""

from collections.abc import Iterator
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import inkwash
from inkwash.adapters.kinds import change_of
from inkwash.adapters.low_rank import Attachment, attach, read_adapter
from inkwash.adapters.names import split
from inkwash.adapters.peft import Settings
from inkwash.adapters.trainable import ATTENTION, TrainableLoRA
from inkwash.adapters.writing import write_adapter
from inkwash.pipeline.api import Pipeline
from inkwash.weights.models.folder import write_folder
from inkwash.weights.names.tables import unet_paths
from tests.weights.test_single_files import SMALL, random_checkpoint

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
boft = import_module("peft.tuners.boft.layer")
NAMES = [name for name in SMALL if "refiner" not in name]  # diffusers' refiner has no first text encoder


@pytest.fixture(scope="module")
def models(module_path: Path) -> Iterator[dict[str, tuple[Pipeline, Any]]]:
    """Of each family our model and diffusers' pipeline."""
    made = {}
    for name in NAMES:
        write_folder(random_checkpoint(SMALL[name]), module_path / name)
        kind = diffusers.StableDiffusionXLPipeline if "xl" in name else diffusers.StableDiffusionPipeline
        pipe = kind.from_pretrained(module_path / name, local_files_only=True)
        made[name] = inkwash.load(module_path / name), pipe
    return made


def kohya_file(model: Pipeline, path: Path, original: bool, convolutions: bool) -> Path:
    """A file as kohya's trainer writes it: U-Net and text encoders, rank 4 and alpha 2."""
    torch.manual_seed(5)
    tensors: dict[str, Tensor] = {}
    towers = [encoder.model for encoder in model.text_encoders]
    prefixes = ["lora_te"] if len(towers) == 1 else ["lora_te1", "lora_te2"]
    for prefix, network in [("lora_unet", model.unet), *zip(prefixes, towers, strict=True)]:
        theirs = {} if original else unet_paths(model.unet)
        for name, layer in network.named_modules():
            inside = "transformer_blocks" in name or "proj_in" in name or "layers" in name.split(".")
            if not isinstance(layer, nn.Linear | nn.Conv2d) or not (inside or convolutions):
                continue
            if not inside and prefix != "lora_unet":
                continue
            key = f"{prefix}_{theirs.get(name, name).replace('.', '_')}"
            out, *shape = layer.weight.shape
            tensors[f"{key}.lora_down.weight"] = 0.3 * torch.randn(4, *shape)
            tensors[f"{key}.lora_up.weight"] = 0.3 * torch.randn(out, 4, *[1] * (len(shape) - 1))
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return path


def outputs(model: Pipeline) -> list[Tensor]:
    """The outputs of our networks: the texts' last but one vectors and the U-Net's prediction."""
    made, (x, t, context, vector) = [], given(model)
    with torch.no_grad():
        for encoder in model.text_encoders:
            tokens = torch.tensor(encoder.tokenizer(["a red taxi"]))
            made.append(encoder.model(tokens, 2, False)[0])
        made.append(model.unet(x, t, context, vector))
    return made


def their_outputs(model: Pipeline, pipe: Any) -> list[Tensor]:
    made, (x, t, context, vector) = [], given(model)
    with torch.no_grad():
        towers = [pipe.text_encoder, getattr(pipe, "text_encoder_2", None)]
        for encoder, tower in zip(model.text_encoders, towers, strict=False):
            tokens = torch.tensor(encoder.tokenizer(["a red taxi"]))
            hidden = tower(tokens, output_hidden_states=True).hidden_states
            # a folder of SD2 lacks the last layer, so that the last but one is the last there
            made.append(
                hidden[len(hidden) - 1 - (1 if len(hidden) == 1 + encoder.model.config.num_layers else 0)]
            )
        added = {}
        if vector is not None:
            width = model.text_encoders[-1].model.config.projection_dim
            added = {"text_embeds": vector[:, :width], "time_ids": torch.arange(6.0)[None]}
        made.append(pipe.unet(x, t, encoder_hidden_states=context, added_cond_kwargs=added).sample)
    return made


def given(model: Pipeline) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    from inkwash.nn.embeddings import timestep_embedding

    random = torch.Generator().manual_seed(1)
    config = model.unet.config
    x = torch.randn(1, 4, 8, 8, generator=random)
    context = torch.randn(1, 7, config.context_dim, generator=random)
    if config.vector_dim is None:
        return x, torch.tensor([400.0]), context, None
    pooled = torch.randn(1, config.vector_dim - 6 * 256, generator=random)
    sizes = timestep_embedding(torch.arange(6.0), 256).flatten()[None]
    return x, torch.tensor([400.0]), context, torch.cat([pooled, sizes], 1)


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("convolutions", [False, True])
def test_kohya_s_files(models: dict, name: str, convolutions: bool, tmp_path: Path) -> None:
    model, pipe = models[name]
    before = outputs(model)
    assert_same(before, their_outputs(model, pipe))
    path = kohya_file(model, tmp_path / "a.safetensors", original="xl" in name, convolutions=convolutions)
    adapter = read_adapter(path, model)
    assert 3 * len(adapter.changes) == len(load_file(path))
    pipe.load_lora_weights(path, adapter_name="a")
    pipe.set_adapters("a", 0.7)
    try:
        with attach(model, adapter, 0.7):
            ours = outputs(model)
        assert_same(ours, their_outputs(model, pipe))
    finally:
        pipe.unload_lora_weights()
    assert all((a - b).abs().max() > 0.01 for a, b in zip(ours, before, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_peft_s_files(models: dict, name: str, options: dict, tmp_path: Path) -> None:
    """As diffusers saves what peft has trained; alpha is in the metadata."""
    model, pipe = models[name]
    torch.manual_seed(2)
    settings = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **options}
    unet = peft.LoraConfig(target_modules=["to_q", "to_out.0", "ff.net.0.proj", "conv1"], **settings)
    pipe.unet.add_adapter(unet, "a")
    text = peft.LoraConfig(target_modules=["q_proj", "fc1"], **settings)
    pipe.text_encoder.add_adapter(text, "a")
    from diffusers.utils import convert_state_dict_to_diffusers

    try:
        theirs = their_outputs(model, pipe)
        states = [
            convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(network, adapter_name="a"))
            for network in (pipe.unet, pipe.text_encoder)
        ]
        configs = [network.peft_config["a"].to_dict() for network in (pipe.unet, pipe.text_encoder)]
        pipe.save_lora_weights(
            tmp_path,
            unet_lora_layers=states[0],
            text_encoder_lora_layers=states[1],
            unet_lora_adapter_metadata=configs[0],
            text_encoder_lora_adapter_metadata=configs[1],
        )
    finally:
        pipe.unload_lora_weights()
    with attach(model, read_adapter(tmp_path / "pytorch_lora_weights.safetensors", model)):
        assert_same(outputs(model), theirs)


class BlockDiagonal:
    """In place of peft's CUDA kernel, without which its BOFT has one stage alone."""

    @staticmethod
    def apply(blocks: Tensor) -> Tensor:
        """Matrices (m, n, n) of blocks (m, k, b, b)."""
        return torch.stack([torch.block_diag(*one) for one in blocks])


@pytest.fixture
def pefts_boft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boft, "get_fbd_cuda", lambda: True)  # which otherwise leaves CC and CXX changed
    monkeypatch.setattr(boft, "FastBlockDiag", BlockDiagonal, raising=False)


@pytest.mark.parametrize(("more", "stages"), [("to_k", 2), ("conv_in", 1)])
def test_a_file_of_pefts_boft(models: dict, more: str, stages: int, pefts_boft: None, tmp_path: Path) -> None:
    """Of matrices and convolutions, as peft saves it, with adapter_config.json."""
    model, pipe = models[NAMES[0]]
    torch.manual_seed(2)
    config = peft.BOFTConfig(
        target_modules=["to_q", "to_out.0", "proj_in", more],
        boft_block_size=4,
        boft_n_butterfly_factor=stages,
        init_weights=False,
    )
    wrapped = peft.get_peft_model(pipe.unet, config)
    try:
        theirs = their_outputs(model, pipe)
        wrapped.save_pretrained(tmp_path)
    finally:
        wrapped.unload()
    with attach(model, read_adapter(tmp_path / "adapter_model.safetensors", model)):
        assert_same(outputs(model), theirs)


# diffusers tells kohya's names of text encoders by those of the output projections
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("names", ["kohya", "peft"])
def test_diffusers_reads_what_is_written(models: dict, name: str, names: str, tmp_path: Path) -> None:
    model, pipe = models[name]
    lora = TrainableLoRA(model, rank=4, alpha=2, targets=(*ATTENTION, "proj_in", *TEXT))
    for parameter in lora.parameters():
        nn.init.normal_(parameter, std=0.3)
    write_adapter(tmp_path / "a.safetensors", lora.adapter, model, names, torch.float32)
    with lora.attached():
        ours = outputs(model)
    pipe.load_lora_weights(tmp_path / "a.safetensors")
    try:
        assert_same(ours, their_outputs(model, pipe))
    finally:
        pipe.unload_lora_weights()


BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LAYER = "text_model.encoder.layers.1.self_attn"
OURS = "input_blocks.1.1.transformer_blocks.0.attn1"
NAMED = {  # in every dialect, and the module that is meant
    f"lora_unet_{BLOCK.replace('.', '_')}_to_out_0.lora_{{}}.weight": f"{OURS}.to_out.0",
    f"lora_unet_{OURS.replace('.', '_')}_to_q.lora_{{}}.weight": f"{OURS}.to_q",
    f"lycoris_{BLOCK.replace('.', '_')}_to_q.lora_{{}}.weight": f"{OURS}.to_q",
    f"unet.{BLOCK}.to_q.lora.{{}}.weight": f"{OURS}.to_q",
    f"unet.{BLOCK}.processor.to_q_lora.{{}}.weight": f"{OURS}.to_q",
    f"{BLOCK}.processor.to_out_lora.{{}}.weight": f"{OURS}.to_out.0",
    f"text_encoder.{LAYER}.q_proj.lora_linear_layer.{{}}.weight": f"{LAYER}.q_proj",
    f"text_encoder.{LAYER}.to_q_lora.{{}}.weight": f"{LAYER}.q_proj",
    f"text_encoder.{LAYER.removeprefix('text_model.')}.to_out_lora.{{}}.weight": f"{LAYER}.out_proj",
    f"lora_te_{LAYER.replace('.', '_')}_k_proj.lora_{{}}.weight": f"{LAYER}.k_proj",
    f"base_model.model.{BLOCK}.to_v.lora_{{}}.weight": f"{OURS}.to_v",
    f"base_model.model.{BLOCK}.to_v.lora_{{}}.default.weight": f"{OURS}.to_v",
}


@pytest.mark.parametrize("key", NAMED)
def test_every_dialect(models: dict, key: str, tmp_path: Path) -> None:
    model, _ = models["small-sd1"]
    down, up = torch.randn(2, 64), torch.randn(64, 2)
    names = "AB" if key.startswith("base_model") else ("down", "up")
    save_file({key.format(names[0]): down, key.format(names[1]): up}, tmp_path / "a.safetensors")
    ((target, change),) = read_adapter(tmp_path / "a.safetensors", model).changes.items()
    assert target == ("text_encoder" if "layers" in key else "unet", NAMED[key])
    torch.testing.assert_close(change.delta(torch.zeros(64, 64)), up @ down)


LINEAR, CONV = (lambda: nn.Linear(12, 8)), (lambda: nn.Conv2d(12, 8, 3, padding=1))
LYCORIS = {
    "locon": ("locon.LoConModule", CONV, {"lora_dim": 4, "alpha": 2}),
    "locon tucker": ("locon.LoConModule", CONV, {"lora_dim": 4, "alpha": 2, "use_tucker": True}),
    "dora": ("locon.LoConModule", CONV, {"lora_dim": 4, "weight_decompose": True}),
    "dora of columns": (
        "locon.LoConModule",
        LINEAR,
        {"lora_dim": 4, "weight_decompose": True, "wd_on_out": False},
    ),
    "loha": ("loha.LohaModule", LINEAR, {"lora_dim": 4, "alpha": 3}),
    "loha conv": ("loha.LohaModule", CONV, {"lora_dim": 4, "alpha": 3}),
    "loha tucker": ("loha.LohaModule", CONV, {"lora_dim": 4, "use_tucker": True}),
    "lokr": ("lokr.LokrModule", LINEAR, {"lora_dim": 1, "alpha": 1, "decompose_both": True}),
    "lokr whole": ("lokr.LokrModule", CONV, {"lora_dim": 1000, "alpha": 2}),
    "lokr conv": ("lokr.LokrModule", CONV, {"lora_dim": 1, "alpha": 0.5}),
    "lokr tucker": ("lokr.LokrModule", CONV, {"lora_dim": 1, "alpha": 0.5, "use_tucker": True}),
    "lokr dora": ("lokr.LokrModule", CONV, {"lora_dim": 1, "weight_decompose": True}),
    "glora": ("glora.GLoRAModule", LINEAR, {"lora_dim": 4, "alpha": 2}),
    "glora conv": ("glora.GLoRAModule", CONV, {"lora_dim": 4, "alpha": 2}),
    "ia3": ("ia3.IA3Module", LINEAR, {}),
    "ia3 conv": ("ia3.IA3Module", CONV, {"train_on_input": True}),
    "oft": ("diag_oft.DiagOFTModule", LINEAR, {"lora_dim": 4, "constraint": 0.01}),
    "oft conv": ("diag_oft.DiagOFTModule", CONV, {"lora_dim": 4, "rescaled": True}),
    "boft": ("boft.ButterflyOFTModule", LINEAR, {"lora_dim": 4, "constraint": 0.01}),
    "boft conv": ("boft.ButterflyOFTModule", CONV, {"lora_dim": 2, "rescaled": True}),
    "full": ("full.FullModule", CONV, {}),
    "norm": ("norms.NormModule", lambda: nn.GroupNorm(2, 8), {}),
    "layer norm": ("norms.NormModule", lambda: nn.LayerNorm(8), {}),
}


def by_lycoris(name: str, by: float) -> tuple[nn.Module, nn.Module]:
    """A layer as it is, and LyCORIS' change of it, which is applied to its own copy. by: the strength."""
    modules = pytest.importorskip("lycoris.modules")
    kind, layer, options = LYCORIS[name]
    file, _, cls = kind.partition(".")
    torch.manual_seed(4)
    original = layer()
    ours = deepcopy(original)
    made = getattr(import_module(f"{modules.__name__}.{file}"), cls)("lora_x", original, by, **options)
    made.apply_to()
    return ours, made


@pytest.mark.parametrize("name", LYCORIS)
def test_lycoris_kinds(name: str) -> None:
    """The tensors that LyCORIS saves change a layer as LyCORIS does, and so does the weight that they make."""
    by = 0.6 if "boft" in name else 1.0
    ours, made = by_lycoris(name, by)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    tensors: dict[str, Any] = {}
    for key, value in (made.custom_state_dict() or made.state_dict()).items():
        found = split(f"lora_x.{key}")
        assert found and found[0] == "lora_x"
        tensors[found[1]] = value.item() if found[1] in ("alpha", "on_input") else value.detach()
    change = change_of(tensors)
    weight = ours.weight.detach()
    assert change.fits_shape(weight.shape)
    shape = {nn.Linear: (3, 12), nn.LayerNorm: (3, 8), nn.GroupNorm: (3, 8, 5, 5), nn.Conv2d: (3, 12, 5, 5)}
    x = torch.randn(shape[type(ours)])
    with torch.no_grad():
        with Attachment([(ours, change, by)]):
            attached = ours(x)
        torch.testing.assert_close(attached, made(x), rtol=1e-4, atol=1e-4)
        ours.weight += change.delta(weight, by)
        if change.diff_b is not None:
            ours.bias += change.diff_b
        torch.testing.assert_close(attached, ours(x), rtol=1e-4, atol=1e-4)


# LyCORIS takes a gradient of DoRA's norm, too (tests/training/test_parity.py has peft's); the others have no factors
LEARNT = [name for name in LYCORIS if not any(word in name for word in ("dora", "norm", "full"))]


@pytest.mark.parametrize("name", LEARNT)
def test_gradients_of_lycoris_kinds(name: str) -> None:
    """Of every factor and the input, from the tensors that LyCORIS saves, in float32."""
    ours, made = by_lycoris(name, 1.0)
    learnt = [value for value in made.parameters() if value.requires_grad]
    for parameter in learnt:
        nn.init.normal_(parameter, std=0.3)
    tensors: dict[str, Any] = {}
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for key, value in (made.custom_state_dict() or made.state_dict()).items():
        found = split(f"lora_x.{key}")
        assert found
        if found[1] in ("alpha", "on_input"):
            tensors[found[1]] = value.item()
            continue
        tensors[found[1]] = value.detach().clone().requires_grad_(True)
        for parameter in learnt:
            if parameter.shape == value.shape and torch.equal(parameter, value):
                pairs[found[1]] = tensors[found[1]], parameter
    assert len(pairs) == len(learnt)
    shape = (3, 12) if isinstance(ours, nn.Linear) else (3, 12, 5, 5)
    x = torch.randn(shape)
    inputs = [x.clone().requires_grad_(True) for _ in range(2)]
    with Attachment([(ours, change_of(tensors), 1.0)]):
        loss = ours(inputs[0]).square().mean()
    wanted = made(inputs[1]).square().mean()
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    pairs["the input"] = inputs[0], inputs[1]
    for field, (own, theirs) in pairs.items():
        assert own.grad is not None and theirs.grad is not None and theirs.grad.abs().max() > 1e-4, field
        torch.testing.assert_close(
            own.grad.view_as(theirs.grad),
            theirs.grad,
            rtol=1e-5,
            atol=1e-5,
            msg=lambda m, f=field: f"{f}: {m}",
        )


PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "ia3": ("IA3Config", {"feedforward_modules": []}),
    "ia3 of inputs": ("IA3Config", {"feedforward_modules": ["second"]}),
    "oft": ("OFTConfig", {"oft_block_size": 4}),
    "oft by the inverse": ("OFTConfig", {"oft_block_size": 4, "use_cayley_neumann": False}),
    "oft of one block": ("OFTConfig", {"oft_block_size": 4, "block_share": True}),
    "boft of one stage": ("BOFTConfig", {"boft_block_size": 0, "boft_block_num": 8}),
    "boft of two": ("BOFTConfig", {"boft_block_size": 4, "boft_n_butterfly_factor": 2}),
    "boft of three": ("BOFTConfig", {"boft_block_size": 2, "boft_n_butterfly_factor": 3}),
}


@pytest.mark.parametrize("name", PEFT)
def test_gradients_of_peft_kinds(name: str, pefts_boft: None) -> None:
    """Of every factor of two layers, through how files of peft are read, in float32."""
    kind, options = PEFT[name]
    torch.manual_seed(3)
    plain = nn.Sequential()
    for part, layer in (("first", nn.Linear(16, 24)), ("act", nn.SiLU()), ("second", nn.Linear(24, 8))):
        plain.add_module(part, layer)
    x, target = torch.randn(5, 16), torch.randn(5, 8)
    config = getattr(peft, kind)(target_modules=["first", "second"], **options)
    theirs = peft.get_peft_model(deepcopy(plain), config)
    settings, changes, pairs = Settings({"": config.to_dict()}), [], {}
    for part in ("first", "second"):
        learnt = {}
        for path, parameter in theirs.base_model.model.get_submodule(part).named_parameters():
            if parameter.requires_grad:
                with torch.no_grad():
                    parameter += 0.2 * torch.randn(parameter.shape)
                own = parameter.detach().clone().requires_grad_(True)
                learnt[path.split(".")[0]] = own
                pairs[f"{part} {path}"] = own, parameter
        layer = plain.get_submodule(part)
        changes.append((layer, change_of(settings.applied(learnt, "", part, layer)), 1.0))
    with Attachment(changes):
        loss = F.mse_loss(plain(x), target)
    wanted = F.mse_loss(theirs(x), target)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    for path, (own, parameter) in pairs.items():
        assert own.grad is not None and parameter.grad is not None and parameter.grad.abs().max() > 1e-4, path
        torch.testing.assert_close(
            own.grad, parameter.grad, rtol=1e-5, atol=1e-5, msg=lambda m, p=path: f"{p}: {m}"
        )
