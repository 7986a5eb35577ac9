"""What samplers and schedules are called, here and elsewhere. Imports nothing that is slow."""

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
SCHEDULE_NAMES = {
    "align_your_steps": "Align Your Steps",
    "align_your_steps_sdxl": "Align Your Steps SDXL",
    "automatic": "Automatic",
    "beta": "Beta",
    "ddim": "DDIM",
    "exponential": "Exponential",
    "karras": "Karras",
    "kl_optimal": "KL Optimal",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "turbo": "Turbo",
    "uniform": "Uniform",
}

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


def aliases() -> dict[str, str]:
    """Other names of samplers, in small letters: A1111's, k-diffusion's and ComfyUI's."""
    found = {theirs.lower(): ours for ours, theirs in SAMPLER_NAMES.items()}
    for name in SAMPLER_NAMES:
        short = name.removesuffix("ncestral")  # k_euler_a
        found |= dict.fromkeys((name, f"k_{name}", f"sample_{name}", f"k_{short}", f"{name}_gpu"), name)
    return found | {"uni_pc": "unipc", "uni_pc_bh2": "unipc_bh2", "k_dpm_ad": "dpm_adaptive"}


SAMPLER_ALIASES = aliases()
UPSCALER_ALIASES = {theirs.lower(): ours for ours, theirs in UPSCALER_NAMES.items()}
SCHEDULE_ALIASES = {theirs.lower(): ours for ours, theirs in SCHEDULE_NAMES.items()}
SCHEDULE_ALIASES |= {name: name for name in SCHEDULE_NAMES} | {"normal": "uniform", "ddim_uniform": "ddim"}


def resolve(sampler: str, schedule: str = "automatic") -> tuple[str, str]:
    """Own names of a sampler and a schedule: of ("DPM++ 2M Karras", "automatic") they are dpmpp_2m and karras.

    A schedule that is given stands above one that the sampler's name ends in. What is not known stays.
    """
    name, named = sampler.strip().lower(), "automatic"
    for suffix, ours in SCHEDULE_ALIASES.items():
        if name not in SAMPLER_ALIASES and name.endswith((f" {suffix}", f"_{suffix}")):
            name, named = name[: -len(suffix) - 1], ours
    if name not in SAMPLER_ALIASES:
        name, named = sampler, "automatic"
    own = SCHEDULE_ALIASES.get(schedule.strip().lower(), schedule)
    return SAMPLER_ALIASES.get(name, name), named if own == "automatic" else own
