"""Controls that learn: a step's loss and gradients are those of diffusers' networks under the same objective."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from safetensors.torch import load_file
from torch import Tensor, nn

import inkwash
from inkwash.adapters.control import open_control
from inkwash.adapters.ip_adapter import attentions
from inkwash.models.controlnet import ControlNet
from inkwash.pipeline.annotate import annotate
from inkwash.pipeline.controls import Control
from inkwash.training.config_methods import (
    ControlNetOptions,
    IPAdapterOptions,
    LLLiteOptions,
    T2IAdapterOptions,
)
from inkwash.training.methods import METHODS
from inkwash.training.objectives import Objective
from inkwash.training.run import Run, prepare, trained
from inkwash.training.seen_samples import draw_seen
from inkwash.training.sources import Batch
from inkwash.training.tasks.denoising import DenoisingTask, Network
from inkwash.training.trainable.control import (
    ControlNetTrainable,
    IPAdapterTrainable,
    LLLiteTrainable,
    T2IAdapterTrainable,
)
from inkwash.weights.checkpoint import Component
from inkwash.weights.models.component import write_component
from tests.models.test_unet import randomise
from tests.support import small_controls as support
from tests.support.small_controls import SIDE, picture, write_model

TIGHT = {"rtol": 1e-4, "atol": 1e-5}
SEED = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learning")
    for name in support.FAMILIES:
        write_model(name, folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with captions and hints of the same names in the folder `hint`."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "hint").mkdir()
    for k in range(3):
        picture(k).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text("a disc")
        annotate("scribble", picture(k)).save(folder / "hint" / f"{k}.png")
    return folder


class Given:
    """One batch, always the same."""

    size = 2

    def __init__(self, model: Any, seen: dict[str, Tensor]):
        random = torch.Generator().manual_seed(5)
        c = model.unet.config
        self.latent = torch.randn(2, c.out_channels, SIDE // 8, SIDE // 8, generator=random)
        self.cond = {"context": torch.randn(2, 7, c.context_dim, generator=random)} | seen
        if c.vector_dim:
            self.cond["vector"] = torch.randn(2, c.vector_dim, generator=random)

    def batch(self, number: int, rng: torch.Generator, rows: slice) -> Batch:
        return Batch(self.latent, dict(self.cond))


def our_step(model: Any, trainable: Any, source: Given) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its gradients left in the trainable's network, with the noise and timesteps of the step."""
    task = DenoisingTask(model.unet, trainable, source, Objective(), model.schedule)
    steps = task.losses(0, 0, torch.Generator().manual_seed(SEED))
    _, loss, _ = next(steps)
    loss.backward()
    steps.close()
    rng = torch.Generator().manual_seed(SEED)
    t = Objective().draw_timesteps(2, rng)
    return loss.detach(), t, Objective().draw_noise(source.latent.shape, rng)


def their_loss(folder: Path, source: Given, t: Tensor, noise: Tensor, call: Any) -> Tensor:
    """Mean squared error of a prediction of noise, as diffusers' training scripts have it."""
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    noisy = scheduler.add_noise(source.latent, noise, t)
    loss = F.mse_loss(call(noisy, t).float(), noise)
    loss.backward()
    return loss.detach()


def their_unet(folder: Path) -> Any:
    return diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet").requires_grad_(False)


def added(source: Given) -> dict[str, Any]:
    """What SDXL is given beside its prompt, so that its vector is ours."""
    if "vector" not in source.cond:
        return {}
    vector = source.cond["vector"]
    return {"text_embeds": vector, "time_ids": vector.new_zeros(2, 0)}


def grads(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def hint() -> dict[str, Tensor]:
    return {"seen": torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(6))}


@pytest.mark.parametrize(
    ("name", "size"), [("sd1", "full"), ("sd1", "mid"), ("sd1", "small"), ("sd2", "full")]
)
def test_a_step_of_a_controlnet_is_diffusers(folder: Path, tmp_path: Path, name: str, size: str) -> None:
    model = inkwash.load(folder / name, dtype="fp32", prediction="eps")
    options = {"data": "x", "output": "y", "layout": "diffusers", "save_dtype": "fp32"}
    trainable = ControlNetTrainable(model, ControlNetOptions(size=size, **options))
    randomise(trainable.module, seed=4)
    source = Given(model, hint())
    loss, t, noise = our_step(model, trainable, source)
    path = trainable.write(tmp_path, dict(trainable.module.state_dict()), {})
    net, unet = diffusers.ControlNetModel.from_pretrained(path), their_unet(folder / name)
    context = source.cond["context"]

    def call(noisy: Tensor, t: Tensor) -> Tensor:
        down, mid = net(
            noisy, t, encoder_hidden_states=context, controlnet_cond=source.cond["seen"], return_dict=False
        )
        return unet(
            noisy, t, context, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample

    wanted = their_loss(folder / name, source, t, noise, call)
    torch.testing.assert_close(loss, wanted, **TIGHT)
    ours, theirs = grads(trainable.module), grads(net)
    assert len(ours) == len(theirs)
    for mine, other in (
        ("input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"),
        ("zero_convs.0.0.weight", "controlnet_down_blocks.0.weight"),
        ("middle_block_out.0.bias", "controlnet_mid_block.bias"),
        ("time_embed.0.weight", "time_embedding.linear_1.weight"),
        ("input_blocks.1.0.in_layers.2.weight", "down_blocks.0.resnets.0.conv1.weight"),
    ):
        torch.testing.assert_close(ours[mine], theirs[other], **TIGHT)
    assert all(p.grad is None for p in model.unet.parameters())


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_controlnets_and_lllites_begin_as_the_base(folder: Path, name: str) -> None:
    model = inkwash.load(folder / name, dtype="fp32", prediction="eps")
    options = {"data": "x", "output": "y"}
    source = Given(model, hint())

    def predicted(trainable: Any = None) -> Tensor:
        cond = dict(source.cond) if trainable else {k: v for k, v in source.cond.items() if k != "seen"}
        network = Network(model.unet, steered=trainable.steered) if trainable else Network(model.unet)
        with torch.no_grad(), trainable.attached() if trainable else nullcontext():
            return network(source.latent, torch.tensor([10, 900]), **cond)

    wanted = predicted()
    for size in ("full", "mid", "small"):
        trainable = ControlNetTrainable(model, ControlNetOptions(size=size, **options))
        assert torch.equal(predicted(trainable), wanted)
        our_step(model, trainable, source)
        assert all(conv[0].weight.grad.abs().max() > 0 for conv in trainable.module.zero_convs)
    lllite = LLLiteTrainable(model, LLLiteOptions(**options))
    assert torch.equal(predicted(lllite), wanted)
    our_step(model, lllite, source)
    assert all(network.up[0].weight.grad.abs().max() > 0 for network in lllite.module.values())
    assert torch.equal(predicted(), wanted)  # nothing is left behind


@pytest.mark.parametrize("light", [False, True])
def test_a_step_of_a_t2i_adapter_is_diffusers(folder: Path, tmp_path: Path, light: bool) -> None:
    model = inkwash.load(folder / "sd1", dtype="fp32")
    trainable = T2IAdapterTrainable(
        model, T2IAdapterOptions(data="x", output="y", save_dtype="fp32", light=light)
    )
    randomise(trainable.module, seed=4)
    source = Given(model, hint())
    loss, t, noise = our_step(model, trainable, source)
    write_component(Component(trainable.parts, trainable.module.state_dict()), tmp_path / "net", "diffusers")
    net, unet = diffusers.T2IAdapter.from_pretrained(tmp_path / "net"), their_unet(folder / "sd1")
    context = source.cond["context"]

    def call(noisy: Tensor, t: Tensor) -> Tensor:
        features = net(source.cond["seen"])
        return unet(noisy, t, context, down_intrablock_additional_residuals=list(features)).sample

    torch.testing.assert_close(loss, their_loss(folder / "sd1", source, t, noise, call), **TIGHT)
    mine = "body.0.in_conv.weight" if light else "conv_in.weight"
    other = "adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight"
    torch.testing.assert_close(grads(trainable.module)[mine], grads(net)[other], **TIGHT)


def test_a_step_of_an_ip_adapter_is_diffusers(folder: Path, tmp_path: Path, eye: Path) -> None:
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    model = inkwash.load(folder / "sd1", dtype="fp32")
    trainable = IPAdapterTrainable(
        model, IPAdapterOptions(data="x", output="y", encoder=str(eye), save_dtype="fp32")
    )
    for layer, own in zip(attentions(model.unet), trainable.module.ip_adapter.values(), strict=True):
        assert torch.equal(own.to_k_ip.weight, layer.to_k.weight)
    randomise(trainable.module, seed=4)
    vector = torch.randn(2, 12, generator=torch.Generator().manual_seed(6))
    source = Given(model, {"seen": vector})
    loss, t, noise = our_step(model, trainable, source)
    path = trainable.write(tmp_path, dict(trainable.module.state_dict()), {})
    unet, tensors = their_unet(folder / "sd1"), load_file(path)
    nested: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in tensors.items():
        part, _, rest = key.partition(".")
        nested[part][rest] = value
    unet._load_ip_adapter_weights([nested])
    processors = [one for one in unet.attn_processors.values() if isinstance(one, IPAdapterAttnProcessor2_0)]
    for parameter in unet.parameters():
        parameter.requires_grad_(True)
    context = source.cond["context"]

    def call(noisy: Tensor, t: Tensor) -> Tensor:
        more = {"image_embeds": [vector[:, None]]}
        return unet(noisy, t, context, added_cond_kwargs=more).sample

    torch.testing.assert_close(loss, their_loss(folder / "sd1", source, t, noise, call), **TIGHT)
    ours = grads(trainable.module)
    first = processors[0].to_k_ip[0].weight.grad
    torch.testing.assert_close(ours["ip_adapter.1.to_k_ip.weight"], first, **TIGHT)
    theirs = unet.encoder_hid_proj.image_projection_layers[0].image_embeds.weight.grad
    torch.testing.assert_close(ours["image_proj.proj.weight"], theirs, **TIGHT)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("method", ["controlnet", "t2i-adapter", "lllite", "ip-adapter"])
def test_what_is_written_is_what_learnt(
    folder: Path, pairs: Path, eye: Path, tmp_path: Path, name: str, method: str
) -> None:
    """Drawing with the file computes what training computed with."""
    more = {"encoder": str(eye)} if method == "ip-adapter" else {}
    options = {"model": str(folder / name), "data": str(pairs), "output": str(tmp_path / "run"), "steps": 2}
    path = trained(method, **options, lr=1e-2, save_dtype="fp32", buckets=False, batch_size=2, **more)
    assert path is not None
    model = inkwash.load(folder / name)
    control = Control(file=path, image=pairs / "0.png", encoder=more.get("encoder"))
    drawn = [
        model.text_to_image("a", steps=2, seed=1, controls=some)[0].tobytes() for some in ([], [control])
    ]
    assert drawn[0] != drawn[1]
    state = load_file(tmp_path / "run/state.safetensors")
    for key, value in model.controls.items():
        own = value[0].state_dict()
        assert all(torch.equal(state[f"modules/control/{name}"], v) for name, v in own.items()), key


@pytest.mark.parametrize("method", ["controlnet", "t2i-adapter", "lllite"])
def test_samples_are_what_the_file_draws(folder: Path, pairs: Path, tmp_path: Path, method: str) -> None:
    """By the hints of the batch's pictures, in several steps and with guidance; nothing of it stays on the model."""
    given = {
        "model": str(folder / "sd1"),
        "data": str(pairs),
        "output": str(tmp_path / "run"),
        "save_dtype": "fp32",
    }
    config = METHODS[method].config.model_validate(given | {"batch_size": 2, "buckets": False})
    run = prepare(method, config)
    assert isinstance(run, Run)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in run.trainable.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    path = run.trainable.write(tmp_path / "run", dict(run.trainable.module.state_dict()), {})
    sheets = [draw_seen(run.model, run.trainable, run.source, 3, 4.0) for _ in range(2)]
    assert sheets[0][1] == ["picture", "drawn"] * 2
    drawn = [[np.asarray(image, int) for image in images] for images, _ in sheets]
    assert max(np.abs(a - b).max() for a, b in zip(*drawn, strict=True)) <= 1
    model = inkwash.load(folder / "sd1")
    for k, i in enumerate(run.dataset.batch_at(0)):
        example = run.dataset.examples[i]
        control = Control(file=path, image=example.pictures["hint"].path)
        options = {"seed": k, "steps": 3, "cfg_scale": 4.0, "sampler": "euler", "schedule": "uniform"}
        images = [
            np.asarray(model.text_to_image(example.captions[0], **options, controls=some)[0], int)
            for some in ([control], [])
        ]
        assert np.abs(drawn[0][2 * k + 1] - images[0]).max() <= 1 < np.abs(images[1] - images[0]).max()


def test_hints_are_the_pairs_or_an_annotators(folder: Path, pairs: Path, tmp_path: Path) -> None:
    options = {
        "model": str(folder / "sd1"),
        "data": str(pairs),
        "output": str(tmp_path / "o"),
        "buckets": False,
    }
    for kind, role in (("pictures", "hint"), ("canny", None)):
        run = prepare("controlnet", ControlNetOptions(**options, hint=kind))
        batch = run.source.batch(0, torch.Generator().manual_seed(0), slice(None))
        (i,) = run.dataset.batch_at(0)
        example = run.dataset.examples[i]
        wanted = example.open(role) if role else annotate("canny", example.open())
        made = (batch.cond["seen"][0].permute(1, 2, 0).numpy() * 255).round()
        assert np.array_equal(made, np.asarray(wanted))


def test_pairs_come_from_tables_and_kohyas_files_too(folder: Path, pairs: Path, tmp_path: Path) -> None:
    rows = [
        {"file_name": f"{k}.png", "text": "a", column: f"hint/{k}.png"}
        for k, column in enumerate(("hint", "conditioning_image", "hint"))
    ]
    (pairs / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    described = f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{pairs}"\n'
    (tmp_path / "kohya.toml").write_text(described + f'conditioning_data_dir = "{pairs / "hint"}"\n')
    for data in (pairs / "table.jsonl", tmp_path / "kohya.toml"):
        options = {"model": str(folder / "sd1"), "data": str(data), "output": str(tmp_path / "o")}
        run = prepare("controlnet", ControlNetOptions(**options, buckets=False))
        assert len(run.dataset.examples) == 3
        assert {one.pictures["hint"].path for one in run.dataset.examples} == {*(pairs / "hint").iterdir()}


def test_a_missing_hint_is_named(folder: Path, pairs: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    options = {"model": str(folder / "sd1"), "data": str(tmp_path / "a.png"), "output": str(tmp_path / "o")}
    with pytest.raises(ValueError, match="has no picture for the role hint"):
        prepare("controlnet", ControlNetOptions(**options | {"data": str(tmp_path)}))


@pytest.mark.parametrize("method", ["controlnet", "t2i-adapter", "lllite", "ip-adapter"])
def test_gradient_checkpointing_changes_no_gradient(
    folder: Path, pairs: Path, eye: Path, tmp_path: Path, method: str
) -> None:
    more = {"encoder": str(eye)} if method == "ip-adapter" else {"hint": "canny"}
    options = {"model": str(folder / "sd1"), "data": str(pairs), "buckets": False, "steps": 2, "lr": 1e-3}
    states = []
    for checkpointing in (False, True):
        output = tmp_path / str(checkpointing)
        trained(method, **options, **more, output=str(output), gradient_checkpointing=checkpointing)
        states.append(load_file(output / "state.safetensors"))
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key])


def test_a_controlnet_of_mini_follows_its_config(tmp_path: Path) -> None:
    model = inkwash.load("mini")
    trainable = ControlNetTrainable(model, ControlNetOptions(data="x", output="y", size="mid"))
    path = trainable.write(tmp_path / "run", dict(trainable.module.state_dict()), {"a": "b"})
    opened = open_control(path, model)
    assert isinstance(opened, ControlNet)
    own = replace(trainable.parts.unet)
    assert opened.config == own
