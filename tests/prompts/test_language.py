"""The prompt language: A1111's own examples, its definitions written out plainly, and what it does to D."""

import re
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import inkwash
from inkwash.models.tokenizer import Tokenizer
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.denoising.prompted import prompted
from inkwash.prompts.attention import escape, parse_attention
from inkwash.prompts.chunks import chunks
from inkwash.prompts.conditioning import Reading, conjunction, encode, encode_plans, plan
from inkwash.prompts.schedule import schedule

CLIP = Tokenizer.clip()


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [("", 1.0)]),
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("[x:1.3]", [("x:1.3", 1 / 1.1)]),
        ("(a:-0.5) b", [("a", -0.5), (" b", 1.0)]),
        ("(a:1.2.3) b", [("a:1.2.3", 1.1), (" b", 1.0)]),
        ("a)]:b", [("a)]:b", 1.0)]),
        ("a  BREAK\nb", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
        ("(a BREAK b:2) BREAKS", [("a", 2.0), ("BREAK", -1.0), ("b", 2.0), (" BREAKS", 1.0)]),
    ],
)
def test_attention(text: str, parts: list[tuple[str, float]]) -> None:
    assert parse_attention(text) == parts


def test_attention_of_the_language_s_own_example() -> None:
    assert parse_attention("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).") == [
        ("a ", 1.0),
        ("house", 1.5730000000000004),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641000000000006),
        (".", 1.1),
    ]


def plain_attention(text: str) -> list[tuple[str, float]]:
    """By the definition: a bracket's factor multiplies all that was read since it was opened."""
    letters: list[str] = []
    factors: list[list[float]] = []
    round_, square = [], []

    def close(opened: list[int], factor: float) -> None:
        for factors_of_letter in factors[opened.pop() :]:
            factors_of_letter.append(factor)

    token = re.compile(r"\\[\\()\[\]]|:\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)|.", re.DOTALL)
    for match in token.finditer(text):
        found = match[0]
        if match[1] and round_:
            close(round_, float(match[1]))
        elif found in "([":
            (round_ if found == "(" else square).append(len(letters))
        elif found == ")" and round_:
            close(round_, 1.1)
        elif found == "]" and square:
            close(square, 1 / 1.1)
        else:
            for letter in found[1:] if found[0] == "\\" and len(found) == 2 else found:
                letters.append(letter)
                factors.append([])
    for opened, factor in ((round_, 1.1), (square, 1 / 1.1)):
        while opened:
            close(opened, factor)
    return [(letter, prod(some)) for letter, some in zip(letters, factors, strict=True)]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    text=st.lists(st.sampled_from(["a", "b ", "(", ")", "[", "]", ":1.5)", ":.5 )", "\\(", "\\", ":"])).map(
        "".join
    )
)
def test_attention_is_that_of_the_definition(text: str) -> None:
    got = [(letter, weight) for part, weight in parse_attention(text) for letter in part]
    wanted = plain_attention(text)
    assert [letter for letter, _ in got] == [letter for letter, _ in wanted]
    assert [w for _, w in got] == pytest.approx([w for _, w in wanted], rel=1e-9)


@settings(deadline=None, derandomize=True)
@given(text=st.text().filter(lambda text: "BREAK" not in text))
def test_an_escaped_text_is_itself(text: str) -> None:
    assert parse_attention(escape(text)) == [(text, 1.0)]


# ---------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("test", [[10, "test"]]),
        ("a [b:3]", [[3, "a "], [10, "a b"]]),
        ("a [b: 3]", [[3, "a "], [10, "a b"]]),
        ("a [[[b]]:2]", [[2, "a "], [10, "a [[b]]"]]),
        ("[(a:2):3]", [[3, ""], [10, "(a:2)"]]),
        ("a [b : c : 1] d", [[1, "a b  d"], [10, "a  c  d"]]),
        ("a[b:[c:d:2]:1]e", [[1, "abe"], [2, "ace"], [10, "ade"]]),
        ("a [b::0.25]", [[2, "a b"], [10, "a "]]),
        ("a [b:.5]", [[5, "a "], [10, "a b"]]),
        ("a [b:99]", [[10, "a "]]),
        ("a [b:0]", [[10, "a b"]]),
        ("(a [b:3]:1.2)", [[3, "(a :1.2)"], [10, "(a b:1.2)"]]),
        # no schedules
        ("a [b:c:0.5 without end", [[10, "a [b:c:0.5 without end"]]),
        ("a] [b", [[10, "a] [b"]]),
        ("[a:b|c:3]", [[10, "[a:b|c:3]"]]),
        ("[a:3:b] (c:d:3) [e:f:g:4]", [[10, "[a:3:b] (c:d:3) [e:f:g:4]"]]),
        (r"\[a:3\] [b\:3]", [[10, r"\[a:3\] [b\:3]"]]),
    ],
)
def test_schedule(text: str, prompts: list) -> None:
    assert schedule(text, 10) == prompts


def test_alternation() -> None:
    assert schedule("[fe|]male", 3) == [[1, "female"], [2, "male"], [3, "female"]]
    assert [text for _, text in schedule("[a|b|[c|d]]", 6)] == ["a", "b", "c", "a", "b", "d"]
    assert [text for _, text in schedule("[a|[b:c:3]]", 4)] == ["a", "b", "a", "c"]
    with pytest.raises(ValueError, match="steps 0"):
        schedule("a", 0)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    text=st.lists(st.sampled_from(["a", " b", "(", ")", "[", "]", ":", "|", ":3]", ":.5]", "\\["])).map(
        "".join
    )
)
def test_every_text_has_a_schedule(text: str) -> None:
    """It covers the steps, and a text with nothing that changes is left as it is."""
    found = schedule(text, 7)
    ends = [end for end, _ in found]
    assert ends == sorted(set(ends)) and ends[-1] == 7
    if "|" not in text and ":" not in text:
        assert found == [[7, text]]


# ---------------------------------------------------------------- chunks


def words(num: int) -> str:
    return " ".join(["cat"] * num)


def test_a_short_prompt_is_what_the_tokenizer_gives() -> None:
    (chunk,) = chunks(CLIP, "a red taxi, noto style")
    assert chunk.tokens == CLIP(["a red taxi, noto style"])[0]
    assert set(chunk.weights) == {1.0}
    assert chunks(CLIP, "")[0].tokens == CLIP([""])[0]


def test_weights_lie_on_their_tokens() -> None:
    (chunk,) = chunks(CLIP, "a (red:1.5) cat")
    weights = dict(zip((CLIP.words[token] for token in chunk.tokens), chunk.weights, strict=True))
    assert {word: weight for word, weight in weights.items() if weight != 1} == {"red</w>": 1.5}


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        (words(75), [75]),
        (words(76), [75, 1]),
        (words(60) + ", " + words(30), [61, 30]),  # a comma 15 tokens back
        (words(40) + ", " + words(50), [75, 16]),  # too far back
        (words(75) + ", " + words(3), [75, 4]),
        (words(3) + " BREAK " + words(4), [3, 4]),
        ("BREAK " + words(2), [0, 2]),
        (words(2) + " BREAK", [2]),
        (words(60) + ", " + words(80), [61, 75, 5]),
    ],
)
def test_where_chunks_end(text: str, lengths: list[int]) -> None:
    made = chunks(CLIP, text)
    assert [chunk.tokens.index(CLIP.end) - 1 for chunk in made] == lengths
    assert all(len(chunk.tokens) == len(chunk.weights) == 77 for chunk in made)
    flat = [token for chunk in made for token in chunk.tokens if token not in (CLIP.start, CLIP.end)]
    assert flat == CLIP.encode(text.replace("BREAK", " "))


def test_too_many_chunks_are_refused() -> None:
    assert len(chunks(CLIP, words(75 * 20))) == 20
    with pytest.raises(ValueError, match="21 chunks of 75 tokens; at most 20"):
        chunks(CLIP, words(75 * 20 + 1))


def test_conjunction() -> None:
    assert conjunction("a cat") == [("a cat", 1.0)]
    assert conjunction("a cat AND a dog :0.5 AND mist: -1") == [
        ("a cat ", 1.0),
        (" a dog", 0.5),
        (" mist", -1.0),
    ]
    assert conjunction("SAND ANDY") == [("SAND ANDY", 1.0)]


# ---------------------------------------------------------------- conditioning


@pytest.fixture(scope="module")
def model(tiny: Path) -> Pipeline:
    return inkwash.load(tiny)


def contexts_of(model: Pipeline, texts: list[str]) -> dict[str, Tensor]:
    return {text: context for text, (context, _) in encode(model.text_encoders, texts).items()}


def test_emphasis_weighs_vectors_and_keeps_the_mean(model: Pipeline) -> None:
    texts = ["a cat", "a (cat:1.5)", "(a cat)", r"a \(cat\)"]
    made = contexts_of(model, texts)
    tokens = model.text_encoders[0].tokenizer(["a cat"])[0]
    context = model.text_encoders[0].model(torch.tensor([tokens]))[0][0]
    torch.testing.assert_close(made["a cat"], context)
    weights = torch.ones(77)
    weights[2 : tokens.index(model.text_encoders[0].tokenizer.end)] = 1.5  # all but the start and "a"
    wanted = context * weights[:, None]
    torch.testing.assert_close(made["a (cat:1.5)"], wanted * context.mean() / wanted.mean())
    torch.testing.assert_close(made["(a cat)"].mean(), context.mean())
    assert not torch.allclose(made[r"a \(cat\)"], context)


def test_long_prompts_are_chunks_side_by_side(model: Pipeline) -> None:
    long = "one two BREAK three"
    made = contexts_of(model, [long, "one two", "three"])
    torch.testing.assert_close(made[long], torch.cat([made["one two"], made["three"]]))


def traced(model: Pipeline, prompts: list[str], negative: str, scale: float) -> list[Tensor]:
    """D's outputs at each of 4 sigmas, for a network that returns the mean of its context."""

    def denoise(x: Tensor, sigma: Tensor, cond) -> Tensor:
        return cond["context"].mean(dim=(1, 2)).view(-1, 1, 1, 1).expand_as(x)

    sigmas = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    reading = Reading()
    stages = encode_plans(
        partial(encode, model.text_encoders), [plan(prompt, negative, reading, 4) for prompt in prompts]
    )
    D = prompted(denoise, stages, [reading] * len(prompts), sigmas, scale)
    x = torch.zeros(len(prompts), 1, 1, 1)
    return [D(x, sigma).flatten() for sigma in (*sigmas[:-1], torch.tensor(3.0), torch.tensor(0.5))]


def test_steps_see_their_prompts(model: Pipeline) -> None:
    mean = {text: context.mean().item() for text, context in contexts_of(model, ["cat", "dog", ""]).items()}
    seen = [value.item() for value in traced(model, ["[cat:dog:2]"], "", 1.0)]
    # steps 1 to 4, then between the second and the third, then below the last
    assert seen == pytest.approx([mean[k] for k in ("cat", "cat", "dog", "dog", "cat", "dog")])
    seen = [value.item() for value in traced(model, ["[cat|dog]"], "", 1.0)]
    assert seen == pytest.approx([mean[k] for k in ("cat", "dog", "cat", "dog", "dog", "dog")])
    seen = [value.item() for value in traced(model, ["cat"], "[dog::1]", 3.0)]
    wanted = [mean[k] + 3 * (mean["cat"] - mean[k]) for k in ("dog", "", "", "", "", "")]
    assert seen == pytest.approx(wanted)


def test_and_adds_up(model: Pipeline) -> None:
    mean = {
        text: context.mean().item() for text, context in contexts_of(model, ["cat", "dog", "rain"]).items()
    }
    prompts = ["cat AND dog :0.5", "dog"]
    first, second = traced(model, prompts, "rain", 4.0)[0].tolist()
    rain = mean["rain"]
    assert first == pytest.approx(rain + 4 * (mean["cat"] - rain) + 2 * (mean["dog"] - rain))
    assert second == pytest.approx(rain + 4 * (mean["dog"] - rain))


def test_a_batch_of_unlike_prompts_is_each_alone(model: Pipeline) -> None:
    prompts = ("a taxi", "one BREAK two (three:1.4)", "[cat:dog:2] AND a hat :0.7")
    batch = model.text_to_image(prompts, "rain", batch_size=3, steps=4, seed=9)
    for k, prompt in enumerate(prompts):
        alone = model.text_to_image(prompt, "rain", steps=4, seed=9 + k)[0]
        difference = np.abs(np.asarray(batch[k], dtype=int) - np.asarray(alone, dtype=int))
        assert difference.max() <= 1
    with pytest.raises(ValueError, match="at most 20"):
        model.text_to_image(" ".join("BREAK x" for _ in range(21)))
