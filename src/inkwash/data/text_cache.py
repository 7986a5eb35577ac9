"""States of captions, computed once and kept on disk. T tokens, D width, E width of the pooled vector.

An entry's name is the hash of all that it depends on: a chunk's tokens, the layer, and the text encoder with its type.
Processes share the folder; a file is whole or not there.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from inkwash.data.cache import digest_of, read_entry
from inkwash.models.bert import BERT
from inkwash.models.clip import CLIPText
from inkwash.models.t5 import T5
from inkwash.weights.bytes.tensor_file import write_tensors


class CachedTextEncoder(nn.Module):
    """A text encoder, with its interface, that reads what it computed before from a folder.

    Chunks are computed one by one, so that their values do not depend on which of them meet in a batch.
    """

    def __init__(self, encoder: CLIPText | BERT | T5, folder: Path):
        super().__init__()
        weight = next(encoder.parameters())
        self.like = nn.Parameter(torch.empty(0, device=weight.device, dtype=weight.dtype), False)
        self.config = encoder.config
        self.encoder, self.folder, self.version = encoder, folder, digest_of(encoder)

    def release(self) -> None:
        """Give the encoder's memory back; from now on only texts that are kept have states."""
        self.encoder.to("meta")

    @torch.no_grad()
    def forward(self, tokens: Tensor, skip: int = 1, final_norm: bool = True) -> tuple[Tensor, Tensor]:
        """Contexts (B, T, D) and pooled vectors (B, E) of token ids (B, T).

        Raises ValueError for a text without an entry once the encoder is released.
        """
        states = [self.states(row, skip, final_norm) for row in tokens]
        contexts, pooled = zip(*states, strict=True)
        return torch.cat(contexts).to(self.like.device), torch.cat(pooled).to(self.like.device)

    def states(self, row: Tensor, skip: int, final_norm: bool) -> tuple[Tensor, Tensor]:
        """Context (1, T, D) and pooled vector (1, E) of one chunk."""
        name = hashlib.sha256(f"{row.tolist()} {skip} {final_norm} {self.version}".encode()).hexdigest()[:32]
        path = self.folder / name[:2] / f"{name}.safetensors"
        if tensors := read_entry(path):
            return tensors["context"], tensors["pooled"]
        if next(self.encoder.parameters()).is_meta:
            raise ValueError("a text has no states in the cache, and the text encoder is released")
        context, pooled = self.encoder(row[None], skip, final_norm)
        write_tensors(path, {"context": context.cpu(), "pooled": pooled.cpu()}, {})
        return context, pooled
