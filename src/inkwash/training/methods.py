"""The training methods: name, purpose and options of each. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from inkwash.training import config, config_conditions, config_methods, config_networks
from inkwash.training.distill_config import DistillConfig


@dataclass(frozen=True)
class Method:
    """A way to train.

    name: the command line's. config: its options. trainable: what learns, a key of `run.TRAINABLES`, or of
    `run.NETWORK_RUNS` where it is no diffusion model. inputs: what the U-Net sees beside the latent, a key of
    `inputs.INPUTS`.
    """

    name: str
    summary: str
    config: type[config.TrainConfig]
    trainable: str
    inputs: str | None = None


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "lora",
            "Train a LoRA, or another low-rank adapter, on pictures with captions.",
            config_methods.LoRAConfig,
            "lora",
        ),
        Method(
            "text-to-image",
            "Train a model's own weights on pictures with captions.",
            config_methods.FinetuneConfig,
            "whole",
        ),
        Method("dreambooth", "Teach a subject from a few pictures.", config_methods.DreamBoothConfig, "lora"),
        Method("distill", "Teach a model to draw in few steps.", DistillConfig, "lora"),
        Method(
            "textual-inversion",
            "Teach the text encoder a new word.",
            config_methods.TextualInversionConfig,
            "embedding",
        ),
        Method(
            "hypernetwork",
            "Train networks before the attentions' keys and values.",
            config_methods.HypernetworkConfig,
            "hypernetwork",
        ),
        Method(
            "inpainting",
            "Train a U-Net that sees a mask and the rest of a picture.",
            config_methods.InpaintingConfig,
            "whole",
            "inpainting",
        ),
        Method(
            "controlnet",
            "Train a ControlNet: a copy of the U-Net's first half that sees a hint.",
            config_methods.ControlNetOptions,
            "controlnet",
        ),
        Method(
            "t2i-adapter",
            "Train a T2I-Adapter: a small network that sees a hint once a picture.",
            config_methods.T2IAdapterOptions,
            "t2i-adapter",
        ),
        Method(
            "lllite",
            "Train a ControlNet-LLLite: a hint that changes what attentions see.",
            config_methods.LLLiteOptions,
            "lllite",
        ),
        Method(
            "ip-adapter",
            "Train an IP-Adapter: attention to what CLIP sees in a picture.",
            config_methods.IPAdapterOptions,
            "ip-adapter",
        ),
        Method("depth", "Train a U-Net that sees depth.", config_methods.DepthConfig, "whole", "depth"),
        Method(
            "instruct",
            "Train a U-Net that edits a picture as it is told.",
            config_methods.InstructConfig,
            "whole",
            "instruct",
        ),
        Method(
            "upscaler",
            "Train a U-Net that enlarges a picture.",
            config_conditions.UpscalerTrainConfig,
            "whole",
            "upscaler",
        ),
        Method(
            "unconditional",
            "Train a model that draws one kind of picture, in pixels (DDPM) or latents.",
            config_conditions.UnconditionalConfig,
            "whole",
        ),
        Method(
            "class",
            "Train a model that is told a class.",
            config_conditions.ClassTrainConfig,
            "whole",
            "class",
        ),
        Method(
            "layout",
            "Train a model that is told what is where.",
            config_conditions.LayoutTrainConfig,
            "whole",
            "layout",
        ),
        Method(
            "semantic",
            "Train a model that sees a map of labels.",
            config_conditions.SemanticTrainConfig,
            "whole",
            "semantic",
        ),
        Method(
            "autoencoder",
            "Train a first stage, with a KL term or a codebook.",
            config_networks.FirstStageConfig,
            "autoencoder",
        ),
        Method(
            "tiny-autoencoder",
            "Train a tiny autoencoder beside a model's own.",
            config_networks.TinyAutoencoderTrainConfig,
            "tiny-autoencoder",
        ),
        Method("clip", "Train CLIP's two towers.", config_networks.ClipConfig, "clip"),
        Method(
            "prior",
            "Train a prior, from text to CLIP's vector of a picture.",
            config_networks.PriorTrainConfig,
            "prior",
        ),
    )
}
