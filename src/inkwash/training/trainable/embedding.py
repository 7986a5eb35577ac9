"""Words that a text encoder learns (Gal et al. 2023). D width."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from inkwash.models.clip import CLIPText
from inkwash.pipeline.api import Pipeline
from inkwash.prompts.conditioning import Reading
from inkwash.prompts.folders import Folders
from inkwash.training.config_methods import TextualInversionConfig
from inkwash.training.trainable import Trainable, Weights
from inkwash.weights.bytes.tensor_file import write_tensors
from inkwash.weights.checkpoint import TextEncoder

FILE_NAMES = ("clip_l", "clip_g")  # of SDXL's two encoders


class EmbeddingTrainable(Trainable):
    """Vectors (n, D) of a new word, for each text encoder.

    Raises ValueError where the model has no CLIP text encoder, or the initial word has more tokens than there are vectors.
    """

    name = "embedding"
    changes_text = True

    def __init__(self, model: Pipeline, config: TextualInversionConfig):
        self.config = config
        if not model.text_encoders or not all(isinstance(one.model, CLIPText) for one in model.text_encoders):
            raise ValueError(f"{model.name} has no CLIP text encoder that could learn a word")
        random = torch.Generator().manual_seed(config.seed)
        starts = [start(one, config.init_word, config.num_vectors, random) for one in model.text_encoders]
        self.module: nn.ParameterDict = nn.ParameterDict(
            {f"vectors_{k}": nn.Parameter(vectors.to(model.device)) for k, vectors in enumerate(starts)}
        )

    def reading(self, reading: Reading) -> Reading:
        language = replace(reading.language, names=True)
        return replace(reading, language=language, embeddings={self.config.token: self.vectors})

    def vectors(self, widths: Sequence[int]) -> list[Tensor]:
        return [self.module[f"vectors_{k}"] for k in range(len(widths))]

    def write(self, folder: Path, weights: Weights, metadata: dict[str, str]) -> Path:
        """One file for prompts' folders: kohya's and AUTOMATIC1111's key, or SDXL's two."""
        vectors = [weights[key].detach().float().cpu() for key in sorted(weights)]
        names = FILE_NAMES if len(vectors) > 1 else ("emb_params",)
        path = folder / f"{self.config.token}.safetensors"
        write_tensors(path, dict(zip(names, vectors, strict=True)), metadata)
        return path

    def for_sampling(self, model: Pipeline, folder: Path) -> Pipeline:
        weights = {key: value.detach() for key, value in self.module.state_dict().items()}
        path = self.write(folder / "samples", weights, {})
        return replace(model, folders=Folders.of(embeddings=[path]))


def start(encoder: TextEncoder, word: str, num: int, random: torch.Generator) -> Tensor:
    """The first vectors (num, D): those of a word's tokens, the last one repeated; or random ones of the table's size."""
    assert isinstance(encoder.model, CLIPText)
    table = encoder.model.text_model.embeddings.token_embedding.weight.detach().float()
    if not word:
        drawn = torch.randn(num, table.shape[1], generator=random)
        return (table.mean(0).cpu() + drawn * table.std(0).cpu()).contiguous()
    ids = encoder.tokenizer.encode(word)
    if not 1 <= len(ids) <= num:
        raise ValueError(f"init_word {word!r} has {len(ids)} tokens; 1 to num_vectors, {num}, fit")
    return table[[*ids, *[ids[-1]] * (num - len(ids))]].clone()
