"""The networks of IP-Adapters that make tokens of a picture, or of vectors of faces.

B batch, P patches, F faces, T tokens, D width of the context. Names are those of the published files.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inkwash.files import ModelFileError
from inkwash.nn.attention import attend
from inkwash.nn.layers import Linear

HEAD = 64  # channels of a resampler's head


class Projection(nn.Module):
    """CLIP's vector of a picture to tokens (Ye et al. 2023, section 3.2.1)."""

    skip: int | None = None  # of the vision tower: it is the picture's vector that is read

    def __init__(self, seen: int, width: int, num_tokens: int):
        super().__init__()
        self.num_tokens = num_tokens
        self.proj = Linear(seen, num_tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, vector: Tensor) -> Tensor:
        return self.norm(self.proj(vector).unflatten(1, (self.num_tokens, -1)))


class FullProjection(nn.Module):
    """Each patch of a picture to a token, of the adapters for whole faces."""

    skip: int | None = 2

    def __init__(self, seen: int, width: int):
        super().__init__()
        self.proj = nn.Sequential(Linear(seen, seen), nn.GELU(), Linear(seen, width), nn.LayerNorm(width))

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(patches)


class PerceiverAttention(nn.Module):
    """Attention of latents (B, T, C) to patches and to themselves (Alayrac et al. 2022, figure 5)."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = Linear(width, inner, bias=False)
        self.to_kv = Linear(width, 2 * inner, bias=False)
        self.to_out = Linear(inner, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        x, normed = self.norm1(x), self.norm2(latents)
        k, v = self.to_kv(torch.cat([x, normed], dim=1)).chunk(2, dim=-1)
        q = self.to_q(normed)
        return latents + self.to_out(attend(q, k.contiguous(), v.contiguous(), q.shape[-1] // HEAD))


class AskingResampler(nn.Module):
    """Tokens (F, T, hidden) that ask a picture's patches."""

    def __init__(self, seen: int, hidden: int, width: int, inner: int, depth: int, feed: int):
        super().__init__()
        self.proj_in, self.proj_out = Linear(seen, hidden), Linear(hidden, width)
        self.norm_out = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(hidden, inner), feed_forward(hidden, feed)])
            for _ in range(depth)
        )

    def forward(self, patches: Tensor, latents: Tensor) -> Tensor:
        x = self.proj_in(patches).expand(len(latents), -1, -1)
        for layer in self.layers:
            attention, feed = layer.children()
            latents = attention(x, latents)
            latents = latents + feed(latents)
        return self.norm_out(self.proj_out(latents))


class Resampler(AskingResampler):
    """A picture's patches to few tokens: IP-Adapter Plus."""

    skip: int | None = 2

    def __init__(
        self, seen: int, width: int, hidden: int, inner: int, depth: int, num_tokens: int, feed: int
    ):
        super().__init__(seen, hidden, width, inner, depth, feed)
        self.latents = nn.Parameter(torch.zeros(1, num_tokens, hidden))

    def forward(self, patches: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(patches, self.latents.expand(len(patches), -1, -1))


def feed_forward(width: int, inner: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), Linear(width, inner, bias=False), nn.GELU(), Linear(inner, width, bias=False)
    )


class FaceProjection(nn.Module):
    """Vectors of faces to tokens: IP-Adapter FaceID."""

    skip: int | None = None

    def __init__(self, seen: int, hidden: int, width: int, num_tokens: int):
        super().__init__()
        self.num_tokens, self.seen = num_tokens, seen
        self.proj = nn.Sequential(Linear(seen, hidden), nn.GELU(), Linear(hidden, num_tokens * width))
        self.norm = nn.LayerNorm(width)

    def forward(self, faces: Tensor) -> Tensor:
        """Tokens (F, T, D) of vectors (F, seen)."""
        return self.norm(self.proj(faces).unflatten(1, (self.num_tokens, -1)))


class FacePlusProjection(FaceProjection):
    """Vectors of faces whose tokens ask CLIP's patches: FaceID Plus. shortcut: its second version adds both."""

    skip: int | None = 2

    def __init__(
        self, seen: int, hidden: int, width: int, num_tokens: int, asking: dict[str, int], shortcut: bool
    ):
        super().__init__(seen, hidden, width, num_tokens)
        self.perceiver_resampler, self.shortcut = AskingResampler(**asking), shortcut

    def forward(self, faces: Tensor, patches: Tensor) -> Tensor:  # type: ignore[override]
        tokens = super().forward(faces)
        made = self.perceiver_resampler(patches, tokens)
        return tokens + made if self.shortcut else made


def projection_of(name: str, tensors: Mapping[str, Tensor]):
    """A function that makes the network of a file's `image_proj`.

    FaceID Plus and its second version have the same tensors, and only the name of the file tells them apart. Raises
    ModelFileError for one that is not known.
    """
    shapes = {
        key.removeprefix("image_proj."): value.shape for key, value in tensors.items() if "image_proj." in key
    }
    try:
        return known_projection(name, shapes)
    except KeyError as error:
        raise ModelFileError(f"{name} lacks image_proj.{error.args[0]}") from None


def known_projection(name: str, shapes: Mapping[str, torch.Size]):
    if "proj.weight" in shapes:
        width = shapes["norm.weight"][0]
        return lambda: Projection(shapes["proj.weight"][1], width, shapes["proj.weight"][0] // width)
    if "proj.3.weight" in shapes:
        return lambda: FullProjection(shapes["proj.0.weight"][1], shapes["proj.3.weight"][0])
    if "latents" in shapes:
        asking, num_tokens = asking_sizes(shapes), shapes["latents"][1]
        return lambda: Resampler(**asking, num_tokens=num_tokens)
    if "proj.2.weight" in shapes and "norm.weight" in shapes:
        width, (hidden, seen) = shapes["norm.weight"][0], shapes["proj.0.weight"]
        sizes = {"seen": seen, "hidden": hidden, "width": width}
        sizes["num_tokens"] = shapes["proj.2.weight"][0] // width
        inside = "perceiver_resampler."
        asking = {key.removeprefix(inside): shape for key, shape in shapes.items() if key.startswith(inside)}
        if not asking:
            return lambda: FaceProjection(**sizes)
        shortcut, asked = "plusv2" in name.lower().replace("-", ""), asking_sizes(asking)
        return lambda: FacePlusProjection(**sizes, asking=asked, shortcut=shortcut)
    raise ModelFileError(f"{name} makes tokens by a network that is not known")


def asking_sizes(shapes: Mapping[str, torch.Size]) -> dict[str, int]:
    """The arguments of an `AskingResampler`, from its tensors' shapes."""
    return {
        "seen": shapes["proj_in.weight"][1],
        "hidden": shapes["proj_in.weight"][0],
        "width": shapes["proj_out.weight"][0],
        "inner": shapes["layers.0.0.to_q.weight"][0],
        "depth": len({key.split(".")[1] for key in shapes if key.startswith("layers.")}),
        "feed": shapes["layers.0.1.1.weight"][0],
    }
