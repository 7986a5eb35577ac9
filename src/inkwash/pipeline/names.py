"""Names of samplers, schedules and hints, here and elsewhere. Imports nothing that is slow."""

from typing import Literal

# the keys of annotators.ANNOTATORS, which imports torch; a test holds them together
HintKind = Literal[
    "blur", "canny", "depth", "lineart", "normal", "palette", "recolor", "scribble", "segmentation", "tile"
]
# own name -> the name that A1111 and Forge write
SAMPLER_NAMES = {
    "ddim": "DDIM",
    "ddim_cfgpp": "DDIM CFG++",
    "ddpm": "DDPM",
    "deis": "DEIS",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "dpm_adaptive": "DPM adaptive",
    "dpm_fast": "DPM fast",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "heunpp2": "HeunPP2",
    "ipndm": "IPNDM",
    "ipndm_v": "IPNDM_V",
    "lcm": "LCM",
    "lms": "LMS",
    "plms": "PLMS",
    "restart": "Restart",
    "tcd": "TCD",
    "unipc": "UniPC",
    "unipc_bh2": "UniPC bh2",
}
# samplers that add noise by an eta, and the eta that each has by default; those of the functions, which import torch
ETAS = {
    "ddim": 0.0,
    "ddim_cfgpp": 0.0,
    "dpm_2_ancestral": 1.0,
    "dpm_adaptive": 0.0,
    "dpm_fast": 0.0,
    "dpmpp_2m_sde": 1.0,
    "dpmpp_2m_sde_heun": 1.0,
    "dpmpp_2s_ancestral": 1.0,
    "dpmpp_3m_sde": 1.0,
    "dpmpp_sde": 1.0,
    "euler_ancestral": 1.0,
    "tcd": 0.3,
}
# A1111's key of it and its default, where its text says nothing: one for all of k-diffusion's samplers
A1111_ETAS = {name: ("Eta", 1.0) for name in ETAS}
A1111_ETAS |= {"ddim": ("Eta DDIM", 0.0), "ddim_cfgpp": ("Eta DDIM", 0.0), "tcd": ("Eta", ETAS["tcd"])}
SCHEDULE_NAMES = {
    "align_your_steps": "Align Your Steps",
    "align_your_steps_sdxl": "Align Your Steps SDXL",
    "automatic": "Automatic",
    "beta": "Beta",
    "ddim": "DDIM",
    "exponential": "Exponential",
    "karras": "Karras",
    "kl_optimal": "KL Optimal",
    "lcm": "LCM",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "turbo": "Turbo",
    "uniform": "Uniform",
}

# prompt language -> A1111's name of the emphasis
EMPHASES = {
    "a1111": None,
    "a1111_no_norm": "No norm",
    "a1111_ignore": "Ignore",
    "a1111_none": "None",
    "comfy": None,
    "plain": None,
}
STEP_RULES = ("a1111", "diffusers", "exact")
UPSCALER_NAMES = {
    "latent": "Latent",
    "latent_antialiased": "Latent (antialiased)",
    "latent_bicubic": "Latent (bicubic)",
    "latent_bicubic_antialiased": "Latent (bicubic antialiased)",
    "latent_nearest": "Latent (nearest)",
    "latent_nearest_exact": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
    "nearest": "Nearest",
}
UPSCALER_SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".param", ".bin")

# what InvokeAI, diffusers, Easy Diffusion and others call samplers, where no rule below gives it
OTHER_SAMPLER_NAMES = {
    "ddim": "ddim_v3",
    "dpm_2": "dpm2 kdpm_2 kdpm2discretescheduler",
    "dpm_2_ancestral": "dpm2_a kdpm_2_a kdpm2ancestraldiscretescheduler",
    "dpm_adaptive": "k_dpm_ad",
    "dpmpp_2m": "dpmsolvermultistepscheduler edmdpmsolvermultistepscheduler dpmsolver++ dpm_solver_stability",
    "dpmpp_sde": "dpmsolversdescheduler",
    "deis": "deismultistepscheduler",
    "euler": "eulerdiscretescheduler edmeulerscheduler",
    "euler_ancestral": "eulerancestraldiscretescheduler",
    "heun": "heundiscretescheduler",
    "lms": "lmsdiscretescheduler",
    "plms": "pndm pndmscheduler",
    "unipc": "uni_pc unipcmultistepscheduler",
    "unipc_bh2": "uni_pc_bh2",
}


def aliases() -> dict[str, str]:
    """Other names of samplers, as `plain` writes them: A1111's, k-diffusion's, ComfyUI's, InvokeAI's, diffusers'."""
    found = {plain(theirs): ours for ours, theirs in SAMPLER_NAMES.items()}
    for name in SAMPLER_NAMES:
        short = name.removesuffix("ncestral")  # k_euler_a
        spelled = (
            name,
            f"k_{name}",
            f"sample_{name}",
            short,
            f"k_{short}",
            f"{name}_gpu",
            f"{name}scheduler",
        )
        found |= dict.fromkeys(spelled, name)
    return found | {theirs: ours for ours, text in OTHER_SAMPLER_NAMES.items() for theirs in text.split()}


def plain(name: str) -> str:
    """A name in small letters, with underscores for blanks and dashes and without plus signs."""
    return name.strip().lower().replace("dpm++", "dpmpp").replace(" ", "_").replace("-", "_")


SAMPLER_ALIASES = aliases()
UPSCALER_ALIASES = {theirs.lower(): ours for ours, theirs in UPSCALER_NAMES.items()}
SCHEDULE_ALIASES = {plain(theirs): ours for ours, theirs in SCHEDULE_NAMES.items()}
SCHEDULE_ALIASES |= {"normal": "uniform", "ddim_uniform": "ddim", "ays": "align_your_steps"}
SUFFIXES = SCHEDULE_ALIASES | {"k": "karras"}  # of a sampler's name
# what fills a masked area: own name -> A1111's, and other names of both programs
FILL_NAMES = {"original": "original", "around": "fill", "noise": "latent noise", "nothing": "latent nothing"}
FILL_ALIASES = {theirs.replace(" ", mark): ours for ours, theirs in FILL_NAMES.items() for mark in " _"}


def resolve(sampler: str, schedule: str = "automatic") -> tuple[str, str]:
    """Own names of a sampler and a schedule: of ("DPM++ 2M Karras", "automatic") they are dpmpp_2m and karras.

    A schedule that is given stands above one that the sampler's name ends in. Unknown names stay as they are.
    """
    name, named = plain(sampler), "automatic"
    if name not in SAMPLER_ALIASES:
        for suffix, ours in SUFFIXES.items():
            if (shorter := name.removesuffix(f"_{suffix}")) != name and shorter in SAMPLER_ALIASES:
                name, named = shorter, ours
                break
    own = SCHEDULE_ALIASES.get(plain(schedule), schedule)
    return SAMPLER_ALIASES.get(name, sampler), named if own == "automatic" else own


BY_PRIOR = ("picture", "vector")  # inputs of a network that a prior can make of a prompt
