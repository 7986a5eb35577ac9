"""`inkwash merge` and what `inkwash inspect` says of its results."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def test_a_merge_says_where_it_is_and_what_it_is_of(run, tiny: Path) -> None:
    done = run(
        "merge",
        tiny,
        tiny,
        "--alpha",
        0.3,
        "--component",
        "vae=0",
        "--rule",
        "IN01:attn1:1",
        "-o",
        "c.safetensors",
    )
    assert (done.code, done.out) == (0, "c.safetensors\n"), done.err
    done = run("merge", "c.safetensors", tiny, tiny, "--output", "d.safetensors", "--json")
    assert json.loads(done.out)["output"] == "d.safetensors"
    said = run("inspect", "d.safetensors").out
    assert "merged by add_difference of\n  c.safetensors (" in said
    assert ") = weighted_sum of\n    tiny (" in said
    assert run("merge", "d.safetensors", "-o", "e.safetensors").code == 1  # of tiny, which is elsewhere
    names = load_file("c.safetensors").keys()
    assert load_file("d.safetensors").keys() == names


def test_a_recipe_s_models_are_sought_beside_it(run, tiny: Path, tmp_path: Path) -> None:
    assert run("merge", tiny, tiny, "-o", "a.safetensors").code == 0
    (tmp_path / "inner").mkdir()
    recipe = {"models": {"x": "a.safetensors", "y": str(tiny)}, "dtype": "fp16"}
    recipe |= {"steps": [{"method": "slerp", "models": ["x", "y"], "alpha": "ALL_B"}]}
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    done = run("merge", tmp_path / "r.json", "-o", "inner/b.safetensors")
    assert done.code == 0, done.err
    assert {str(t.dtype) for t in load_file("inner/b.safetensors").values()} == {"torch.float16"}


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--block-weights", "1,2"], 1, "block weights: 2 are given; this U-Net takes 9"),
        (["--block-weights", "NONE_SUCH"], 1, "neither numbers nor one of GRAD_V"),
        (["--method", "mean"], 2, "--method 'mean' is not one of 'weighted_sum'"),
        (["--component", "vae"], 2, "--component 'vae' is not NAME=ALPHA"),
        (["--rule", "IN99:attn:1"], 1, "'IN99' is not a block of BASE, IN00"),
        (["--alpha", "nan"], 2, "--alpha nan is not a finite number"),
        (["--share", "2"], 1, "weighted_sum takes 0 shares here, not 1"),
        (["--vae", "none.safetensors"], 1, "none.safetensors"),
        (["--ema"], 1, "is a folder; only single files hold averages"),
    ],
)
def test_bad_options_are_one_line_and_no_file(
    run, tiny: Path, tmp_path: Path, options, code: int, said: str
) -> None:
    done = run("merge", tiny, tiny, "-o", "c.safetensors", *options)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def lora(path: Path, rank: int, **more: torch.Tensor) -> str:
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(rank, 8),
        f"{name}.lora_up.weight": torch.randn(8, rank),
    }
    save_file(tensors | more, path, {"ss_base_model_version": "sd_v1", "ss_network_dim": str(rank)})
    return str(path)


def test_loras_are_baked_added_cut_extracted_and_renamed(run, tiny: Path, tmp_path: Path) -> None:
    a, b = lora(tmp_path / "a.safetensors", 4), lora(tmp_path / "b.safetensors", 2)
    done = run("merge", tiny, "--lora", f"{a}:0.5", "--lora", b, "-o", "baked.safetensors")
    assert (done.code, done.out) == (0, "baked.safetensors\n"), done.err
    done = run(
        "merge", tiny, tiny, "--lora", a, "--lora-blocks", "0,1,0,0,0,0,0,0,0", "-o", "both.safetensors"
    )
    assert done.code == 0, done.err

    done = run("merge-loras", f"{a}:0.5", b, "--base", tiny, "-o", "sum.safetensors", "--json")
    assert json.loads(done.out) == {"output": "sum.safetensors", "layers": 1}
    done = run("merge", tiny, "--lora", "sum.safetensors", "-o", "again.safetensors")
    assert done.code == 0, done.err
    one, other = load_file("baked.safetensors"), load_file("again.safetensors")
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
    assert "merged by cat of" in run("inspect", "sum.safetensors").out
    with safe_open("sum.safetensors", "pt") as file:
        said = file.metadata()
    assert (said["ss_network_dim"], said["ss_base_model_version"]) == ("6", "sd_v1")
    assert said["modelspec.merged_from"] == "a, b"

    done = run(
        "extract-lora", "baked.safetensors", tiny, "--rank", 6, "-o", "out.safetensors", "--names", "peft"
    )
    assert done.code == 0, done.err
    (name,) = [key for key in load_file("out.safetensors") if key.endswith("lora_A.weight")]
    assert name == "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    done = run("merge-loras", "out.safetensors", "--base", tiny, "--rank", 2, "-o", "cut.safetensors")
    assert done.code == 0, done.err
    assert {2} == {
        value.shape[0] for key, value in load_file("cut.safetensors").items() if "lora_down" in key
    }


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["merge-loras", "--base", "mini"], 2, "merge-loras needs at least one file"),
        (["merge-loras", "none.safetensors", "--base", "mini"], 1, "none.safetensors"),
        (["merge-loras", "a.safetensors", "--base", "mini"], 1, "a.safetensors does not fit the model"),
        (
            ["merge-loras", "a.safetensors", "--base", "TINY", "--method", "mean"],
            1,
            "'mean' of adapters is not one of",
        ),
        (
            ["merge-loras", "a.safetensors", "--base", "TINY", "--energy", 2],
            1,
            "energy: Input should be less than",
        ),
        (
            ["merge", "TINY", "--lora", "a.safetensors", "--lora-blocks", "1,2"],
            1,
            "block weights: 2 are given",
        ),
        (["merge", "TINY", "TINY", "--lora-blocks", "1"], 2, "are for --lora"),
        (["extract-lora", "TINY", "mini"], 1, "models of one family can be merged"),
        (["extract-lora", "TINY", "TINY"], 1, "the adapter would change nothing"),
        (["merge-embeddings", "a.safetensors"], 1, "is of the kind lora, and not an embedding"),
        (["merge-embeddings"], 2, "merge-embeddings needs at least one file"),
    ],
)
def test_bad_options_of_adapters(run, tiny: Path, tmp_path: Path, argv: list, code: int, said: str) -> None:
    lora(tmp_path / "a.safetensors", 4)
    done = run(*[tiny if arg == "TINY" else arg for arg in argv], "-o", "out.safetensors")
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert not (tmp_path / "out.safetensors").exists()


def test_rebasin_of_a_model_with_itself_is_that_model(run, tiny: Path) -> None:
    assert run("merge", tiny, tiny, "--method", "rebasin", "-o", "c.safetensors").code == 0
    assert run("merge", tiny, tiny, "-o", "d.safetensors").code == 0
    assert all(
        value.equal(load_file("d.safetensors")[name]) for name, value in load_file("c.safetensors").items()
    )
