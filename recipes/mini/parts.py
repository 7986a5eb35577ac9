"""The parts of `mini` between the steps of its training: made, saved, loaded, cached."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inkwash.diffusion.schedules import NoiseSchedule, sqrt_linear_betas
from inkwash.files import atomic
from inkwash.models.autoencoder import AutoencoderKL
from inkwash.models.clip import CLIPText, CLIPTextConfig, CLIPVision
from inkwash.models.tokenizer import Tokenizer
from inkwash.models.unet import UNet
from inkwash.nn.blocks import channels_last
from inkwash.pipeline.model import Model
from inkwash.weights.checkpoint import DTYPES, Checkpoint, Component, TextComponent, assemble
from inkwash.weights.models.convert import read_checkpoint
from inkwash.weights.models.folder import write_folder, write_unet
from inkwash.weights.scheduler import scheduler_json
from recipes.mini import outside
from recipes.mini.classifier import Classifier, Judge
from recipes.mini.pictures import Pictures, common_drawings, load_pictures
from recipes.mini.recipe import AUTOENCODERS, FULL, STYLES, TEXT, UNET, VISION
from recipes.mini.tasks import CLIPPair, bf16
from recipes.mini.vocabulary import needed_merges

Latents = tuple[Tensor, Tensor, Tensor, list[list[int]], Tensor]
JudgeName = Literal["judge", "outside"]
MAX_SHARD = 16_000_000  # bytes
PAIR_TEXTS = "pair_texts"  # folder of the text encoder's training on pairs
SCENES = 0.2  # share of what is drawn in training


def as_float16(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they are written: in float16, on the CPU."""
    return {name: value.detach().half().cpu().contiguous() for name, value in tensors.items()}


def noise_schedule() -> NoiseSchedule:
    return NoiseSchedule.from_betas(sqrt_linear_betas())


def common_names(data: Path) -> list[str]:
    """Slugs of the drawings that all five styles have, sorted: the judge's names."""
    return list(common_drawings(data))


def load_average(module: nn.Module, state: Path, name: str) -> nn.Module:
    """Fill a module with the averaged weights of a training's state."""
    if not state.exists():
        raise FileNotFoundError(f"{state} is not there: train that part first")
    tensors: dict[str, Tensor] = {}
    with safe_open(state, framework="pt") as file:
        for key in module.state_dict():
            averaged, counted = f"emas/{name}/{key}", f"modules/{name}/{key}"  # integers are not averaged
            found = averaged if averaged in file.keys() else counted  # noqa: SIM118
            tensors[key] = file.get_tensor(found)
    module.load_state_dict(tensors)
    return module.eval().requires_grad_(False)


def make_classifier(build: Path, which: str) -> Classifier:
    """The classifier "features", or the larger one that judges, which sees every pixel."""
    width, halved = {"features": (24, True), "judge": (48, False)}[which]
    return Classifier(len(common_names(build / "data")), len(STYLES), width, halved)


def figures_name(judged_by: JudgeName) -> str:
    """The file of a judge's figures, so that those of different judges don't mix."""
    return "figures.json" if judged_by == "judge" else f"figures-{judged_by}.json"


def load_judge(build: Path, which: JudgeName) -> Judge:
    """A judge of drawings: "judge", the recipe's own, or "outside", of a network that learnt from photographs."""
    if which == outside.NAME:
        return outside.load(build, len(common_names(build / "data")))
    return load_classifier(build, which)


def load_classifier(build: Path, which: str) -> Classifier:
    model = make_classifier(build, which)
    load_average(model, build / which / "state.safetensors", "classifier")
    return channels_last(model)


def load_autoencoder(build: Path, choice: str, runs: str = "autoencoder") -> AutoencoderKL:
    """A trained first stage, with its measured scale factor once the latents are cached."""
    cached = build / "latents.safetensors"
    scale = 1.0
    if cached.exists():
        with safe_open(cached, framework="pt") as file:
            if file.metadata()["choice"] == choice:
                scale = float(file.metadata()["scale_factor"])
    model = AutoencoderKL(replace(AUTOENCODERS[choice], scale_factor=scale))
    load_average(model, build / runs / choice / "state.safetensors", "autoencoder")
    return channels_last(model)


def make_tokenizer(build: Path, pictures: Pictures) -> Tokenizer:
    """The vocabulary that the captions need, saved beside the training."""
    folder = build / "tokenizer"
    if not (folder / "merges.txt").exists():
        texts = [text for r in pictures.records for text in [r["caption"], *r["captions"]]]
        Tokenizer(needed_merges(texts)).save(folder)
    return Tokenizer.from_folder(folder)


def make_clip(tokenizer: Tokenizer) -> CLIPPair:
    text = replace(TEXT, vocab_size=len(tokenizer.vocab), eos_token=tokenizer.end)
    pair = CLIPPair(CLIPText(text), CLIPVision(VISION))
    for module in pair.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)  # CLIP's own; torch's 1 learns slowly
    return pair


def load_text_encoder(build: Path) -> tuple[CLIPText, Tokenizer]:
    tokenizer = Tokenizer.from_folder(build / "tokenizer")
    pair = make_clip(tokenizer)
    load_average(pair, build / "clip" / "state.safetensors", "clip")
    return pair.text, tokenizer


class Encoder:
    """A text encoder and its tokenizer, for contexts as they are cached."""

    def __init__(self, model: CLIPText, tokenizer: Tokenizer, device: torch.device):
        self.model, self.tokenizer, self.device = model.to(device), tokenizer, device

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, T) of texts, and their lengths with the end (B,)."""
        tokens = torch.tensor(self.tokenizer(list(texts)), device=self.device)
        return tokens, (tokens == self.tokenizer.end).int().argmax(1) + 1

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        with bf16(self.device):
            return self.model(tokens)[0].to(torch.bfloat16)


def cached_encoder(build: Path, base: Model | None, device: torch.device) -> Encoder:
    """The text encoder that latents are cached with: that of a base, or the build's own."""
    return Encoder(*(text_encoder(base) if base else load_text_encoder(build)), device)


def captions_of(records: Sequence[dict]) -> tuple[list[str], list[list[int]]]:
    """All texts of pictures, the empty one first, and for each picture the numbers of those that describe it."""
    numbers, choices = {"": 0}, []
    for record in records:
        # the main form is half of what is drawn, the others share the rest
        texts = [record["caption"]] * len(record["captions"]) + record["captions"]
        choices.append([numbers.setdefault(text, len(numbers)) for text in texts])
    return list(numbers), choices


@torch.inference_mode()
def cache_latents(build: Path, choice: str, device: str, start: Path | None = None) -> None:
    """Write `latents.safetensors`: scaled means and stds, contexts, and which contexts describe which latent.

    start: a model's folder whose first stage, scale factor and text encoder are taken instead of those trained in `build`.
    """
    pictures = load_pictures(build / "data", "train")
    base = open_base(start, device) if start else None
    model = base.autoencoder if base else load_autoencoder(build, choice).to(device)
    assert isinstance(model, AutoencoderKL)
    posteriors: list[tuple[Tensor, Tensor]] = []
    kept = torch.from_numpy(pictures.captioned)
    for rows in track(kept.split(256), "latents"):
        with bf16(torch.device(device)):
            posterior = model.encode(pictures.pixels(rows).to(device))
        posteriors.append((posterior.mean.float().cpu(), posterior.std.float().cpu()))
    means, stds = (torch.cat(parts) / model.config.scale_factor for parts in zip(*posteriors, strict=True))
    sampled = (means + stds * torch.randn(means.shape, generator=torch.Generator().manual_seed(0)))[:1024]
    scale = model.config.scale_factor if base else float(1 / sampled.std())
    encoder = cached_encoder(build, base, torch.device(device))
    texts, choices = captions_of([pictures.records[i] for i in pictures.captioned])
    contexts = []
    for first in track(range(0, len(texts), 512), "contexts"):
        contexts.append(encoder(encoder.tokens(texts[first : first + 512])[0]).cpu())
    widest = max(map(len, choices))
    table = torch.tensor([rows + [-1] * (widest - len(rows)) for rows in choices])
    tensors = {
        "means": (means * scale).to(torch.bfloat16),
        "stds": (stds * scale).to(torch.bfloat16),
        "contexts": torch.cat(contexts),
        "choices": table,
        "rows": kept,
    }
    with atomic(build / "latents.safetensors") as path:
        packed = {name: value.contiguous() for name, value in tensors.items()}
        save_file(packed, path, metadata={"scale_factor": repr(scale), "choice": choice})


def load_latents(build: Path) -> Latents:
    """means, stds, contexts, choices and sampling weights, as TextToImageTask takes them."""
    path = build / "latents.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: run `python -m recipes.mini latents` first")
    cached = load_file(path)
    choices = [[row for row in rows if row >= 0] for rows in cached["choices"].tolist()]
    weights = picture_weights(cached_records(build), set(common_names(build / "data")))
    return cached["means"], cached["stds"], cached["contexts"], choices, weights


def cached_records(build: Path) -> list[dict]:
    """The records of the pictures whose latents are cached, in their order."""
    pictures = load_pictures(build / "data", "train")
    return [pictures.records[i] for i in pictures.captioned]


def picture_weights(records: Sequence[dict], common: set[str]) -> Tensor:
    """Sampling weights: most for drawings that all styles share, which prompts are most about, and a fifth for scenes."""
    scenes = torch.tensor([record["kind"] == "scene" for record in records])
    weights = torch.tensor([picture_weight(record, common) for record in records])
    share = weights[scenes].sum() / weights.sum()
    if 0 < share < 1:
        weights[scenes] *= SCENES / (1 - SCENES) * (1 - share) / share
    return weights


def picture_weight(record: dict, common: set[str]) -> float:
    """Sampling weight of a picture among those of its kind, of scenes or of single drawings."""
    if record["kind"] == "single":
        return 8.0 if record["slug"] in common else 0.5
    if record["kind"] == "scene":
        return 2.7 if len(record["objects"]) == 2 else 1.0
    return 0.3


def open_base(folder: Path, device: str, dtype: str = "fp32") -> Model:
    """`mini`, or another model of its kind, without what only a request needs. dtype: of `DTYPES`."""
    return Model(**vars(assemble(read_checkpoint(folder), device, DTYPES[dtype])), name=folder.name)


def text_encoder(model: Model) -> tuple[CLIPText, Tokenizer]:
    """The only text encoder of `mini` and its kind."""
    (text,) = model.text_encoders
    assert isinstance(text.model, CLIPText)
    return text.model, text.tokenizer


def export(build: Path, out: Path, prediction: str, start: Path | None = None) -> None:
    """The averaged weights of all parts as one model, in float16.

    start: a model's folder, of which the parts are taken that `build` did not train on; by default it trained them all.
    """
    if start:
        checkpoint = replace(read_checkpoint(start), unet=averaged_unet(build))
    else:
        checkpoint = trained_checkpoint(build, prediction)
    state = build / PAIR_TEXTS / "state.safetensors"
    if state.exists():
        (text,) = checkpoint.text
        assert isinstance(text.config, CLIPTextConfig)
        trained = load_average(CLIPText(text.config), state, "text").half()
        checkpoint = replace(checkpoint, text=(replace(text, tensors=trained.state_dict()),))
    write_folder(checkpoint, out, MAX_SHARD)


def averaged_unet(build: Path) -> Component:
    unet = load_average(UNet(UNET), build / "unet" / "state.safetensors", "unet")
    return Component(UNET, unet.half().state_dict())


def trained_checkpoint(build: Path, prediction: str) -> Checkpoint:
    cached = build / "latents.safetensors"
    if not cached.exists():
        raise FileNotFoundError(f"{cached} is not there: run `python -m recipes.mini latents` first")
    with safe_open(cached, framework="pt") as file:
        choice = file.metadata()["choice"]
    text_encoder, tokenizer = load_text_encoder(build)
    autoencoder = load_autoencoder(build, choice)
    return Checkpoint(
        unet=averaged_unet(build),
        autoencoder=Component(autoencoder.config, autoencoder.half().state_dict()),
        text=(TextComponent(text_encoder.config, text_encoder.half().state_dict(), tokenizer),),
        scheduler=scheduler_json(prediction),
        default_size=FULL.size,
        files=(),
    )


def export_variant(unet: UNet, run: Path, start: Path, latent_size: int) -> None:
    """The averaged U-Net of a variant's training in float16, as a folder beside `start`, whose other parts it takes."""
    load_average(unet, run / "state.safetensors", "unet")
    write_variant(unet, run.name, start, latent_size)


def write_variant(
    unet: UNet, name: str, start: Path, latent_size: int, metadata: Mapping[str, str] | None = None
) -> Path:
    """A U-Net in float16 as the folder `start`-`name`, beside `start`, whose other parts it takes; its path."""
    out = start.with_name(f"{start.name}-{name}")
    component = Component(unet.config, unet.half().state_dict())
    write_unet(component, latent_size, out, start, MAX_SHARD, metadata or {})
    return out
