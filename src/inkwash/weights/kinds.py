"""Kinds of files by the names of their tensors. Imports no torch."""

import re
from collections.abc import Collection

# kind -> a pattern that one of a file's names has; the first that fits decides
KINDS = {
    "checkpoint": r"model\.diffusion_model\.input_blocks\.(?!.*\.lora_)",
    "controlnet-lllite": r"lllite_unet",
    "control-lora": r"lora_controlnet$",
    "controlnet-union": r"(control_model\.)?(task_embedding$|control_add_embedding\.)",
    "controlnet": r"(control_model\.)?(input_hint_block\.0\.|zero_convs\.0\.)|controlnet_cond_embedding\.",
    "style-adapter": r"style_embedding$",
    "t2i-adapter": r"(adapter\.)?body\.0\.(in_conv|resnets|block1)\.",
    "ip-adapter": r"(ip_adapter|image_proj)\.",
    "lora": r".*(lora_(up|down|mid|A|B)\.|[._]lora\.(up|down)\.|_lora\.(up|down)\.|lora_linear_layer\.|hada_w1_|lokr_w1"
    r"|(unet|text_encoder):\d+:(up|down)$|oft_(blocks|diag|r|R)(\.|$)|ia3_l(\.|$)|\.(diff|diff_b|w_norm|a1\.weight|on_input)$)",
    "embedding": r"(string_to_param\.|emb_params$|clip_[lg]$|text_encoders_[01]$|<[^>]+>$)",
    "unet": r"(input_blocks\.0\.0|down_blocks\.0\.resnets\.0\.time_emb_proj)\.",
    "vae": r"(first_stage_model\.)?(encoder\.conv_in|decoder\.conv_in)\.",
    "text-encoder": r"((text_model\.)?embeddings\.)?token_embedding\.|(transformer\.)?resblocks\.0\.",
    "image-encoder": r"(vision_model\.)?embeddings\.patch_embedding\.|visual\.conv1\.",
    "prior": r"(prior\.)?prd_embedding$",
    "t5-encoder": r"encoder\.block\.0\.layer\.0\.SelfAttention\.",
    "upscaler": r"(conv_first|model\.0|body\.1|ncnn\.0)\.weight$",
    "hed": r"block1\.(projection|layers\.conv2d)\.|(net|module)VggOne\.",
    "hypernetwork": r"\d{1,6}\.[01]\.linear",
    "tiny-vae": r"((taesd_)?(decoder|encoder)\.(layers\.)?|(?=[13]\.conv\.0\.))\d+\.",
}
# what a checkpoint has beside its U-Net
BESIDES = ("first_stage_model.", "cond_stage_model.", "conditioner.")


def kind_of(names: Collection[str]) -> str:
    """The kind of a file, one of KINDS or "unknown", by its tensors' names."""
    fitting = (kind for kind, pattern in KINDS.items() if any(re.match(pattern, name) for name in names))
    kind = next(fitting, "unknown")
    if kind == "checkpoint" and not any(name.startswith(BESIDES) for name in names):
        return "unet"
    return kind
