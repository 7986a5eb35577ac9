"""Kohya's and diffusers' configurations: what they say becomes our options, and what can't be taken is named."""

from pathlib import Path

import pytest

from inkwash.cli import main
from inkwash.training.imported import read_diffusers_options, read_kohya_config
from inkwash.training.methods import METHODS
from inkwash.training.translations import DIFFUSERS, KOHYA

CONFIG = """
[model]
pretrained_model_name_or_path = "sd.safetensors"
v2 = false
[paths]
train_data_dir = "pictures"
output_dir = "out"
output_name = "style"
save_model_as = "safetensors"
[network]
network_module = "lycoris.kohya"
network_dim = 16
network_alpha = 8
network_args = ["conv_dim=4", "algo=loha"]
unet_lr = 2e-4
text_encoder_lr = 5e-5
[training]
learning_rate = 1e-4
resolution = "512,768"
train_batch_size = 2
max_train_epochs = 10
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99"]
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 3
lr_warmup_steps = 20
mixed_precision = "bf16"
min_snr_gamma = 5
noise_offset = 0.05
multires_noise_iterations = 6
multires_noise_discount = 0.3
bucket_no_upscale = true
keep_tokens = 1
shuffle_caption = true
max_timestep = 900
clip_skip = 2
scale_weight_norms = 1.0
optimiser = "x"
xformers = true
"""


def test_kohyas_config(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    found = read_kohya_config(path, METHODS["lora"])
    config = METHODS["lora"].config.model_validate(found.values)
    wanted = {
        "model": "sd.safetensors", "data": ("pictures",), "output": "out/style", "kind": "loha", "rank": 16, "alpha": 8,
        "conv_rank": 4, "lr": 2e-4, "text_lr": 5e-5, "resolution": (512, 768), "batch_size": 2, "epochs": 10,
        "optimizer": "adamw8bit", "weight_decay": 0.1, "betas": (0.9, 0.99), "lr_schedule": "restarts", "lr_cycles": 3,
        "warmup": 20, "precision": "bf16", "weighting": "min-snr", "snr_gamma": 5, "noise_offset": 0.05,
        "pyramid_noise": 0.3, "upscale": False, "keep_tokens": 1, "shuffle_captions": True, "max_timestep": 899,
        "clip_skip": 2,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert "ff.net.2" in config.targets
    assert found.left == ["scale_weight_norms 1.0: not known here", "optimiser 'x': not known here"]


def test_what_kohya_leaves_unsaid_is_as_there(tmp_path: Path) -> None:
    """Text encoders learn at the same rate, unless told not to; alpha is 1 and the rank 4."""
    path = tmp_path / "c.toml"
    path.write_text('network_module = "networks.lora"\nlearning_rate = 1e-4\n')
    assert read_kohya_config(path, METHODS["lora"]).values | {"targets": ()} == {
        "rank": 4, "alpha": 1.0, "text_lr": 1e-4, "lr": 1e-4, "targets": ()
    }  # fmt: skip
    path.write_text(
        'network_train_unet_only = true\nnetwork_module = "networks.lora"\nlearning_rate = 1e-4\n'
    )
    assert read_kohya_config(path, METHODS["lora"]).values["text_lr"] == 0


def test_of_several_arguments_each_is_taken_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        """
        network_module = "networks.lora"
        network_args = ["conv_dim=4", "conv_alpha=1", "dropout=0.1", "algo=hydra"]
        optimizer_args = ["weight_decay=0.1", "eps=1e-6"]
        lr_scheduler = "inverse_sqrt"
        lr_warmup_steps = 0.1
        max_train_steps = 200
        """
    )
    found = read_kohya_config(path, METHODS["lora"])
    wanted = {"conv_rank": 4, "conv_alpha": 1.0, "weight_decay": 0.1, "warmup": 20, "steps": 200}
    assert {name: found.values.get(name) for name in wanted} == wanted
    assert "lr_schedule" not in found.values and "kind" not in found.values
    assert found.left == [
        "lr_scheduler 'inverse_sqrt': there is no such choice here",
        "network_args dropout '0.1': not known here",
        "network_args algo 'hydra': there is no such choice here",
        "optimizer_args eps '1e-6': not known here",
    ]
    path.write_text("network_module = 'networks.lora_fa'\nlr_warmup_steps = 0.1\nmax_train_epochs = 3\n")
    found = read_kohya_config(path, METHODS["lora"])
    assert found.left == [
        "network_module 'networks.lora_fa': there is no such choice here",
        "lr_warmup_steps 0.1: a share of the steps needs max_train_steps",
    ]
    path.write_text("network_module = 'networks.oft'\n")
    assert read_kohya_config(path, METHODS["lora"]).values["kind"] == "oft"


def test_a_description_of_a_dataset_is_the_data(tmp_path: Path) -> None:
    path = tmp_path / "set.toml"
    path.write_text("[general]\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'x'\n")
    assert read_kohya_config(path, METHODS["lora"]).values == {"data": str(path)}


COMMAND = r"""
accelerate launch --mixed_precision="fp16" train_dreambooth_lora.py \
  --pretrained_model_name_or_path=$MODEL --instance_data_dir dog --instance_prompt="a sks dog" \
  --class_prompt "a dog" --with_prior_preservation --num_class_images=200 --prior_loss_weight 1.0 \
  --resolution=512 --train_batch_size=1 --gradient_accumulation_steps=4 --learning_rate=1e-4 \
  --lr_scheduler="constant" --lr_warmup_steps=0 --max_train_steps=500 --rank=4 --use_dora --use_8bit_adam \
  --train_text_encoder --adam_beta2 0.99 --validation_prompt="A sks dog in a bucket" --seed="0" \
  --output_dir="dog-lora" --push_to_hub --report_to="wandb" --snr_gamma 5
"""


def test_diffusers_options(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(COMMAND)
    for text in (COMMAND, str(script)):
        found = read_diffusers_options(text, METHODS["dreambooth"])
        config = METHODS["dreambooth"].config.model_validate(found.values)
        wanted = {
            "data": ("dog",), "instance_prompt": "a sks dog", "class_prompt": "a dog", "class_pictures": 200,
            "resolution": (512, 512), "accumulation": 4, "lr": 1e-4, "text_lr": 1e-4, "steps": 500, "rank": 4,
            "kind": "dora", "optimizer": "adamw8bit", "betas": (0.9, 0.99), "output": "dog-lora", "names": "peft",
            "sample_prompts": ("A sks dog in a bucket",), "weighting": "min-snr", "buckets": False,
            "lr_schedule": "constant",
        }  # fmt: skip
        assert {name: getattr(config, name) for name in wanted} == wanted
        assert found.left == [
            "push_to_hub: not known here",
            "report_to 'wandb': there is no such choice here",
        ]


def test_what_diffusers_leaves_unsaid_is_as_there() -> None:
    found = read_diffusers_options("--proportion_empty_prompts 0.2 --use_dora", METHODS["lora"])
    config = METHODS["lora"].config.model_validate(found.values | {"data": "x", "output": "y"})
    assert (config.rank, config.kind, config.names, config.caption_dropout) == (4, "dora", "peft", 0.2)


LCM = """
accelerate launch train_lcm_distill_{kind}_wds.py --pretrained_teacher_model=mini --output_dir=lcm --mixed_precision=no \\
  --resolution=128 --train_batch_size=2 --learning_rate=1e-4 --loss_type="huber" --adam_weight_decay=0.0 \\
  --max_train_steps=1 --train_shards_path_or_url=pictures --validation_steps=200 --checkpointing_steps=200 \\
  --w_min 3 --num_ddim_timesteps=40 --gradient_checkpointing --seed=453645634 --ema_decay=0.95
"""


@pytest.mark.parametrize("kind", ["lora_sd", "sd", "lora_sdxl"])
def test_the_scripts_of_latent_consistency(kind: str) -> None:
    """Their w is the scale less one, and without "lora" in the name they train a U-Net that sees it."""
    more = " --lora_rank=32" if "lora" in kind else " --unet_time_cond_proj_dim 256"
    found = read_diffusers_options(LCM.format(kind=kind) + more, METHODS["distill"])
    config = METHODS["distill"].config.model_validate(found.values)
    wanted: dict[str, object] = {
        "model": "mini", "data": ("pictures",), "output": "lcm", "objective": "consistency", "guidance": (4.0, 16.0),
        "solver_steps": 40, "loss": "huber", "huber_delta": 0.001, "precision": "fp32", "sample_every": 200, "steps": 1,
        "whole": "lora" not in kind, "guidance_input": "lora" not in kind, "names": "peft",
    }  # fmt: skip
    wanted |= {"rank": 32, "conv_rank": 32} if "lora" in kind else {}
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert found.left == ["ema_decay '0.95': not known here"]


def test_what_a_method_has_not_is_named() -> None:
    found = read_diffusers_options(
        "--rank 4 --placeholder_token sks --learning_rate 1", METHODS["text-to-image"]
    )
    assert found.left == [
        "rank '4': text-to-image has no rank",
        "placeholder_token 'sks': text-to-image has no token",
    ]
    assert found.values["lr"] == "1"


def test_every_translation_is_to_an_option_that_some_method_has() -> None:
    """Of each name, with a value that it takes."""
    fields = {name for method in METHODS.values() for name in method.config.model_fields}
    given = {"network_args algo": "lora", "network_module": "networks.loha", "lr_scheduler": "linear",
             "mixed_precision": "no", "optimizer_type": "AdamW", "optimizer": "AdamW",
             "loss_type": "l2", "save_precision": "fp16",
             "save_model_as": "safetensors", "log_with": "tensorboard", "report_to": "tensorboard",
             "unet_time_cond_proj_dim": "256", "timestep_scaling_factor": "10.0",
             "prediction_type": "epsilon", "learnable_property": "style", "cache_latents": "false"}  # fmt: skip
    for table in (KOHYA, DIFFUSERS):
        for name, convert in table.items():
            assert set(convert(given.get(name, "1"))) <= fields, name


def test_on_the_command_line_ours_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    assert main(["train", "lora", "--kohya", str(path), "--rank", "2", "--print-config"]) == 0
    out, err = capsys.readouterr()
    assert "\nrank = 2\n" in out and '\nkind = "loha"\n' in out
    assert (
        err == "not taken: scale_weight_norms 1.0: not known here\nnot taken: optimiser 'x': not known here\n"
    )
    line = "--train_data_dir dogs --output_dir 'my run' --rank=2"
    for given in (["--diffusers", line], [f"--diffusers={line}"]):
        assert main(["train", "lora", *given, "--steps", "3", "--print-config"]) == 0
        out = capsys.readouterr().out
        assert all(text in out for text in ('data = ["dogs"]', 'output = "my run"', "rank = 2", "steps = 3"))
    assert main(["train", "lora", "--diffusers", "rank 4", "--print-config"]) == 2
    assert "is not a file, and has no options, such as --rank 4" in capsys.readouterr().err
