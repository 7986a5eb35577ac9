"""Captions' states on disk: a run that reads them is the one that computes them, without the text encoders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from inkwash.cli import main
from inkwash.data.text_cache import CachedTextEncoder
from inkwash.models.clip import CLIPText, CLIPTextConfig
from inkwash.training import cached_texts
from inkwash.training.methods import METHODS
from inkwash.training.run import prepare, trained


def options(pictures: Path, tiny: Path, output: Path, **more: object) -> dict[str, object]:
    own: dict[str, object] = {
        "model": str(tiny),
        "data": str(pictures),
        "output": str(output),
        "buckets": False,
    }
    return own | {"steps": 4, "lr": 1e-2, "batch_size": 2, "log_every": 1, "caption_dropout": 0.3} | more


def states(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "state.safetensors")


@pytest.mark.parametrize("method", ["lora", "text-to-image"])
def test_a_run_from_the_cache_is_the_run_without(
    method: str, pictures: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and moments bit for bit, also where a second run has nothing left to encode."""
    more = {"sample_every": 4, "sample_prompts": ["a [red:blue:0.5] (disc:1.2)"], "sample_steps": 2}
    plain = trained(method, **options(pictures, tiny, tmp_path / "a/run", **more))
    share = {"cache": str(tmp_path / "cache"), "cache_text": True}
    kept = trained(method, **options(pictures, tiny, tmp_path / "b/run", **more, **share))
    one, two = states(tmp_path / "a/run"), states(tmp_path / "b/run")
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert plain is not None and kept is not None
    sheets = [np.asarray(Image.open(tmp_path / side / "run/samples/step-0000004.png"), int) for side in "ab"]
    assert (
        np.abs(sheets[0] - sheets[1]).max() <= 1
    )  # a sample's prompts are encoded together where they are not kept

    monkeypatch.setattr(
        "inkwash.models.clip.CLIPText.forward", lambda *args: pytest.fail("it is computed again")
    )
    trained(method, **options(pictures, tiny, tmp_path / "c/run", **more, **share))
    assert states(tmp_path / "c/run").keys() == one.keys()
    assert all(torch.equal(one[key], value) for key, value in states(tmp_path / "c/run").items())


def test_the_text_encoder_leaves_memory(pictures: Path, tiny: Path, tmp_path: Path) -> None:
    config = METHODS["lora"].config.model_validate(options(pictures, tiny, tmp_path / "run", cache_text=True))
    run = prepare("lora", config)
    run.train()
    weights = [p for one in run.model.text_encoders for p in one.model.parameters()]  # type: ignore[union-attr]
    assert weights and all(p.is_meta or p.numel() == 0 for p in weights)
    with pytest.raises(ValueError, match="a text has no states in the cache"):
        run.model.text_to_image("something else", steps=1)  # type: ignore[union-attr]


def test_a_second_run_shares_the_entries(pictures: Path, tiny: Path, tmp_path: Path) -> None:
    share = {"cache": str(tmp_path / "cache"), "cache_text": True}
    trained("lora", **options(pictures, tiny, tmp_path / "a", **share))
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/*/*")}
    assert len(first) == 4 + 5  # pictures, captions and the empty one
    trained("lora", **options(pictures, tiny, tmp_path / "b", **share, seed=5))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/*/*")} == first


def test_an_entry_is_of_its_tokens_layer_and_encoder(tmp_path: Path) -> None:
    """Each of them makes another one; reading gives back the bits, in the encoder's own type."""
    config = CLIPTextConfig(
        vocab_size=16, width=8, num_layers=2, num_heads=2, mlp_width=8, max_length=6, eos_token=15
    )
    torch.manual_seed(0)
    encoder, other = CLIPText(config), CLIPText(config)
    tokens = torch.tensor([[1, 2, 15, 15, 15, 15], [1, 3, 15, 15, 15, 15]])

    def new(encoder: CLIPText, *given: object) -> int:
        before = len(list(tmp_path.glob("*/*")))
        with torch.no_grad():  # what learns is computed by torch alone, which rounds otherwise
            alone = [encoder(row[None], *given[1:]) for row in given[0]]  # type: ignore[attr-defined]
        wanted = [torch.cat(parts) for parts in zip(*alone, strict=True)]
        for _ in range(2):
            found = CachedTextEncoder(encoder, tmp_path)(*given)  # type: ignore[arg-type]
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, wanted, strict=True))
        return len(list(tmp_path.glob("*/*"))) - before

    assert new(encoder, tokens) == 2
    assert new(encoder, tokens.flip(0)) == 0
    assert new(encoder, tokens, 2) == 2
    assert new(encoder, tokens, 2, False) == 2
    assert new(other, tokens) == 2
    assert new(encoder.bfloat16(), tokens) == 2


@pytest.mark.parametrize(
    ("method", "more", "said"),
    [
        ("lora", {"shuffle_captions": True}, "vary by shuffle"),
        ("lora", {"tag_dropout": 0.1}, "vary by tag_dropout"),
        ("lora", {"caption_wildcards": True}, "vary by wildcards"),
        ("lora", {"text_lr": 1e-4}, "changes what the text encoders say"),
        ("textual-inversion", {"token": "sks", "template": "object"}, "changes what the text encoders say"),
        ("lora", {"cache": "none"}, "needs a folder, and cache is none"),
    ],
)
def test_what_can_not_be_kept_is_refused(
    method: str, more: dict[str, object], said: str, pictures: Path, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        trained(method, **options(pictures, tiny, tmp_path / "run", cache_text=True, **more))
    assert not (tmp_path / "run/state.safetensors").exists()


def test_the_option_is_on_the_command_line(
    pictures: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(pictures), "--model", str(tiny), "--output", str(tmp_path / "o"), "--steps", "1"]
    assert main(["train", "lora", *given, "--cache-text", "--no-buckets"]) == 0
    assert list((tmp_path / "o/cache").glob("*/*.safetensors"))
    capsys.readouterr()


def test_samples_are_encoded_as_they_are_drawn(tiny: Path) -> None:
    """Choices by the sample's own seed, changes at a step, weights and joined parts."""
    import inkwash

    model = inkwash.load(tiny)
    texts = [
        text
        for text, _ in cached_texts.sample_texts(
            model, ["a {red|blue} disc", "[a:b:0.5] AND c"], {"steps": 4}
        )
    ]
    assert {"a", "b", "c", ""} <= {text.strip() for text in texts}
    assert sum(text in ("a red disc", "a blue disc") for text in texts) == 1


def test_a_resumed_run_encodes_as_one_that_was_not_stopped(
    pictures: Path, tiny: Path, tmp_path: Path
) -> None:
    """Whichever captions meet in the step that it goes on from."""
    for stop in (1, 2, 3):
        trained("lora", **options(pictures, tiny, tmp_path / f"{stop}/run", steps=stop, caption_dropout=0.0))
        trained("lora", **options(pictures, tiny, tmp_path / f"{stop}/run", caption_dropout=0.0))
    trained("lora", **options(pictures, tiny, tmp_path / "whole/run", caption_dropout=0.0))
    whole = states(tmp_path / "whole/run")
    for stop in (1, 2, 3):
        found = states(tmp_path / f"{stop}/run")
        assert all(torch.equal(found[key], value) for key, value in whole.items()), stop
