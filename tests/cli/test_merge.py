"""`inkwash merge` and what `inkwash inspect` says of its results."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file


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
        (["--method", "mean"], 1, "'mean' is not one of weighted_sum"),
        (["--component", "vae"], 2, "--component 'vae' is not NAME=ALPHA"),
        (["--rule", "IN99:attn:1"], 1, "'IN99' is not a block of BASE, IN00"),
        (["--alpha", "nan"], 1, "not a finite number"),
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
