"""Evaluations from beginning to end: of a model by a protocol, and of pictures beside others. N pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from inkwash.metrics.clip import AestheticHead, CLIPJudge, clip_scores, directional_similarity
from inkwash.metrics.drawn import codes_of, draw_missing, fill_holes, reconstructions
from inkwash.metrics.figures import (
    Figures,
    Watch,
    distribution_figures,
    means,
    pair_scores,
)
from inkwash.metrics.frechet import Moments
from inkwash.metrics.kernel import cmmd
from inkwash.metrics.manifold import memorised, nearest
from inkwash.metrics.networks import FeatureNetwork, Features
from inkwash.metrics.pictures import PictureSet
from inkwash.metrics.protocol import Protocol
from inkwash.metrics.ranks import seen_by_all, share, wait
from inkwash.metrics.report import SHOWN, Report, Run, Sheet
from inkwash.metrics.scenes import CropJudge, Scene, scene_figures
from inkwash.models.perceptual import PerceptualDistance
from inkwash.pipeline.model import Model


@dataclass(frozen=True)
class Judges:
    """The networks that judge pictures; those that are None are left out.

    crops: who looks for the objects of scenes, which are given by caption; in_boxes: in their boxes alone. watch: called
    with the number of pictures done.
    """

    network: FeatureNetwork | None = None
    clip: CLIPJudge | None = None
    aesthetic: AestheticHead | None = None
    distance: PerceptualDistance | None = None
    distance_name: str = ""
    crops: CropJudge | None = None
    scenes: Mapping[str, Scene] = field(default_factory=dict)
    in_boxes: bool = False
    watch: Watch = lambda num: None

    def facts(self) -> dict[str, str]:
        """The facts that figures depend on."""
        said = {
            "features": self.network and str(self.network.identity),
            "lpips": self.distance and self.distance_name,
        }
        said["clip"] = self.clip and str(self.clip.pictures.identity)
        said["scenes"] = self.crops and self.crops.about
        said["aesthetic"] = self.aesthetic and self.aesthetic.hash
        return {name: value for name, value in said.items() if value}


@dataclass(frozen=True)
class Real:
    """The reference for generated pictures, seen by the judges once. pictures: None where only moments are known."""

    name: str
    pictures: PictureSet | None
    features: Features | Moments | None = None
    clip: Tensor | None = None  # unit vectors (N, D)
    training: PictureSet | None = None
    trained: Tensor | None = None  # features (N, D) of the training pictures

    def facts(self) -> dict[str, str]:
        """The facts about the reference that figures depend on."""
        number = "moments" if self.pictures is None else f"{len(self.pictures):,} pictures"
        said = {"beside": f"{self.name}, {number}"}
        if self.training:
            said["training"] = f"{self.training.name}, {len(self.training):,} pictures"
        return said


def look_at(pictures: PictureSet, judges: Judges, training: PictureSet | None = None) -> Real:
    """Real pictures as the judges see them."""
    features, trained = None, None
    if judges.network:
        features = seen_by_all(judges.network, pictures, judges.watch)
        trained = seen_by_all(judges.network, training, judges.watch).pooled if training else None
    clip = picture_vectors(judges.clip, pictures) if judges.clip else None
    return Real(pictures.name, pictures, features, clip, training, trained)


def picture_vectors(clip: CLIPJudge, pictures: PictureSet) -> Tensor:
    """CLIP's unit vectors (N, D)."""
    return torch.cat([clip.picture_vectors(pixels) for pixels in pictures.batches()])


def judged(
    made: PictureSet, real: Real, judges: Judges, captions: Sequence[str] | None = None
) -> tuple[Figures, dict[str, Tensor], list[Sheet]]:
    """Figures, scores (N,) of each picture, and sheets, of generated pictures beside real ones."""
    figures, scores, sheets = Figures(), {}, []
    if judges.network and real.features:
        features = seen_by_all(judges.network, made, judges.watch)
        figures.update(distribution_figures(features, real.features))
        if isinstance(real.features, Features) and real.pictures:
            apart, index = nearest(normalize(features.pooled), normalize(real.features.pooled))
            scores["distance to the nearest real picture"] = apart
            sheets += ends(
                "nearest to a real picture", "farthest from one", apart, made, real.pictures, index
            )
            if real.training and real.trained is not None:
                trained = normalize(real.trained)
                apart, index = nearest(normalize(features.pooled), trained)
                usual = nearest(normalize(real.features.pooled), trained)[0]
                figures.add("memorised", lambda: memorised(apart, usual))
                sheets += ends("nearest to a training picture", None, apart, made, real.training, index)
    if judges.clip:
        vectors = picture_vectors(judges.clip, made)
        if (wanted := real.clip) is not None:
            figures.add("cmmd", lambda: cmmd(vectors, wanted))
        if judges.aesthetic:
            scores["aesthetic"] = judges.aesthetic(vectors).double()
            sheets += ends("highest aesthetic score", "lowest aesthetic score", -scores["aesthetic"], made)
        if captions:
            scores["clip_score"] = fit = clip_scores(vectors, judges.clip.text_vectors(captions)).double()
            sheets += ends("best by CLIP score", "worst by CLIP score", -fit, made, lines=captions)
        figures.update(means({name: scores[name] for name in ("clip_score", "aesthetic") if name in scores}))
    if captions:
        figures.update(followed(made, captions, judges))
    return figures, scores, sheets


def followed(pictures: PictureSet, captions: Sequence[str], judges: Judges) -> Figures:
    """Prompt-following: the share of what captions of scenes ask for that their pictures show."""
    if judges.crops is None:
        return Figures()
    rows = [k for k, text in enumerate(captions) if text in judges.scenes]
    some = replace(pictures, paths=tuple(pictures.paths[k] for k in rows))
    wanted = [judges.scenes[captions[k]] for k in rows]
    return scene_figures(some.batches(), wanted, judges.crops, not judges.in_boxes, judges.watch)


def real_scenes(real: Real, judges: Judges) -> list[Run]:
    """Scene figures of the real pictures, which a perfect model would reach; empty without captions."""
    if judges.crops is None or real.pictures is None:
        return []
    try:
        captions = real.pictures.captions()
    except ValueError:
        return []
    return [Run("the real pictures", followed(real.pictures, captions, judges), len(real.pictures))]


def ends(
    first: str,
    last: str | None,
    scores: Tensor,
    made: PictureSet,
    beside: PictureSet | None = None,
    index: Tensor | None = None,
    lines: Sequence[str] | None = None,
) -> list[Sheet]:
    """Sheets of the pictures of the lowest scores (N,), and of the highest. index: which of `beside` belongs to each."""
    order = scores.argsort().tolist()

    def sheet(title: str, some: list[int]) -> Sheet:
        rows = []
        for k in some:
            other = [] if beside is None else [beside.paths[k if index is None else int(index[k])]]
            rows.append((lines[k] if lines else f"{abs(float(scores[k])):.4g}", [made.paths[k], *other]))
        return Sheet(title, rows)

    made_sheets = [sheet(first, order[:SHOWN])]
    return made_sheets + ([sheet(last, order[::-1][:SHOWN])] if last else [])


def evaluate_text_to_image(
    model: Model,
    protocol: Protocol,
    captions: Sequence[str],
    real: Real,
    judges: Judges,
    folder: Path,
) -> Report:
    """Draw what the protocol asks for, as far as it is not in `folder`, and judge each run."""
    runs, scores, sheets = [], {}, []
    for cfg_scale in protocol.cfg_scales:
        made = draw_missing(model, protocol, captions, cfg_scale, folder, share(), judges.watch)
        wait()
        size = real.pictures.size if real.pictures else made.size
        made = replace(made, size=(protocol.size, protocol.size) if protocol.size else size)
        figures, scores, sheets = judged(made, real, judges, captions)
        runs.append(Run(f"cfg_scale {cfg_scale:g}", figures, len(made), cfg_scale))
    facts = facts_of(model, protocol) | {"request": said(protocol)} | real.facts() | judges.facts()
    values = {name: each.tolist() for name, each in scores.items()}
    runs += real_scenes(real, judges)
    return Report(f"{model.name} by the protocol {protocol.name}", facts, runs, values, sheets, "cfg_scale")


def evaluate_first_stage(
    model: Model, protocol: Protocol, real: Real, judges: Judges, folder: Path
) -> Report:
    """The model's first stage: each real picture encoded, decoded, and compared with itself."""
    assert real.pictures is not None
    made = reconstructions(
        model, real.pictures, folder / f"first-stage-{model.hash}-{str(model.dtype)[6:]}", judges.watch
    )
    figures, scores, sheets = compared(made, real, judges)
    codes = codes_of(model, real.pictures.batches())
    facts = (
        facts_of(model, protocol) | real.facts() | judges.facts() | {k: f"{v:.4g}" for k, v in codes.items()}
    )
    values = {name: each.tolist() for name, each in scores.items()}
    runs = [Run("first stage", figures, len(made))]
    return Report(f"{model.name}'s first stage by the protocol {protocol.name}", facts, runs, values, sheets)


def evaluate_inpainting(
    model: Model, protocol: Protocol, captions: Sequence[str], real: Real, judges: Judges, folder: Path
) -> Report:
    """Fill a hole in each real picture, as far as it is not in `folder`, and compare it with the real one.

    What lies around the hole is the real picture's own, so that PSNR is that of the hole and the same number of dB more in
    every picture.
    """
    assert real.pictures is not None
    runs, scores, sheets = [], {}, []
    for cfg_scale in protocol.cfg_scales:
        made = fill_holes(model, protocol, real.pictures, captions, cfg_scale, folder, judges.watch)
        figures, scores, sheets = compared(made, real, judges)
        runs.append(Run(f"cfg_scale {cfg_scale:g}", figures, len(made), cfg_scale))
    asked = {"request": f"{said(protocol)}, a hole of {protocol.hole:g} of each side"}
    facts = facts_of(model, protocol) | asked | real.facts() | judges.facts()
    values = {name: each.tolist() for name, each in scores.items()}
    return Report(f"{model.name} by the protocol {protocol.name}", facts, runs, values, sheets, "cfg_scale")


def evaluate_pictures(
    made: PictureSet, real: Real, judges: Judges, captions: Sequence[str] | None, paired: bool
) -> Report:
    """Pictures beside others: as sets, and pair by pair where picture k belongs to picture k."""
    found = compared(made, real, judges, captions) if paired else judged(made, real, judges, captions)
    figures, scores, sheets = found
    values = {name: each.tolist() for name, each in scores.items()}
    facts = real.facts() | judges.facts()
    runs = [Run("figures", figures, len(made)), *real_scenes(real, judges)]
    return Report(made.name, facts, runs, values, sheets)


def compared(
    made: PictureSet, real: Real, judges: Judges, captions: Sequence[str] | None = None
) -> tuple[Figures, dict[str, Tensor], list[Sheet]]:
    """Figures of pairs, and of both sets as a whole where there is a feature network.

    captions: of the made pictures, whose change from the real ones' is then compared with the pictures' own.
    """
    assert real.pictures is not None
    scores = pair_scores(made.batches(), real.pictures.batches(), judges.distance, judges.watch)
    if judges.clip and real.clip is not None and captions:
        before, after = (judges.clip.text_vectors(texts) for texts in (real.pictures.captions(), captions))
        vectors = picture_vectors(judges.clip, made)
        scores["clip_direction"] = directional_similarity(real.clip, vectors, before, after).double()
    figures = means(scores)
    if judges.network and isinstance(real.features, Features):
        features = seen_by_all(judges.network, made, judges.watch)
        figures.update(distribution_figures(features, real.features))
    first = "lpips" if "lpips" in scores else "psnr"
    order = scores[first] if first == "lpips" else -scores[first]
    return figures, scores, ends(f"best by {first}", f"worst by {first}", order, made, real.pictures)


def facts_of(model: Model, protocol: Protocol) -> dict[str, str]:
    return {
        "model": f"{model.name} {model.hash}",
        "protocol": f"{protocol.name}: {protocol.about}".rstrip(": "),
    }


def said(protocol: Protocol) -> str:
    options = ", ".join(f"{name} {value}" for name, value in protocol.request.items())
    return ", ".join(filter(None, [options, f"seed {protocol.seed} + k"]))
