from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from diffusion.token_merging import grid_destinations, match_tokens, token_merging
from tests.contracts import assert_deterministic
from tests.diffusion.models import random_model


def with_two_grids() -> nn.Module:
    """A UNet with attention at both of its resolutions."""
    return random_model(
        "unet",
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def tokens(batch: int = 2, count: int = 16, width: int = 6) -> torch.Tensor:
    return torch.randn(batch, count, width, generator=torch.Generator().manual_seed(0))


def run(model: nn.Module, height: int = 8, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, model.config.in_channels, height, width, generator=generator)
    condition = {"class_labels": torch.tensor([1, 2])}
    if model.config.get("cross_attention_dim"):
        condition = {"encoder_hidden_states": torch.randn(2, 5, 12, generator=generator)}
    if "caption_channels" in model.config:
        condition |= {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    with torch.no_grad():
        return model(latents, timestep=torch.tensor([500, 500]), **condition).sample


def test_one_destination_a_cell():
    assert grid_destinations(4, 4).tolist() == [0, 2, 8, 10]
    assert grid_destinations(3, 3).tolist() == [0, 2, 6, 8]
    drawn = grid_destinations(5, 4, generator=torch.Generator().manual_seed(0))
    cells = {(int(index) // 4 // 2, int(index) % 4 // 2) for index in drawn}
    assert len(cells) == 6 and int(drawn.max()) < 20


def test_nothing_merged_is_the_identity():
    x = tokens()
    merge = match_tokens(x, grid_destinations(4, 4), 0)
    assert torch.equal(merge.unmerge(merge.merge(x)), x)


@pytest.mark.parametrize("count", [1, 5, 12])
def test_merged_tokens_are_the_mean_of_the_alike_and_come_back_as_copies(count):
    x = tokens()
    merge = match_tokens(x, grid_destinations(4, 4), count)
    assert merge.merge(x).shape == (2, 16 - count, 6)
    back = merge.unmerge(merge.merge(x))
    for sample in range(2):
        for number, destination in enumerate([0, 2, 8, 10]):
            alike = merge.merged[sample][merge.into[sample] == number].tolist()
            mean = x[sample, [destination, *alike]].mean(dim=0)
            for token in [destination, *alike]:
                torch.testing.assert_close(back[sample, token], mean)
        stayed = merge.kept[sample]
        assert torch.equal(back[sample, stayed], x[sample, stayed])


def test_tokens_that_are_equal_merge_first_and_lose_nothing():
    x = tokens()
    x[:, [1, 4, 5]] = 3 * x[:, :1]
    x[:, [3, 6, 7]] = x[:, 2:3]
    merge = match_tokens(x, grid_destinations(4, 4), 6)
    assert set(merge.merged[0].tolist()) == {1, 3, 4, 5, 6, 7}


@pytest.mark.parametrize("build", [partial(random_model, "dit"), partial(random_model, "pixart"), with_two_grids])
def test_ratio_0_changes_nothing_and_larger_ones_change_more(build):
    model = build()
    dense = run(model)
    errors = []
    for ratio in (0.0, 0.25, 0.75):
        with token_merging(model, ratio):
            errors.append(float((run(model) - dense).norm()))
    assert errors[0] == 0 < errors[1] < errors[2]
    assert torch.equal(run(model), dense)


def test_only_fine_grids_of_self_attention_are_merged():
    model = with_two_grids()
    seen: dict[str, set[int]] = {}
    for name, module in model.named_modules():
        if name.endswith("to_k"):
            module.register_forward_hook(lambda _, args, out, name=name: seen.setdefault(name, set()).add(out.shape[1]))
    with token_merging(model, 0.5):
        run(model)
    fine = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"
    coarse = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
    cross = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    assert (seen[fine], seen[coarse], seen[cross]) == ({32}, {16}, {5})
    with token_merging(model, 0.5, max_downsample=2):
        run(model, height=16)
    assert seen[fine] == {32, 64} and seen[coarse] == {16}


def test_networks_that_attend_to_coarse_grids_alone_are_merged_too():
    model = random_model(
        "unet",
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    dense = run(model)
    with token_merging(model, 0.5):
        assert not torch.equal(run(model), dense)


def test_random_destinations_are_those_of_the_seed():
    model = random_model("dit")

    def merged(seed: int) -> torch.Tensor:
        with token_merging(model, 0.5, seed=seed):
            return run(model)

    first = assert_deterministic(lambda: merged(0))
    assert not torch.equal(first, merged(1))


def test_bad_input():
    with pytest.raises(ValueError, match=r"ratio must be 0 to 0\.75"), token_merging(random_model("dit"), 0.8):
        pass
    with pytest.raises(ValueError, match="no self-attention called attn1"), token_merging(nn.Linear(2, 2)):
        pass
