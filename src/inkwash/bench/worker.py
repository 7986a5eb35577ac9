"""One side of a comparison, in a process of its own: `python worker.py SIDE TASK FOLDER OPTIONS`.

It opens what the task needs of the folder, says so by a line, and for each line that it gets makes one call and
answers in JSON: seconds, seconds of all processors, and the most memory that the process has had. A line that is a path
is where the call's result goes. This file imports inkwash for our side alone. B batch, H W pixels.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PROMPT = "a red taxi in front of a blue house, in the rain"
FACTOR = 8  # of the families' first stages
RANK = 8  # of the LoRA that is trained
Call = Callable[[], Any]


class Stepped(Exception):
    """The first step is done."""


def stop(*_: object) -> None:
    raise Stepped


def inputs(task: str, o: dict[str, Any], width: int, vector: int | None, channels: int) -> list[Any]:
    """Inputs that both sides get: for unet, control and lora x (2B or B, 4, H/8, W/8), t, the context and the vector, for
    control the hint too, for lora the noise; else latents or pixels."""
    import torch

    random = torch.Generator().manual_seed(0)
    dtype, latent = getattr(torch, o["dtype"]), o["size"] // FACTOR
    rows = o["batch"] * (1 if task == "lora" else 2)
    draw = lambda *shape: torch.randn(shape, generator=random).to(o["device"], dtype)  # noqa: E731
    last = lambda x: x.contiguous(memory_format=torch.channels_last)  # noqa: E731
    if task in ("unet", "control", "lora"):
        x, t = last(draw(rows, channels, latent, latent)), torch.full((rows,), 500.0, device=o["device"])
        given = [x, t, draw(rows, 77, width), draw(rows, vector) if vector else None]
        if task == "control":
            return [*given, last(draw(rows, 3, o["size"], o["size"]).sigmoid())]
        return given if task == "unet" else [*given, draw(*x.shape)]
    if task == "decode":
        return [last(draw(o["batch"], channels, latent, latent))]
    return [last(draw(o["batch"], 3, o["size"], o["size"]).tanh())]


def ours(task: str, folder: Path, o: dict[str, Any]) -> Call:
    from inkwash.process import importing, keep_memory

    keep_memory()
    with importing():
        import torch

        import inkwash
        from inkwash.adapters.trainable import TrainableLoRA
        from inkwash.weights.checkpoint import build
        from inkwash.weights.models.folder import read_folder

    dtype = getattr(torch, o["dtype"])
    if task in ("picture", "startup"):
        model = inkwash.load(folder, o["device"], dtype, compile=o["compile"])
        settings = {name: o[name] for name in ("steps",)} | {"width": o["size"], "height": o["size"]}
        on_step = stop if task == "startup" else None
        return lambda: model.text_to_image(
            PROMPT, batch_size=o["batch"], cfg_scale=7.5, on_step=on_step, **settings
        )
    checkpoint = read_folder(folder)
    make = lambda component: build(component, o["device"], dtype)  # noqa: E731
    if task == "text":
        texts = [make(text) for text in checkpoint.text]
        tokens = [torch.tensor([text.tokenizer.encode(PROMPT)]) for text in checkpoint.text]
        tokens = [torch.nn.functional.pad(some, (0, 77 - some.shape[1])).repeat(2, 1) for some in tokens]
        return lambda: [text(some.to(o["device"])) for text, some in zip(texts, tokens, strict=True)]
    if task in ("unet", "control", "lora"):
        unet, c = make(checkpoint.unet), checkpoint.unet.config
        if o["compile"]:
            unet.compile(mode="reduce-overhead")
        given = inputs(task, o, c.context_dim or 0, c.vector_dim, c.in_channels)
        if task == "unet":
            return lambda: unet(*given)
        if task == "control":
            return controlled(unet, given)
        lora = TrainableLoRA(SimpleNamespace(unet=unet, text_encoders=()), RANK)  # pyright: ignore
        lora.attached()
        from inkwash.kernels.adamw import adamw
        from inkwash.training.optimizers import OPTIMIZERS

        optimizer = OPTIMIZERS["adamw"]([{"params": list(lora.parameters())}], 1e-4, (0.9, 0.999), 0.01)
        return training_step(unet, given, optimizer, lambda: adamw(optimizer, 1.0, {}, 0.0))
    autoencoder, scale = make(checkpoint.autoencoder), checkpoint.autoencoder.config.scale_factor
    (given,) = inputs(task, o, 0, None, checkpoint.autoencoder.config.latent_channels)
    if task == "decode":
        return lambda: autoencoder.decode(given * scale)
    return lambda: autoencoder.encode(given).mean / scale


def controlled(unet: Any, given: list[Any]) -> Call:
    """A call of the U-Net with a ControlNet, as drawing makes it: features that are constant over steps are cached."""
    import torch

    from inkwash.models.controlnet import ControlNet, ControlNetConfig
    from inkwash.nn.attention import Context

    *inputs, hint = given
    x, t, tokens, vector = inputs
    network = ControlNet.start(ControlNetConfig(unet.config), unet).eval().requires_grad_(False)
    network = network.to(device=x.device, dtype=x.dtype, memory_format=torch.channels_last)  # pyright: ignore
    seen, context = network.see(hint[:1]), Context(tokens)
    return lambda: unet(x, t, context, vector, network(x, t, seen, context, vector))


def training_step(network: Any, given: list[Any], optimizer: Any, update: Callable[[], Any]) -> Call:
    """One step on the LoRA's float32 matrices, by the squared error of eps."""
    *seen, noise = given

    def step() -> Any:
        optimizer.zero_grad()
        loss = (network(*seen).float() - noise.float()).square().mean()
        loss.backward()
        update()
        return loss.detach()

    return step


def theirs(task: str, folder: Path, o: dict[str, Any]) -> Call:
    import diffusers
    import torch
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    dtype = getattr(torch, o["dtype"])
    last = {"memory_format": torch.channels_last}
    kept: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if task in ("picture", "startup"):
        pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder, **kept)  # pyright: ignore
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)  # pyright: ignore
        pipe.set_progress_bar_config(disable=True)
        pipe.to(o["device"])
        pipe.unet.to(**last)
        pipe.vae.to(**last)
        more = {"callback_on_step_end": stop} if task == "startup" else {}
        settings = {"num_inference_steps": o["steps"], "width": o["size"], "height": o["size"]}
        return lambda: pipe(PROMPT, guidance_scale=7.5, num_images_per_prompt=o["batch"], **settings, **more)
    if task == "text":
        kinds = {
            "text_encoder": transformers.CLIPTextModel,
            "text_encoder_2": transformers.CLIPTextModelWithProjection,
        }
        texts = [
            kind.from_pretrained(folder / name, **kept).to(o["device"])
            for name, kind in kinds.items()
            if (folder / name).exists()
        ]
        tokens = torch.zeros((2, 77), dtype=torch.long, device=o["device"])
        return lambda: [text(tokens, output_hidden_states=True) for text in texts]
    network, given = their_network(task, folder, o, dtype)
    network = network.to(o["device"], **last)
    if task == "lora":
        optimizer = torch.optim.AdamW(with_lora(network.unet), lr=1e-4, fused=True)
        return training_step(network, given, optimizer, optimizer.step)
    if o["compile"]:
        torch._inductor.config.freezing = o["device"] == "cpu"  # pyright: ignore
        network.compile(mode="reduce-overhead")
    return lambda: network(*given)


def with_lora(unet: Any) -> list[Any]:
    """peft's matrices in diffusers' U-Net, which learn alone. They compute in float32, which is as fast as autocast."""
    import peft

    unet.requires_grad_(False)
    unet.add_adapter(
        peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )
    learned = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.data = parameter.data.float()
    return learned


def openvino(task: str, folder: Path, o: dict[str, Any]) -> Call:
    """diffusers' network as Intel's OpenVINO runs it. What it converts is float32, so its peak is the conversion's."""
    import openvino as ov  # pyright: ignore[reportMissingImports]
    import torch

    network, given = their_network(task, folder, o | {"dtype": "float32"}, torch.float32)
    made = ov.convert_model(network, example_input=tuple(given))
    compiled = ov.Core().compile_model(
        made,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[o["dtype"]],
            "INFERENCE_NUM_THREADS": o["threads"],
        },
    )
    del made, network
    arrays = [value.numpy() for value in given]
    return lambda: torch.from_numpy(compiled(arrays)[0])


def their_network(task: str, folder: Path, o: dict[str, Any], dtype: Any) -> tuple[Any, list[Any]]:
    """diffusers' network of the task as a module of tensors alone, and these."""
    import diffusers
    import torch

    kept: dict[str, Any] = {"dtype": dtype, "local_files_only": True}

    class UNet(torch.nn.Module):
        """Diffusers' U-Net, called with positional arguments."""

        def __init__(self, unet: Any):
            super().__init__()
            self.unet = unet

        def added(self, x: Any, vector: Any = None) -> Any:
            if vector is None:
                return None
            # the pooled text alone goes in as it is, and the sizes as numbers
            sizes = torch.full((len(x), 6), 512.0, device=x.device)
            return {"text_embeds": vector[:, :1280], "time_ids": sizes}

        def forward(self, x: Any, t: Any, context: Any, vector: Any = None) -> Any:
            added = self.added(x, vector)
            return self.unet(x, t, context, added_cond_kwargs=added, return_dict=False)[0]

    class VAE(torch.nn.Module):
        """Diffusers' autoencoder as one call: decode, or the mean of encode."""

        def __init__(self, vae: Any):
            super().__init__()
            self.vae = vae

        def forward(self, given: Any) -> Any:
            if task == "decode":
                return self.vae.decode(given, return_dict=False)[0]
            return self.vae.encode(given, return_dict=False)[0].mean

    class Controlled(UNet):
        """The U-Net with a ControlNet that sees the hint."""

        def __init__(self, unet: Any):
            super().__init__(unet)
            self.control = diffusers.ControlNetModel.from_unet(unet).to(unet.dtype)  # pyright: ignore

        def forward(self, x: Any, t: Any, context: Any, *more: Any) -> Any:
            *vector, hint = more
            added = self.added(x, *vector)
            down, middle = self.control(x, t, context, hint, added_cond_kwargs=added, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            return self.unet(x, t, context, added_cond_kwargs=added, return_dict=False, **residuals)[0]

    if task in ("unet", "control", "lora"):
        unet: Any = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **kept)  # pyright: ignore
        c = unet.config
        vector = c.projection_class_embeddings_input_dim
        given = inputs(task, o, c.cross_attention_dim, vector, c.in_channels)
        kind = Controlled if task == "control" else UNet
        return kind(unet).eval(), [value for value in given if value is not None]
    vae: Any = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae", **kept)  # pyright: ignore
    return VAE(vae).eval(), inputs(task, o, 0, None, vae.config.latent_channels)


def peak_memory(device: str) -> int:
    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")  # Linux; getrusage would hand on the parent's
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


SIDES = {
    "inkwash": ours,
    "diffusers": theirs,
    "diffusers-compiled": lambda task, folder, o: theirs(task, folder, o | {"compile": True}),
    "openvino": openvino,
}


def main() -> None:
    side, task, folder, options = sys.argv[1:]
    o = json.loads(options)
    os.environ["OMP_NUM_THREADS"] = str(o["threads"])
    call = SIDES[side](task, Path(folder), o)
    import torch  # not before: a side begins as it would by itself
    from safetensors.torch import save_file

    with torch.inference_mode(task != "lora"):
        print("ready", flush=True)
        for line in sys.stdin:
            begin, busy = time.perf_counter(), time.process_time()
            made = None
            try:
                made = call()
                if o["device"] != "cpu":
                    torch.cuda.synchronize()
            except Stepped:
                pass
            said = {"seconds": time.perf_counter() - begin, "busy": time.process_time() - busy}
            if path := line.strip():
                assert made is not None
                save_file({"made": made.cpu().contiguous()}, path)
            print(json.dumps(said | {"peak": peak_memory(o["device"])}), flush=True)


if __name__ == "__main__":
    main()
