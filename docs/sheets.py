"""The contact sheets of the guide, drawn by `make docs`; an argument draws that of `controls` or of `soft_masks` alone."""

import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

import inkwash
from inkwash.explain.sheets import Axis, sheet
from inkwash.pipeline.annotate import annotate
from inkwash.pipeline.controls import Control
from inkwash.pipeline.names import FILL_NAMES
from inkwash.pipeline.record.metadata import save_image
from inkwash.pipeline.task_requests import ImageRequest, InpaintRequest, TextToImageRequest

HERE = Path(__file__).parent / "pictures"
DRAWN: Any = {"seed": 4, "cfg_scale": 2.0}  # the scale that suits `mini` best
ROCKET: Any = DRAWN | {"prompt": "a rocket, twemoji style", "seed": 3}


def main() -> None:
    model = inkwash.load("mini")
    shown, wanted = "a soccer ball, noto style", "a cookie, noto style"
    image = model.text_to_image(shown, **DRAWN)[0]

    strengths = Axis("strength", ("0.1", "0.2", "0.3", "0.4", "0.5", "0.7", "1"))
    request = ImageRequest.model_validate(dict(prompt=wanted, **DRAWN))
    made = [
        model.image_to_image(request.prompts[0], image, **DRAWN, strength=float(s))[0]
        for s in strengths.values
    ]
    save_image(sheet(request, [strengths], made), HERE / "strengths.png")

    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).ellipse((8, 24, 104, 112), fill=255)
    fills, strengths = Axis("fill", tuple(FILL_NAMES)), Axis("strength", ("0.3", "0.5", "1"))
    request = InpaintRequest.model_validate(dict(prompt=wanted, **DRAWN))
    made = [
        model.inpaint(request.prompts[0], image, mask, **DRAWN, fill=fill, strength=float(strength))[0]
        for strength in strengths.values
        for fill in fills.values
    ]
    save_image(sheet(request, [fills, strengths], made), HERE / "fills.png")

    small = Image.new("L", image.size)
    ImageDraw.Draw(small).ellipse((20, 36, 84, 100), fill=255)
    areas, blurs = Axis("only_masked", ("False", "True")), Axis("mask_blur", ("0", "4", "16"))
    made = [
        model.inpaint(
            request.prompts[0],
            image,
            small,
            **DRAWN,
            only_masked=area == "True",
            mask_blur=float(blur),
            padding=8,
        )[0]
        for blur in blurs.values
        for area in areas.values
    ]
    save_image(sheet(request, [areas, blurs], made), HERE / "masks.png")

    kinds = Axis("hint", ("none", "canny", "lineart", "scribble", "recolor", "tile"))
    source = model.text_to_image(**ROCKET)[0]
    made = [source, *(annotate(kind, source) for kind in kinds.values[1:])]
    save_image(sheet(TextToImageRequest(**ROCKET), [kinds], made), HERE / "hints.png")

    model = inkwash.load("mini", refiner="mini")
    changes = Axis("refiner_strength", ("off", "0.2", "0.4", "0.6", "0.8"))
    request = TextToImageRequest(prompt=shown, **DRAWN)
    made = [
        model.text_to_image(shown, **DRAWN, refiner_strength=None if change == "off" else float(change))[0]
        for change in changes.values
    ]
    save_image(sheet(request, [changes], made), HERE / "refined.png")


def controls() -> None:
    """Edges of a drawing, and another thing drawn along them: without, by weight, and by interval."""
    model = inkwash.load("mini")
    hint = annotate("canny", model.text_to_image(**ROCKET)[0])
    prompt = "a fire engine, noto style"
    kinds = {"hint": None, "off": {"weight": 0.0}, **{f"weight {w}": {"weight": w} for w in (0.5, 1.0, 1.5)}}
    for start, end in ((0.0, 0.3), (0.0, 0.6), (0.4, 1.0)):
        kinds[f"{start:g} to {end:g}"] = {"start": start, "end": end}
    made = [hint]
    for values in filter(None, kinds.values()):
        control = Control(file="canny", image=hint, annotator="none", **values)
        made += model.text_to_image(prompt, **DRAWN, controls=[control])
    hint.info["parameters"] = made[1].info["parameters"]  # the sheet's are its first picture's
    request = TextToImageRequest(prompt=prompt, **DRAWN)
    save_image(sheet(request, [Axis("control", tuple(kinds))], made), HERE / "controls.png")


def soft_masks() -> None:
    """Pictures that are changed by a ramp from black to white, as an ordinary mask and as a soft one."""
    model = inkwash.load("mini")
    shown = Axis("the", ("picture", "mask", "result", "result with --soft-mask"))
    ramp = Image.linear_gradient("L").rotate(90).resize((128, 128))
    scene = "a red apple left of a blue book on a {}, {} style"
    changes = {
        "a cat, noto style": "a dog, noto style",
        scene.format("green background", "noto"): scene.format("yellow background", "twemoji"),
    }
    made = []
    for before, after in changes.items():
        image = model.text_to_image(before, **DRAWN)[0]
        drawn = (model.inpaint(after, image, ramp, **DRAWN, soft_mask=soft)[0] for soft in (False, True))
        made += [image, ramp.convert("RGB"), *drawn]
    request = InpaintRequest(prompt="", **DRAWN)
    save_image(
        sheet(request, [shown, Axis("prompt", tuple(changes.values()))], made), HERE / "soft-masks.png"
    )


if __name__ == "__main__":
    alone = {"controls": controls, "soft_masks": soft_masks}
    for name in sys.argv[1:]:
        alone[name]()
    if not sys.argv[1:]:
        main()
