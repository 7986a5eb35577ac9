"""Pictures of many pictures: tiles in rows, with room for texts."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from inkwash.explain.drawing import GREY, INK, PAPER, fitting, font


class Tiles:
    """Tiles of one size in rows, `across` in each; all measures in pixels.

    origin: the upper left corner of the first tile. gaps: between tiles, across and down. ends: right of the last tile
    and below it. width: of the whole, at least.
    """

    def __init__(
        self,
        num: int,
        across: int,
        size: tuple[int, int],
        *,
        origin: tuple[int, int],
        gaps: tuple[int, int],
        ends: tuple[int, int],
        width: int = 0,
        paper: str = PAPER,
    ):
        self.across, self.size, self.origin, self.paper = across, size, origin, paper
        self.step = size[0] + gaps[0], size[1] + gaps[1]
        columns, rows = min(across, num), -(-num // across)
        whole = origin[0] + columns * self.step[0] - gaps[0] + ends[0]
        self.image = Image.new(
            "RGB", (max(whole, width), origin[1] + rows * self.step[1] - gaps[1] + ends[1]), paper
        )
        self.on = ImageDraw.Draw(self.image)

    def place(self, k: int) -> tuple[int, int]:
        """The upper left corner of tile k."""
        return (
            self.origin[0] + k % self.across * self.step[0],
            self.origin[1] + k // self.across * self.step[1],
        )

    def put(
        self,
        k: int,
        image: Image.Image,
        scale: float = 1,
        larger: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> None:
        """Paste a picture at this scale in the middle of tile k. larger: how one is resized that grows."""
        if scale != 1:
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else larger)
        x, y = self.place(k)
        x, y = x + (self.size[0] - image.width) // 2, y + (self.size[1] - image.height) // 2
        self.image.paste(image, (x, y))

    def text(
        self, x: float, y: float, text: str, size: float, colour: str = INK,
        *, width: float | None = None, middle: bool = False,
    ) -> None:  # fmt: skip
        """Write a line below a place, cut to a width; middle: centred on it."""
        text = text if width is None else fitting(self.on, text, size, width)
        self.on.text((x, y), text, colour, font(size), anchor="ma" if middle else "la")


def contact_sheet(
    images: Sequence[Image.Image], columns: int = 8, gap: int = 2, paper: str = "#c8c8c8"
) -> Image.Image:
    """Pictures of one size in rows, on grey, without words."""
    tiles = Tiles(
        len(images), columns, images[0].size, origin=(gap, gap), gaps=(gap, gap), ends=(gap, gap), paper=paper
    )
    for k, image in enumerate(images):
        tiles.put(k, image)
    return tiles.image


def labelled_sheet(
    images: Sequence[Image.Image],
    texts: Sequence[str],
    title: str,
    across: int = 4,
    side: int | None = None,
) -> Image.Image:
    """Pictures in rows below a title, each with its text below.

    side: of the tiles, in pixels; None: as large as the largest picture, and five times as large if that is tiny.
    """
    width, height = (max(image.size[axis] for image in images) for axis in (0, 1))
    times = 5 if max(width, height) < 64 and not side else 1
    width, height = (side, side) if side else (max(width * times, 160), height * times)
    across = min(across, len(images))
    tiles = Tiles(len(images), across, (width, height), origin=(16, 48), gaps=(16, 40), ends=(16, 40))
    tiles.text(16, 14, title, 18)
    for k, (image, text) in enumerate(zip(images, texts, strict=True)):
        scale = min(times, width / image.width, height / image.height)
        tiles.put(k, image, scale, Image.Resampling.NEAREST)
        x, y = tiles.place(k)
        tiles.text(x, y + height + 6, text, 13, GREY, width=width)
    return tiles.image
