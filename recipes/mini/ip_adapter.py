"""An IP-Adapter for `mini`, the decoder of CLIP's vectors in its world: it draws of vectors as `mini` does of captions.

N pictures, B batch, T tokens, D width of the vectors, W width of the context, C H W a latent's.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from inkwash.adapters.image_projections import Projection
from inkwash.adapters.ip_adapter import ENCODER, IPAdapter, Layer, attentions, open_encoder, open_ip_adapter
from inkwash.diffusion.schedules import NoiseSchedule
from inkwash.explain.tiles import contact_sheet
from inkwash.models import clip
from inkwash.models.clip import CLIPVision
from inkwash.models.unet import UNet
from inkwash.pipeline.denoising.control_kinds import Call
from inkwash.pipeline.denoising.picture_kinds import attend_to_vectors
from inkwash.pipeline.images import to_clip, to_images
from inkwash.pipeline.model import Model
from inkwash.pipeline.prior import TextPrior
from inkwash.training.loop import LoopConfig
from inkwash.training.objectives import min_snr_weight, prediction_error
from inkwash.weights.bytes.tensor_file import write_tensors
from inkwash.weights.checkpoint import Component
from inkwash.weights.models.component import write_component
from recipes.mini import evaluate as measures
from recipes.mini.classifier import Judge
from recipes.mini.drawing import drawn
from recipes.mini.fast import SHORT, Captioned
from recipes.mini.parts import as_float16, text_encoder
from recipes.mini.prior import SCALE, Seen
from recipes.mini.recipe import SHIPPED
from recipes.mini.tasks import Beside, bf16, fitting_attention

OUT = SHIPPED.with_name("mini-ip-adapter")
TRAINING = LoopConfig(6_000, **SHORT | {"lr": 1e-3})
BATCH = 64
TOKENS = 16
DROPOUT = 0.1  # of vectors, for guidance
MAX_NOISE = 0.4  # on vectors of variance 1, since a prior's are not exactly a picture's


@torch.no_grad()
def make(model: Model, data: Captioned, what: Seen, num: int = 16_384) -> IPAdapter:
    """An adapter to be trained: its tokens begin as the best linear guess, from `num` vectors, of the states of captions'
    first tokens, its keys and values as the prompt's."""
    torch.manual_seed(0)
    text, _ = text_encoder(model)
    norm, layers = text.text_model.final_layer_norm, attentions(model.unet)
    dim, width = what.vectors.shape[1], data.contexts.shape[2]
    projection = Projection(dim, width, TOKENS)
    own = {str(2 * k + 1): Layer(width, layer.to_k.out_features) for k, layer in enumerate(layers)}
    for mine, layer in zip(own.values(), layers, strict=True):
        mine.to_k_ip.weight.copy_(layer.to_k.weight)
        mine.to_v_ip.weight.copy_(layer.to_v.weight)
    pictures, rows = data.draw(num)
    states = (data.contexts[rows, :TOKENS].float() - norm.bias) / norm.weight
    seen = torch.cat([what.vectors[pictures], torch.ones_like(what.vectors[pictures, :1])], dim=1)
    guess = torch.linalg.lstsq(seen, states.flatten(1)).solution
    projection.proj.weight.copy_(guess[:-1].T)
    projection.proj.bias.copy_(guess[-1])
    projection.norm.load_state_dict(norm.state_dict())
    return IPAdapter(projection, own).float().to(model.device)


@contextmanager
def seeing(
    adapter: IPAdapter, unet: UNet, x: Tensor, t: Tensor, cond: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """A call of the U-Net that attends to the tokens of `vector` (B, D), where cond has one."""
    rest = {name: value for name, value in cond.items() if name != "vector"}
    with ExitStack() as stack:
        if "vector" in cond:
            call = Call(x, t, None, None, stack=stack)
            attend_to_vectors(call, attentions(unet), adapter, cond["vector"])
        yield rest


class Student(nn.Module):
    """The U-Net of a model that reads nothing and attends to the tokens of an adapter, which alone learns."""

    def __init__(self, model: Model, adapter: IPAdapter, empty: Tensor):
        super().__init__()
        self.unet, self.adapter, self.empty = model.unet.requires_grad_(False), adapter, empty

    def forward(self, x: Tensor, t: Tensor, vector: Tensor) -> Tensor:
        with seeing(self.adapter, self.unet, x, t, {"vector": vector}):
            return self.unet(x, t, self.empty.expand(len(x), -1, -1))


def loss(
    student: Student,
    data: Captioned,
    what: Seen,
    schedule: NoiseSchedule,
    prediction: str,
    batch: int,
    taught: float,
) -> Tensor:
    """`mini`'s own loss without a word, with a picture's vector. taught: the share of what the U-Net predicts with the
    picture's caption in the target, 0 to 1; the rest is the picture's own."""
    device = what.vectors.device
    pictures, rows = data.draw(batch)
    kept = torch.rand(batch, device=device) >= DROPOUT
    noisy = MAX_NOISE * torch.rand(batch, 1, device=device)
    vectors = what.vectors[pictures]
    vectors = (vectors + noisy * torch.randn_like(vectors)) * kept[:, None]
    u = (torch.arange(batch, device=device) + torch.rand(batch, device=device)) / batch
    t = (u**0.45 * len(schedule.alphas_cumprod)).long()
    latent = data.latents(pictures)
    noise = torch.randn_like(latent)
    error = partial(prediction_error, schedule=schedule, prediction=prediction)
    with bf16(device):
        with fitting_attention(device):
            found = error(student, latent, noise, t, {"vector": vectors})
        if taught:
            with torch.no_grad():
                said = error(student.unet, latent, noise, t, {"context": data.contexts[rows * kept]})
            found = found - taught * said
    weight = min_snr_weight(schedule, t, 5.0, 1.0, prediction)
    return (found.square().mean(dim=(1, 2, 3)) * weight).mean()


# ---------------------------------------------------------------- as files


def write(adapter: IPAdapter, vision: CLIPVision, what: Seen, out: Path) -> None:
    """The adapter and the tower that it sees by, in the layout of published ones, in float16."""
    write_tensors(out / f"{out.name}.safetensors", as_float16(adapter.state_dict()), {})
    tower = as_float16(normalised(vision, what.scale))
    write_component(Component(vision.config, tower), out / ENCODER, "diffusers")


def normalised(vision: CLIPVision, scale: float) -> dict[str, Tensor]:
    """The tower's tensors for pixels normalised as CLIP's are, where it was trained on pixels in [-1, 1].

    x = 2 (std y + mean) - 1: the factor goes into the patches' weights, the rest, the same for every patch, into their
    positions' vectors. scale: of the vectors that come out.
    """
    tensors = {name: value.detach().clone().float() for name, value in vision.state_dict().items()}
    mean, std = (
        torch.tensor(values, device=next(iter(tensors.values())).device) for values in (clip.MEAN, clip.STD)
    )
    weight, places = (
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
    )
    offset = (tensors[weight].sum(dim=(2, 3)) * (2 * mean - 1)).sum(dim=1)
    tensors[weight] = tensors[weight] * (2 * std).view(1, 3, 1, 1)
    tensors[places][1:] += offset
    tensors["visual_projection.weight"] *= scale
    return tensors


# ---------------------------------------------------------------- what it draws


class Decoder:
    """The base and the adapter of a folder, as a decoder of vectors."""

    def __init__(self, base: Model, out: Path):
        path = out / f"{out.name}.safetensors"
        self.base, self.adapter = base, open_ip_adapter(path, base)
        self.vision = open_encoder(path, None, base)

    @torch.inference_mode()
    def draw(self, vectors: Tensor, prompts: Sequence[str]) -> Tensor:
        """Pixels (N, 3, S, S) of vectors (N, D), beside prompts, which may be empty."""
        vectors = vectors.to(self.base.device, self.base.dtype)
        around = partial(seeing, self.adapter, self.base.unet)
        none = Beside(vector=torch.zeros_like(vectors))
        return drawn(self.base, prompts, Beside(vector=vectors), none, around=around)

    @torch.inference_mode()
    def vary(self, pixels: Tensor) -> Tensor:
        """Pixels of other pictures (N, 3, S, S) with what CLIP sees in these, without a word."""
        side = self.vision.config.image_size
        given = torch.cat([to_clip(image, side) for image in to_images(pixels)])
        vectors = self.vision(given.to(self.base.device, self.base.dtype))[1]
        return self.draw(vectors, [""] * len(pixels))

    @torch.inference_mode()
    def imagine(self, prior: TextPrior, prompts: Sequence[str], said: bool) -> Tensor:
        """Pixels (N, 3, S, S) of prompts, through the prior, seed k for prompt k. said: whether the U-Net reads them too."""
        made = []
        for seeds in torch.arange(len(prompts)).split(50):
            made.append(prior([prompts[int(k)] for k in seeds], seeds.tolist(), cfg_scale=SCALE))
        return self.draw(torch.cat(made), prompts if said else [""] * len(prompts))


def figures(
    prior: TextPrior, decoder: Decoder, judge: Judge, names: Sequence[str], data: Path, num: int | None = None
) -> dict[str, dict[str, float]]:
    """Recognition of the fixed prompts by the judge: in the base's pictures, in variations of these, in pictures of prior
    and decoder, and in those where the decoder reads the prompt too."""
    firsts: list[Tensor] = []

    def own(prompts: Sequence[str]) -> Tensor:
        firsts.append(drawn(decoder.base, prompts, Beside()))
        return firsts[0]

    ways = {
        decoder.base.name: own,
        f"variations of {decoder.base.name}'s": lambda prompts: decoder.vary(firsts[0]),
        "prior and decoder": partial(decoder.imagine, prior, said=False),
        "prior and decoder, beside the prompt": partial(decoder.imagine, prior, said=True),
    }
    return {name: measures.judged_prompts(judge, names, data, way, num) for name, way in ways.items()}


def sheet(prior: TextPrior, decoder: Decoder, prompts: Sequence[str]) -> Image.Image:
    """Rows: the base's pictures, variations of these, the prior's and decoder's, and those beside the prompt."""
    first = drawn(decoder.base, prompts, Beside())
    made = [decoder.imagine(prior, prompts, said) for said in (False, True)]
    return contact_sheet(to_images(torch.cat([first, decoder.vary(first), *made])), len(prompts))
