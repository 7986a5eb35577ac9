"""The pictures of a training run, as its config describes them."""

import hashlib
from dataclasses import replace
from pathlib import Path

from inkwash.data.buckets import BucketRules
from inkwash.data.captions import CaptionRules
from inkwash.data.dataset import Dataset, Filter
from inkwash.data.examples import Example
from inkwash.data.folders import ROLES, DataError, Subset, is_picture, read_examples
from inkwash.data.kohya import read_kohya
from inkwash.files import atomic, write_text
from inkwash.pipeline.api import Pipeline
from inkwash.training.config import CaptionConfig, DataConfig, DiffusionConfig
from inkwash.training.config_conditions import ClassTrainConfig, DesignedConfig, LayoutTrainConfig
from inkwash.training.config_methods import ControlOptions, DreamBoothConfig, TextualInversionConfig
from inkwash.training.distributed import World
from inkwash.training.inputs import boxes_of, number_classes

# sentences that a new word is learned in
TEMPLATES = {
    "object": (
        "a photo of {}",
        "a picture of {}",
        "{} on a plain background",
        "a close view of {}",
        "a drawing of {}",
        "one {}",
    ),
    "style": (
        "a picture in the style of {}",
        "a drawing, {} style",
        "a painting by {}",
        "a scene, {} style",
        "art in {} style",
    ),
}


def read_pictures(c: DataConfig, factor: int, side: int) -> tuple[list[Example], BucketRules, int]:
    """The pictures of a config's places, the buckets, and how many a process sees in a step.

    factor: that sides must be multiples of. side: of the resolution where the config says none. Raises DataError and
    ValueError for what does not fit.
    """
    width, height = c.resolution or (side, side)
    low = min(c.bucket_min, width, height)
    rules = BucketRules((width, height), min(c.bucket_step, low), low, c.bucket_max, c.buckets, c.upscale)
    batch, prior_weight = c.batch_size, c.prior_weight if isinstance(c, CaptionConfig) else 1.0
    examples: list[Example] = []
    for place in c.data:
        if place.endswith(".toml"):
            subsets, rules, own = read_kohya(Path(place), rules, prior_weight)
            batch = own or batch
        else:
            subsets = [subset_of(c, Path(place))]
        for subset in subsets:
            examples += read_examples(subset)
    for side in rules.resolution if not rules.enabled else (rules.step,):
        if side % factor:
            raise ValueError(f"resolution or bucket_step {side} is not a multiple of the model's {factor}")
    output = Path(c.output).resolve()  # whose plots and samples may lie in the folder of the data
    examples = [one for one in examples if not one.image.path.resolve().is_relative_to(output)]
    return examples, rules, batch


def split_datasets(
    c: DataConfig, examples: list[Example], rules: BucketRules, batch: int, world: World
) -> tuple[Dataset, Dataset | None]:
    """The pictures that are trained on, and those that measure."""
    filters = [Filter.parse(text) for text in c.filter]
    held, kept = split_off(examples, c.validation)
    make = lambda some: Dataset(some, rules, batch * world.size, c.seed, filters, c.on_broken == "stop")  # noqa: E731
    return make(kept), make(held) if held else None


def read_data(
    c: DiffusionConfig, model: Pipeline, world: World, role: str | None, draw: bool = True
) -> tuple[Dataset, Dataset | None]:
    """The pictures that are trained on, and those that measure. draw: missing pictures of a class, which others stand for
    otherwise. Raises DataError and ValueError for what does not fit.
    """
    examples, rules, batch = read_pictures(c, model.autoencoder.config.factor, model.default_size)
    if isinstance(c, DreamBoothConfig):
        examples = [replace(example, captions=(c.instance_prompt,)) for example in examples]
        if c.class_prompt:
            examples += class_examples(c, model, examples, world, draw)
    if isinstance(c, DesignedConfig) and not model.text_encoders:
        examples = [replace(example, captions=("",)) for example in examples]
    if isinstance(c, ClassTrainConfig):
        examples, names = number_classes(examples, c.class_dropout)
        if names and world.is_first:
            write_text(Path(c.output) / "classes.txt", "\n".join(names) + "\n")
    if isinstance(c, TextualInversionConfig) and c.template != "captions":
        sentences = tuple(sentence.format(c.token) for sentence in TEMPLATES[c.template])
        examples = [replace(example, captions=sentences) for example in examples]
    elif isinstance(c, TextualInversionConfig):
        without = next((one for one in examples if not any(c.token in text for text in one.captions)), None)
        if without:
            raise DataError(
                f"the caption of {without.image} does not hold the token {c.token!r}; see template"
            )
    if isinstance(c, LayoutTrainConfig):
        for example in examples:
            boxes_of(example)  # of all, before the first step
    if c.masked_loss:
        examples = with_masks(examples, isinstance(c, ControlOptions))
    if role and (missing := next((one for one in examples if role not in one.pictures), None)):
        raise DataError(f"{missing.image} has no picture for the role {role}; see roles")
    return split_datasets(c, examples, rules, batch, world)


def with_masks(examples: list[Example], hinted: bool) -> list[Example]:
    """The examples with masks of where errors count. hinted: whether what learns sees hints; else those are the masks, as
    kohya has it. Raises DataError where no picture has one.
    """
    if not hinted:
        roles = [{"mask": one.pictures["hint"]} if "hint" in one.pictures else {} for one in examples]
        examples = [
            replace(e, pictures={**own, **e.pictures}) for e, own in zip(examples, roles, strict=True)
        ]
    if not any("mask" in one.pictures for one in examples):
        raise DataError("masked_loss true needs pictures of the role mask, and none has one; see roles")
    return examples


def subset_of(c: DataConfig, place: Path) -> Subset:
    """A place's pictures with the config's rules."""
    rules, extension = CaptionRules(), ""
    if isinstance(c, CaptionConfig):
        extension = c.caption_extension
        rules = CaptionRules(
            prefix=c.caption_prefix,
            shuffle=c.shuffle_captions,
            keep_tokens=c.keep_tokens,
            dropout=c.caption_dropout,
            tag_dropout=c.tag_dropout,
            wildcards=c.caption_wildcards,
        )
    roles: dict[str, Path] = {}
    for text in c.roles:
        role, _, folder = text.partition("=")
        if role not in ROLES or not Path(folder).is_dir():
            raise DataError(f"roles {text!r} is not one of {', '.join(ROLES)}, =, and a folder")
        roles[role] = Path(folder)
    return Subset(place, extension, None, c.repeats, 1.0, rules, c.flip, c.random_crop, roles)


def class_examples(
    c: DreamBoothConfig, model: Pipeline, subject: list[Example], world: World, draw: bool
) -> list[Example]:
    """Pictures of the subject's class, drawn by the model where there are too few; together as many as the subject's."""
    folder = class_folder(c)
    have = num_drawn(c)
    if world.is_first and draw:
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(have, c.class_pictures):
            image = model.text_to_image(
                c.class_prompt, steps=c.sample_steps, cfg_scale=c.sample_cfg_scale, seed=k
            )[0]
            with atomic(folder / f"class-{k:05d}.png") as partial:
                image.save(partial, "PNG")
    world.wait()
    found = []
    if draw or have:
        found = read_examples(Subset(folder, class_tokens=c.class_prompt, weight=c.prior_weight))
        found = found[: c.class_pictures]
    if not draw:
        found += [replace(subject[0], weight=c.prior_weight)] * (c.class_pictures - len(found))
    repeats = max(1, round(len(subject) * c.repeats / len(found)))
    return [replace(example, captions=(c.class_prompt,), repeats=repeats) for example in found]


def class_folder(c: DreamBoothConfig) -> Path:
    return Path(c.class_data or Path(c.output) / "class")


def num_drawn(c: DreamBoothConfig) -> int:
    """How many pictures of the class are there."""
    folder = class_folder(c)
    return sum(map(is_picture, folder.iterdir())) if folder.is_dir() else 0


def split_off(examples: list[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Split examples into held-out ones and those to train on, at least one each.

    The choice goes by names, and so does not depend on the others where there are enough. Raises DataError for one alone.
    """
    if not share:
        return [], examples
    if len(examples) < 2:
        raise DataError(f"validation {share:g} needs two pictures, and there is one; give more, or 0")
    names = [str(one.image.name or one.image.path.name) for one in examples]
    places = [int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) for name in names]
    num = min(max(1, sum(place < share * 2**32 for place in places)), len(examples) - 1)
    held = set(sorted(range(len(examples)), key=places.__getitem__)[:num])
    kept = [one for k, one in enumerate(examples) if k not in held]
    return [one for k, one in enumerate(examples) if k in held], kept
