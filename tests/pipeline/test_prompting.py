"""Prompts beyond words: names of files, styles and choices; and the prompt languages."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor

import inkwash
from inkwash.adapters import embeddings
from inkwash.adapters.embeddings import Learned, read_embedding, sources
from inkwash.adapters.low_rank import attach, read_adapter
from inkwash.files import ModelFileError
from inkwash.models.tokenizer import Tokenizer
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.denoising import prompting
from inkwash.pipeline.denoising.prompting import final
from inkwash.pipeline.task_requests import TextToImageRequest
from inkwash.prompts.chunks import chunks
from inkwash.prompts.comfy import parse_comfy
from inkwash.prompts.conditioning import Reading, encode
from inkwash.prompts.folders import Folders
from inkwash.prompts.language import LANGUAGES
from inkwash.prompts.styles import Style, apply_styles, read_styles
from inkwash.prompts.tags import Tag, extract_tags
from inkwash.prompts.wildcards import expand

CLIP = Tokenizer.clip()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of everything that the tiny model's prompts may name."""
    root = tmp_path_factory.mktemp("named")
    for folder in ("loras/deep", "embeddings", "wildcards/animals"):
        (root / folder).mkdir(parents=True)
    key = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"
    text = "lora_te_text_model_encoder_layers_0_self_attn_v_proj"
    for i, name in enumerate(("strong", "deep/other")):
        seed = torch.Generator().manual_seed(i)
        pairs = {f"{module}.lora_{way}.weight": torch.randn(shape, generator=seed)
                 for module in (key, text) for way, shape in (("down", (2, 8)), ("up", (8, 2)))}  # fmt: skip
        save_file(pairs, root / f"loras/{name}.safetensors")
    random_ = torch.Generator().manual_seed(7)
    save_file({"emb_params": torch.randn(3, 8, generator=random_)}, root / "embeddings/three-of.safetensors")
    save_file({"<x>": torch.randn(8, generator=random_)}, root / "embeddings/three.safetensors")
    save_file({"emb_params": torch.randn(2, 9)}, root / "embeddings/wide.safetensors")
    (root / "wildcards/colour.txt").write_text("# colours\nred\n\n blue \ngreen\n")
    (root / "wildcards/animals/cat.txt").write_text("a __colour__ cat\n{a big|a small} cat\n")
    (root / "styles.csv").write_text(
        'name,prompt,negative_prompt\nplain,on a plain background,\nframe,"a frame, {prompt}, of gold",blur\n'
    )
    return root


@pytest.fixture(scope="module")
def model(tiny: Path, files: Path) -> Pipeline:
    return inkwash.load(
        tiny,
        loras=files / "loras",
        embeddings=[files / "embeddings"],
        wildcards=files / "wildcards",
        styles=files / "styles.csv",
    )


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def drawn(model: Pipeline, prompt: Any, **options: Any) -> list[np.ndarray]:
    return [pixels(image) for image in model.text_to_image(prompt, **{"steps": 2, "seed": 3} | options)]


# ---------------------------------------------------------------- languages


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [("", 1.0)]),
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("(a (b))", [("a ", 1.1), ("b", 1.1 * 1.1)]),
        ("((a:1.3) b)", [("a", 1.3), (" b", 1.1)]),  # whatever is around it
        ("(a:1.3) (b:-.5)", [("a", 1.3), (" ", 1.0), ("b", -0.5)]),
        (r"\(a\) [b] [c:d:3]", [("(a) [b] [c:d:3]", 1.0)]),
        ("(a", [("(a", 1.0)]),
        ("a) b:1.2)", [("a) b:1.2)", 1.0)]),
        ("(a:b)", [("a:b", 1.1)]),
    ],
)
def test_comfy_s_weights(text: str, parts: list[tuple[str, float]]) -> None:
    assert parse_comfy(text) == parts


def words(num: int) -> str:
    return " ".join(["cat"] * num)


def test_comfy_keeps_words_whole() -> None:
    """A word of 2 to 7 tokens goes to the next chunk, one of more is split, and commas and BREAK mean nothing."""
    comfy = LANGUAGES["comfy"]
    for word, kept in (("photorealistically", True), ("a" * 60, False)):
        num = len(CLIP.encode(word))
        assert (2 <= num < 8) is kept
        ends = [chunk.tokens.index(CLIP.end) - 1 for chunk in chunks(CLIP, f"{words(74)} {word}", comfy)]
        assert ends == ([74, num] if kept else [75, num - 1])
    assert [
        chunk.tokens.index(CLIP.end) - 1 for chunk in chunks(CLIP, words(70) + ", " + words(9), comfy)
    ] == [75, 5]
    assert len(chunks(CLIP, "a BREAK b", comfy)) == 1


def encoded(model: Pipeline, text: str, language: str = "a1111", **how: Any) -> Tensor:
    reading = Reading(LANGUAGES[language], **how)
    return encode(model.text_encoders, [text], reading)[text][0]


def test_what_a_weight_does_is_the_language_s(model: Pipeline) -> None:
    plain, empty = encoded(model, "a cat"), encoded(model, "")
    weights = torch.ones(77, 1)
    tower = model.text_encoders[0].tokenizer
    weights[2 : tower(["a cat"])[0].index(tower.end)] = 1.5
    weighed = plain * weights
    text = "a (cat:1.5)"
    torch.testing.assert_close(encoded(model, text), weighed * plain.mean() / weighed.mean())
    torch.testing.assert_close(encoded(model, text, "a1111_no_norm"), weighed)
    torch.testing.assert_close(encoded(model, text, "a1111_ignore"), plain)
    torch.testing.assert_close(encoded(model, text, "comfy"), empty + weights * (plain - empty))
    literal = encoded(model, r"a \(cat:1.5\)")
    torch.testing.assert_close(encoded(model, text, "a1111_none"), literal)
    torch.testing.assert_close(encoded(model, text, "plain"), literal)
    assert len({tuple(encoded(model, text, name).flatten().tolist()) for name in LANGUAGES}) == 5


def test_only_a1111_s_language_changes_with_the_steps(model: Pipeline) -> None:
    for text in ("[cat:dog:1]", "cat AND dog :0.5"):
        reading = [Reading(LANGUAGES[name]) for name in LANGUAGES]
        changing = [len(one.parts(text)) > 1 or len(one.plan(text, 4)) > 1 for one in reading]
        assert dict(zip(LANGUAGES, changing, strict=True)) == {
            name: name.startswith("a1111") for name in LANGUAGES
        }
    pictures = {name: drawn(model, "a [cat:dog:1] (b:1.3)", prompt_language=name)[0] for name in LANGUAGES}
    assert all((a != b).any() for x, a in pictures.items() for y, b in pictures.items() if x < y)


def test_clip_skip_is_the_layer_from_the_end_but_never_before_the_model_s_own() -> None:
    from inkwash.models.clip import CLIPText, CLIPTextConfig
    from inkwash.weights.checkpoint import TextEncoder

    tokenizer = Tokenizer([])
    config = CLIPTextConfig(
        vocab_size=len(tokenizer.vocab),
        width=8,
        num_layers=4,
        num_heads=2,
        mlp_width=16,
        eos_token=tokenizer.end,
    )
    torch.manual_seed(1)
    network = CLIPText(config).eval()
    made = {}
    for own in (1, 2):
        towers = [TextEncoder(network, tokenizer, own)]
        for skip in (None, 1, 2, 3):
            made[own, skip] = encode(towers, ["a cat"], Reading(clip_skip=skip))["a cat"][0]
            wanted = network(torch.tensor(tokenizer(["a cat"])), max(own, skip or 1))[0][0]
            torch.testing.assert_close(made[own, skip], wanted)
    assert not torch.allclose(made[1, 1], made[1, 2])
    assert torch.equal(made[2, 1], made[2, None]) and torch.equal(made[1, 3], made[2, 3])
    with pytest.raises(ValueError, match="clip skip 5 is not in 1 to 4"):
        encode(towers, ["a cat"], Reading(clip_skip=5))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (r"a (cat:1.2) [b:c:3] [d|e] [f] \( 1:2", None),
        ("a (cat", "'(' at character 3 has no partner"),
        ("a [b (c] d", "']' at character 8 has no partner"),
        ("smile :)", "')' at character 8 has no partner"),
        ("[a:b:c]", "'[a:b:c]' is neither a schedule"),
        ("(x [a:b|c:3])", "'[a:b|c:3]' is neither a schedule"),
    ],
)
def test_what_is_taken_as_it_is_written_is_said(
    model: Pipeline, caplog: pytest.LogCaptureFixture, text: str, problem: str | None
) -> None:
    final(model, TextToImageRequest(prompt=text, batch_size=2))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (problem is not None) and (problem or "") in "".join(said)
    caplog.clear()
    final(model, TextToImageRequest(prompt=text, prompt_language="plain"))
    assert not caplog.records
    final(model, TextToImageRequest(prompt="a", negative_prompt="<lora:x:1>"))
    assert ["LoRAs in a negative prompt" in record.getMessage() for record in caplog.records] == [True]


# ---------------------------------------------------------------- embeddings


def a1111_pt(path: Path, vectors: Tensor) -> None:
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "x", "step": 5}
    torch.save(content, path)


def picture(path: Path, vectors: Tensor) -> None:
    content = {"string_to_param": {"*": {"TORCHTENSOR": vectors.tolist()}}, "name": "x"}
    chunk = PngInfo()
    chunk.add_text("sd-ti-embedding", base64.b64encode(json.dumps(content).encode()).decode())
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunk)


def hiding(path: Path, vectors: Tensor) -> None:
    """A picture between two blocks that hold compressed JSON in their low bits, within a black margin."""
    content = {"string_to_param": {"*": {"TORCHTENSOR": vectors.tolist()}}, "name": "x"}
    hidden = zlib.compress(json.dumps(content).encode())
    height, random = 40, np.random.default_rng(0)
    width = -(-len(hidden) // (3 * height))
    hidden = np.frombuffer(hidden, np.uint8)
    state, mask = 0, []
    for _ in range(3 * height * width):
        state = (1664525 * state + 1013904223) % 2**32
        mask.append(state % 255 & 15)
    mask = np.array(mask, np.uint8).reshape(height, width, 3)
    blocks = [np.resize(bits, mask.shape) ^ mask for bits in (hidden & 15, hidden >> 4)]
    low, high = (random.integers(1, 16, mask.shape).astype(np.uint8) << 4 | block for block in blocks)
    border = np.zeros((height, 1, 3), np.uint8)
    shown = random.integers(1, 255, (height, 30, 3)).astype(np.uint8)
    whole = np.concatenate([low, border, shown, border, high], axis=1)
    Image.fromarray(np.pad(whole, ((3, 3), (5, 5), (0, 0)))).save(path)


FORMS = {
    "a1111.pt": a1111_pt,
    "kohya.safetensors": lambda path, v: save_file({"emb_params": v}, path),
    "diffusers.safetensors": lambda path, v: save_file({"<x>": v}, path),
    "diffusers.bin": lambda path, v: torch.save({"<x>": v}, path),
    "list.pt": lambda path, v: torch.save([{"<x>": v[:1]}, {"<y>": v[1:]}], path),
    "picture.png": picture,
    "hidden.png": hiding,
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_an_embedding(tmp_path: Path, name: str) -> None:
    vectors = torch.randn(3, 8)
    FORMS[name](tmp_path / name, vectors)
    (made,) = read_embedding(tmp_path / name, [8])
    torch.testing.assert_close(made, vectors)
    with pytest.raises(ModelFileError, match=f"{name}: its vectors have width 8; the model takes 16"):
        read_embedding(tmp_path / name, [16])


def test_embeddings_of_two_text_encoders(tmp_path: Path) -> None:
    small, large = torch.randn(2, 8), torch.randn(2, 12)
    for names in (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")):
        save_file(dict(zip(names, (small, large), strict=True)), tmp_path / "xl.safetensors")
        for widths, wanted in (([8, 12], [small, large]), ([12], [large])):
            assert all(map(torch.equal, read_embedding(tmp_path / "xl.safetensors", widths), wanted))
    save_file({"clip_l": small, "clip_g": torch.randn(3, 12)}, tmp_path / "uneven.safetensors")
    with pytest.raises(ModelFileError, match="it has 2 and 3 vectors"):
        read_embedding(tmp_path / "uneven.safetensors", [8, 12])
    same = torch.randn(2, 8)
    save_file({"clip_l": small, "clip_g": same}, tmp_path / "alike.safetensors")
    assert all(map(torch.equal, read_embedding(tmp_path / "alike.safetensors", [8, 8]), [small, same]))


BROKEN: dict[str, Any] = {
    "text.pt": (lambda p: p.write_text("no"), "neither safetensors nor"),
    "picture.png": (lambda p: Image.new("L", (4, 4)).save(p), "no sd-ti-embedding, and hides nothing"),
    "half.png": (lambda p: p.write_bytes(b"\x89PNG"), "not a readable picture"),
    "none.safetensors": (
        lambda p: save_file({"a": torch.zeros(1, dtype=torch.int64)}, p),
        "it has no vectors; expected width",
    ),
    "many.safetensors": (lambda p: save_file({"a": torch.zeros(76, 8)}, p), "it has 76 vectors; 1 to 75"),
    "nan.safetensors": (lambda p: save_file({"a": torch.full((1, 8), torch.nan)}, p), "not finite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_embedding_is_said(tmp_path: Path, name: str) -> None:
    write, message = BROKEN[name]
    write(tmp_path / name)
    with pytest.raises(ModelFileError) as caught:
        read_embedding(tmp_path / name, [8])
    assert message in str(caught.value) and name in str(caught.value)
    damaged = PngInfo()
    damaged.add_text("sd-ti-embedding", base64.b64encode(b'{"TORCHTENSOR": [[1], "x"]}').decode())
    Image.new("L", (4, 4)).save(tmp_path / "damaged.png", pnginfo=damaged)
    with pytest.raises(ModelFileError, match="damaged.png: its sd-ti-embedding can't be read"):
        read_embedding(tmp_path / "damaged.png", [8])


def test_a_broken_hiding_place_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hiding(tmp_path / "hidden.png", torch.randn(3, 8))
    pixels = np.asarray(Image.open(tmp_path / "hidden.png")).copy()
    for cut, message in (
        (pixels[:, :-6], "what the picture hides is cut"),
        (pixels[::-1].copy(), "can't be read: Error -3"),
        (pixels * 0, "hides nothing"),
    ):
        Image.fromarray(cut).save(tmp_path / "cut.png")
        with pytest.raises(ModelFileError, match="cut.png: .*" + message):
            read_embedding(tmp_path / "cut.png", [8])
    monkeypatch.setattr(embeddings, "MAX_HIDDEN", 100)
    with pytest.raises(ModelFileError, match="longer than 100 bytes"):
        read_embedding(tmp_path / "hidden.png", [8])


def learned(model: Pipeline) -> Learned:
    return Learned(sources(model.folders.embedding_files()), model.text_encoders)


def test_embeddings_are_met_by_their_tokens_the_longest_first(model: Pipeline) -> None:
    tokenizer, some = model.text_encoders[0].tokenizer, learned(model)
    first = model.text_encoders[0].model.config.vocab_size
    (chunk,) = chunks(tokenizer, "a (Three-Of:1.5), three", learned=some)
    end = chunk.tokens.index(tokenizer.end)
    a, comma = tokenizer.encode("a"), tokenizer.encode(",")
    assert chunk.tokens[1:end] == [*a, first, first + 1, first + 2, *comma, first + 3]
    assert chunk.weights[1:end] == [1.0, 1.5, 1.5, 1.5, 1.0, 1.0]
    (chunk,) = chunks(tokenizer, "embedding:three-of embedding:three", LANGUAGES["comfy"], some)
    assert chunk.tokens[1:5] == [first, first + 1, first + 2, first + 3]
    with pytest.raises(ValueError, match="there is no embedding 'thre'; near: three"):
        chunks(tokenizer, "embedding:thre", LANGUAGES["comfy"], some)


def test_an_embedding_is_never_split(model: Pipeline) -> None:
    tokenizer = model.text_encoders[0].tokenizer
    for before in range(70, 77):
        made = chunks(tokenizer, " ".join("a" * before) + " three-of", learned=learned(model))
        ends = [chunk.tokens.index(tokenizer.end) - 1 for chunk in made]
        assert ends == ([before + 3] if before <= 72 else [before, 3] if before <= 75 else [75, before - 72])


def test_the_encoder_sees_the_vectors(model: Pipeline) -> None:
    """As it would see known tokens of these vectors; and afterwards it is as it was."""
    reading = {"embeddings": sources(model.folders.embedding_files())}
    before = encoded(model, "a three b")
    table = model.text_encoders[0].model.text_model.embeddings.token_embedding
    made = encoded(model, "a three b", **reading)
    assert model.text_encoders[0].model.text_model.embeddings.token_embedding is table
    tokenizer = model.text_encoders[0].tokenizer
    kept = table.weight.clone()
    try:
        table.weight[tokenizer.encode("z")[0]] = read_embedding(
            model.folders.embedding_files()["three"][0], [8]
        )[0][0]
        torch.testing.assert_close(made, encoded(model, "a z b"))
    finally:
        table.weight.copy_(kept)
    assert torch.equal(encoded(model, "a three b"), before) and not torch.allclose(made, before)
    assert torch.equal(encoded(model, "a three b", "plain", **reading), before)


# ---------------------------------------------------------------- LoRA tags


@pytest.mark.parametrize(
    ("text", "rest", "tags"),
    [
        ("a cat", "a cat", ()),
        ("a <lora:x> cat", "a  cat", (Tag("x"),)),
        ("<lora:x y:0.5>", "", (Tag("x y", 0.5, 0.5),)),
        ("<lyco:x:0.5:-1>", "", (Tag("x", 0.5, -1.0),)),
        ("<lora:x:unet=0.3>", "", (Tag("x", 1.0, 0.3),)),
        ("a<hypernet:x y>", "a", (Tag("x y", kind="hypernet"),)),
        ("<hypernet:x:0.5>", "", (Tag("x", 0.5, 0.5, "hypernet"),)),
        ("<lora:x:te=0:unet=2>a<lora:y>", "a", (Tag("x", 0, 2), Tag("y"))),
        ("<b:x> 1 < 2 > 0", "<b:x> 1 < 2 > 0", ()),
    ],
)
def test_tags(text: str, rest: str, tags: tuple[Tag, ...]) -> None:
    assert extract_tags(text) == (rest, tags)


@pytest.mark.parametrize(
    "tag", ["<lora:x:much>", "<lora:x:1:2:3>", "<lora:x:dyn=4>", "<hypernet:x:1:2>", "<lora:x:nan>"]
)
def test_odd_tags_are_refused(tag: str) -> None:
    with pytest.raises(ValueError, match=tag):
        extract_tags(f"a {tag}")


def test_a_tag_is_an_adapter_that_is_attached(model: Pipeline, files: Path, tiny: Path) -> None:
    adapter = read_adapter(files / "loras/strong.safetensors", model)
    alone = inkwash.load(tiny)
    plain = drawn(model, "a cat")[0]
    tagged = drawn(model, "a cat<lora:Strong:0.4:0.8>")[0]
    with attach(alone, adapter, 0.8, 0.4):
        assert (drawn(alone, "a cat")[0] == tagged).all()
    assert (drawn(model, "a cat")[0] == plain).all() and (plain != tagged).any()
    both = drawn(model, "a cat<lora:strong:0.4:0.8><lora:other>")[0]
    assert (both != tagged).any()
    assert (drawn(model, "a cat <lora:strong:0>")[0] == drawn(model, "a cat ")[0]).all()
    with pytest.raises(ValueError, match="there is no LoRA 'stron'; near: strong"):
        model.text_to_image("a <lora:stron:1>")
    with pytest.raises(ValueError, match="there is no LoRA 'strong'; there is none"):
        alone.text_to_image("a <lora:strong:1>")


def test_pictures_of_a_batch_have_loras_of_their_own(model: Pipeline) -> None:
    prompts = (
        "a cat",
        "a cat<lora:strong:0.7>",
        "a dog BREAK b<lora:other>",
        "a [cat:dog:1]<lora:strong:0.7>",
    )
    batch = drawn(model, prompts, batch_size=4, negative_prompt=("", "x", "x BREAK y", ""))
    for k, (prompt, negative) in enumerate(zip(prompts, ("", "x", "x BREAK y", ""), strict=True)):
        alone = drawn(model, prompt, seed=3 + k, negative_prompt=negative)[0]
        assert np.abs(batch[k] - alone).max() <= 1


def test_a_lora_brings_its_embeddings(model: Pipeline, files: Path, tmp_path: Path, tiny: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(files / "loras/strong.safetensors")
    vectors = load_file(files / "embeddings/three.safetensors")["<x>"]
    save_file(tensors | {"bundle_emb.zz.string_to_param.*": vectors}, tmp_path / "bundle.safetensors")
    other = inkwash.load(tiny, loras=tmp_path)
    wanted = drawn(model, "three <lora:strong:0.5>")[0]
    assert (drawn(other, "zz <lora:bundle:0.5>")[0] == wanted).all()


# ---------------------------------------------------------------- styles and choices


def test_styles(model: Pipeline, files: Path) -> None:
    known = read_styles([files / "styles.csv"])
    assert known == {
        "plain": Style("on a plain background", ""),
        "frame": Style("a frame, {prompt}, of gold", "blur"),
    }
    assert apply_styles([], known, " a cat ", "") == (" a cat ", "")
    assert apply_styles(["plain"], known, "a cat", "dog") == ("a cat, on a plain background", "dog")
    assert apply_styles(["frame", "plain"], known, "a cat", "dog") == (
        "a frame, a cat, of gold, on a plain background",
        "dog, blur",
    )
    with pytest.raises(ValueError, match="there is no style 'frames'; near: frame"):
        apply_styles(["frames"], known, "a", "")
    request = final(model, TextToImageRequest(prompt="a {prompt} cat", styles=("frame",)))
    assert (request.prompt, request.negative_prompt) == ("a frame, a {prompt} cat, of gold", "blur")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "no column name"),
        ("name,words\nx,y\n", "no column prompt"),
        ("", "no column name"),
    ],
)
def test_a_styles_file_without_its_columns_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(content)
    with pytest.raises(ModelFileError, match=message):
        read_styles([tmp_path / "s.csv"])
    (tmp_path / "b.csv").write_bytes(b"name,prompt,negative_prompt\n\xff,\xff,\xff\n")
    with pytest.raises(ModelFileError, match="b.csv can't be read"):
        read_styles([tmp_path / "b.csv"])


def test_wildcards(model: Pipeline) -> None:
    found = model.folders.wildcard_files()
    assert {expand("a __colour__ x", seed, found) for seed in range(40)} == {
        "a red x",
        "a blue x",
        "a green x",
    }
    wanted = {f"a {word} cat" for word in ("red", "blue", "green", "big", "small")}
    assert {expand("__animals/cat__", seed, found) for seed in range(200)} == wanted
    assert expand("__cat__", 5, found) == expand("__cat__", 5, found)
    assert expand("a __nothing__ __", 5, None) == "a __nothing__ __"
    with pytest.raises(ValueError, match="there is no wildcard 'color'; near: colour"):
        expand("__color__", 1, found)


def test_variants() -> None:
    seen = [expand("{a|b|{c|d} e}", seed, None) for seed in range(300)]
    assert set(seen) == {"a", "b", "c e", "d e"}
    assert 60 < seen.count("a") < 140
    seen = [expand("{9::a|b}", seed, None) for seed in range(300)]
    assert 240 < seen.count("a") < 300
    assert {expand("{2$$a|b|c}", seed, None) for seed in range(100)} == {
        f"{x}, {y}" for x in "abc" for y in "abc" if x != y
    }
    assert {expand("{1-2$$ and $$a|b}", seed, None) for seed in range(100)} == {
        "a",
        "b",
        "a and b",
        "b and a",
    }
    assert {expand("{[x|y]|z}", seed, None) for seed in range(40)} == {"[x|y]", "z"}
    assert {expand("[{x|y}|z]", seed, None) for seed in range(40)} == {"[x|z]", "[y|z]"}
    for text in ("{a}", "{", "}", "a {b|c", "{prompt}", "a|b", "[a|b]", "(a:1.2)", "{}", "{{a}"):
        assert expand(text, 1, None) == text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=st.lists(st.sampled_from(["a", "{", "}", "|", "[", "]", "2$$", "0::", "::", "__"])).map("".join))
def test_every_choice_ends_and_is_final(text: str) -> None:
    """A text that was made of choices has none left, so that a recorded prompt stays as it is."""
    made = expand(text, 1, None)
    assert len(made) <= 2 * len(text) + 2
    if "$$" not in text:
        assert {expand(made, seed, None) for seed in range(5)} == {made}


def test_circles_and_bombs_end(tmp_path: Path) -> None:
    for name, lines in (
        ("a", "x __b__"),
        ("b", "__a__"),
        ("bomb", "__bomb__ __bomb__ " * 50),
        ("none", "# nothing"),
    ):
        (tmp_path / f"{name}.txt").write_text(lines)
    found = Folders.of(wildcards=tmp_path).wildcard_files()
    with pytest.raises(ValueError, match="more than 16 deep"):
        expand("__a__", 1, found)
    with pytest.raises(ValueError, match="beyond 100,000 characters"):
        expand("__bomb__", 1, found)
    with pytest.raises(ModelFileError, match="none.txt has no lines"):
        expand("__none__", 1, found)


def test_each_picture_chooses_by_its_own_seed(model: Pipeline) -> None:
    request = TextToImageRequest(
        prompt="a __colour__ {cat|dog}", negative_prompt="__colour__", seed=4, batch_size=6
    )
    made = final(model, request)
    assert len(set(made.prompts)) > 2 and len(set(made.negative_prompts)) > 1
    for k in range(6):
        alone = final(model, request.model_copy(update={"seed": 4 + k, "batch_size": 1}))
        assert (alone.prompt, alone.negative_prompt) == (made.prompts[k], made.negative_prompts[k])
    assert final(model, made) == made
    image = model.text_to_image("a __colour__ cat", seed=4, steps=1)[0]
    assert (
        image.info["parameters"].split("\n")[0]
        == final(model, TextToImageRequest(prompt="a __colour__ cat", seed=4)).prompt
    )


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="nowhere: there is no such file or folder of loras"):
        inkwash.load("mini", loras=tmp_path / "nowhere")


def test_folders_are_searched_once_a_request(model: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from inkwash.prompts import folders

    asked: list[tuple[str, ...]] = []
    search = folders.named_files

    def counted(places: Any, suffixes: Any) -> Any:
        asked.append(tuple(suffixes))
        return search(places, suffixes)

    monkeypatch.setattr(folders, "named_files", counted)
    options = {"steps": 1, "seed": 3, "batch_size": 4, "hires": 1.5}
    model.text_to_image("a __colour__ cat<lora:strong:0.5>", "three", **options)
    assert len(asked) == len(set(asked)) == 3  # LoRAs, embeddings and wildcards
    model.text_to_image("a cat<lora:strong:0.5>", **options)
    assert len(asked) == 6  # anew, since files may have come or gone


def test_a_lora_is_read_and_a_text_encoded_once_for_all_passes(
    model: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    read_adapter = prompting.read_adapter

    def counted(path: Path, *arguments: Any) -> Any:
        read.append(path)
        return read_adapter(path, *arguments)

    monkeypatch.setattr(prompting, "read_adapter", counted)
    encodings: list[int] = []
    hook = model.text_encoders[0].model.register_forward_hook(
        lambda module, args, out: encodings.append(len(args[0]))
    )
    options = {"steps": 2, "hires": 1.5, "hires_steps": 2, "batch_size": 2}
    model.text_to_image("a cat<lora:strong:0.5>", "blur", **options)
    hook.remove()
    assert [path.name for path in read] == ["strong.safetensors"]
    assert encodings == [2]  # the prompt and the negative one
