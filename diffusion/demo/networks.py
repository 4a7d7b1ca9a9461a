"""The demo models before training: small networks of diffusers' own classes, and the scheduler of all of them."""

from __future__ import annotations

from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel

DIGIT_CLASSES = 10
FASHION_CLASSES = 10
PROMPT_WIDTH = 384
"""Of the sentence encoder's states."""


def scheduler() -> DDIMScheduler:
    """1,000 time steps of cosine noise (Nichol and Dhariwal, arXiv 2102.09672), prediction of v, trailing steps.

    The first step of sampling is then the one of most noise (Lin et al., arXiv 2305.08891, section 3.3).
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=True,
    )


def digits_unet() -> UNet2DModel:
    """8x8 pixels, two stages of which the inner has attention, classes by an embedding added to that of time."""
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=DIGIT_CLASSES + 1,
    )


def digits_dit() -> DiTTransformer2DModel:
    """8x8 pixels in 16 tokens of width 96, 6 layers of 6 heads."""
    return DiTTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=1,
        out_channels=1,
        num_layers=6,
        num_attention_heads=6,
        attention_head_dim=16,
        num_embeds_ada_norm=DIGIT_CLASSES,
    )


def fashion_unet() -> UNet2DConditionModel:
    """28x28 pixels, three stages of which the inner two attend to themselves and to the prompt's tokens."""
    return UNet2DConditionModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(4, 4, 6),  # diffusers' name for the number of heads of each stage
        cross_attention_dim=PROMPT_WIDTH,
        norm_num_groups=8,
    )


def fashion_dit() -> DiTTransformer2DModel:
    """28x28 pixels in 49 tokens of width 128, 6 layers of 8 heads."""
    return DiTTransformer2DModel(
        sample_size=28,
        patch_size=4,
        in_channels=1,
        out_channels=1,
        num_layers=6,
        num_attention_heads=8,
        attention_head_dim=16,
        num_embeds_ada_norm=FASHION_CLASSES,
    )
