"""Trains `mini` from nothing: `python -m recipes.mini STEP [--reduced] [--minutes M] [--device cuda]`.

The steps, in order: `python -m recipes.mini.data`, then classifier features, autoencoder, clip, latents, pair-texts, unet,
classifier judge, export, evaluate; `all` runs what is left of them. Each goes on where it was stopped.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from cyclopts import App

import inkwash
from inkwash.explain.tiles import contact_sheet
from inkwash.files import atomic
from inkwash.metrics.estimates import FEWEST
from inkwash.metrics.networks import lpips
from inkwash.models.autoencoder import AutoencoderKL
from inkwash.models.discriminator import PatchDiscriminator
from inkwash.models.perceptual import PerceptualDistance
from inkwash.models.unet import UNet
from inkwash.nn.blocks import channels_last
from inkwash.prompts.attention import escape
from inkwash.training.initialise import preserve_variance
from inkwash.training.loop import LoopConfig, train
from recipes.mini import control, evaluate_control, kin, latent_classifier, outside, parts, scenes
from recipes.mini import data as data_builder
from recipes.mini import evaluate as measures
from recipes.mini import evaluate_variants as variant_measures
from recipes.mini import tiny as tiny_autoencoder
from recipes.mini.labels import Labels
from recipes.mini.pairs import pair_texts_task, unet_task
from recipes.mini.pictures import load_pictures
from recipes.mini.recipe import AUTOENCODERS, BUILD, FULL, REDUCED, SHIPPED, STYLES, UNET, Recipe
from recipes.mini.tasks import AutoencoderTask, ClassifierTask, CLIPTask
from recipes.mini.variants import VARIANTS, variant_task

app = App(help=__doc__)
for _command in kin.COMMANDS:
    app.command(_command)


def recipe(reduced: bool) -> Recipe:
    return REDUCED if reduced else FULL


@app.command
def classifier(
    which: Literal["features", "judge", "outside"],
    *,
    build: Path = BUILD,
    reduced: bool = False,
    minutes: float = math.inf,
    device: str = "cpu",
) -> None:
    """Train the classifier whose features measure perceptual distance, the one that judges, or the second judge's heads.

    The second judge, `outside`, is EfficientNet-Lite0 as `inkwash fetch-metrics` brings it; it learns on the CPU in minutes.
    """
    r = recipe(reduced)
    pictures = load_pictures(build / "data", "train")
    names = parts.common_names(build / "data")
    if which == outside.NAME:
        judge = outside.train(build, pictures, names)
        print(json.dumps(measures.judged(judge, load_pictures(build / "data", "heldout"), names)))
        return
    pictures = pictures.on(torch.device(device))
    # other seed, other width: the two share nothing
    config = replace(r.features, seed=1) if which == "features" else replace(r.judge, seed=2)
    torch.manual_seed(config.seed)
    model = channels_last(parts.make_classifier(build, which)).to(device)
    train(ClassifierTask(model, pictures, names, STYLES, r.classifier_batch), config, build / which, minutes)


def compiled(device: str, *modules: torch.nn.Module) -> None:
    """Let torch fuse what these compute, where a GPU makes up for the minute that this takes."""
    if torch.device(device).type == "cuda":
        for module in modules:
            module.compile()


def autoencoder_task(
    choice: str, build: Path, r: Recipe, device: str, lpips_files: tuple[Path, Path] | None = None
) -> AutoencoderTask:
    if choice not in AUTOENCODERS:
        raise ValueError(f"first stage {choice!r} is not one of {', '.join(AUTOENCODERS)}")
    torch.manual_seed(r.autoencoder.seed)
    model = preserve_variance(AutoencoderKL(AUTOENCODERS[choice]))
    # starts with little noise on the latents, which would drown the picture before there is one
    torch.nn.init.constant_(model.state_dict()["quant_conv.bias"][model.config.latent_channels :], -4.0)
    if lpips_files:
        distance = lpips(*lpips_files).to(device)
    else:
        distance = PerceptualDistance(parts.load_classifier(build, "features").to(device).features)
    return AutoencoderTask(
        channels_last(model).to(device),
        channels_last(PatchDiscriminator(32, 2)).to(device),
        distance,
        load_pictures(build / "data", "train").on(torch.device(device)),
        r.autoencoder_batch,
        r.crop,
        l2_weight=r.l2_weight,
        disc_start=r.disc_start,
    )


@app.command
def autoencoder(
    choice: str = next(iter(AUTOENCODERS)),
    *,
    build: Path = BUILD,
    reduced: bool = False,
    minutes: float = math.inf,
    device: str = "cpu",
    lpips_files: tuple[Path, Path] | None = None,
) -> None:
    """Train a first stage; `choice` names its f and its latent channels.

    lpips_files: safetensors of VGG16 and of LPIPS' heads, for its distance in place of the classifier's.
    """
    r = recipe(reduced)
    task = autoencoder_task(choice, build, r, device, lpips_files)
    compiled(device, task.model.encoder, task.model.decoder, task.perceptual)
    train(task, r.autoencoder, build / "autoencoder" / choice, minutes)


@app.command
def first_stages(*, build: Path = BUILD, reduced: bool = False, device: str = "cpu") -> None:
    """Compare the choices of first stage: each trained alike for a short while, then measured.

    Prints a line for each, with the PSNR and the Fréchet distance of held-out pictures.
    """
    r = recipe(reduced)
    config = replace(r.autoencoder, num_steps=r.trial_steps, decay_steps=r.trial_steps // 2)
    judge = parts.load_classifier(build, "judge")
    heldout = load_pictures(build / "data", "heldout")
    for choice in AUTOENCODERS:
        train(autoencoder_task(choice, build, r, device), config, build / "trials" / choice)
        model = parts.load_autoencoder(build, choice, "trials")
        figures = measures.reconstruction(model, heldout, judge)
        print(json.dumps({"choice": choice, "steps": config.num_steps} | figures), flush=True)


@app.command
def clip(
    *, build: Path = BUILD, reduced: bool = False, minutes: float = math.inf, device: str = "cpu"
) -> None:
    """Train the text encoder, with a vision tower, on pictures and their captions."""
    r = recipe(reduced)
    pictures = load_pictures(build / "data", "train")
    tokenizer = parts.make_tokenizer(build, pictures)
    torch.manual_seed(r.clip.seed)
    pair = parts.make_clip(tokenizer).to(device)
    compiled(device, pair.text, pair.vision)
    pictures = pictures.on(torch.device(device))
    train(CLIPTask(pair, tokenizer, pictures, r.clip_batch), r.clip, build / "clip", minutes)


@app.command
def latents(
    choice: str = next(iter(AUTOENCODERS)),
    *,
    build: Path = BUILD,
    start: Path | None = None,
    device: str = "cpu",
) -> None:
    """Encode all pictures and captions once, and measure the scale factor.

    start: a model's folder to encode with, such as the shipped one's, where its parts were not trained in `build`.
    """
    parts.cache_latents(build, choice, device, start)


@app.command
def pair_texts(
    *,
    build: Path = BUILD,
    reduced: bool = False,
    minutes: float = math.inf,
    device: str = "cpu",
    start: Path | None = None,
) -> None:
    """Train the text encoder on, so that it says of two drawings in one picture what it says of each alone.

    start: the model's folder that the latents were cached with; by default the build's own text encoder.
    """
    r = recipe(reduced)
    base = parts.open_base(start, device) if start else None
    task = pair_texts_task(build, r.pair_texts_batch, torch.device(device), base)
    train(task, r.pair_texts, build / parts.PAIR_TEXTS, minutes)


@app.command
def unet(
    *,
    build: Path = BUILD,
    reduced: bool = False,
    minutes: float = math.inf,
    device: str = "cpu",
    start: Path | None = None,
) -> None:
    """Train the U-Net on the cached latents.

    start: a model's folder whose U-Net to go on from at a falling rate, such as the shipped one's; by default it starts
    from nothing.
    """
    r = recipe(reduced)
    settings = r.further if start else r.unet
    torch.manual_seed(settings.loop.seed)
    base = parts.open_base(start, device) if start else None
    model = deepcopy(base.unet).requires_grad_(True).train() if base else preserve_variance(UNet(UNET))
    model = channels_last(model).to(device)
    compiled(device, model)
    task = unet_task(build, model, settings, r.prediction, base)
    train(task, settings.loop, build / "unet", minutes)


def check_variant(name: str) -> None:
    if name not in VARIANTS:
        raise ValueError(f"variant {name!r} is not one of {', '.join(VARIANTS)}")


@app.command
def variant(
    name: str,
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    reduced: bool = False,
    minutes: float = math.inf,
    device: str = "cpu",
) -> None:
    """Train a variant of the U-Net on from the model `start`, and write it beside that, as `start`-`name`.

    name: inpainting, upscaler, depth, class or layout. What is written is the U-Net; all else is `start`'s.
    """
    check_variant(name)
    r = recipe(reduced)
    model, run = inkwash.load(start, device), build / "variants" / name
    labels = Labels(build / "data", "train", model)
    task = variant_task(VARIANTS[name], labels, parts.load_latents(build), r.variant_batch)
    compiled(device, task.unet)
    train(task, r.variant, run, minutes)
    parts.export_variant(task.unet, run, start, model.default_size // model.autoencoder.config.factor)


@app.command
def evaluate_variant(
    name: str,
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    sheet: Path | None = None,
    judged_by: parts.JudgeName = "judge",
) -> None:
    """Measure whether a variant follows what it is given, beside the model it started from, and draw a sheet."""
    check_variant(name)
    base, model = inkwash.load(start), inkwash.load(start.with_name(f"{start.name}-{name}"))
    labels, judge = Labels(build / "data", "heldout", base), parts.load_judge(build, judged_by)
    sheet = sheet or Path(f"docs/pictures/{name}.png")
    figures = variant_measures.MEASURES[name](model, base, labels, judge, sheet)
    measures.report(build / "variants" / name / parts.figures_name(judged_by), figures)


app.command(control.train, name="control")
app.command(evaluate_control.evaluate, name="evaluate-control")


@app.command
def guide(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    reduced: bool = False,
    minutes: float = math.inf,
    scale: list[float] | None = None,
    pictures: int = 100,
    device: str = "cpu",
) -> None:
    """Train the classifier of noisy latents that guides by names, and measure what it does to `start`'s pictures.

    scale: of classifier guidance, the values to measure at. pictures: for each of them.
    """
    model, folder = inkwash.load(start), build / "latent_classifier"
    task = latent_classifier.make_task(build, model.schedule)
    channels_last(task.model).to(device)
    train(task, latent_classifier.REDUCED if reduced else latent_classifier.FULL, folder, minutes)
    classifier = latent_classifier.make(build, task.means.shape[1])
    parts.load_average(classifier, folder / "state.safetensors", "latent classifier")
    judge = parts.load_classifier(build, "judge")
    figures = {"held-out drawings named": latent_classifier.accuracy(classifier, model, build)}
    for prompted in (False, True):
        for value in scale or [0, 1, 3, 10]:
            made = latent_classifier.effect(classifier, model, judge, build, value, prompted, pictures)
            figures[f"scale {value:g}, {'prompts' if prompted else 'no prompt'}"] = made
            measures.save(folder / "figures.json", figures)
    print(json.dumps(figures, indent=1))


@app.command
def tiny(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    reduced: bool = False,
    minutes: float = math.inf,
    device: str = "cpu",
) -> None:
    """Train a tiny autoencoder in the place of `start`'s first stage, write it, and measure both on held-out pictures.

    It is written as the folder `tiny/vae` in `build`, which `inkwash generate --part` takes.
    """
    first_stage, run = inkwash.load(start, device, "fp32").autoencoder, build / "tiny"
    config = tiny_autoencoder.REDUCED if reduced else tiny_autoencoder.FULL
    torch.manual_seed(config.seed)
    distance = PerceptualDistance(parts.load_classifier(build, "features").to(device).features)
    model = channels_last(tiny_autoencoder.make()).to(device)
    pictures = load_pictures(build / "data", "train")
    task = tiny_autoencoder.TinyTask(model, first_stage, distance, pictures, tiny_autoencoder.BATCH)
    train(task, config, run, minutes)
    written = inkwash.load(start, device, "fp32", parts=[tiny_autoencoder.export(run)]).autoencoder
    figures = tiny_autoencoder.figures(written, first_stage, load_pictures(build / "data", "heldout"))
    measures.report(run / "figures.json", figures)


@app.command
def export_pictures(
    folder: Path, split: Literal["heldout", "train"] = "heldout", *, build: Path = BUILD
) -> None:
    """Write the captioned pictures of a split as files, for `inkwash evaluate --reference FOLDER`, and print how many."""
    print(measures.export_pictures(load_pictures(build / "data", split), folder))


@app.command
def evaluate(
    *,
    build: Path = BUILD,
    out: Path = SHIPPED,
    cfg_scale: list[float] | None = None,
    sheet: Path = Path("docs/pictures/contact_sheet.png"),
    device: str = "cpu",
    dtype: str = "auto",
    judged_by: parts.JudgeName = "judge",
) -> None:
    """Measure the exported model by the fixed protocol, and draw its contact sheet.

    cfg_scale: the scales to measure at, by default the protocol's own. dtype: what it draws with; its first stage is
    measured in float32.
    """
    model, exact = inkwash.load(out, device, dtype), inkwash.load(out, device, "fp32")
    assert isinstance(exact.autoencoder, AutoencoderKL)  # as `export` writes it
    data = build / "data"
    heldout, names = load_pictures(data, "heldout"), parts.common_names(data)
    judge = parts.load_judge(build, judged_by).to(device)
    with atomic(sheet) as path:
        contact_sheet(measures.draw(model, measures.sheet_prompts())).save(path)
    figures: dict[str, dict] = {
        "judge": measures.judged(judge, heldout, names),
        "first_stage": measures.reconstruction(exact.autoencoder, heldout, judge),
    }
    if len(rows := scenes.heldout_scenes(heldout)) >= FEWEST:
        records, crops = [heldout.records[i] for i in rows], scenes.crop_judge(judge, data)
        drawn = measures.pixels_of(measures.draw(model, [escape(record["caption"]) for record in records]))
        for whose, pixels in (("drawn", drawn), ("real", heldout.pixels(torch.tensor(rows)))):
            figures[f"scenes of two, {whose}"] = scenes.scene_figures(pixels, records, crops)
    figures |= measures.pair_figures(model, judge, names, data)
    for scale in cfg_scale or [measures.CFG_SCALE]:
        made = measures.text_to_image_figures(model, judge, names, data, heldout, scale)
        figures[f"text_to_image at cfg_scale {scale:g}"] = made
        measures.save(build / parts.figures_name(judged_by), figures)
    print(json.dumps(figures, indent=1))


@app.command
def export(*, build: Path = BUILD, out: Path = SHIPPED, start: Path | None = None) -> None:
    """Write the averaged weights as the shipped model: float16, the diffusers folder layout.

    start: the model's folder that the U-Net went on from, whose other parts are taken.
    """
    parts.export(build, out, FULL.prediction, start)


@app.command(name="all")
def everything(
    *,
    build: Path = BUILD,
    out: Path = SHIPPED,
    sheet: Path = Path("docs/pictures/contact_sheet.png"),
    reduced: bool = False,
    minutes: float = math.inf,
    device: str = "cpu",
) -> None:
    """Run every step that is not done yet, from the drawings to the shipped model and its figures.

    minutes: after which the training stops and saves; the same command goes on from there.
    """
    r, end = recipe(reduced), time.monotonic() + 60 * minutes
    data_builder.build(out=build / "data", scenes=r.scenes)
    options: Any = {"build": build, "reduced": reduced, "device": device}

    def left(step: Callable[..., None], config: LoopConfig, folder: Path, *args: str) -> bool:
        """Train a part in the time that is left; returns whether it is trained."""
        step(*args, **options, minutes=(end - time.monotonic()) / 60)
        return trained(folder, config)

    done = (
        left(classifier, r.features, build / "features", "features")
        and left(clip, r.clip, build / "clip")
        and left(classifier, r.judge, build / "judge", "judge")
        and left(autoencoder, r.autoencoder, build / "autoencoder" / next(iter(AUTOENCODERS)))
    )
    if done and not (build / "latents.safetensors").exists():
        latents(build=build, device=device)
    done = done and left(pair_texts, r.pair_texts, build / parts.PAIR_TEXTS)
    if done and left(unet, r.unet.loop, build / "unet"):
        export(build=build, out=out)
        evaluate(build=build, out=out, sheet=sheet, device=device)


def trained(folder: Path, config: LoopConfig) -> bool:
    """Return True if a training has reached its last step."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return bool(lines) and json.loads(lines[-1])["step"] == config.num_steps


def main() -> None:
    try:
        app()
    except KeyboardInterrupt:
        print("stopped and saved; the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
