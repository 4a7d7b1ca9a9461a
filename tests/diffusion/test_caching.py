from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from diffusion.caching import deep_cache
from tests.diffusion.models import random_model


def denoise(unet: nn.Module, timesteps: list[int], batch: int = 2, calls: int = 1) -> list[Tensor]:
    """Outputs of a crude sampler, a step each."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, unet.config.in_channels, 8, 8, generator=generator)
    words = torch.randn(calls, batch, 5, 12, generator=generator)
    outputs = []
    with torch.no_grad():
        for timestep in timesteps:
            predictions = []
            for call in range(calls):
                condition = (
                    {"encoder_hidden_states": words[call]} if hasattr(unet.config, "cross_attention_dim") else {}
                )
                predictions.append(unet(latents, timestep, **condition, return_dict=False)[0])
            outputs.append(torch.stack(predictions))
            latents = latents - 0.1 * sum(predictions)
    return outputs


def counted(unet: nn.Module) -> Counter[str]:
    """How often each resnet and attention really computes, counted at its first layer."""
    counts: Counter[str] = Counter()
    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda *_, name=name: counts.update([name]))
    return counts


@pytest.mark.parametrize("family", ["unet2d", "unet"])
def test_interval_1_changes_nothing(family):
    unet = random_model(family)
    whole = denoise(unet, [900, 600, 300])
    with deep_cache(unet, interval=1):
        cached = denoise(unet, [900, 600, 300])
    assert all(torch.equal(one, other) for one, other in zip(whole, cached, strict=True))


@pytest.mark.parametrize("family", ["unet2d", "unet"])
@pytest.mark.parametrize("branch", [0, 1, 2])
def test_steps_between_run_the_outer_layers_only_and_the_deepest_branch_is_nearest(family, branch):
    unet = random_model(family)
    counts = counted(unet)
    with deep_cache(unet, interval=3, branch=branch):
        denoise(unet, [900, 800, 700, 600])
    assert counts["conv_in"] == counts["conv_out"] == 4
    assert counts["up_blocks.1.resnets.1.conv1"] == 4
    assert counts["mid_block.resnets.0.conv1"] == 2
    assert counts["down_blocks.0.resnets.0.conv1"] == (4 if branch >= 1 else 2)
    assert counts["up_blocks.1.resnets.0.conv1"] == (4 if branch >= 1 else 2)
    assert counts["down_blocks.0.downsamplers.0.conv"] == (4 if branch >= 2 else 2)
    assert counts["up_blocks.0.upsamplers.0.conv"] == (4 if branch >= 2 else 2)
    assert "forward" not in vars(unet.mid_block)


def test_what_is_reused_is_the_feature_of_the_whole_step():
    unet = random_model("unet2d")
    latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = []
    unet.up_blocks[1].resnets[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad(), deep_cache(unet, interval=2, branch=0):
        unet(latents, 900)
        unet(latents + 1, 800)
    assert torch.equal(seen[0][:, :16], seen[1][:, :16])
    assert not torch.equal(seen[0][:, 16:], seen[1][:, 16:])


def test_a_new_trajectory_and_another_batch_start_with_a_whole_step():
    unet = random_model("unet2d")
    first, other = denoise(unet, [900])[0], denoise(unet, [800], batch=3)[0]
    with deep_cache(unet, interval=5):
        denoise(unet, [900, 800])
        assert torch.equal(denoise(unet, [900])[0], first)
        assert torch.equal(denoise(unet, [800], batch=3)[0], other)


def test_two_calls_a_step_keep_apart():
    unet = random_model("unet")
    seen = []
    unet.up_blocks[1].resnets[1].register_forward_pre_hook(lambda _, args: seen.append(args[0][:, :16]))
    with deep_cache(unet, interval=2):
        denoise(unet, [900, 890], calls=2)
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_bad_input():
    with pytest.raises(ValueError, match="needs a UNet"), deep_cache(random_model("dit")):
        pass
    with pytest.raises(ValueError, match="interval must be at least 1"), deep_cache(random_model("unet2d"), interval=0):
        pass
    with pytest.raises(ValueError, match="branch must be 0 to 2"), deep_cache(random_model("unet2d"), branch=3):
        pass
