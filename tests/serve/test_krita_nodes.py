"""Nodes of masks, fills and tiles that Krita's plugin sends: by OpenCV's pixels, and in graphs as it builds them."""

from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from inkwash.pipeline.tiles import TileLayout
from inkwash.serve.comfy import masks
from inkwash.serve.comfy.links import Links, NodeError
from tests.serve.test_krita import OPTIONS, Graph, Plugin, sampled

RANDOM = np.random.default_rng(0)
PICTURE = RANDOM.integers(0, 256, (40, 48, 3), np.uint8)
MASK = np.zeros((40, 48), np.uint8)
MASK[10:30, 12:36] = 255
SOFT = cv2.GaussianBlur(MASK, (7, 7), 0)
EDGE = cv2.BORDER_REFLECT_101


class Given:
    """Pictures by name, enlarged by nothing but repeating pixels."""

    def __init__(self, pictures: dict[str, Image.Image]):
        self.pictures = pictures

    def load(self, way: str, text: str) -> Image.Image:
        return self.pictures[text]

    def enlarge(self, image: Image.Image, upscaler: str) -> Image.Image:
        return image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)


def given(kind: str, output: str = "mask", **inputs: Any) -> np.ndarray:
    """The pixels that a node gives of PICTURE and SOFT."""
    graph = {
        "1": {"class_type": "ETN_LoadImageCache", "inputs": {"id": "picture"}},
        "2": {"class_type": "ETN_LoadImageCache", "inputs": {"id": "mask"}},
        "3": {"class_type": "ETN_TileLayout", "inputs": {"image": ["1", 0], "min_tile_size": 32, "padding": 8,
              "blending": 4, "multiple": 8}},
        "4": {"class_type": kind, "inputs": inputs},
    }  # fmt: skip
    pictures = {"picture": Image.fromarray(PICTURE), "mask": Image.fromarray(SOFT)}
    links = Links(graph, Given(pictures))
    return np.array(links.mask("4", 0) if output == "mask" else links.image("4", 0)).astype(int)


def near(made: np.ndarray, wanted: np.ndarray) -> bool:
    return made.shape == wanted.shape and bool(np.abs(made - np.clip(wanted, 0, 255)).max() <= 1)


def gaussian(values: np.ndarray, n: int) -> np.ndarray:
    sigma = 0.3 * (n - 1) + 0.8
    return cv2.GaussianBlur(values.astype(np.float32), (n, n), sigma, borderType=EDGE)


def square(radius: int) -> np.ndarray:
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)


def faded(falloff: int) -> np.ndarray:
    whole = (SOFT >= 0.99 * 255).astype(np.float32)
    eroded = cv2.erode(whole, square(falloff), borderValue=1)
    return (whole * gaussian(eroded, falloff))[..., None] if falloff else whole[..., None]


SEEN = {"image": ["1", 0], "mask": ["2", 1]}


@pytest.mark.parametrize(("grow", "blur"), [(3, 0), (4, 7), (0, 6)])
def test_a_mask_grows_and_shrinks_as_opencvs(grow: int, blur: int) -> None:
    n = blur + 1 - blur % 2 if blur else 0
    for kind, name, change in (("Expand", "grow", cv2.dilate), ("Shrink", "shrink", cv2.erode)):
        some = {"Expand": SOFT > 0, "Shrink": SOFT == 255}[kind].astype(np.float32)
        edge = 0 if kind == "Expand" else 1
        wanted = 255 * change(some, square(grow), borderValue=edge) if grow else SOFT.astype(np.float32)
        wanted = gaussian(wanted, n) if n else wanted
        inputs = {"mask": ["2", 1], name: grow, "blur": blur, "blur_type": "gaussian"}
        assert near(given(f"INPAINT_{kind}Mask", **inputs), wanted), kind


def test_other_blurs_of_a_mask() -> None:
    inputs = {"mask": ["2", 1], "grow": 0, "blur": 5}
    box = cv2.blur(SOFT.astype(np.float32), (5, 5), borderType=EDGE)
    assert near(given("INPAINT_ExpandMask", **inputs, blur_type="box"), box)
    weights = np.array([0.5, 0.5, 1, 0.5, 0.5]) / 3
    linear = cv2.sepFilter2D(SOFT.astype(np.float32), -1, weights, weights, borderType=EDGE)
    assert near(given("INPAINT_ExpandMask", **inputs, blur_type="linear"), linear)


def test_a_masked_part_is_filled() -> None:
    for falloff in (0, 5):
        alpha = faded(falloff)
        grey = PICTURE * (1 - alpha) + 127.5 * alpha
        assert near(given("INPAINT_MaskedFill", "image", **SEEN, fill="neutral", falloff=falloff), grey)
        soft = PICTURE * (1 - alpha) + gaussian(PICTURE, 17) * alpha
        assert near(given("INPAINT_MaskedBlur", "image", **SEEN, blur=16, falloff=falloff), soft)


def test_values_of_a_mask() -> None:
    mask = {"mask": ["2", 1]}
    assert (given("ThresholdMask", **mask, value=0.5) == np.where(SOFT > 127.5, 255, 0)).all()
    assert (given("INPAINT_StabilizeMask", **mask, epsilon=0.1) == np.where(SOFT > 229.5, 255, SOFT)).all()
    wanted = (SOFT - 0.1 * 255) / 0.1
    assert near(given("INPAINT_DenoiseToCompositingMask", **mask, offset=0.1, threshold=0.2), wanted)
    assert (given("CropMask", **mask, x=4, y=6, width=20, height=10) == SOFT[6:16, 4:24]).all()
    assert (given("ImageToMask", image=["1", 0], channel="red") == PICTURE[..., 0]).all()


def test_tiles_overlap_and_are_numbered_down_the_columns() -> None:
    layout = TileLayout((40, 48), 32, 8, 4, 8)
    assert layout.counts == (2, 3)
    # 28 of 40 + 16, up to a multiple of 8: 32; of 48 + 32, a third is 27: 32
    rows, columns = [(0, 32), (16, 40)], [(0, 32), (16, 48), (32, 48)]
    spans = [layout.spans(k) for k in range(6)]
    assert spans == [(row, column) for column in columns for row in rows]
    tiles = {"layout": ["3", 0]}
    for k, ((top, bottom), (left, right)) in enumerate(spans):
        made = given("ETN_ExtractImageTile", "image", image=["1", 0], index=k, **tiles)
        assert (made == PICTURE[top:bottom, left:right]).all()
        made = given("ETN_ExtractMaskTile", mask=["2", 1], index=k, **tiles)
        assert (made == SOFT[top:bottom, left:right]).all()


def test_a_tiles_edges_are_what_its_neighbours_overlap() -> None:
    wanted = np.zeros((32, 32))
    wanted[:28, :28] = 255  # at the corner of the picture, less the padding without the blending
    assert (given("ETN_GenerateTileMask", layout=["3", 0], index=0) == wanted).all()
    inner = np.zeros((32, 32), np.float32)
    inner[:24, :24] = 1
    kept = cv2.blur(inner, (4, 4), anchor=(1, 1), borderType=EDGE)
    assert near(given("ETN_GenerateTileMask", layout=["3", 0], index=0, blend=True), 255 * kept)
    tile = Image.new("RGB", (32, 32), (9, 90, 200))
    made = np.array(TileLayout((40, 48), 32, 8, 4, 8).merged(Image.fromarray(PICTURE), 0, tile)).astype(int)
    expected = PICTURE.astype(float)
    expected[:32, :32] = (1 - kept[..., None]) * PICTURE[:32, :32] + kept[..., None] * np.array(tile)
    assert near(made, expected)


@pytest.mark.parametrize(
    ("kind", "inputs", "said"),
    [
        ("INPAINT_MaskedFill", {**SEEN, "fill": "telea", "falloff": 0}, "fill 'telea' needs OpenCV"),
        ("INPAINT_MaskedBlur", {**SEEN, "blur": 255, "falloff": 0}, "a blur of 255 is too wide for 48x40"),
        ("INPAINT_ExpandMask", {"mask": ["2", 1], "grow": -1, "blur": 0}, "grow -1 is not 0 to 8096"),
        ("INPAINT_ExpandMask", {"mask": ["4", 0], "grow": 1, "blur": 0}, "the links go in a circle"),
        ("ETN_ExtractImageTile", {"image": ["1", 0], "layout": ["3", 0], "index": 6}, "index 6 is not 0 to 5"),
        ("INPAINT_ColorMatch", {"target": ["1", 0]}, "node INPAINT_ColorMatch needs matching of colours"),
        ("INPAINT_LoadInpaintModel", {"model_name": "a"}, "node INPAINT_LoadInpaintModel needs LaMa or MAT"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_of_the_node(kind: str, inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(NodeError, match=said) as error:
        given(kind, "mask" if kind.endswith("Mask") else "image", **inputs)
    assert error.value.node == "4"


def test_many_nodes_that_take_one_picture_twice_are_quick() -> None:
    layout = {"image": ["0", 0], "min_tile_size": 48, "padding": 0, "blending": 0, "multiple": 8}
    graph: dict[str, Any] = {
        "0": {"class_type": "ETN_LoadImageCache", "inputs": {"id": "picture"}},
        "L": {"class_type": "ETN_TileLayout", "inputs": layout},
    }
    for k in range(1, 60):
        inputs = {"image": [f"{k - 1}", 0], "tile": [f"{k - 1}", 0], "layout": ["L", 0], "index": 0}
        graph[f"{k}"] = {"class_type": "ETN_MergeImageTile", "inputs": inputs}
    links = Links(graph, Given({"picture": Image.fromarray(PICTURE)}))
    assert (np.array(links.image("59", 0)) == PICTURE).all()


# whole graphs


@pytest.fixture
def plugin(server: Any) -> Plugin:
    return Plugin(server)


@pytest.fixture(scope="module")
def canvas() -> Image.Image:
    return Image.effect_noise((128, 128), 60).convert("RGB")


@pytest.mark.parametrize("conditioned", [False, True])
def test_a_selection_is_filled_drawn_and_composed(
    plugin: Plugin, model: Any, canvas: Image.Image, conditioned: bool
) -> None:
    selection = Image.new("L", canvas.size)
    selection.paste(255, (32, 32, 96, 96))
    graph = Graph()
    image = [graph.add("ETN_LoadImageCache", id=plugin.put(canvas)), 0]
    chosen = [graph.add("ETN_LoadImageCache", id=plugin.put(selection)), 1]
    grown = [graph.add("INPAINT_ExpandMask", mask=chosen, grow=4, blur=0, blur_type="linear"), 0]
    cut = [graph.add("CropMask", mask=grown, x=16, y=16, width=96, height=96), 0]
    steady = [graph.add("INPAINT_StabilizeMask", mask=grown, epsilon=0.01), 0]
    filled = [graph.add("INPAINT_MaskedBlur", image=image, mask=grown, blur=65, falloff=9), 0]
    made = sampled(graph, "pixels", pixels=filled)
    nodes = {node["class_type"]: (id, node["inputs"]) for id, node in graph.root.items()}
    guider, sampler, encoder = (nodes[name] for name in ("CFGGuider", "SamplerCustomAdvanced", "VAEEncode"))
    guider[1]["model"] = [graph.add("DifferentialDiffusion", model=guider[1]["model"]), 0]
    if conditioned:
        both = graph.add(
            "INPAINT_VAEEncodeInpaintConditioning", vae=encoder[1]["vae"], pixels=filled, mask=steady,
            positive=guider[1]["positive"], negative=guider[1]["negative"],
        )  # fmt: skip
        guider[1].update(positive=[both, 0], negative=[both, 1])
        sampler[1]["latent_image"] = [both, 3]
    else:
        latent = graph.add("SetLatentNoiseMask", samples=[encoder[0], 0], mask=steady)
        sampler[1]["latent_image"] = [latent, 0]
    part = [graph.add("ImageCrop", image=made, x=16, y=16, width=96, height=96), 0]
    whole = [graph.add("ThresholdMask", mask=cut, value=0.0), 0]
    edge = [graph.add("INPAINT_ShrinkMask", mask=whole, shrink=2, blur=5, blur_type="gaussian"), 0]
    composed = graph.add("ETN_ApplyMaskToImage", image=part, mask=edge)
    graph.add("ETN_SaveImageCache", images=[composed, 0], format="PNG")
    (result,) = plugin.run(graph)

    mask = Image.new("L", canvas.size)
    mask.paste(255, (28, 28, 100, 100))
    values = masks.filled_blurred(masks.values_of(canvas), masks.values_of(mask), 65, 9)
    (drawn,) = model.inpaint(
        image=masks.image_of(values), mask=mask, **OPTIONS, strength=1.0, step_rule="exact", sampler="dpmpp_2m",
        schedule="normal", prompt_language="comfy", mask_blur=0,
    )  # fmt: skip
    assert result.convert("RGB").tobytes() == drawn.crop((16, 16, 112, 112)).tobytes()
    eroded = np.zeros((96, 96), np.float32)
    eroded[14:82, 14:82] = 255
    assert near(np.array(result.getchannel("A")).astype(int), gaussian(eroded, 5))


def tiled(plugin: Plugin, canvas: Image.Image, size: int) -> Graph:
    """The plugin's graph of tiles, which has a sampler for each."""
    graph = Graph()
    image = [graph.add("ETN_LoadImageCache", id=plugin.put(canvas)), 0]
    layout = graph.add("ETN_TileLayout", image=image, min_tile_size=size, padding=16, blending=8, multiple=8)
    merged, (down, across) = image, TileLayout((128, 128), size, 16, 8, 8).counts
    for k in range(down * across):
        tile = [graph.add("ETN_ExtractImageTile", image=image, layout=[layout, 0], index=k), 0]
        mask = [graph.add("ETN_GenerateTileMask", layout=[layout, 0], index=k), 0]
        made = sampled(graph, "pixels", start=6, pixels=tile)
        sampler, encoder = (
            [id for id, node in graph.root.items() if node["class_type"] == kind][-1]
            for kind in ("SamplerCustomAdvanced", "VAEEncode")
        )
        latent = graph.add("SetLatentNoiseMask", samples=[encoder, 0], mask=mask)
        graph.root[sampler]["inputs"]["latent_image"] = [latent, 0]
        merged = [graph.add("ETN_MergeImageTile", layout=[layout, 0], index=k, tile=made, image=merged), 0]
    graph.add("ETN_SaveImageCache", images=merged, format="PNG")
    return graph


def test_a_picture_of_one_tile_is_refined(plugin: Plugin, model: Any, canvas: Image.Image) -> None:
    (image,) = plugin.run(tiled(plugin, canvas, 128))
    (drawn,) = model.inpaint(
        image=canvas, mask=Image.new("L", canvas.size, 255), **OPTIONS, strength=0.4, step_rule="exact",
        sampler="dpmpp_2m", schedule="normal", prompt_language="comfy", mask_blur=0,
    )  # fmt: skip
    assert image.tobytes() == drawn.tobytes()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("way", ["SetLatentNoiseMask", "VAEEncodeForInpaint"])
def test_a_grey_mask_blends_or_counts_steps_with_differential_diffusion_and_may_be_rounded(
    plugin: Plugin, server: Any, model: Any, canvas: Image.Image, way: str, soft: bool
) -> None:
    grey = Image.linear_gradient("L").resize(canvas.size)
    graph = tiled(plugin, canvas, 128)
    nodes = {node["class_type"]: (id, node["inputs"]) for id, node in graph.root.items()}
    guider, sampler = nodes["CFGGuider"][1], nodes["SamplerCustomAdvanced"][1]
    if soft:
        softened = graph.add("DifferentialDiffusion", model=guider["model"])
        guider["model"] = [softened, 0]
    mask = [graph.add("ETN_LoadImageCache", id=plugin.put(grey)), 1]
    image, seen = canvas, grey
    if way == "SetLatentNoiseMask":
        nodes[way][1]["mask"] = mask
    else:
        encoder = graph.add(way, **nodes["VAEEncode"][1], mask=mask, grow_mask_by=4)
        sampler["latent_image"] = [encoder, 0]
        hole = np.where(np.asarray(grey) > 127, 255, 0).astype(np.uint8)
        image = Image.composite(Image.new("RGB", canvas.size, (128,) * 3), canvas, Image.fromarray(hole))
        seen = Image.fromarray(
            cv2.dilate(hole, np.ones((4, 4), np.uint8))
        )  # of a pixel, two before it and one after
    (made,) = plugin.run(graph)
    (drawn,) = model.inpaint(
        image=image, mask=seen, soft_mask=soft, blend_mask=not soft, **OPTIONS, strength=0.4, step_rule="exact",
        sampler="dpmpp_2m", schedule="normal", prompt_language="comfy", mask_blur=0,
    )  # fmt: skip
    assert made.tobytes() == drawn.tobytes()
    if soft:
        graph.root[softened]["inputs"]["strength"] = 0.5
        answer = server.call("POST", "/prompt", json={"prompt": graph.root})
        assert answer.status_code == 400 and "strength must be 1 here" in answer.text
