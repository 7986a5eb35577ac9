"""The first stages of latent diffusion as values, from its `models/first_stage_models/*/config.yaml`.

Figures are reconstruction FID and PSNR on ImageNet's validation pictures (Rombach et al. 2022, table 8).
"""

from dataclasses import replace

from inkwash.models.autoencoder import AutoencoderConfig

KL_F8 = AutoencoderConfig()  # 0.90, 24.19; the one of Stable Diffusion 1 was trained on from it
KL_F4 = replace(KL_F8, channel_mult=(1, 2, 4), latent_channels=3)  # 0.27, 27.53
KL_F16 = replace(KL_F8, channel_mult=(1, 1, 2, 2, 4), latent_channels=16, attention=(4,))  # 0.87, 24.08
KL_F32 = replace(KL_F8, channel_mult=(1, 1, 2, 2, 4, 4), latent_channels=64, attention=(4, 5))  # 2.04, 22.27

VQ_F4 = AutoencoderConfig(  # 0.58, 27.43
    channel_mult=(1, 2, 4),
    latent_channels=3,
    codebook_size=8192,
    scale_factor=1.0,  # codes are never scaled
)
VQ_F2 = replace(VQ_F4, channel_mult=(1, 2))  # of pictures of 64 pixels, from the same repository; no figures
VQ_F4_NOATTN = replace(VQ_F4, middle_attention=False)
VQ_F8 = replace(  # 1.14, 23.07
    VQ_F4, channel_mult=(1, 2, 2, 4), latent_channels=4, codebook_size=16384, attention=(3,)
)
VQ_F8_N256 = replace(VQ_F8, codebook_size=256)  # 1.49
VQ_F16 = replace(VQ_F8, channel_mult=(1, 1, 2, 2, 4), latent_channels=8, attention=(4,))  # 5.15, 20.83

FIRST_STAGES = {
    "kl-f4": KL_F4,
    "kl-f8": KL_F8,
    "kl-f16": KL_F16,
    "kl-f32": KL_F32,
    "vq-f2": VQ_F2,
    "vq-f4": VQ_F4,
    "vq-f4-noattn": VQ_F4_NOATTN,
    "vq-f8": VQ_F8,
    "vq-f8-n256": VQ_F8_N256,
    "vq-f16": VQ_F16,
}
