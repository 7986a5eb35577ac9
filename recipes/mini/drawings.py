"""The drawings of the mini world: five emoji styles and clip art, fetched, named, split and rendered.

N drawings, S = 128 their side. Sources and licences: ATTRIBUTION.md.
"""

import hashlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image
from rich.progress import track

from inkwash.files import atomic

SIDE, FILL = 128, 112  # a drawing's box is FILL of the SIDE pixels
CLIPART = "clipart"
NPM = {  # style -> package, pinned version, sha256 of the archive
    "noto": (
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    "twemoji": (
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    "fluent": (
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    ),
    "fluent flat": (
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "emojione": (
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    ),
    "names": ("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
}
STYLES = tuple(style for style in NPM if style != "names")
LICENSES = {
    "noto": "Apache-2.0",
    "twemoji": "CC-BY-4.0",
    "fluent": "MIT",
    "fluent flat": "MIT",
    "emojione": "CC-BY-4.0",
    "names": "MIT",
    CLIPART: "public domain",
}
# -light-skin-tone, -tone3, and the bare -light, -medium-dark ... of the fluent sets, once for each person
SKIN_TONE = re.compile(r"skin-tone|-tone\d|(-(medium-)?(light|dark)|-medium)+$")
MAX_SVG = 100_000  # characters of a clip-art file; larger ones are slow scans of paintings


@dataclass(frozen=True)
class Drawing:
    """One drawing of one style. common: all five emoji sets have its slug. split: "train" or "heldout".

    pixels: uint8 (S, S, 4), straight alpha.
    """

    index: int
    style: str
    slug: str
    name: str
    keywords: tuple[str, ...]
    common: bool
    split: str
    pixels: np.ndarray = field(repr=False, compare=False)


# ---------------------------------------------------------------- archives


def fetch(downloads: Path) -> dict[str, Path]:
    """Archives by style (and "names"), fetched with npm and apt-get where `downloads` lacks them.

    Raises ValueError when an npm archive is not the pinned one.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    archives = {}
    for style, (package, version, sha256) in NPM.items():
        path = downloads / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
        if not path.exists():
            run(["npm", "pack", "--silent", f"{package}@{version}"], downloads)
        if (found := digest(path)) != sha256:
            raise ValueError(f"{path} has sha256 {found}, not the pinned {sha256}: delete it and run again")
        archives[style] = path
    if not list(downloads.glob("openclipart-svg_*.deb")):
        run(["apt-get", "download", "openclipart-svg"], downloads)
    archives[CLIPART] = max(downloads.glob("openclipart-svg_*.deb"))
    return archives


def run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(
            f"{command[0]} is not installed: run {' '.join(command)!r} elsewhere and copy to {folder}"
        )
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def npm_json(archive: Path, name: str) -> dict:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"package/{name}")
        assert file is not None
        return json.load(file)


def deb_files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the svg files of a .deb: an `ar` archive round a compressed tar (man 5 deb)."""
    data = archive.read_bytes()
    at = 8  # after the magic "!<arch>\n"
    while at < len(data):
        name, size = data[at : at + 16].decode().strip().rstrip("/"), int(data[at + 48 : at + 58])
        if name.startswith("data.tar"):
            break
        at += 60 + size + size % 2
    else:
        raise ValueError(f"{archive} holds no data.tar")
    member = data[at + 60 : at + 60 + size]
    if name.endswith(".zst"):  # tarfile reads zstd from Python 3.14 on
        member = subprocess.run(["zstd", "-dc"], input=member, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(member)) as tar:
        for info in tar:
            if info.isfile() and info.name.endswith(".svg") and (file := tar.extractfile(info)):
                yield info.name.removeprefix("./"), file.read()


# ---------------------------------------------------------------- names


def normal(label: str) -> str:
    """A label as a slug: "flag: Côte d’Ivoire" -> "flag-cote-divoire"."""
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "")).strip("-")


def spoken(label: str) -> str:
    """A label as one says it: no quotes, "flag: Ghana" -> "flag of Ghana", "keycap: 1" -> "keycap 1"."""
    label = re.sub(r"[“”!]", "", label).replace("’", "'")
    return re.sub(r"^flag: ", "flag of ", label).replace(": ", " ")


def emoji_names(labels: list[dict]) -> Callable[[str], tuple[str, tuple[str, ...]]]:
    """A function from a slug to its human name and keywords, from emojibase's list."""
    table = {
        normal(entry["label"]): (spoken(entry["label"]), tuple(entry.get("tags", ()))) for entry in labels
    }

    def name_of(slug: str) -> tuple[str, tuple[str, ...]]:
        for tried in (slug, slug.removeprefix("flag-for-"), slug.replace("flag-for-", "flag-")):
            if tried in table:
                return table[tried]
        if country := re.match(r"flag-(?:for-)?(?:flag-)?(.+)", slug):
            return f"flag of {country[1].replace('-', ' ').title()}", ()
        return slug.replace("-", " "), ()

    return name_of


COLLECTION = re.compile(r"theme|collection|symbol|signs|icons?\b|part of|clip ?art|\bby\b|svg|untitled", re.I)
DULL = frozenset(
    "hash clip_art clipart svg image images media png public_domain unsorted icon icons externalsource"
    " theme".split()
)


def clipart_name(path: str, svg: str, titles: Counter[str]) -> tuple[str, tuple[str, ...]]:
    """Name and keywords of a clip-art file: its title, or its file's name where that names a collection."""
    found = re.search(r"<dc:title>([^<]*)</dc:title>", svg)
    title = html.unescape(found[1]).strip() if found else ""
    if (
        not title
        or titles[title] > 1
        or COLLECTION.search(title)
        or not 3 <= len(title) <= 32
        or not title.isascii()
    ):
        title = Path(path).stem
    title = re.sub(r"[_\W]+", " ", title.lower())
    name = re.sub(r"(?<=[a-z])[\d ]+$", "", title).strip() or "clip art"
    words = (html.unescape(w).strip().lower() for w in re.findall(r"<rdf:li>([^<(]{3,20})</rdf:li>", svg))
    return name, tuple(dict.fromkeys(w.replace("_", " ") for w in words if w not in DULL and w.isascii()))[:8]


# ---------------------------------------------------------------- sources


def emoji_sources(archives: dict[str, Path]) -> tuple[list[dict], dict[str, int]]:
    """Rows {style, slug, name, keywords, common, svg} of the five sets, and counts of what was left out."""
    sets = {style: npm_json(archives[style], "icons.json") for style in STYLES}
    name_of = emoji_names(npm_json(archives["names"], "en/data.json"))  # type: ignore[arg-type]
    slugs = {style: set(icons["icons"]) for style, icons in sets.items()}
    labels = {slug for style in STYLES for slug in slugs[style] if name_of(slug)[1]}
    shared = set.intersection(*slugs.values())
    # a label such as "police car light" ends like a skin tone without being one
    toned = {
        slug for found in slugs.values() for slug in found if SKIN_TONE.search(slug) and slug not in labels
    }
    counts = {"shared names": len(shared), "shared names without skin tones": len(shared - toned)}
    rows = []
    for style, icons in sets.items():
        kept = [s for s, icon in icons["icons"].items() if s not in toned and not icon.get("hidden")]
        counts |= {f"{style} icons": len(icons["icons"]), f"{style} without skin tones and hidden": len(kept)}
        for slug in sorted(kept):
            name, keywords = name_of(slug)
            row = {"style": style, "slug": slug, "name": name, "keywords": keywords, "common": slug in shared}
            rows.append(row | {"svg": icon_svg(icons, slug)})
    hidden = {slug for slug in shared if any(sets[style]["icons"][slug].get("hidden") for style in STYLES)}
    for row in rows:
        row["common"] &= row["slug"] not in hidden
    counts["common names"] = len(shared - toned - hidden)
    return rows, counts


def icon_svg(icons: dict, slug: str) -> str:
    """An Iconify icon as an SVG of FILL pixels: its box centred in a square.

    The margin is added after rendering: some icons' filters crash resvg at fractional places.
    """
    icon = icons["icons"][slug]
    left, top, width, height = (
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    side = max(width, height)
    box = f"{left + (width - side) / 2:g} {top + (height - side) / 2:g} {side:g} {side:g}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} width="{FILL}" height="{FILL}" viewBox="{box}">{icon["body"]}</svg>'


def clipart_sources(archive: Path, rng: np.random.Generator, limit: int) -> list[dict]:
    """A random `limit` of the clip art that is small and needs no fonts or embedded photographs."""
    files = {path: content.decode("utf-8", "replace") for path, content in deb_files(archive)}
    files = {
        path: svg
        for path, svg in sorted(files.items())
        if len(svg) <= MAX_SVG
        and not re.search(r"<(\w+:)?(text|image|flowRoot)\b", svg)
        and not re.search(r"/duplicates/|/special/|/shapes/stars/|/unsorted/|/computer/icons/", path)
    }
    titles = Counter(
        m[1].strip() for svg in files.values() if (m := re.search(r"<dc:title>([^<]*)</dc:title>", svg))
    )
    paths = list(files)
    rows = []
    for i in np.sort(rng.permutation(len(paths))[:limit]):
        svg = files[paths[i]]
        name, keywords = clipart_name(paths[i], svg, titles)
        slug = paths[i].partition("/svg/")[2].removesuffix(".svg")
        rows.append(
            {"style": CLIPART, "slug": slug, "name": name, "keywords": keywords, "common": False, "svg": svg}
        )
    return rows


# ---------------------------------------------------------------- rendering


def render_svg(svg: str, tight: bool) -> np.ndarray | None:
    """Pixels uint8 (S, S, 4) straight alpha, or None where resvg fails or nothing is seen.

    tight: the drawing is cut out of its page first, as clip art lies anywhere on an A4.
    """
    try:
        # absolute units need a dpi, and fonts of the machine would make the outcome depend on it
        data = resvg_py.svg_to_bytes(
            svg_string=svg, dpi=96, width=2 * FILL if tight else FILL, skip_system_fonts=True
        )
        image = Image.open(io.BytesIO(data)).convert("RGBA")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a Rust panic is no Exception
        return None
    if tight:
        box = image.getchannel("A").point([255 * (a >= 16) for a in range(256)]).getbbox()
        if box is None:
            return None
        image = image.crop(box)
    scale = FILL / max(image.size)
    if scale != 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if min(size) < 8:
            return None
        image = image.resize(size, Image.Resampling.LANCZOS)
    page = Image.new("RGBA", (SIDE, SIDE))
    page.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    pixels = np.asarray(page)
    solid = pixels[..., 3] >= 128
    if solid.mean() < 0.01:
        return None
    # white on white shows nothing
    return pixels if (pixels[solid][:, :3].min(1) < 225).mean() > 0.02 else None


def render_batch(batch: list[tuple[str, bool]]) -> list[np.ndarray | None]:
    return [render_svg(svg, tight) for svg, tight in batch]


def silence() -> None:
    """Sends standard error of a worker away: resvg prints a trace for each svg that it gives up on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def render_all(rows: list[dict], workers: int) -> list[np.ndarray | None]:
    jobs = [(row["svg"], row["style"] == CLIPART) for row in rows]
    batches = [jobs[i : i + 32] for i in range(0, len(jobs), 32)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=silence) as pool:
        results = track(pool.map(render_batch, batches), "rendering drawings", total=len(batches))
        return [pixels for batch in results for pixels in batch]


# ---------------------------------------------------------------- the collection


def hold_out(rows: list[dict], rng: np.random.Generator, share: float = 0.05) -> None:
    """Sets row["split"]: `share` of the common (slug, style) pairs and of the clip art is held out.

    At most one style of a slug is, so that the model knows the thing and the style but not the two together.
    """
    common = [i for i, row in enumerate(rows) if row["common"]]
    clipart = [i for i, row in enumerate(rows) if row["style"] == CLIPART]
    chosen: dict[str, int] = {}
    for i in rng.permutation(common):
        if len(chosen) == round(share * len(common)):
            break
        chosen.setdefault(rows[i]["slug"], int(i))
    held = {*chosen.values(), *rng.permutation(clipart)[: round(share * len(clipart))].tolist()}
    for i, row in enumerate(rows):
        row["split"] = "heldout" if i in held else "train"


def build_drawings(
    archives: dict[str, Path], out: Path, seed: int, workers: int, quick: bool
) -> dict[str, int]:
    """Writes out/drawings.json and out/drawings.npy uint8 (N, S, S, 4); returns counts.

    quick: 40 names of all styles and 100 clip-art files, for a trial.
    """
    rng = np.random.default_rng([seed, 1])
    rows, counts = emoji_sources(archives)
    if quick:
        shared = sorted({row["slug"] for row in rows if row["common"]})
        few = set(rng.choice(shared, 40, replace=False).tolist())
        rows = [row for row in rows if row["slug"] in few]
    rows += clipart_sources(archives[CLIPART], rng, 100 if quick else 3000)
    rendered = render_all(rows, workers)
    seen: set[tuple[str, bytes]] = set()
    kept: list[tuple[dict, np.ndarray]] = []
    failed = twice = 0
    # the common ones first, so that a picture with two names keeps the common one, and no twin of a held-out
    # picture is trained on
    for i in sorted(range(len(rows)), key=lambda i: not rows[i]["common"]):
        pixels = rendered[i]
        if pixels is None:
            failed += 1
            continue
        mark = (rows[i]["style"], hashlib.sha256(pixels.tobytes()).digest())
        if mark in seen:
            twice += 1
            continue
        seen.add(mark)
        kept.append((rows[i], pixels))
    rows = [{key: value for key, value in row.items() if key != "svg"} for row, _ in kept]
    hold_out(rows, rng)
    with atomic(out / "drawings.npy") as partial, partial.open("wb") as file:
        np.save(file, np.stack([pixels for _, pixels in kept]))
    with atomic(out / "drawings.json") as partial:
        partial.write_text(
            json.dumps([{"index": i} | row for i, row in enumerate(rows)], ensure_ascii=False, indent=0)
        )
    counts |= {"not rendered or blank": failed, "same picture twice": twice, "drawings": len(rows)}
    return counts | {f"{style} drawings": n for style, n in Counter(row["style"] for row in rows).items()}


def load_drawings(folder: Path) -> list[Drawing]:
    """The drawings that `build_drawings` wrote; their pixels stay memory-mapped."""
    rows = json.loads((folder / "drawings.json").read_text())
    pixels = np.load(folder / "drawings.npy", mmap_mode="r")
    return [
        Drawing(**row | {"keywords": tuple(row["keywords"])}, pixels=pixels[row["index"]]) for row in rows
    ]
