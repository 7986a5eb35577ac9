"""The nodes that graphs may have: ComfyUI's own, and those by which Krita's plugin sends and takes pictures."""

from PIL.Image import Resampling

OUTPUTS = ("SaveImage", "PreviewImage")  # by files
SENT = ("ETN_SendImageWebSocket", "ETN_SaveImageCache")  # by the socket, or by an id of the tooling nodes
# class -> its inputs that are needed, in ComfyUI's order
NODES: dict[str, tuple[str, ...]] = {
    "CheckpointLoaderSimple": ("ckpt_name",),
    "unCLIPCheckpointLoader": ("ckpt_name",),
    "ModelSamplingDiscrete": ("model", "sampling", "zsnr"),
    "LoraLoader": ("model", "clip", "lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("model", "lora_name", "strength_model"),
    "CLIPSetLastLayer": ("clip", "stop_at_clip_layer"),
    "CLIPTextEncode": ("text", "clip"),
    "CLIPTextEncodeSDXL": (
        "width", "height", "crop_w", "crop_h", "target_width", "target_height", "text_g", "text_l", "clip",
    ),
    "CLIPTextEncodeSDXLRefiner": ("ascore", "width", "height", "text", "clip"),
    "CLIPVisionLoader": ("clip_name",),
    "CLIPVisionEncode": ("clip_vision", "image", "crop"),
    "unCLIPConditioning": ("conditioning", "clip_vision_output", "strength", "noise_augmentation"),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "KSampler": (
        "model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image", "denoise",
    ),
    "KSamplerAdvanced": (
        "model", "add_noise", "noise_seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative",
        "latent_image", "start_at_step", "end_at_step", "return_with_leftover_noise",
    ),
    "SamplerCustom": (
        "model", "add_noise", "noise_seed", "cfg", "positive", "negative", "sampler", "sigmas", "latent_image",
    ),
    "ControlNetLoader": ("control_net_name",),
    "SetUnionControlNetType": ("control_net", "type"),
    "ControlNetApply": ("conditioning", "control_net", "image", "strength"),
    "ControlNetApplyAdvanced": (
        "positive", "negative", "control_net", "image", "strength", "start_percent", "end_percent",
    ),
    "LatentUpscale": ("samples", "upscale_method", "width", "height"),
    "LatentUpscaleBy": ("samples", "upscale_method", "scale_by"),
    "LoadImage": ("image",),
    "LoadImageMask": ("image", "channel"),
    "InvertMask": ("mask",),
    "ImageScale": ("image", "upscale_method", "width", "height"),
    "UpscaleModelLoader": ("model_name",),
    "ImageUpscaleWithModel": ("upscale_model", "image"),
    "VAEDecode": ("samples", "vae"),
    "VAEDecodeTiled": ("samples", "vae"),
    "VAEEncode": ("pixels", "vae"),
    "VAEEncodeTiled": ("pixels", "vae"),
    "VAEEncodeForInpaint": ("pixels", "vae", "mask"),
    "SetLatentNoiseMask": ("samples", "mask"),
    "SamplerCustomAdvanced": ("noise", "guider", "sampler", "sigmas", "latent_image"),
    "RandomNoise": ("noise_seed",),
    "CFGGuider": ("model", "positive", "negative", "cfg"),
    "BasicGuider": ("model", "conditioning"),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("model", "scheduler", "steps", "denoise"),
    "KarrasScheduler": ("steps", "sigma_max", "sigma_min", "rho"),
    "ExponentialScheduler": ("steps", "sigma_max", "sigma_min"),
    "PolyexponentialScheduler": ("steps", "sigma_max", "sigma_min", "rho"),
    "SDTurboScheduler": ("model", "steps", "denoise"),
    "BetaSamplingScheduler": ("model", "steps", "alpha", "beta"),
    "ManualSigmas": ("sigmas",),
    "SplitSigmas": ("sigmas", "step"),
    "SplitSigmasDenoise": ("sigmas", "denoise"),
    "RepeatLatentBatch": ("samples", "amount"),
    "ImageCrop": ("image", "x", "y", "width", "height"),
    "CropMask": ("mask", "x", "y", "width", "height"),
    "ThresholdMask": ("mask", "value"),
    "MaskToImage": ("mask",),
    "ImageToMask": ("image", "channel"),
    "DifferentialDiffusion": ("model",),
    "INPAINT_MaskedFill": ("image", "mask", "fill", "falloff"),
    "INPAINT_MaskedBlur": ("image", "mask", "blur", "falloff"),
    "INPAINT_ExpandMask": ("mask", "grow", "blur"),
    "INPAINT_ShrinkMask": ("mask", "shrink", "blur"),
    "INPAINT_StabilizeMask": ("mask", "epsilon"),
    "INPAINT_DenoiseToCompositingMask": ("mask", "offset", "threshold"),
    "INPAINT_VAEEncodeInpaintConditioning": ("positive", "negative", "vae", "pixels", "mask"),
    "ETN_TileLayout": ("image", "min_tile_size", "padding", "blending"),
    "ETN_ExtractImageTile": ("image", "layout", "index"),
    "ETN_ExtractMaskTile": ("mask", "layout", "index"),
    "ETN_GenerateTileMask": ("layout", "index"),
    "ETN_MergeImageTile": ("image", "layout", "index", "tile"),
    "ETN_LoadImageBase64": ("image",),
    "ETN_LoadMaskBase64": ("mask",),
    "ETN_LoadImageCache": ("id",),
    "ETN_CropImage": ("image", "x", "y", "width", "height"),
    "ETN_ApplyMaskToImage": ("image", "mask"),
    "ETN_SendImageWebSocket": ("images", "format"),
    "ETN_SaveImageCache": ("images", "format"),
    "SaveImage": ("images",),
    "PreviewImage": ("images",),
}  # fmt: skip
# nodes that are known, and what they would need
MISSING = {
    "INPAINT_LoadInpaintModel": "LaMa or MAT",
    "INPAINT_InpaintWithModel": "LaMa or MAT",
    "INPAINT_LoadFooocusInpaint": "Fooocus' inpaint patch of SDXL",
    "INPAINT_ApplyFooocusInpaint": "Fooocus' inpaint patch of SDXL",
    "INPAINT_ColorMatch": "matching of colours",
}
MOST_CONTROLS = 16
MOST_SIDE = 8192  # pixels
INPAINTING = "INPAINT_VAEEncodeInpaintConditioning"  # gives both prompts, and latents with a mask
MASKED = ("SetLatentNoiseMask", "VAEEncodeForInpaint", INPAINTING)  # give latents of which a part is drawn
ENCODERS = ("VAEEncode", "VAEEncodeTiled")
PROMPTS = ("CLIPTextEncode", "CLIPTextEncodeSDXL", "CLIPTextEncodeSDXLRefiner")
LOADED = ("CheckpointLoaderSimple", "unCLIPCheckpointLoader")
PASSED = ("DifferentialDiffusion", "ModelSamplingDiscrete")  # change how a model is sampled
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
LEVELS = (  # give noise levels
    "BasicScheduler", "KarrasScheduler", "ExponentialScheduler", "PolyexponentialScheduler", "SDTurboScheduler",
    "BetaSamplingScheduler", "ManualSigmas",
)  # fmt: skip
SAMPLINGS = {"eps": "eps", "v_prediction": "v", "x0": "x0", "lcm": "lcm"}  # ComfyUI's -> ours
UNCLIP = "unCLIPConditioning"  # gives a prompt with a picture's vector beside it
MERGE = "ETN_MergeImageTile"
ENLARGING = "ImageUpscaleWithModel"
# what may come between the decoded picture and what is sent: class -> the input that leads back
AFTER = {
    "ImageScale": "image",
    "ImageCrop": "image",
    "ETN_CropImage": "image",
    "ETN_ApplyMaskToImage": "image",
    MERGE: "tile",
}
UNION_TYPES = {  # ComfyUI's -> ours
    "auto": "auto",
    "openpose": "pose",
    "depth": "depth",
    "hed/pidi/scribble/ted": "soft",
    "canny/lineart/anime_lineart/mlsd": "line",
    "normal": "normal",
    "segment": "segmentation",
    "tile": "tile",
    "repaint": "inpaint",
}
PIXEL_UPSCALERS = {"lanczos": "lanczos", "nearest-exact": "nearest"}
UPSCALERS = {"bilinear": "latent", "nearest-exact": "latent_nearest_exact", "bicubic": "latent_bicubic"}
# how pictures come into a graph: class -> as a name, as base64, or by an id, and the input that has it
LOADERS = {
    "LoadImage": ("name", "image"),
    "LoadImageMask": ("name", "image"),
    "ETN_LoadImageBase64": ("base64", "image"),
    "ETN_LoadMaskBase64": ("base64", "mask"),
    "ETN_LoadImageCache": ("id", "id"),
}
METHODS = {
    "nearest-exact": Resampling.NEAREST,
    "bilinear": Resampling.BILINEAR,
    "area": Resampling.BOX,
    "lanczos": Resampling.LANCZOS,
}
