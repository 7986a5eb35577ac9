"""Two drawings side by side in one picture, each as large as the U-Net knows it alone, and prompts that ask for them.

N cached pictures, B pairs, T tokens, D width of the contexts, C H W a latent's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkwash.models.clip import CLIPText
from inkwash.models.unet import UNet
from inkwash.nn.attention import BasicTransformerBlock, Context, CrossAttention, SpatialTransformer
from inkwash.pipeline.model import Model
from recipes.mini import parts
from recipes.mini.recipe import UNetTraining
from recipes.mini.tasks import Losses, TextToImageTask, bf16, device_of, on_device

SAID = ("{0} left of {1}", "{1} right of {0}", "{0} and {1}")  # of the left drawing and the right one
ENDS = (", {} style", ", {} style", " on a white background, {} style", "")
MIDDLE = 48  # position from which a pair's context is about the right drawing; before it, about the left one
BEHIND = 24  # position that lies behind the captions' ends
MARK = 4.0  # length of the vector that is added to the left one's and subtracted from the right one's
ASTRAY = 0.3  # weight of the loss that `astray` is
# blocks of the 4x4 latents, where each pixel is near enough to the picture's borders to learn which half it is in
LOWEST = ("input_blocks.5.", "middle_block.", "output_blocks.0.", "output_blocks.1.")


def phrases(record: Mapping[str, Any]) -> list[str]:
    """Return the words by which captions name a drawing alone in its picture, such as "a taxi"; of a scene, none."""
    end = f", {record['style']} style"
    if record["kind"] == "scene":
        return []
    said = [text.removesuffix(end) for text in record["captions"] if text.endswith(end)]
    return [text for text in said if "," not in text and not text.startswith("a drawing of ")]


def joined(said: Tensor, lengths: Tensor, alone: Tensor) -> Tensor:
    """Contexts (B, T, D) of pairs, which say of each drawing what its own caption says.

    said: contexts (B, T, D) of the pairs' captions, which are kept up to the captions' ends. lengths: in tokens (B,), the
    end included. alone: contexts (B, 2, T, D) of the drawings' own captions.
    """
    place = torch.arange(said.shape[1], device=said.device)
    mark = torch.randn(said.shape[2], generator=torch.Generator().manual_seed(0)).to(said)
    mark *= MARK / mark.norm()
    behind = torch.where((place >= MIDDLE)[:, None], alone[:, 1] - mark, alone[:, 0] + mark)
    return torch.where((place < lengths[:, None])[..., None], said, behind)


class Pairs:
    """Pairs of cached drawings of one style, left and right, with captions of both.

    choices: for each cached picture the rows of `contexts` that describe it, its main caption's first. weights: how often
    it is drawn.
    """

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        contexts: Tensor,
        choices: list[list[int]],
        weights: Tensor,
        encoder: parts.Encoder,
    ):
        device = encoder.device
        self.phrases, self.styles = [phrases(record) for record in records], [r["style"] for r in records]
        self.contexts, self.encoder = contexts.to(device), encoder
        self.main = torch.tensor([rows[0] for rows in choices], device=device)
        self.weights = (weights * torch.tensor([bool(said) for said in self.phrases])).to(device)
        names = sorted(set(self.styles))
        self.style = torch.tensor([names.index(style) for style in self.styles], device=device)
        # how often each is the right one, by the style of the left one
        self.rights = self.weights * (self.style == torch.arange(len(names), device=device)[:, None])

    def draw(self, num: int, rng: torch.Generator) -> tuple[Tensor, list[str]]:
        """Numbers of pictures (num, 2), and a caption of each pair."""
        left = torch.multinomial(self.weights, num, replacement=True, generator=rng)
        right = torch.multinomial(self.rights[self.style[left]], 1, generator=rng)[:, 0]
        chosen = torch.stack([left, right], dim=1)
        u = torch.rand(num, 4, generator=rng, device=rng.device).tolist()
        return chosen, [self.caption(i, j, *four) for (i, j), four in zip(chosen.tolist(), u, strict=True)]

    def caption(self, i: int, j: int, *u: float) -> str:
        """One of the captions of the pictures i and j, by four numbers of [0, 1)."""
        some = (SAID, self.phrases[i], self.phrases[j], ENDS)
        said, left, right, end = (texts[int(x * len(texts))] for x, texts in zip(u, some, strict=True))
        return said.format(left, right) + end.format(self.styles[i])

    def described(self, chosen: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Contexts (B, T, D) of pairs, and those of their drawings' own captions (B, 2, T, D)."""
        tokens, lengths = self.encoder.tokens(captions)
        alone = self.contexts[self.main[chosen]]
        return joined(self.encoder(tokens), lengths, alone), alone


class PairTask(TextToImageTask):
    """The U-Net's objective on pairs.

    Its teacher knows single drawings: what that predicts of each half by that drawing's own caption is the target,
    and only what goes where is left to learn. A second loss, `astray`, trains each cross-attention to read about its own
    half's drawing; without it, the U-Net needs ten times as many steps.
    """

    def __init__(self, unet: UNet, cached: parts.Latents, pairs: Pairs, **options: Any):
        super().__init__(unet, *cached, **options)
        self.pairs = pairs

    def losses(self, step: int, micro: int, rng: torch.Generator) -> Losses:
        rng = on_device(rng, device_of(self.unet))
        chosen, captions = self.pairs.draw(self.batch, rng)
        latent = torch.cat([self.latents(half, rng) for half in chosen.unbind(1)], dim=3)
        context, alone = self.pairs.described(chosen, captions)
        kept = torch.rand(self.batch, generator=rng, device=rng.device) >= self.caption_dropout
        context = torch.where(kept[:, None, None], context, self.contexts[0])
        alone = torch.where(kept[:, None, None, None], alone, self.contexts[0])
        teacher = partial(taught, self.teacher, alone) if self.teacher else None
        # not compiled, since a compiled network may not see that it is watched
        with watched(self.unet) as errors:
            loss, logs = self.objective(self.unet.forward, latent, {"context": context}, rng, teacher)
        wrong = torch.stack(errors).mean() if errors else loss.new_zeros(())
        yield "unet", loss + ASTRAY * wrong, logs | {"astray": wrong.item()}


@contextmanager
def watched(unet: nn.Module) -> Iterator[list[Tensor]]:
    """Within, each cross-attention that the U-Net computes adds its `astray` to the list."""
    errors: list[Tensor] = []

    def see(layer: CrossAttention, args: tuple[Tensor, Context]) -> None:
        x, context = args
        errors.append(astray(layer.to_q(x), context.keys_values(layer)[0], layer.num_heads))

    layers = [block.attn2 for block in unet.modules() if isinstance(block, BasicTransformerBlock)]
    handles = [layer.register_forward_pre_hook(see) for layer in layers]
    try:
        yield errors
    finally:
        for handle in handles:
            handle.remove()


def astray(q: Tensor, k: Tensor, num_heads: int) -> Tensor:
    """Return the mean of -log of a share: of the attention that a pixel pays to both drawings, what its own half's gets.

    q: queries (B, H*W, C) of latents that are twice as wide as high. k: keys (B, T, C) of the contexts of `joined`.
    """
    q, k = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (q, k))
    logits = (q @ k.mT).float() / q.shape[-1] ** 0.5
    left, right = logits[..., BEHIND:MIDDLE].logsumexp(-1), logits[..., MIDDLE:].logsumexp(-1)
    width = round((2 * q.shape[2]) ** 0.5)
    is_left = (torch.arange(width, device=q.device) < width // 2).repeat(width // 2)
    return F.softplus(torch.where(is_left, right - left, left - right)).mean()


def free(unet: UNet) -> None:
    """Let transformers and the lowest blocks learn alone, by which single drawings change less than half as much."""
    unet.requires_grad_(False)
    for name, module in unet.named_modules():
        if isinstance(module, SpatialTransformer) or name.startswith(LOWEST):
            module.requires_grad_(True)


def taught(teacher: nn.Module, alone: Tensor, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
    """Predict both halves of x by the teacher, the left and the right one each with its own context. alone: (B, 2, T, D)."""
    made = teacher(torch.cat(x.chunk(2, dim=3)), t.repeat(2), alone.transpose(0, 1).flatten(0, 1))
    return torch.cat(made.chunk(2), dim=3)


class PairTextsTask:
    """A text encoder that learns to give pairs the contexts of `joined`, and all other captions the ones that they had.

    texts: of the cached contexts. batch: of pairs, and of other captions.
    """

    def __init__(self, model: CLIPText, pairs: Pairs, texts: Sequence[str], batch: int):
        self.modules: Mapping[str, nn.Module] = {"text": model}
        self.model, self.pairs, self.batch = model, pairs, batch
        self.texts = [text for text in texts if not asks_for_a_pair(text)]

    def losses(self, step: int, micro: int, rng: torch.Generator) -> Losses:
        encoder = self.pairs.encoder
        rng = on_device(rng, encoder.device)
        chosen, captions = self.pairs.draw(self.batch, rng)
        wanted, _ = self.pairs.described(chosen, captions)
        some = torch.randint(len(self.texts), (self.batch,), generator=rng, device=rng.device)
        tokens, _ = encoder.tokens([*captions, *(self.texts[i] for i in some.tolist())])
        wanted = torch.cat([wanted, encoder(tokens[self.batch :])])
        with bf16(encoder.device):
            error = self.model(tokens)[0].float() - wanted.float()
        squares = error.square().mean(dim=(1, 2))
        pairs, others = squares[: self.batch].mean(), squares[self.batch :].mean()
        yield "text", squares.mean(), {"pairs": pairs.item(), "others": others.item()}


def asks_for_a_pair(text: str) -> bool:
    """Return True if a caption has the words of a pair's; scenes before a background of their own have not."""
    return " on " not in text and any(word in text for word in (" left of ", " right of ", " and "))


class Turns:
    """Several tasks of the same modules that take turns, a step each."""

    def __init__(self, *tasks: TextToImageTask):
        self.tasks, self.modules = tasks, tasks[0].modules

    def losses(self, step: int, micro: int, rng: torch.Generator) -> Losses:
        return self.tasks[step % len(self.tasks)].losses(step, micro, rng)


# ---------------------------------------------------------------- the trainings of `mini`


def cached_pairs(build: Path, cached: parts.Latents, device: torch.device, base: Model | None) -> Pairs:
    """Pairs of a build's cached latents, as the text encoder that they were cached by sees them.

    base: the model whose text encoder that is; by default it is the build's own.
    """
    _, _, contexts, choices, weights = cached
    encoder = parts.cached_encoder(build, base, device)
    return Pairs(parts.cached_records(build), contexts, choices, weights, encoder)


def pair_texts_task(build: Path, batch: int, device: torch.device, base: Model | None) -> PairTextsTask:
    """The text encoder's training on pairs, from the encoder that the latents were cached by."""
    pairs = cached_pairs(build, parts.load_latents(build), device, base)
    model = deepcopy(pairs.encoder.model).requires_grad_(True).train()
    return PairTextsTask(model, pairs, parts.captions_of(parts.cached_records(build))[0], batch)


def unet_task(
    build: Path, unet: UNet, settings: UNetTraining, prediction: str, base: Model | None = None
) -> Turns:
    """The U-Net's training: a step of single pictures, then `settings.pairs` steps of pairs of half the batch.

    base: the model whose U-Net it goes on from. Where pairs are learnt, that is its teacher, and only some blocks learn:
    without either, single drawings are forgotten.
    """
    teacher = base.unet if base and settings.pairs else None
    if teacher:
        free(unet)
    options: dict[str, Any] = {
        "schedule": parts.noise_schedule(),
        "prediction": prediction,
        "timestep_power": settings.timestep_power,
        "teacher": teacher,
    }
    device = device_of(unet)
    means, stds, contexts, choices, weights = parts.load_latents(build)
    # on the device once, since both tasks and the pairs hold them
    cached = (means.to(device), stds.to(device), contexts.to(device), choices, weights)
    keep = settings.keep if teacher else 1.0
    single = TextToImageTask(unet, *cached, batch=settings.batch, loss_weight=keep, **options)
    pairs = cached_pairs(build, cached, device, base)
    both = PairTask(unet, cached, pairs, batch=max(1, settings.batch // 2), **options)
    return Turns(single, *[both] * settings.pairs)
