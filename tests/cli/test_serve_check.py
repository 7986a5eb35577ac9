"""What `inkwash serve` would serve, and what it refuses before it listens."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from inkwash.models.compact import CompactConfig
from tests.support.upscalers import network


def test_it_says_what_would_be_served(run, tiny: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("upscalers", "wildcards"):
        (models / name).mkdir(parents=True)
    (models / "wildcards/colour.txt").write_text("red\n")
    (models / "styles.csv").write_text("name,prompt,negative_prompt\nink,{prompt} in ink,colour\n")
    (models / "small").symlink_to(tiny)
    save_file(network(CompactConfig(8, 3)).state_dict(), models / "upscalers/quick.safetensors")
    made = run("serve", "--models", models, "--model", "small", "--state", tmp_path / "state", "--check")
    assert (made.code, made.err) == (0, "")
    told = made.out.splitlines()
    assert told[0] == "http://127.0.0.1:7860, without a token"
    assert {
        "model: mini",
        "model: small (current)",
        "wildcards: colour",
        "styles: ink",
        "upscalers: quick",
    } <= {*told}
    (controls,) = (line for line in told if line.startswith("controls: "))
    assert "reference_only" in controls and "canny" in controls
    assert not (tmp_path / "state").exists()  # nothing is begun


@pytest.mark.parametrize("check", [["--check"], []])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--model", "nothing"],
            "there is no model 'nothing'; give a folder, a file, an id of the hub, or one of mini",
        ),
        (["--models", "nowhere"], "--models nowhere: there is no such folder"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in: give a --token, too"),
        (["--token", "short"], "--token has 16 or more letters"),
        (["--data", "."], "what is trained needs --models, too"),
    ],
)
def test_what_can_not_be_served_is_said_in_a_line(run, given: list[str], said: str, check: list[str]) -> None:
    made = run("serve", *given, *check)
    assert made.code in (1, 2) and made.out == ""
    assert said in made.err and len(made.err.splitlines()) == 1
