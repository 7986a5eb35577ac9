"""Names and values of other trainers' options, kohya's and diffusers', as options of ours. Imports no torch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Values = dict[str, Any]
Convert = Callable[[Any], Values]  # another trainer's value, as options of ours


def named(name: str, convert: Callable[[Any], Any] = lambda value: value) -> Convert:
    """Our option of this name."""
    return lambda value: {name: convert(value)}


def flag(value: Any) -> bool:
    """Return True if a switch is on: its value is true, 1 or empty."""
    return str(value).lower() in ("true", "1", "")


def when(**values: Any) -> Convert:
    """Convert a switch: these options if it is on."""
    return lambda value: dict(values) if flag(value) else {}


def unless(name: str) -> Convert:
    return lambda value: {name: not flag(value)}


def nothing(value: Any) -> Values:
    """Accept an option that changes no result, or always holds."""
    return {}


def numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(part) for part in str(value).strip("()[]").split(","))


def size(value: Any) -> Any:
    """512, "512" or "512,768"."""
    return str(value).strip("[]()").replace(" ", "").replace(",", "x")


SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine",
             "cosine_with_restarts": "restarts", "polynomial": "polynomial"}  # fmt: skip
PRECISIONS = {"no": "fp32", "float": "fp32", "fp16": "fp16", "bf16": "bf16"}
OPTIMIZERS = {
    "adamw8bit": "adamw8bit",
    "adamw": "adamw",
    "adafactor": "adafactor",
    "prodigy": "prodigy",
    "muon": "muon",
}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
# what kohya's LoRAs are of: transformers with their projections, and text encoders
KOHYA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
                 "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")  # fmt: skip
ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "dylora": "lora", "ia3": "ia3",
              "full": "full", "diag-oft": "oft", "boft": "boft", "glora": "glora"}  # fmt: skip
# kohya's modules; what a LyCORIS is, its arguments say
MODULES: Mapping[str, Values] = {
    "networks.lora": {}, "networks.dylora": {}, "lycoris.kohya": {},
    "networks.loha": {"kind": "loha"}, "networks.lokr": {"kind": "lokr"}, "networks.oft": {"kind": "oft"},
}  # fmt: skip


def chosen(name: str, known: Mapping[str, str]) -> Convert:
    """Our name of a choice. Raises KeyError for an unknown one."""
    return lambda value: {name: known[str(value).lower()]}


def whole_steps(value: Any) -> int:
    """A number of steps. Raises ValueError for a share of all of them."""
    if 0 < float(value) < 1:
        raise ValueError("a share of the steps needs max_train_steps")
    return int(value)


def prompts_of(value: Any) -> Values:
    """The prompts of a text file, without the options that kohya's writes behind them."""
    path = Path(str(value))
    lines = path.read_text("utf-8").splitlines() if path.is_file() else [str(value)]
    texts = [line.partition(" --")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    return {"sample_prompts": tuple(filter(None, texts))}


SHARED: Mapping[str, Convert] = {
    "pretrained_model_name_or_path": named("model"),
    "resolution": named("resolution", size),
    "train_batch_size": named("batch_size"),
    "max_train_steps": named("steps"),
    "gradient_accumulation_steps": named("accumulation"),
    "gradient_checkpointing": named("gradient_checkpointing", flag),
    "learning_rate": named("lr"),
    "text_encoder_lr": named("text_lr"),
    "lr_scheduler": chosen("lr_schedule", SCHEDULES),
    "lr_warmup_steps": named("warmup", whole_steps),
    "max_grad_norm": named("max_grad_norm"),
    "mixed_precision": chosen("precision", PRECISIONS),
    "noise_offset": named("noise_offset"),
    "seed": named("seed"),
    "prior_loss_weight": named("prior_weight"),
    "use_8bit_adam": when(optimizer="adamw8bit"),
    "loss_type": chosen("loss", {"l2": "l2", "l1": "l1", "huber": "huber"}),
    "huber_c": named("huber_delta"),
    "output_dir": named("output"),
    **dict.fromkeys(
        ("enable_xformers_memory_efficient_attention", "xformers", "sdpa", "mem_eff_attn", "allow_tf32", "logging_dir",
         "dataloader_num_workers", "max_data_loader_n_workers", "persistent_data_loader_workers", "resume",
         "resume_from_checkpoint", "lowram", "highvram", "console_log_level", "save_state", "no_half_vae",
         "set_grads_to_none", "checkpoints_total_limit", "local_rank", "cache_dir", "tracker_project_name", "cache_info",
         "wandb_run_name", "log_tracker_name", "log_prefix", "output_name"),
        nothing,
    ),
}  # fmt: skip

KOHYA: Mapping[str, Convert] = SHARED | {
    "train_data_dir": named("data"),
    "dataset_config": named("data"),
    "max_train_epochs": named("epochs"),
    "unet_lr": named("lr"),
    "network_train_unet_only": when(text_lr=0.0),
    "network_dim": named("rank"),
    "network_alpha": named("alpha"),
    "network_module": lambda value: MODULES[str(value)],
    "network_args conv_dim": named("conv_rank", int),
    "network_args conv_alpha": named("conv_alpha", float),
    "network_args algo": chosen("kind", ALGORITHMS),
    "network_args factor": named("factor", int),
    "network_args dora_wd": when(kind="dora"),
    "network_args preset": nothing,
    "lr_scheduler_num_cycles": named("lr_cycles"),
    "optimizer_type": chosen("optimizer", OPTIMIZERS),
    "optimizer_args weight_decay": named("weight_decay", float),
    "optimizer_args betas": named("betas", numbers),
    "min_snr_gamma": lambda value: {"weighting": "min-snr", "snr_gamma": value},
    "debiased_estimation_loss": when(weighting="debiased"),
    "multires_noise_discount": named("pyramid_noise"),
    "multires_noise_iterations": lambda value: {} if float(value) else {"pyramid_noise": 0.0},
    "ip_noise_gamma": named("input_perturbation"),
    "zero_terminal_snr": named("zero_snr", flag),
    "v_parameterization": when(prediction="v"),
    "v2": nothing,  # the file says it
    "clip_skip": named("clip_skip"),
    "shuffle_caption": named("shuffle_captions", flag),
    "keep_tokens": named("keep_tokens"),
    "caption_extension": named("caption_extension"),
    "caption_prefix": named("caption_prefix"),
    "caption_dropout_rate": named("caption_dropout"),
    "caption_tag_dropout_rate": named("tag_dropout"),
    "enable_wildcard": named("caption_wildcards", flag),
    "flip_aug": named("flip", flag),
    "random_crop": named("random_crop", flag),
    "enable_bucket": named("buckets", flag),
    "bucket_reso_steps": named("bucket_step"),
    "min_bucket_reso": named("bucket_min"),
    "max_bucket_reso": named("bucket_max"),
    "bucket_no_upscale": unless("upscale"),
    "dataset_repeats": named("repeats"),
    "masked_loss": named("masked_loss", flag),
    "min_timestep": named("min_timestep"),
    "max_timestep": named(
        "max_timestep", lambda value: int(value) - 1
    ),  # theirs is the first that is not drawn
    "save_every_n_steps": named("save_every"),
    "save_precision": chosen("save_dtype", {"fp16": "fp16", "bf16": "bf16", "float": "fp32"}),
    "save_model_as": lambda value: {"safetensors": {}}[str(value)],
    "sample_every_n_steps": named("sample_every"),
    "sample_prompts": prompts_of,
    "cache_latents": lambda value: {} if flag(value) else {"cache": "none"},
    "cache_latents_to_disk": nothing,
    "cache_text_encoder_outputs": nothing,
    "token_string": named("token"),
    "init_word": named("init_word"),
    "num_vectors_per_token": named("num_vectors"),
    "use_object_template": when(template="object"),
    "use_style_template": when(template="style"),
    "log_with": lambda value: {"tensorboard": {"tensorboard": True}}[str(value)],
}

DIFFUSERS: Mapping[str, Convert] = SHARED | {
    "variant": named("variant"),
    "train_data_dir": named("data"),
    "instance_data_dir": named("data"),
    "class_data_dir": named("class_data"),
    "instance_prompt": named("instance_prompt"),
    "class_prompt": named("class_prompt"),
    "with_prior_preservation": nothing,  # a class prompt says it
    "num_class_images": named("class_pictures"),
    "center_crop": unless("random_crop"),
    "random_flip": named("flip", flag),
    "num_train_epochs": named("epochs"),
    "train_text_encoder": nothing,  # see `diffusers_values`
    "lr_num_cycles": named("lr_cycles"),
    "optimizer": chosen("optimizer", OPTIMIZERS),
    "adam_weight_decay": named("weight_decay"),
    "adam_beta1": nothing,
    "adam_beta2": nothing,
    "snr_gamma": lambda value: {"weighting": "min-snr", "snr_gamma": value},
    "input_perturbation": named("input_perturbation"),
    "prediction_type": chosen("prediction", PREDICTIONS),
    "checkpointing_steps": named("save_every"),
    "save_steps": named("save_every"),
    "repeats": named("repeats"),
    "proportion_empty_prompts": named("caption_dropout"),
    "rank": named("rank"),
    "lora_alpha": named("alpha"),
    "use_dora": when(kind="dora"),
    "use_ema": when(ema=0.9999),
    "validation_prompt": named("sample_prompts"),
    "placeholder_token": named("token"),
    "initializer_token": named("init_word"),
    "num_vectors": named("num_vectors"),
    "learnable_property": chosen("template", {"object": "object", "style": "style"}),
    "report_to": lambda value: {"tensorboard": {"tensorboard": True}}[str(value)],
    "validation_steps": named("sample_every"),
    "pretrained_teacher_model": named("model"),
    "train_shards_path_or_url": named("data"),
    "lora_rank": lambda value: {"rank": value, "conv_rank": value},
    "num_ddim_timesteps": named("solver_steps"),
    "unet_time_cond_proj_dim": lambda value: {"256": {"whole": True, "guidance_input": True}}[str(value)],
    "timestep_scaling_factor": lambda value: {10.0: {}}[float(value)],
    **dict.fromkeys(
        ("w_min", "w_max", "encode_batch_size", "vae_encode_batch_size", "cast_teacher_unet"), nothing
    ),
}
# of the scripts train_lcm_distill_*.py: what they leave unsaid
LCM: Values = {
    "rank": 64, "conv_rank": 64, "huber_delta": 0.001, "guidance": (6.0, 16.0),
    "targets": (*KOHYA_TARGETS[:8], "emb_layers.1", "skip_connection"),
}  # fmt: skip
