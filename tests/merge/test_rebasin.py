"""Re-basin: permuting units changes no function, and a permuted model is put back beside the original."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import inkwash
from inkwash.files import ModelFileError
from inkwash.merge import rebasin
from inkwash.merge.expression import Model, merged
from inkwash.merge.making import make
from inkwash.merge.rebasin import Aligned, best, by_name, groups_of, join, matched, moved, split
from inkwash.merge.recipe import read_recipe
from inkwash.merge.units import Group, Units, Walk, autoencoder_units, text_units, unet_units
from inkwash.merge.writing import write
from inkwash.models.autoencoder import AutoencoderConfig, AutoencoderKL
from inkwash.models.clip import CLIPText, CLIPTextConfig
from inkwash.models.unet import UNet, UNetConfig
from inkwash.weights.bytes.paths import model_path
from inkwash.weights.checkpoint import undrawn
from inkwash.weights.families import FAMILIES
from inkwash.weights.models.folder import read_folder
from inkwash.weights.models.single import read_single, write_single
from inkwash.weights.models.single_names import AUTOENCODER, TEXT
from inkwash.weights.names.wrappers import UNET
from tests.weights.test_single_files import SMALL, random_checkpoint

ALL = (UNET, AUTOENCODER, *TEXT)
PLAIN = UNetConfig(
    channels=24,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    transformer_depth=(1, 2, 0),
    context_dim=20,
    num_heads=3,
    norm_groups=6,
)
UNETS = {
    "sd1": PLAIN,
    "sdxl": replace(PLAIN, linear_projections=True, vector_dim=12, transformer_depth=(0, 1, 2)),
    "upscaler": replace(PLAIN, only_cross_attention=(True, False, False), num_classes=5),
    "pixels": replace(
        PLAIN,
        context_dim=None,
        transformer_depth=(0, 1, 0),
        scale_shift_norm=True,
        resblock_updown=True,
        num_res_blocks=2,
    ),
    "one group": replace(PLAIN, norm_groups=1),
    "as many groups as channels": replace(PLAIN, norm_groups=24),
}


def shuffled(groups: list[Group], random: torch.Generator) -> rebasin.Orders:
    """Orders that the groups allow, by chance."""
    return {
        units: order
        for group in groups
        for units, order in best(
            group, [torch.randn(units.size, units.size, generator=random) for units in group.members]
        ).items()
    }


def permuted(network: nn.Module, walk: Walk) -> set[str]:
    """Puts a network's units in other orders. Returns the names of what changed."""
    places, tensors = by_name(walk.groups), network.state_dict()
    orders, changed = shuffled(walk.groups, torch.Generator().manual_seed(2)), set()
    for name, found in places.items():
        made = moved(tensors[name], found, orders)
        assert made.shape == tensors[name].shape
        changed |= set() if made.equal(tensors[name]) else {name}
        tensors[name].copy_(made)
    return changed


def drawn(network: Any) -> Any:
    random = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=random)
    return network.double().eval().requires_grad_(False)


@pytest.mark.parametrize("name", UNETS)
@torch.inference_mode()
def test_a_permuted_u_net_computes_the_same(name: str) -> None:
    config = UNETS[name]
    unet = drawn(UNet(config))
    random = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 8, 12, generator=random, dtype=torch.float64)
    context = torch.randn(2, 5, 20, generator=random, dtype=torch.float64) if config.context_dim else None
    vector = torch.randn(2, 12, generator=random, dtype=torch.float64) if config.vector_dim else None
    vector = torch.tensor([1, 4]) if config.num_classes else vector
    t = torch.tensor([10.0, 700.0], dtype=torch.float64)
    before = unet(x, t, context, vector)
    walk = Walk("")
    unet_units(walk, unet, [])
    changed = permuted(unet, walk)
    torch.testing.assert_close(unet(x, t, context, vector), before, rtol=1e-9, atol=1e-9)
    still = {name for name, value in unet.state_dict().items() if value.ndim > 1} - changed
    # heads of attentions without context lie in turns, and nothing is permuted where groups are single channels
    assert all(".qkv." in name or ".proj_out." in name or config.norm_groups == 24 for name in still), still


@pytest.mark.parametrize("attention", [(), (1,)])
@torch.inference_mode()
def test_a_permuted_autoencoder_computes_the_same(attention: tuple[int, ...]) -> None:
    config = AutoencoderConfig(
        channels=12, channel_mult=(1, 2), latent_channels=8, norm_groups=3, attention=attention
    )
    stage = drawn(AutoencoderKL(config))
    pixels = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64).clamp(
        -1, 1
    )
    before = stage.encode(pixels), stage.decode(stage.encode(pixels).mean)
    walk = Walk("")
    autoencoder_units(walk, stage)
    assert permuted(stage, walk) >= {name for name, value in stage.state_dict().items() if value.ndim > 1}
    after = stage.encode(pixels), stage.decode(stage.encode(pixels).mean)
    torch.testing.assert_close(after[0].mean, before[0].mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after[0].std, before[0].std, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after[1], before[1], rtol=1e-9, atol=1e-9)


@torch.inference_mode()
def test_a_permuted_text_encoder_computes_the_same_in_another_order() -> None:
    text = drawn(CLIPText(CLIPTextConfig(50, 12, 2, 3, 20, 9, projection_dim=6, eos_token=49)))
    tokens = torch.tensor([[3, 7, 1, 49, 0]])
    before = text(tokens, skip=2)
    walk = Walk("")
    (context,) = text_units(walk, text)
    orders = shuffled(walk.groups, torch.Generator().manual_seed(2))
    tensors = text.state_dict()
    for name, places in by_name(walk.groups).items():
        tensors[name].copy_(moved(tensors[name], places, orders))
    after = text(tokens, skip=2)
    torch.testing.assert_close(after[0], before[0][..., orders[context]], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after[1], before[1], rtol=1e-9, atol=1e-9)


def other_order(path: Path, to: Path) -> Path:
    """The same function in another file: all units of all networks in an order of chance."""
    groups = groups_of(read_single(path), ALL)
    orders, places = shuffled(groups, torch.Generator().manual_seed(7)), by_name(groups)
    tensors = load_file(path)
    for name, value in tensors.items():
        parts = split(name, value)
        if any(part in places for part in parts):
            made = {part: moved(each, places.get(part, ()), orders) for part, each in parts.items()}
            tensors[name] = join(name, made).contiguous()
    with safe_open(path, "pt") as file:
        save_file(tensors, to, file.metadata())
    return to


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in SMALL.values():
        monkeypatch.setitem(FAMILIES, family.name, family)


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize("family", SMALL)
def test_a_model_merged_with_itself_in_another_order_is_itself(family: str, tmp_path: Path) -> None:
    a = tmp_path / "a.safetensors"
    write_single(random_checkpoint(SMALL[family]), a)
    b = other_order(a, tmp_path / "b.safetensors")
    stored, other = load_file(a), load_file(b)
    matrices = [name for name, value in stored.items() if value.ndim > 1 and value.is_floating_point()]
    assert sum(not stored[name].equal(other[name]) for name in matrices) > 0.9 * len(matrices)
    value = merged("rebasin", Model.open(a), Model.open(b), alpha=0.5)
    plain = merged("weighted_sum", Model.open(a), Model.open(b), alpha=0.5)
    for name in stored:
        torch.testing.assert_close(value.tensor(name), stored[name].float(), rtol=1e-6, atol=1e-7)
    assert not all(torch.allclose(plain.tensor(name), stored[name].float()) for name in stored)


def test_a_recipe_s_step_goes_into_others_and_gives_the_same_bytes_again(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    b, recipe = other_order(checkpoints["b"], tmp_path / "other.safetensors"), tmp_path / "recipe.toml"
    recipe.write_text(
        f'[models]\na = "{checkpoints["b"].as_posix()}"\nb = "{b.as_posix()}"\n'
        '[[steps]]\nmethod = "rebasin"\nmodels = ["a", "b"]\nalpha = 1.0\n'
        '[[steps]]\nmethod = "slerp"\nmodels = ["a", "step1"]\n'
    )
    again = [tmp_path / f"made{i}.safetensors" for i in range(2)]
    for path in again:
        make(read_recipe(recipe), path, tmp_path)
    assert again[0].read_bytes() == again[1].read_bytes()
    assert pictures_apart(checkpoints["b"], again[0]) <= 1


def pictures_apart(*paths: Path) -> int:
    """By how many of 255 two models' pictures differ at most."""
    first, second = (
        np.asarray(inkwash.load(path).text_to_image("a taxi", steps=3, seed=1)[0], np.int16) for path in paths
    )
    return int(np.abs(first - second).max())


def test_aligned_models_are_nearer_and_alpha_1_is_the_second_one_s_function(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    a, b = (
        Model.open(checkpoints["b"]),
        Model.open(other_order(checkpoints["c"], tmp_path / "other.safetensors")),
    )
    aligned = Aligned(a, b)

    def product(value: Model | Aligned) -> float:
        return sum(float((a.tensor(name) * value.tensor(name)).sum()) for name in a.infos if "model" in name)

    assert product(aligned) > product(b)
    write(merged("rebasin", a, b, alpha=1), tmp_path / "made.safetensors", metadata=a.source.metadata)
    assert pictures_apart(checkpoints["c"], tmp_path / "made.safetensors") <= 1
    write(merged("rebasin", a, b, alpha=0), tmp_path / "first.safetensors")
    stored = load_file(checkpoints["b"])
    assert all(stored[name].equal(value) for name, value in load_file(tmp_path / "first.safetensors").items())


def allowed(group: Group) -> Iterator[list[tuple[int, ...]]]:
    """All orders of a group's members, from the definition: whole blocks, then the units in each."""
    sizes = [units.size for units in group.members]
    if not group.blocks:
        (units,) = group.members
        inside = [list(permutations(cell)) for cell in units.cells]
        yield from ([sum(chosen, ())] for chosen in product(*inside))
        return
    num = group.blocks
    for blocks in permutations(range(num)):
        each = [
            [list(permutations(range(b * size // num, (b + 1) * size // num))) for b in blocks]
            for size in sizes
        ]
        for chosen in product(*(list(product(*member)) for member in each)):
            yield [sum(part, ()) for part in chosen]


GROUPS = {
    "free": Group((Units(5),), 1),
    "groups of a norm": Group((Units(6),), 3),
    "heads": Group((Units(4), Units(4)), 2),
    "cells": Group((Units(6, norms={frozenset({2}), frozenset({4, 5})}, shared=True),), 0),
}


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("seed", range(3))
def test_the_best_order_is_the_best_of_all(name: str, seed: int) -> None:
    group, random = GROUPS[name], np.random.default_rng(seed)
    near = [random.standard_normal((units.size, units.size)) for units in group.members]

    def worth(orders: list[tuple[int, ...]]) -> float:
        return sum(each[i, j] for each, order in zip(near, orders, strict=True) for i, j in enumerate(order))

    made = best(group, [torch.from_numpy(each) for each in near])
    mine = [tuple(made[units].tolist()) for units in group.members]
    orders = list(allowed(group))
    assert mine in orders
    assert worth(mine) == pytest.approx(max(map(worth, orders)), abs=1e-9)


def test_one_hidden_layer_is_matched_as_by_trying_all_orders() -> None:
    """Ainsworth et al., equation 1: of all permutations P, the one that makes |W1 - P V1|² + |W2 - V2 P'|² least."""
    random = torch.Generator().manual_seed(4)

    def weights(near: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        shapes = {"1.weight": (6, 3), "1.bias": (6,), "2.weight": (2, 6)}
        return {
            name: torch.randn(shape, generator=random) + (near[name] if near else 0)
            for name, shape in shapes.items()
        }

    a = weights()
    b = weights(a)
    walk = Walk("")
    walk.hidden("1", "2", [], [], 6)
    (group,) = walk.groups

    def apart(order: tuple[int, ...]) -> float:
        rows = list(order)
        far = [
            a["1.weight"] - b["1.weight"][rows],
            a["1.bias"] - b["1.bias"][rows],
            a["2.weight"] - b["2.weight"][:, rows],
        ]
        return sum(float(each.square().sum()) for each in far)

    made = matched(a.__getitem__, b.__getitem__, [group], a)
    assert tuple(made[group.members[0]].tolist()) == min(permutations(range(6)), key=apart)


def test_a_network_that_one_model_lacks_leaves_what_it_gives_in_order(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    tensors = load_file(checkpoints["b"])
    prefix = next(start for start in TEXT if any(name.startswith(start) for name in tensors))
    save_file({k: v for k, v in tensors.items() if not k.startswith(prefix)}, tmp_path / "b.safetensors")
    aligned = Aligned(Model.open(checkpoints["a"]), Model.open(tmp_path / "b.safetensors"))
    name = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    made = aligned.tensor(name)
    # rows change places, columns, which are the context's, do not
    assert {tuple(row.tolist()) for row in made} == {tuple(row.tolist()) for row in tensors[name].float()}


def test_groups_of_norms_over_two_wires_hold_units_in_their_cells() -> None:
    """SD1's deepest skip connections: 32 groups of 80 over 2,560 channels, and of 40 over each half."""
    walk = Walk("")
    unet_units(walk, undrawn(UNetConfig()), [])
    skip = next(
        units
        for units in walk.units
        if any(p.name == "input_blocks.11.0.out_layers.3.weight" and p.axis == 0 for p in units.places)
    )
    assert skip.shared
    assert {len(cell) for cell in skip.cells} == {40}
    assert Group.of(skip).blocks == 0


def test_without_scipy_it_says_what_to_install(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ModelFileError, match="rebasin takes SciPy: pip install 'inkwash\\[rebasin\\]'"):
        merged("rebasin", *(Model.open(checkpoints[name]) for name in "ab"))


def test_a_model_with_nan_is_named(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(checkpoints["b"])
    name = f"{UNET}out.2.weight"
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, tmp_path / "nan.safetensors")
    value = merged("rebasin", Model.open(checkpoints["a"]), Model.open(tmp_path / "nan.safetensors"))
    with pytest.raises(ModelFileError, match=f"{name} is not finite: a model holds NaN"):
        value.tensor(name)


def test_the_mini_models_units_are_found() -> None:
    groups = groups_of(read_folder(model_path("mini")), ALL)
    places = by_name(groups)
    names = {part for name in Model.open("mini").infos for part in split(name, torch.empty(1))}
    assert places.keys() <= names
    assert len(groups) > 50
