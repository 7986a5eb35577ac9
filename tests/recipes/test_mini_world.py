"""The mini world keeps its word: captions, boxes, layers, colours and the split are what they claim to be."""

import colorsys
import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

from recipes.mini import data, drawings, world
from recipes.mini.colours import NAMED, main_colour, to_hsv, to_rgb, turn
from recipes.mini.drawings import CLIPART, Drawing, icon_svg, render_svg
from recipes.mini.words import article, noun
from recipes.mini.world import OPPOSITE, World, recoloured, scene, single

SHAPES = {  # name -> body of a 16x16 icon
    "apple": '<circle cx="8" cy="9" r="6.5" fill="#d22"/><rect x="8" width="3" height="2" fill="#2a3"/>',
    "book": '<rect x="2" y="1" width="12" height="14" fill="#2458c8"/>',
    "orange": '<circle cx="8" cy="8" r="7" fill="#f80"/>',
    "umbrella": '<path d="M1 9 A7 7 0 0 1 15 9 Z" fill="#8a3cc0"/>',
    "leaf": '<ellipse cx="8" cy="8" rx="7" ry="3" fill="#3a4"/>',
    "stone": '<rect x="1" y="4" width="14" height="9" fill="#888"/>',
    "red heart": '<rect x="2" y="2" width="12" height="12" fill="#d22"/>',
}
WHOLE = {"book", "stone", "red heart"}  # these fill their boxes


def make_drawings() -> list[Drawing]:
    made = []
    for style in ("noto", "twemoji", CLIPART):
        icons = {"width": 16, "height": 16, "icons": {name: {"body": body} for name, body in SHAPES.items()}}
        for name in SHAPES:
            pixels = render_svg(icon_svg(icons, name), tight=False)
            assert pixels is not None
            split = "heldout" if (style, name) == ("noto", "leaf") else "train"
            row = (
                len(made),
                style,
                name.replace(" ", "-"),
                name,
                ("thing", "red thing"),
                style != CLIPART,
                split,
            )
            made.append(Drawing(*row, pixels))
    return made


DRAWINGS = make_drawings()
WORLD = World([d for d in DRAWINGS if d.split == "train"])


@pytest.fixture(scope="module")
def scenes() -> list[world.Picture]:
    return [scene(WORLD, np.random.default_rng([7, i])) for i in range(150)]


def named(name: str) -> Drawing:
    return next(d for d in DRAWINGS if d.name == name)


def holds(a: world.Placed, relation: str, b: world.Placed) -> bool:
    if relation in ("right of", "below", "behind"):
        return holds(b, OPPOSITE[relation], a)
    if relation == "left of":
        return a.box[2] <= b.box[0]
    if relation == "above":
        return a.box[3] <= b.box[1]
    across = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    down = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    return a.layer > b.layer and across > 0 and down > 0


# ---------------------------------------------------------------- scenes


def test_relations_agree_with_boxes(scenes):
    said = set()
    for picture in scenes:
        for i, relation, j in picture.relations:
            said.add(relation)
            assert holds(picture.objects[i], relation, picture.objects[j]), picture.caption
    assert said == set(OPPOSITE)


def test_captions_of_two_say_the_relation_both_ways(scenes):
    pattern = re.compile(
        r"^(.+?) (left of|right of|above|below|in front of|behind) (.+?)(?: on .*)?, \w+ style$"
    )
    pairs = [p for p in scenes if len(p.objects) == 2]
    assert len(pairs) > 50
    for picture in pairs:
        for text in (picture.captions[0], picture.captions[3]):
            found = pattern.match(text)
            assert found, text
            by_noun = {noun(o.name, o.colour): o for o in picture.objects}
            assert holds(by_noun[found[1]], found[2], by_noun[found[3]]), text
        assert picture.caption == picture.captions[0]


def test_captions_of_three_name_all_and_their_order(scenes):
    for picture in (p for p in scenes if len(p.objects) == 3):
        nouns = [noun(o.name, o.colour) for o in picture.objects]
        assert all(text in picture.caption for text in nouns)
        if row := re.search(r"from (left|top) to (right|bottom) on", picture.caption):
            axis = 0 if row[1] == "left" else 1
            assert [o.box[axis] for o in picture.objects] == sorted(o.box[axis] for o in picture.objects)


def test_layers_agree_with_order_and_boxes(scenes):
    overlaps = 0
    for picture in scenes:
        top = max(picture.objects, key=lambda o: o.layer)
        assert sorted(o.layer for o in picture.objects) == list(range(1, len(picture.objects) + 1))
        assert set(np.unique(picture.layers)) == {0, *(o.layer for o in picture.objects)}
        for placed in picture.objects:
            ys, xs = np.nonzero(picture.layers == placed.layer)
            x0, y0, x1, y1 = placed.box
            assert x0 <= xs.min() and xs.max() < x1 and y0 <= ys.min() and ys.max() < y1
            if placed is top:  # nothing hides it, so its box is tight
                assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == placed.box
            above = np.isin(
                picture.layers[y0:y1, x0:x1], [o.layer for o in picture.objects if o.layer > placed.layer]
            )
            if placed.name in WHOLE:
                seen = (picture.layers == placed.layer).sum()
                assert seen + above.sum() == (x1 - x0) * (y1 - y0)
                overlaps += above.any()
    assert overlaps > 5


def test_scenes_use_one_style_and_never_a_heldout_drawing(scenes):
    for picture in scenes:
        assert len({o.style for o in picture.objects}) == 1 and picture.objects[0].style != CLIPART
        assert all(DRAWINGS[o.drawing].split == "train" for o in picture.objects)


@pytest.mark.parametrize("size", [(96, 160), (257, 64), 64])
def test_any_size(size: int | tuple[int, int]):
    width, height = (size, size) if isinstance(size, int) else size
    for i in range(20):
        picture = scene(WORLD, np.random.default_rng(i), size)
        assert picture.image.shape == (height, width, 3) and picture.layers.shape == (height, width)
        for a, relation, b in picture.relations:
            assert holds(picture.objects[a], relation, picture.objects[b])


def test_a_scene_rejects_what_it_cannot_make():
    with pytest.raises(ValueError, match="31x64"):
        scene(WORLD, np.random.default_rng(0), (31, 64))
    with pytest.raises(ValueError, match="three drawings"):
        scene(World(DRAWINGS[:2]), np.random.default_rng(0))


# ---------------------------------------------------------------- one drawing


def test_a_single_is_the_drawing_on_white():
    picture = single(named("book"))
    assert picture.caption == "a book, noto style" and picture.kind == "single"
    inside = picture.layers == 1
    assert (picture.image[~inside] == 255).all() and (picture.image[inside] == (0x24, 0x58, 0xC8)).all()
    x0, y0, x1, y1 = picture.objects[0].box
    assert inside[y0:y1, x0:x1].all() and inside.sum() == (x1 - x0) * (y1 - y0)
    assert (x1 - x0, y1 - y0) == (84, 98)  # 12 and 14 of 16, on 112 pixels


def test_captions_say_only_what_is_true():
    texts = {t for i in range(20) for t in world.captions(named("apple"), np.random.default_rng(i))}
    assert {"an apple, noto style", "an apple", "a red apple, noto style"} <= texts
    for i in range(20):
        turned = world.captions(named("apple"), np.random.default_rng(i), "blue")
        assert turned[0] == "a blue apple, noto style" and 1 < len(turned) <= 4
        assert all("blue" in text and "red" not in text for text in turned)
    assert world.caption(next(d for d in DRAWINGS if d.style == CLIPART)) == "apple, clipart style"


HUES = {"red": (-17, 13), "orange": (19, 40), "yellow": (43, 63), "green": (80, 165), "blue": (195, 245)}
HUES |= {"purple": (256, 290), "pink": (300, 345), "brown": (10, 40)}


@pytest.mark.parametrize("colour", NAMED)
def test_recoloured_is_the_named_colour(colour: str):
    for name in ("apple", "book", "orange", "umbrella", "leaf"):
        pixels = named(name).pixels
        main = main_colour(pixels)
        assert main is not None
        made = turn(pixels, main, colour)
        assert made is not None and (made[..., 3] == pixels[..., 3]).all()
        r, g, b = made[70, 64, :3] / 255.0  # inside all of the shapes
        hue, _, value = colorsys.rgb_to_hsv(r, g, b)
        low, high = HUES[colour]
        assert low <= (hue * 360 + 17) % 360 - 17 <= high, (name, hue * 360)
        assert (value <= 0.62) == (colour == "brown")


def test_recolouring_keeps_other_hues_and_says_what_it_did():
    apple = named("apple")
    picture = recoloured(apple, np.random.default_rng(3))
    assert picture is not None
    colour = picture.objects[0].colour
    assert picture.caption == f"{noun('apple', colour)}, noto style" and colour != "red"
    leaf = single(apple).image[10:18, 68:80]
    assert (picture.image[10:18, 68:80] == leaf).all() and (leaf[..., 1] > leaf[..., 0]).all()
    assert recoloured(named("stone"), np.random.default_rng(3)) is None  # grey has no hue
    assert recoloured(named("red heart"), np.random.default_rng(3)) is None  # its name says a colour


def test_hsv_agrees_with_colorsys():
    rgb = np.random.default_rng(0).integers(0, 256, (300, 3), dtype=np.uint8)
    rgb[:3] = [[0, 0, 0], [255, 255, 255], [9, 9, 9]]
    expected = [colorsys.rgb_to_hsv(*(p / 255.0)) for p in rgb]
    np.testing.assert_allclose(to_hsv(rgb), np.array(expected) * [360, 1, 1], atol=1e-3)
    assert (to_rgb(to_hsv(rgb)) == rgb).all()
    with pytest.raises(ValueError, match="mauve.*red, orange"):
        turn(DRAWINGS[0].pixels, main_colour(DRAWINGS[0].pixels), "mauve")  # type: ignore[arg-type]


ARTICLES = """an apple|a unicorn|an umbrella|an hourglass done|a euro banknote|an SOS button|a VS button
a one-piece swimsuit|an 8 ball|a 1st place medal|an x-ray|a uniform|the flag of Ghana|french fries|jeans|a bus
a cactus|glasses|a pair of socks|a smiling face with smiling eyes|a leopard|Leo|two o'clock|pizza|a rhinoceros
a man lifting weights"""


@pytest.mark.parametrize("text", re.split(r"\||\n", ARTICLES))
def test_article(text: str):
    name = re.sub(r"^(an?|the) ", "", text)
    assert article(name) + name == text
    assert noun(name) == text


def test_article_follows_the_colour():
    assert noun("apple", "red") == "a red apple" and noun("book", "orange") == "an orange book"
    assert noun("jeans", "red") == "red jeans" and noun("no smoking") == "a no smoking sign"


# ---------------------------------------------------------------- sources


def test_rendering_survives_bad_drawings():
    assert render_svg("<svg", tight=False) is None
    start = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="40">'
    assert render_svg(start + "</svg>", tight=True) is None
    assert render_svg(start + '<rect width="9" height="9" fill="#fff"/></svg>', tight=True) is None
    pixels = render_svg(start + '<rect x="4" y="30" width="10" height="5" fill="#00f"/></svg>', tight=True)
    assert pixels is not None
    ys, xs = np.nonzero(pixels[..., 3] >= 128)
    found = np.array([xs.min(), xs.max() + 1, ys.min(), ys.max() + 1])
    assert (abs(found - [8, 120, 36, 92]) <= 1).all()  # cut out, 112 wide, centred


def tgz(path, name: str, content: object):
    text = json.dumps(content).encode()
    with tarfile.open(path, "w:gz") as tar:
        data.add(tar, f"package/{name}", text)
    return path


def test_emoji_sets_lose_skin_tones_and_hidden_icons_and_get_names(tmp_path):
    icon = {"body": "<g/>"}
    slugs = [
        "police-car",
        "police-car-light",
        "waving-hand",
        "waving-hand-light-skin-tone",
        "waving-hand-medium-dark",
    ]
    icons = {"width": 16, "height": 16, "icons": {s: icon for s in slugs} | {"flag-ghana": icon}}
    archives = {style: tgz(tmp_path / f"{style}.tgz", "icons.json", icons) for style in drawings.STYLES[1:]}
    more = icons | {"icons": icons["icons"] | {"old-face": icon | {"hidden": True}, "only-here": icon}}
    archives["noto"] = tgz(tmp_path / "noto.tgz", "icons.json", more)
    labels = [{"label": "police car light", "tags": ["siren"]}, {"label": "flag: Ghana", "tags": []}]
    archives["names"] = tgz(tmp_path / "names.tgz", "en/data.json", labels)
    rows, counts = drawings.emoji_sources(archives)
    noto = {row["slug"]: row for row in rows if row["style"] == "noto"}
    assert set(noto) == {"police-car", "police-car-light", "waving-hand", "flag-ghana", "only-here"}
    assert {slug for slug, row in noto.items() if row["common"]} == set(noto) - {"only-here"}
    assert noto["flag-ghana"]["name"] == "flag of Ghana" and noto["police-car-light"]["keywords"] == (
        "siren",
    )
    assert counts["shared names"] == 6 and counts["common names"] == 4


def test_clipart_comes_out_of_a_debian_package(tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as tar:
        data.add(
            tar,
            "./usr/share/openclipart/svg/food/red_pear_02.svg",
            b"<svg><dc:title>Nice pear 2</dc:title></svg>",
        )
        data.add(tar, "./usr/share/openclipart/svg/food/word.svg", b"<svg><text>hm</text></svg>")
    deb = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0"), ("data.tar.xz", inner.getvalue())):
        deb += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        deb += b"\n" * (len(content) % 2)
    path = tmp_path / "openclipart-svg_0_all.deb"
    path.write_bytes(deb)
    rows = drawings.clipart_sources(path, np.random.default_rng(0), 10)
    assert [(row["slug"], row["name"]) for row in rows] == [("food/red_pear_02", "nice pear")]


def test_a_wrong_archive_is_refused(tmp_path):
    (tmp_path / "iconify-json-noto-1.2.9.tgz").write_bytes(b"half a download")
    with pytest.raises(ValueError, match="iconify-json-noto.*sha256"):
        drawings.fetch(tmp_path)


def test_the_heldout_split():
    rows = [
        {"slug": f"s{i}", "style": style, "common": style != CLIPART}
        for i in range(100)
        for style in ("noto", "twemoji", CLIPART)
    ]
    drawings.hold_out(rows, np.random.default_rng(0))
    held = [row for row in rows if row["split"] == "heldout"]
    common = [row["slug"] for row in held if row["common"]]
    assert len(common) == len(set(common)) == 10  # 5 % of 200, one style of a slug
    assert sum(row["style"] == CLIPART for row in held) == 5
    drawings.hold_out(rows, np.random.default_rng(0), share=0.45)  # 90 of 100 slugs, so clashes are certain
    common = [row["slug"] for row in rows if row["split"] == "heldout" and row["common"]]
    assert len(common) == len(set(common)) == 90
    again = [{key: row[key] for key in ("slug", "style", "common")} for row in rows]
    drawings.hold_out(again, np.random.default_rng(0), share=0.45)
    assert again == rows


# ---------------------------------------------------------------- shards


def prepare(path):
    """Writes the drawings as the builder does."""
    rows = [{k: v for k, v in vars(d).items() if k != "pixels"} for d in DRAWINGS]
    (path / "drawings.json").write_text(json.dumps(rows))
    np.save(path / "drawings.npy", np.stack([d.pixels for d in DRAWINGS]))


@pytest.fixture
def folder(tmp_path):
    def make(name: str):
        (tmp_path / name).mkdir()
        prepare(tmp_path / name)
        return tmp_path / name

    return make


def write(path, split: str, seed: int) -> bytes:
    jobs = data.plan(DRAWINGS, seed, scenes=6, recoloured=4, heldout_scenes=3)
    data.write_shard((str(path), split, 0, jobs[split], seed))
    return (path / f"{split}-00000.tar").read_bytes()


def test_the_same_seed_gives_the_same_bytes(folder):
    first, second, other = folder("a"), folder("b"), folder("c")
    assert write(first, "train", 0) == write(second, "train", 0) != write(other, "train", 1)


def test_shards_hold_what_they_should(folder):
    path = folder("a")
    seen = {}
    for split in ("train", "heldout"):
        write(path, split, 0)
        with tarfile.open(path / f"{split}-00000.tar") as tar:
            files = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
        records = {
            name[:-5]: json.loads(content) for name, content in files.items() if name.endswith(".json")
        }
        for key, record in records.items():
            assert (
                Image.open(io.BytesIO(files[f"{key}.png"])).size
                == (128, 128)
                == (record["width"], record["height"])
            )
            assert (f"{key}.layers.png" in files) == (record["kind"] == "scene")
            assert record["caption"] == record["captions"][0]
        seen[split] = list(records.values())
    kinds = [record["kind"] for record in seen["train"]]
    assert [kinds.count(k) for k in ("single", "clipart", "recoloured", "scene")] == [13, 7, 4, 6]
    assert [(r["slug"], r["style"]) for r in seen["heldout"] if r["kind"] == "single"] == [("leaf", "noto")]
    trained = {o["drawing"] for r in seen["train"] for o in r["objects"]}
    assert trained and all(DRAWINGS[i].split == "train" for i in trained)
    scenes = {s: {r["caption"] for r in seen[s] if r["kind"] == "scene"} for s in seen}
    assert not scenes["train"] & scenes["heldout"]


def test_a_written_shard_is_left_alone(folder):
    path = folder("a")
    write(path, "heldout", 0)
    before = (path / "heldout-00000.tar").stat().st_mtime_ns
    counts = data.write_shard((str(path), "heldout", 0, [], 0))
    assert counts == {"single": 1, "scene": 3} and (path / "heldout-00000.tar").stat().st_mtime_ns == before


def test_the_command_refuses_bad_numbers(tmp_path):
    with pytest.raises(ValueError, match="scenes is -1"):
        data.build(tmp_path, scenes=-1)
    with pytest.raises(ValueError, match="workers is 0"):
        data.build(tmp_path, workers=0)
