"""Pairs of drawings in one picture: what their captions say, what they are made of, and what their trainings aim at."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from inkwash.models.clip import CLIPText, CLIPTextConfig
from inkwash.models.unet import UNet
from inkwash.nn.attention import BasicTransformerBlock
from inkwash.nn.blocks import ResBlock
from recipes.mini import pairs as module
from recipes.mini import parts
from recipes.mini.pairs import Pairs, PairTask, PairTextsTask, Turns, joined, phrases, taught
from recipes.mini.parts import Encoder
from recipes.mini.recipe import UNET

T, D = 77, 8
RECORDS = [
    {
        "kind": "single",
        "style": "noto",
        "captions": ["a taxi, noto style", "a taxi", "a drawing of a taxi, noto style"],
    },
    {"kind": "single", "style": "noto", "captions": ["a cat, noto style", "an orange cat, noto style"]},
    {"kind": "single", "style": "fluent", "captions": ["a dog, fluent style", "a dog, pet, fluent style"]},
    {"kind": "scene", "style": "noto", "captions": ["a taxi left of a cat, noto style"]},
]
NAMES = ("taxi", "cat", "dog")


class Words:
    """A tokenizer of words: 1, a number for each word, and 0 to the end."""

    end = 0

    def __call__(self, texts: list[str]) -> list[list[int]]:
        rows = [[1, *(2 + sum(map(ord, word)) % 61 for word in text.split())] for text in texts]
        return [row + [self.end] * (T - len(row)) for row in rows]


class Constant(nn.Module):
    """In place of a U-Net: predicts its context's mean everywhere, times a weight, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.given = (x, t, context)
        return self.scale * context.float().mean((1, 2))[:, None, None, None].expand_as(x)


def make_pairs() -> Pairs:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=63, width=D, num_layers=1, num_heads=1, mlp_width=8, max_length=T, eos_token=0
    )
    contexts = torch.stack([torch.full((T, D), float(value)) for value in (0, 10, 20, 30, 40)])
    encoder = Encoder(CLIPText(config), Words(), torch.device("cpu"))  # type: ignore[arg-type]
    return Pairs(RECORDS, contexts, [[1, 4], [2], [3], [4]], torch.ones(4), encoder)


def make_task(teacher: nn.Module | None = None, unet: nn.Module | None = None, **options) -> PairTask:
    means = torch.arange(4.0)[:, None, None, None].expand(4, 1, 4, 4)
    pairs = make_pairs()
    cached = (means, torch.zeros_like(means), pairs.contexts, [[1], [2], [3], [4]], torch.ones(4))
    given = {"schedule": parts.noise_schedule(), "batch": 16, "prediction": "v", "caption_dropout": 0.0}
    return PairTask(unet or Constant(), cached, pairs, teacher=teacher, **given | options)  # type: ignore[arg-type]


def run(task: PairTask | PairTextsTask | Turns, step: int = 0) -> Tensor:
    ((_, loss, _),) = task.losses(step, 0, torch.Generator().manual_seed(step))
    return loss


def test_phrases_name_a_drawing_and_nothing_else() -> None:
    assert [phrases(record) for record in RECORDS] == [["a taxi"], ["a cat", "an orange cat"], ["a dog"], []]


def test_captions_say_where_the_drawings_of_a_pair_are_and_their_style() -> None:
    chosen, captions = make_pairs().draw(200, torch.Generator().manual_seed(0))
    relations = set()
    for (left, right), text in zip(chosen.tolist(), captions, strict=True):
        ((first, relation, second),) = re.findall(r"^(.+?) (left of|right of|and) (.+?)(?:,| on |$)", text)
        relations.add(relation)
        if relation == "right of":
            first, second = second, first
        assert first.endswith(NAMES[left]) and second.endswith(NAMES[right])
        assert RECORDS[left]["style"] == RECORDS[right]["style"]
        assert "style" not in text or text.endswith(f", {RECORDS[left]['style']} style")
    assert relations == {"left of", "right of", "and"}
    assert any("white background" in text for text in captions)
    assert 3 not in chosen  # the scene
    assert all(module.asks_for_a_pair(text.replace(" on a white background", "")) for text in captions)


def test_contexts_of_pairs_say_behind_their_ends_what_is_said_of_each_drawing() -> None:
    said, alone = torch.zeros(2, T, D), torch.zeros(2, 2, T, D)
    alone[:, 0], alone[:, 1] = 10, 20
    context = joined(said, torch.tensor([5, 7]), alone)
    assert not context[0, :5].any() and not context[1, :7].any()
    left, right = context[0, 5] - 10, context[0, 48] - 20
    torch.testing.assert_close(left, -right)
    assert left.norm().item() == pytest.approx(module.MARK)
    assert torch.equal(context[0, 7:], context[1, 7:])
    assert (context[:, 7:48] == context[:, 7:8]).all() and (context[:, 48:] == context[:, 48:49]).all()


def test_a_teacher_sees_each_half_with_its_own_caption() -> None:
    teacher = Constant()
    x = torch.arange(2 * 4 * 8.0).view(2, 1, 4, 8)
    alone = torch.arange(4.0).view(2, 2, 1, 1).expand(2, 2, T, D)
    made = taught(teacher, alone, x, torch.tensor([5, 6]))
    assert made[:, 0, 0, 0].tolist() == [0, 2] and made[:, 0, 0, -1].tolist() == [1, 3]
    assert torch.equal(teacher.given[0], torch.cat([x[..., :4], x[..., 4:]]))
    assert teacher.given[1].tolist() == [5, 6, 5, 6]


def test_the_unet_sees_both_drawings_and_aims_at_its_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    joined_latents: list[Tensor] = []
    drawn: list[Tensor] = []
    task = make_task(teacher := Constant())
    objective, draw = task.objective, task.pairs.draw

    def noted(network: Callable[..., Tensor], latent: Tensor, *rest) -> tuple[Tensor, dict[str, float]]:
        joined_latents.append(latent)
        return objective(network, latent, *rest)

    monkeypatch.setattr(task, "objective", noted)
    monkeypatch.setattr(task.pairs, "draw", lambda *given: drawn.append((made := draw(*given))[0]) or made)
    loss = run(task)
    halves = joined_latents[0].chunk(2, dim=3)
    assert joined_latents[0].shape == (16, 1, 4, 8)
    assert torch.equal(torch.stack([half.mean((1, 2, 3)) for half in halves], 1), drawn[0].float())
    # the teacher's halves have their own contexts, 10, 20 or 30, which the U-Net's single number cannot equal
    wanted = 10.0 * (drawn[0] + 1)
    assert teacher.given[2][:, 0, 0].tolist() == wanted.T.flatten().tolist()
    loss.backward()
    assert loss.item() > 1 and task.unet.scale.grad is not None and teacher.scale.grad is None
    assert run(make_task(Constant(), caption_dropout=1.0)).item() == 0  # both read nothing
    assert run(make_task(caption_dropout=1.0)).item() > 0  # without a teacher the pictures are the target


def test_a_real_unet_learns_pairs_in_turns_with_single_pictures() -> None:
    unet = UNet(replace(UNET, channels=32, in_channels=1, out_channels=1, context_dim=D))
    task = make_task(unet=unet)
    first, second = Turns(task, make_task()), Turns(make_task(), task)
    run(first, step=2).backward()
    assert all(parameter.grad is not None for parameter in unet.parameters())
    unet.zero_grad()
    run(second, step=2).backward()
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_attention_is_astray_by_what_it_reads_about_the_other_half() -> None:
    """By the definition: -log of the share that a pixel's own drawing has of the weights of both drawings' positions."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 4 * 8, 6), torch.randn(2, T, 6)  # latents of 4x8 pixels, two heads of 3
    wanted = []
    for b in range(2):
        for pixel in range(32):
            for head in (slice(0, 3), slice(3, 6)):
                weights = (k[b, :, head] @ q[b, pixel, head] / 3**0.5).exp()
                left, right = weights[24:48].sum(), weights[48:].sum()
                own = left if pixel % 8 < 4 else right
                wanted.append(-(own / (left + right)).log())
    torch.testing.assert_close(module.astray(q, k, 2), torch.stack(wanted).mean())


def test_attention_learns_from_its_marks_what_is_about_which_half() -> None:
    side = torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1]).repeat(4)[None, :, None]
    marked = torch.cat([torch.zeros(24), torch.ones(24), -torch.ones(29)])[None, :, None]
    right, wrong = module.astray(8 * side, marked, 1), module.astray(-8 * side, marked, 1)
    assert right < 1e-5 and wrong > 7


def test_a_unet_is_watched_while_it_sees_pairs_and_no_longer() -> None:
    unet = UNet(replace(UNET, channels=32, in_channels=1, out_channels=1, context_dim=D))
    x, t, context = torch.randn(2, 1, 4, 8), torch.tensor([5, 6]), torch.randn(2, T, D)
    plain = unet(x, t, context)
    with module.watched(unet) as errors:
        torch.testing.assert_close(unet.forward(x, t, context), plain)
    blocks = [block for block in unet.modules() if isinstance(block, BasicTransformerBlock)]
    assert len(errors) == len(blocks) == 13 and all(error.isfinite() for error in errors)
    torch.stack(errors).mean().backward()
    assert all(block.attn2.to_q.weight.grad is not None for block in blocks)
    unet(x, t, context)
    assert len(errors) == 13


def test_where_pairs_are_learnt_only_transformers_and_the_lowest_blocks_learn() -> None:
    unet = UNet(UNET)
    module.free(unet)
    learning = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert {"middle_block.0.in_layers.2.weight", "output_blocks.1.0.skip_connection.weight"} <= learning
    assert "input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight" in learning
    fixed = {name for name, _ in unet.named_parameters()} - learning
    assert {"time_embed.0.weight", "input_blocks.0.0.weight", "output_blocks.2.0.in_layers.2.weight"} <= fixed
    # the lowest blocks are those of a quarter of the side
    sides: dict[str, int] = {}

    def note(name: str, block: nn.Module, args: tuple[Tensor, ...]) -> None:
        sides[name] = args[0].shape[-1]

    for name, block in unet.named_modules():
        if isinstance(block, ResBlock):
            block.register_forward_pre_hook(partial(note, name))
    unet(torch.randn(1, 8, 16, 16), torch.tensor([5]), torch.randn(1, T, 256))
    assert len(sides) == 11
    lowest = {name for name, side in sides.items() if side == 4}
    assert lowest == {name for name in sides if name.startswith(module.LOWEST)}


def test_the_text_encoder_learns_the_contexts_of_pairs_and_keeps_the_others() -> None:
    torch.manual_seed(0)
    pairs = make_pairs()
    with torch.no_grad():  # so that the contexts wanted are ones that a norm can give
        pairs.contexts = torch.nn.functional.layer_norm(torch.randn(5, T, D), (D,))
    model = CLIPText(pairs.encoder.model.config)
    model.load_state_dict(pairs.encoder.model.state_dict())
    task = PairTextsTask(model, pairs, ["", "a taxi, noto style", "a cat left of a dog, noto style"], 6)
    assert task.texts == ["", "a taxi, noto style"]
    ((name, loss, logs),) = task.losses(0, 0, torch.Generator().manual_seed(0))
    assert name == "text" and logs["others"] == pytest.approx(0, abs=1e-3) and logs["pairs"] > 0.5
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(60):
        loss = run(task, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ((_, _, after),) = task.losses(100, 0, torch.Generator().manual_seed(100))
    assert after["pairs"] < 0.8 * logs["pairs"]
