"""Adapters baked, added up, cut, extracted and renamed: laws, and what diffusers, peft and LyCORIS make of the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import inkwash
from inkwash.adapters.change import Change
from inkwash.adapters.kinds import Full, LoRA
from inkwash.adapters.low_rank import Adapter, attach, read_adapter
from inkwash.adapters.names import Target
from inkwash.adapters.writing import write_adapter as write_plain
from inkwash.files import ModelFileError
from inkwash.merge import adapters, ranks
from inkwash.merge.adapters import AdapterFile, Combined, Difference
from inkwash.merge.baking import Baked
from inkwash.merge.blocks import Weights
from inkwash.merge.expression import Model, weights
from inkwash.merge.making import make
from inkwash.merge.modules import Modules
from inkwash.merge.ranks import Size
from inkwash.merge.recipe import checked, read_recipe
from inkwash.merge.sources import adapter_source
from inkwash.merge.writing import write, write_adapter
from inkwash.weights.families import FAMILIES
from inkwash.weights.models.folder import write_folder
from inkwash.weights.models.single import write_single
from inkwash.weights.names.tables import unet_paths
from tests.adapters.test_lora_parity import kohya_file
from tests.adapters.test_low_rank import MANY, seen
from tests.weights.test_single_files import SMALL, random_checkpoint

NAMES = [name for name in SMALL if "refiner" not in name]
SHARES, HALF = tuple(Weights(base=by) for by in (1.0, 0.7, 0.4)), Weights(base=0.5)
Q = Target("unet", "input_blocks.1.1.transformer_blocks.0.attn1.to_q")


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in SMALL.values():
        monkeypatch.setitem(FAMILIES, family.name, family)


@pytest.fixture
def tiny_modules(tiny: Path) -> Modules:
    return Modules.open(tiny)


def opened(path: Path, modules: Modules) -> AdapterFile:
    return AdapterFile.open(adapter_source(path), modules)


def random_lora(modules: Modules, path: Path, rank: int, seed: int, alpha: float = 3.0) -> AdapterFile:
    """Of all queries and a convolution, in float32."""
    random = torch.Generator().manual_seed(seed)
    changes = {}
    for name in ("input_blocks.1.1.transformer_blocks.0.attn1.to_q", "middle_block.0.in_layers.2"):
        target = Target("unet", name)
        out, *rest = modules.layer(target).weight.shape
        up, down = torch.randn(out, rank, generator=random), torch.randn(rank, *rest, generator=random)
        changes[target] = LoRA(
            alpha=alpha, lora_up=up.reshape(*up.shape, *[1] * (len(rest) - 1)), lora_down=down
        )
    write_plain(path, Adapter(changes), modules.parts, dtype=torch.float32)
    return opened(path, modules)


def delta(value: adapters.AdapterValue, target: Target = Q) -> Tensor:
    change = value.change(target)
    assert change is not None
    return change.delta(value.modules.layer(target).weight.detach().float())


@pytest.mark.parametrize("by", [1.0, -0.6])
def test_baked_is_attached_for_every_kind(tiny: Path, tmp_path: Path, by: float) -> None:
    save_file(MANY, tmp_path / "many.safetensors")
    value = Baked(
        Model.open(tiny), (opened(tmp_path / "many.safetensors", Modules.open(tiny)),), (Weights(base=by),)
    )
    write(value, tmp_path / "baked.safetensors", metadata=Model.open(tiny).source.metadata)
    model, baked = inkwash.load(tiny), inkwash.load(tmp_path / "baked.safetensors")
    before = seen(model)
    with attach(model, read_adapter(tmp_path / "many.safetensors", model), by):
        attached = seen(model)
    for one, other, old in zip(seen(baked), attached, before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(one, old, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_baking_is_diffusers_fuse_lora(families, name: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    checkpoint = random_checkpoint(SMALL[name])
    write_folder(checkpoint, tmp_path / "folder")
    write_single(checkpoint, tmp_path / "single.safetensors")
    model = inkwash.load(tmp_path / "folder")
    file = kohya_file(model, tmp_path / "lora.safetensors", original="xl" in name, convolutions=True)
    kind = diffusers.StableDiffusionXLPipeline if "xl" in name else diffusers.StableDiffusionPipeline
    pipe = kind.from_pretrained(tmp_path / "folder", local_files_only=True)
    pipe.load_lora_weights(str(file))
    parts = ("unet", "text_encoder", *(["text_encoder_2"] if "xl" in name else []))
    for part in parts:  # so that theirs is what the formula gives, and the difference our rounding
        getattr(pipe, part).double()
    pipe.fuse_lora(lora_scale=0.7)
    pipe.unload_lora_weights()
    single = Model.open(tmp_path / "single.safetensors")
    modules = Modules.open(tmp_path / "single.safetensors")
    write(Baked(single, (opened(file, modules),), (Weights(base=0.7),)), tmp_path / "baked.safetensors")
    from inkwash.weights.models.convert import convert

    convert(tmp_path / "baked.safetensors", tmp_path / "baked", "diffusers")
    baked = kind.from_pretrained(tmp_path / "baked", local_files_only=True)
    moved = 0
    before = kind.from_pretrained(tmp_path / "folder", local_files_only=True)
    for part in parts:
        ours, theirs, old = (getattr(each, part).state_dict() for each in (baked, pipe, before))
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-6, atol=1e-6, check_dtype=False)
            moved += not torch.equal(value.float(), old[key])
    assert moved > 50


def test_strength_may_differ_between_networks_and_blocks(tiny: Path, tmp_path: Path) -> None:
    save_file(MANY, tmp_path / "many.safetensors")
    model, file = Model.open(tiny), opened(tmp_path / "many.safetensors", Modules.open(tiny))
    share = weights({"blocks": [0, 1, 0, 0, 0, 0, 0, 0, 0], "components": {"text_encoder": 0.5}})
    some, whole = Baked(model, (file,), (share,)), Baked(model, (file,))
    for name in model.infos:
        before, part, full = model.tensor(name), some.tensor(name), whole.tensor(name)
        if ".input_blocks.1." in name:
            assert part.equal(full)
        elif name.endswith(("fc1.weight", "q_proj.weight")):
            torch.testing.assert_close(part - before, 0.5 * (full - before), rtol=1e-4, atol=1e-5)
        elif not name.startswith("cond_stage_model."):
            assert part.equal(before), name


def test_what_is_added_and_subtracted_is_gone(tiny: Path, tmp_path: Path, tiny_modules: Modules) -> None:
    one = random_lora(tiny_modules, tmp_path / "a.safetensors", 4, 1)
    two = random_lora(tiny_modules, tmp_path / "b.safetensors", 2, 2)
    back = Combined("cat", (one, two, one), tuple(Weights(base=by) for by in (1.0, 1.0, -1.0)))
    torch.testing.assert_close(delta(back), delta(two), rtol=1e-4, atol=1e-5)
    model = Model.open(tiny)
    again = Baked(Baked(model, (one,)), (one,), (Weights(base=-1.0),))
    for name in model.infos:
        torch.testing.assert_close(again.tensor(name), model.tensor(name), rtol=1e-5, atol=1e-5)


class Wide(AdapterFile):
    """An adapter's file computed in float64, so that sums are compared by their formulas and not by their rounding."""

    def change(self, target: Target) -> Change:
        return super().change(target).to(torch.float64)


def peft_layer(method: str, files: list[Wide], shares: list[float], rank: int, density: float) -> Tensor:
    """What peft's add_weighted_adapter makes of the same factors on a layer of the same size, in float64.

    peft itself rounds the shares to float32.
    """
    peft = pytest.importorskip("peft")
    changes = [file.change(Q) for file in files]
    weight = files[0].modules.layer(Q).weight
    net = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0]))
    made: Any = None
    for i, change in enumerate(changes):
        assert isinstance(change, LoRA)
        config = peft.LoraConfig(r=change.rank, lora_alpha=change.alpha, target_modules=["0"])
        made = peft.PeftModel(net, config, f"a{i}") if made is None else made
        if i:
            made.add_adapter(f"a{i}", config)
        layer = made.base_model.model[0]
        layer.lora_A[f"a{i}"].weight.data = change.lora_down.clone()
        layer.lora_B[f"a{i}"].weight.data = change.lora_up.clone()
    names = [f"a{i}" for i in range(len(files))]
    made.double()
    made.base_model.add_weighted_adapter(
        names, shares, "sum", combination_type=method, svd_rank=rank, density=density
    )
    return made.base_model.model[0].get_delta_weight("sum").detach()


@pytest.mark.parametrize(
    "method", ["cat", "linear", "svd", "ties", "ties_svd", "magnitude_prune", "magnitude_prune_svd"]
)
def test_sums_of_adapters_are_peft_s(tiny_modules: Modules, tmp_path: Path, method: str) -> None:
    alike = method in ("linear", "ties", "magnitude_prune")
    files = wide_files(tiny_modules, tmp_path, alike)
    value = Combined(method, tuple(files), SHARES, Size(rank=3) if method.endswith("svd") else Size(), HALF)
    near(delta(value), peft_layer(method, files, [share.base for share in SHARES], 3, 0.5))


def wide_files(modules: Modules, folder: Path, alike: bool) -> list[Wide]:
    files = [
        random_lora(modules, folder / f"{i}.safetensors", 4 if alike else 2 + i, i, 2.0 + i) for i in range(3)
    ]
    return [Wide(file.source, file.modules, file.adapter) for file in files]


def near(made: Tensor, wanted: Tensor) -> None:
    assert made.dtype == wanted.dtype == torch.float64
    torch.testing.assert_close(made, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_values_dropped_by_the_same_choice_are_peft_s(
    tiny_modules: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    files = wide_files(tiny_modules, tmp_path, alike=not method.endswith("svd"))
    kept: list[Tensor] = []  # what ours keeps, in the order of its draws
    draw = torch.rand

    def drawn(*size: Any, **options: Any) -> Tensor:
        kept.append(draw(*size, **options))
        return kept[-1]

    monkeypatch.setattr(torch, "rand", drawn)
    value = Combined(method, tuple(files), SHARES, Size(rank=3) if method.endswith("svd") else Size(), HALF)
    ours = delta(value)
    # of factors, peft draws those of A first, which are ours' last
    order = iter(kept if method.endswith("svd") else kept[3:] + kept[:3])
    monkeypatch.setattr(torch, "bernoulli", lambda density: (next(order) < density).to(density.dtype))
    near(ours, peft_layer(method, files, [share.base for share in SHARES], 3, 0.5))
    assert next(order, None) is None


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_dare_draws_the_same_twice_and_keeps_all_at_a_density_of_1(
    tiny_modules: Modules, tmp_path: Path, method: str
) -> None:
    files = tuple(random_lora(tiny_modules, tmp_path / f"{i}.safetensors", 4, i) for i in range(2))
    half = [Combined(method, files, density=Weights(base=0.5), seed=seed) for seed in (3, 3, 4)]
    assert delta(half[0]).equal(delta(half[1]))
    assert not delta(half[0]).equal(delta(half[2]))
    whole = Combined(method, files, density=Weights(base=1.0))
    plain = Combined(
        method.replace("dare_", "").replace("linear_svd", "svd"), files, density=Weights(base=1.0)
    )
    torch.testing.assert_close(delta(whole), delta(plain), rtol=1e-4, atol=1e-4)


def test_svd_at_full_rank_is_the_sum_of_any_kinds(tiny: Path, tmp_path: Path, tiny_modules: Modules) -> None:
    save_file(MANY, tmp_path / "many.safetensors")
    many = opened(tmp_path / "many.safetensors", tiny_modules)
    other = random_lora(tiny_modules, tmp_path / "a.safetensors", 3, 1)
    sum_ = Combined("svd", (many, other), tuple(Weights(base=by) for by in (0.5, 2.0)))
    for target in sum_.targets:
        wanted = sum(
            by * delta(value, target) for value, by in ((many, 0.5), (other, 2.0)) if target in value.targets
        )
        torch.testing.assert_close(delta(sum_, target), wanted, rtol=1e-4, atol=1e-4)
        assert isinstance(sum_.change(target), LoRA | Full)
    write_adapter(sum_, tmp_path / "sum.safetensors", torch.float32)
    model = inkwash.load(tiny)
    read = read_adapter(tmp_path / "sum.safetensors", model)
    offsets = {target for target, change in many.adapter.changes.items() if change.diff_b is not None}
    assert {target for target, change in read.changes.items() if change.diff_b is not None} == offsets


def test_sizes_count_singular_values_as_written() -> None:
    values = torch.tensor([8.0, 4.0, 2.0, 1.0])
    assert Size().of(values, False) == 4
    assert Size(rank=2).of(values, False) == Size(rank=3, conv_rank=2).of(values, True) == 2
    assert [Size(energy=e).of(values, False) for e in (0.7, 64 / 85, 0.76, 80 / 85, 1)] == [1, 1, 2, 2, 4]
    assert [Size(ratio=r).of(values, False) for r in (0, 0.2, 0.25, 0.9)] == [4, 3, 2, 1]
    assert [Size(quantile=q).of(values, False) for q in (0.1, 0.9, 1)] == [1, 2, 3]
    assert Size(rank=3, ratio=0.3).of(values, False) == 2


def test_a_cut_lora_is_the_nearest_one_of_its_rank(tiny_modules: Modules, tmp_path: Path) -> None:
    file = random_lora(tiny_modules, tmp_path / "a.safetensors", 6, 1)
    cut = Combined("svd", (file,), size=Size(rank=2))
    values = torch.linalg.svdvals(delta(file).double())
    error = torch.linalg.norm((delta(file) - delta(cut)).double())
    torch.testing.assert_close(error, values[2:].norm(), rtol=1e-4, atol=1e-5)
    by_energy = Combined("svd", (file,), size=Size(energy=0.9)).change(Q)
    assert isinstance(by_energy, LoRA)
    kept = values[: by_energy.rank].square().sum() / values.square().sum()
    assert kept >= 0.9 > values[: by_energy.rank - 1].square().sum() / values.square().sum()


@pytest.mark.parametrize(("mode", "number"), [("fixed", 3), ("ratio", 0.6), ("quantile", 0.4)])
@pytest.mark.parametrize("shape", [(20, 12), (40, 18, 3, 3)])
def test_extraction_cuts_as_lycoris_does(mode: str, number: float, shape: tuple[int, ...]) -> None:
    lycoris = pytest.importorskip("lycoris.utils")
    change = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3
    extract = lycoris.extract_conv if len(shape) > 2 else lycoris.extract_linear
    (down, up, _), how = extract(change, mode, number)
    assert how == "low rank"
    theirs = (up.flatten(1) @ down.flatten(1)).reshape(shape)
    ours = ranks.truncated(change, Size.model_validate({"rank" if mode == "fixed" else mode: number}))
    assert ours.rank == down.shape[0]
    near(ours.delta(change), theirs)
    # and in float32, as files are, what is lost is its rounding
    narrow = ranks.truncated(change.float(), Size(rank=ours.rank)).delta(change.float())
    torch.testing.assert_close(narrow.double(), theirs, rtol=0, atol=2e-6 * float(change.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_difference_leads_from_the_base_to_the_tuned_model(
    families, name: str, tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(SMALL[name])
    write_single(checkpoint, tmp_path / "base.safetensors")
    random = torch.Generator().manual_seed(2)
    tensors = load_file(tmp_path / "base.safetensors")
    moved = {
        key: value + 0.1 * torch.randn(value.shape, generator=random)
        if "embedding" not in key and not key.startswith("first_stage") and value.ndim
        else value
        for key, value in tensors.items()
    }
    save_file(moved, tmp_path / "tuned.safetensors")
    base, tuned = (Model.open(tmp_path / f"{each}.safetensors") for each in ("base", "tuned"))
    modules = Modules.open(tmp_path / "base.safetensors")
    made = Difference(tuned, base, modules, Size(), whole=True)
    write_adapter(made, tmp_path / "lora.safetensors", torch.float32)
    back = Baked(base, (opened(tmp_path / "lora.safetensors", modules),))
    for key in tensors:
        if key.endswith(("weight", "bias", "in_proj_weight", "in_proj_bias")):
            torch.testing.assert_close(back.tensor(key), tuned.tensor(key), rtol=1e-4, atol=1e-4)
    plain = Difference(tuned, base, modules, Size(rank=2))
    locon = Difference(tuned, base, modules, Size(rank=2, conv_rank=1))
    assert len(plain.targets) < len(locon.targets) < len(made.targets)
    layers = [modules.layer(target) for target in plain.targets]
    assert not any(isinstance(layer, nn.Conv2d) and layer.kernel_size[0] > 1 for layer in layers)
    found = locon.change(Target("unet", "input_blocks.0.0"))
    assert isinstance(found, LoRA)
    assert (found.rank, found.lora_down.shape[2:]) == (1, (3, 3))


def test_dialects_lead_back_to_the_same_values(tiny_modules: Modules, tmp_path: Path) -> None:
    first = random_lora(tiny_modules, tmp_path / "kohya.safetensors", 4, 1)
    last = first
    for names, prefix in (("peft", "unet."), ("lycoris", "lycoris_"), ("kohya", "lora_unet_")):
        write_adapter(Combined("cat", (last,)), tmp_path / f"as-{names}.safetensors", names=names)
        last = opened(tmp_path / f"as-{names}.safetensors", tiny_modules)
        assert all(key.startswith(prefix) for key in last.source.tensors)
    one, other = load_file(tmp_path / "kohya.safetensors"), load_file(tmp_path / "as-kohya.safetensors")
    assert one.keys() == other.keys()
    assert all(one[key].equal(other[key]) for key in one)
    assert delta(last).equal(delta(first))


def test_peft_s_names_say_ranks_that_differ(families, tmp_path: Path) -> None:
    """As diffusers reads them."""
    diffusers = pytest.importorskip("diffusers")
    write_folder(random_checkpoint(SMALL["small-sd1"]), tmp_path / "folder")
    modules = Modules.open(tmp_path / "folder")
    changes, random = {}, torch.Generator().manual_seed(3)
    for rank, end in ((2, "to_q"), (2, "to_v"), (5, "to_k")):
        for path, layer in modules.parts.unet.named_modules():
            if path.endswith(f".{end}") and isinstance(layer, nn.Linear):
                out, size = layer.weight.shape
                up, down = (torch.randn(*s, generator=random) for s in ((out, rank), (rank, size)))
                changes[Target("unet", path)] = LoRA(alpha=rank / 2, lora_up=up, lora_down=down)
    write_plain(tmp_path / "k.safetensors", Adapter(changes), modules.parts, dtype=torch.float32)
    write_adapter(opened(tmp_path / "k.safetensors", modules), tmp_path / "p.safetensors", names="peft")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    pipe.load_lora_weights(tmp_path / "p.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    after, theirs = pipe.unet.state_dict(), unet_paths(modules.parts.unet)
    for target, change in changes.items():
        name = f"{theirs[target.path]}.weight"
        torch.testing.assert_close(
            after[name] - before[name], change.delta(before[name]), rtol=1e-4, atol=1e-4
        )


def test_a_recipe_of_adapters_gives_the_same_bytes_again(
    tiny: Path, tmp_path: Path, tiny_modules: Modules
) -> None:
    random_lora(tiny_modules, tmp_path / "a.safetensors", 4, 1)
    random_lora(tiny_modules, tmp_path / "b.safetensors", 2, 2)
    fields = {
        "models": {"base": str(tiny)},
        "adapters": {"a": "a.safetensors", "b": "b.safetensors"},
        "steps": [
            {
                "name": "both",
                "method": "dare_ties_svd",
                "models": ["a", "b"],
                "shares": [0.5, 1],
                "rank": 3,
                "seed": 4,
            },
            {"method": "bake", "models": ["base", "both"], "shares": [{"blocks": [1] * 9}]},
        ],
    }
    recipe = checked(fields, "here")
    make(recipe, tmp_path / "made.safetensors", tmp_path)
    again = read_recipe(tmp_path / "made.safetensors")
    assert again.adapters == {"a": "a.safetensors", "b": "b.safetensors"}
    (tmp_path / tiny.name).symlink_to(tiny)
    make(again, tmp_path / "again.safetensors", tmp_path)
    assert (tmp_path / "made.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


BAD = {
    "no such sum": ({"method": "sum"}, "method 'sum' of adapters is not one of cat, svd"),
    "rank without svd": ({"method": "cat", "rank": 4}, "cat cuts no ranks; take svd"),
    "shares": ({"method": "cat", "shares": [1]}, "2 adapters take as many shares, not 1"),
    "ranks": ({"method": "linear"}, "linear takes LoRAs of one rank, not 2 and 4; take svd"),
    "parameter": ({"method": "cat", "alpha": 1}, "cat has no parameter alpha"),
    "rank 0": ({"method": "svd", "rank": 0}, "rank: Input should be greater than or equal to 1"),
    "energy": ({"method": "svd", "energy": 1.5}, "energy: Input should be less than or equal to 1"),
    "bake": ({"method": "bake"}, "bake takes a model, then adapters"),
    "extract": ({"method": "extract_lora"}, "extract_lora takes a tuned model and its base"),
    "model": (
        {"method": "weighted_sum", "models": ["m", "a"]},
        "weighted_sum takes models, and adapters are no such",
    ),
    "blocks": ({"method": "cat", "shares": [{"blocks": [1, 2]}, 1]}, "block weights: 2 are given"),
    "nothing": ({"method": "cat", "shares": [0, 0]}, "the adapter would change nothing"),
    "names": ({"method": "other"}, "is not one of"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line_and_no_file(
    tiny: Path, tmp_path: Path, tiny_modules: Modules, case: str
) -> None:
    step, said = BAD[case]
    for i, rank in ((1, 4), (2, 2)):
        random_lora(tiny_modules, tmp_path / f"{i}.safetensors", rank, i)
    fields = {"models": {"m": str(tiny)}, "adapters": {"a": "1.safetensors", "b": "2.safetensors"}}
    with pytest.raises(ModelFileError, match=said) as caught:
        recipe = checked(fields | {"steps": [{"models": ["a", "b"]} | step]}, "here")
        value = recipe.value(recipe.sources(tmp_path))
        assert isinstance(value, adapters.AdapterValue)
        write_adapter(value, tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_kinds_that_a_dialect_can_t_say_are_named(tiny: Path, tmp_path: Path, tiny_modules: Modules) -> None:
    save_file(MANY, tmp_path / "many.safetensors")
    value = Combined("cat", (opened(tmp_path / "many.safetensors", tiny_modules),))
    with pytest.raises(ModelFileError, match="peft's names are for LoRAs and DoRAs; take kohya's for the "):
        write_adapter(value, tmp_path / "p.safetensors", names="peft")
    with pytest.raises(
        ModelFileError, match="LyCORIS' names are of one network; take kohya's for a text_encoder"
    ):
        write_adapter(value, tmp_path / "p.safetensors", names="lycoris")
    write_adapter(value, tmp_path / "k.safetensors")
    assert all(
        value.equal(MANY[key]) for key, value in load_file(tmp_path / "k.safetensors").items() if key in MANY
    )
    with pytest.raises(ModelFileError, match="is one of the models that are merged"):
        write_adapter(value, tmp_path / "many.safetensors")
    with pytest.raises(ModelFileError, match="cat takes LoRAs, and one is a"):
        write_adapter(Combined("cat", (value, value)), tmp_path / "p.safetensors")


def test_an_adapter_of_another_model_is_refused(families, tiny_modules: Modules, tmp_path: Path) -> None:
    write_single(random_checkpoint(SMALL["small-sdxl"]), tmp_path / "sdxl.safetensors")
    random_lora(tiny_modules, tmp_path / "a.safetensors", 2, 1)
    with pytest.raises(ModelFileError, match="a.safetensors does not fit the model"):
        opened(tmp_path / "a.safetensors", Modules.open(tmp_path / "sdxl.safetensors"))
