"""Recipes in pictures: `inkwash info` and `inkwash replay`."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from inkwash.cli import options
from inkwash.cli.loading import FolderOptions, LoadOptions, MemoryOptions
from inkwash.cli.output import draw_and_save
from inkwash.pipeline.record.metadata import read_recipes
from inkwash.weights.bytes.paths import SHIPPED, SHIPPED_CONTROLS

if TYPE_CHECKING:
    from PIL.Image import Image

    from inkwash.pipeline.replay import Recorded
    from inkwash.pipeline.request import Request

Picture = Annotated[Path, Parameter(help="A picture that inkwash or another program made.")]


def info(picture: Picture, /, *, as_json: options.AsJson = False) -> None:
    """Print how PICTURE was made, as inkwash, AUTOMATIC1111, ComfyUI or InvokeAI wrote it down."""
    recipes = read(picture)
    if as_json:
        print(json.dumps(recipes, ensure_ascii=False, allow_nan=False))
    else:
        name = "parameters" if "parameters" in recipes else next(iter(recipes))
        content = recipes[name]
        print(content if isinstance(content, str) else json.dumps(content, indent=1, ensure_ascii=False))


@Parameter(name="*")
@dataclass(frozen=True)
class GivenFiles:
    """Models and pictures that a picture was made with, in place of those that it names."""

    model: Annotated[str | None, Parameter(help="Default: the one that the picture names.")] = None
    part: Annotated[
        tuple[str, ...], Parameter(consume_multiple=False, help="A part that it was made with; repeatable.")
    ] = ()
    refiner: Annotated[str | None, Parameter(help="The same of its refiner, if it had one.")] = None
    prior: Annotated[str | None, Parameter(help="The same of its prior, if it had one of its own.")] = None
    image: Annotated[
        Path | None, Parameter(help="What it was made from; default: beside it, by the name that it says.")
    ] = None
    mask: Annotated[Path | None, Parameter(help="The same of its mask.")] = None
    depth: Annotated[Path | None, Parameter(help="The same of its depth.")] = None
    depth_model: Annotated[Path | None, Parameter(help="What estimated its depth.")] = None
    labels: Annotated[Path | None, Parameter(help="The same of its map of labels.")] = None
    second: Annotated[Path | None, Parameter(help="The same of the second picture.")] = None
    control: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=False,
            help="FILE[=IMAGE] of each of its controls, in its order; IMAGE by default as --image.",
        ),
    ] = ()
    hires_upscaler: Annotated[
        Path | None,
        Parameter(help="FILE of the pixel upscaler between its passes; default: beside it."),
    ] = None

    @property
    def paths(self) -> dict[str, Path | None]:
        """The pictures by role."""
        return {role: getattr(self, role) for role in ("image", "mask", "depth", "labels", "second")}


FILES = GivenFiles()


def replay(
    picture: Picture,
    /,
    *,
    files: GivenFiles = FILES,
    strict: Annotated[
        bool, Parameter(negative="", help="Refuse a picture whose recipe has what inkwash does not apply.")
    ] = False,
    folders: FolderOptions = FolderOptions(),
    memory: MemoryOptions = MemoryOptions(),
    output: options.Output = None,
    as_json: options.AsJson = False,
) -> None:
    """Draw PICTURE again by the recipe inside it, and print the path.

    On the same machine it is the same to the byte, also one of a batch.
    """
    from inkwash.pipeline.replay import again, recorded

    try:
        known = recorded(read(picture))
    except ValueError as error:
        raise options.file_error(f"{picture} can't be drawn again: {' '.join(str(error).split())}") from None
    for line in known.not_applied:
        print(f"inkwash: not applied: {line}", file=sys.stderr)
    if strict and known.not_applied:
        raise options.file_error(
            f"{picture} was made with what inkwash does not apply; draw it without --strict"
        )
    request = with_upscaler(picture, known.request, files.hires_upscaler)
    known = known._replace(request=with_files(picture, request, files.control))
    given = pictures(picture, known, files.paths, files.depth_model) | control_pictures(picture, known)
    loading = LoadOptions(**opened_with(picture, known, files), **vars(folders), **vars(memory))

    def draw(opened: Any, on_step: Any) -> "list[Image]":
        note_differences(known, opened)
        return [again(opened, known, given, on_step)]

    request, k = known.request, known.picture
    own = {"prompt": request.prompts[k], "negative_prompt": request.negative_prompts[k], "batch_size": 1}
    own |= {"seed": request.seeds[k]}
    draw_and_save(request.model_copy(update=own), loading, output, as_json, draw)


def opened_with(picture: Path, known: "Recorded", files: GivenFiles) -> dict[str, Any]:
    """The model and how it was opened: by the given names, or by those that the picture says."""
    from inkwash.weights.checkpoint import DTYPES

    used = [*known[4:6], known.prior if known.prior and known.prior.get("name") else None]
    names: dict[str, str | None] = {"model": files.model, "refiner": files.refiner, "prior": files.prior}
    for role, about in zip(names, used, strict=True):
        if about and names[role] is None:
            names[role] = about.get("name") or "no named model"
            if names[role] not in SHIPPED:
                raise options.usage_error(f"{picture} was made with {names[role]}; give its path by --{role}")
    dtype = next((name for name in DTYPES if name == (used[0] or {}).get("dtype")), "auto")
    int8 = (used[0] or {}).get("int8") is True
    return {
        "model": names["model"] or "",
        "refiner": names["refiner"],
        "prior": names["prior"],
        "parts": files.part,
        "dtype": dtype,
        "int8": int8,
    }


def with_upscaler(picture: Path, request: "Request", given: Path | None) -> "Request":
    """The request with the file of its pixel upscaler: the given one, or the one beside the picture."""
    named = getattr(request, "upscaler_file", None)
    if given is None and named is None:
        return request
    if getattr(request, "hires", 1) == 1:
        raise options.usage_error(f"--hires-upscaler {given}: {picture} was made in one pass")
    path = given or picture.parent / named.name  # type: ignore[union-attr]  never elsewhere, whatever the file says
    if given is None and not path.exists():
        raise options.usage_error(
            f"{picture} was made with the upscaler {path.name}; give its path by --hires-upscaler"
        )
    return request.model_copy(update={"hires_upscaler": str(path)})


def note_differences(known: "Recorded", opened: Any) -> None:
    """Print what a picture was made with and is not drawn again with: models, parts, files of its prompts."""
    from inkwash.pipeline.denoising.prompting import files_of

    request, k, files, _, *used = known[:6]
    used.append(known.prior)
    for about, now in zip(used, (opened, opened.refiner, opened.prior), strict=True):
        if about and now and about.get("hash") not in (None, now.hash):
            print(f"made with model {about['name']} {about['hash']}; this is {now.hash}", file=sys.stderr)
    parts = (used[0] or {}).get("parts", {})
    if set(parts.values()) != set(opened.part_hashes.values()):
        print(f"made with the parts {parts}; these are {opened.part_hashes}", file=sys.stderr)
    if differing := {
        name: found
        for kind, some in files_of(opened, request)[k].items()
        for name, found in some.items()
        if files.get(kind, {}).get(name, found) != found
    }:
        print(f"made with other files than these: {differing}", file=sys.stderr)


def with_files(picture: Path, request: "Request", given: tuple[str, ...]) -> "Request":
    """The request with the files of its controls, and with their pictures where they are given: FILE[=IMAGE]."""
    if len(given) > len(request.controls):
        raise options.usage_error(f"--control {given[-1]}: {picture} was made with {len(request.controls)}")
    controls = []
    for i, control in enumerate(request.controls):
        file, _, image = given[i].partition("=") if i < len(given) else ("", "", "")
        beside = picture.parent / control.name  # never elsewhere, whatever the file says
        known = control.is_reference or control.name in SHIPPED_CONTROLS
        own = control.name if known else str(beside)
        if not file and not known and not beside.exists():
            raise options.usage_error(
                f"{picture} was made with the control {control.name}; give its path by --control"
            )
        update = {"file": file or own, "image": Path(image) if image else control.image}
        controls.append(control.model_copy(update=update))
    return request.model_copy(update={"controls": tuple(controls)})


def control_pictures(picture: Path, known: "Recorded") -> "dict[str, Image]":
    """The pictures that controls saw, by role: where --control says, or beside `picture`."""
    found = {}
    for i, control in enumerate(known.request.controls):
        for role, image, mode in (
            (f"control-{i}", control.image, "RGB"),
            (f"control-{i}-mask", control.mask, "L"),
        ):
            if image is None and role not in known.given:
                if mode == "RGB" and control.face is None and known.prior is None:
                    raise options.usage_error(
                        f"{picture} does not hold the picture of {control.name}; give it by --control FILE=IMAGE"
                    )
                continue
            name = str(known.given.get(role, {}).get("name") or "")
            path = image if isinstance(image, Path) else picture.parent / Path(name).name
            if (not name and not isinstance(image, Path)) or not path.is_file():
                raise options.usage_error(
                    f"{picture} was made from the {role} {name or path}; give it by --control FILE=IMAGE"
                )
            found[role] = options.open_image(path, mode)
    return found


def pictures(
    picture: Path, known: "Recorded", paths: Mapping[str, Path | None], depth_model: Path | None
) -> "dict[str, Image]":
    """The pictures that `picture` was made from: at these paths by role, or beside it."""
    from inkwash.pipeline.replay import check_given
    from inkwash.pipeline.tasks import TASKS
    from inkwash.pipeline.tasks.depth import estimate_depth

    images, found = TASKS[known.request.task].images, {}
    wanted = {role: mode for role, mode in images.items() if role in known.given}
    for role, path in paths.items():
        if role not in wanted:
            if path:
                raise options.usage_error(f"--{role} {path}: {picture} was made without one")
            continue
        name = str(known.given[role].get("name") or "")
        path = path or picture.parent / Path(name).name  # never elsewhere, whatever the file says
        if role == "depth" and depth_model:
            with options.opening():
                found[role] = estimate_depth(found["image"], depth_model)
        elif path.is_file():
            found[role] = options.open_image(path, wanted[role])
        else:
            which = f"{role} {name}" if name else f"{role}, which had no file name"
            raise options.usage_error(f"{picture} was made from the {which}; give its path by --{role}")
        try:
            check_given(known, role, found[role])
        except ValueError as error:
            raise options.file_error(f"{picture} can't be drawn again from {path}: {error}") from None
    return found


def read(picture: Path) -> dict[str, Any]:
    try:
        recipes = read_recipes(picture)
    except (OSError, SyntaxError) as error:
        raise options.file_error(f"{picture} is not a readable picture: {error}") from error
    if not recipes:
        raise options.file_error(f"{picture} does not say how it was made")
    return recipes
