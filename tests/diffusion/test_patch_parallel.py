from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion.patch_parallel import Staleness, Traffic, patch_parallel
from diffusion.patch_parallel.exchange import Exchange
from diffusion.patch_parallel.layers import Patch, group_norm
from diffusion.patch_parallel.parallel import _check_call, _transformer_forwards, _unet_forwards
from diffusion.steps import StepCounter
from tests.diffusion.models import random_model
from tests.diffusion.patch_workers import KINDS, STEPS, models, trajectory, work

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What two processes found."""
    folder = tmp_path_factory.mktemp("patches")
    mp.spawn(work, args=(2, str(folder)), nprocs=2)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


def bytes_of(found: Mapping[str, Tensor], name: str, kind: str = "attention") -> tuple[int, int]:
    """Waited for, and overlapped."""
    index = KINDS.index(kind)
    return int(found[f"{name} waited"][index].sum()), int(found[f"{name} overlapped"][index].sum())


def error(found: Mapping[str, Tensor], key: str, steps: int = STEPS) -> float:
    name = key.split()[0]
    return float((found[key] - trajectory(*models()[name], steps)).abs().max())


@pytest.mark.parametrize("name", list(models()))
def test_all_steps_synchronous_is_one_process(ranks, name):
    assert error(ranks[0], f"{name} synchronous", steps=1) < 1e-5
    assert error(ranks[0], "dit untouched") == 0


def test_all_ranks_get_the_same_prediction(ranks):
    for key, value in ranks[0].items():
        if not key.endswith(("waited", "overlapped")):
            assert torch.equal(value, ranks[1][key]), key


def test_the_error_falls_with_the_warmup_and_the_traffic_stays(ranks):
    errors = [error(ranks[0], f"dit warmup {warmup}") for warmup in range(1, STEPS + 1)]
    assert errors[0] > errors[1] > 1e-4 and errors[-1] < 1e-5
    assert error(ranks[0], "unet displaced", steps=2) > 1e-4
    # Two layers; the other patch's 8 tokens of 32 features for 2 samples, as keys and as values, float32.
    each = 2 * 2 * 8 * 32 * 2 * 4
    for warmup in range(1, STEPS + 1):
        assert bytes_of(ranks[0], f"dit warmup {warmup}") == (warmup * each, (STEPS - warmup) * each)


def test_a_new_trajectory_warms_up_again(ranks):
    assert torch.equal(ranks[0]["dit again"], ranks[0]["dit warmup 2"])


def test_partial_context_sends_its_share_and_all_of_it_is_the_whole_of_two_patches(ranks):
    whole = bytes_of(ranks[0], "dit warmup 1")
    for context in (0.0, 0.25, 0.5, 1.0):
        assert bytes_of(ranks[0], f"dit context {context}") == (whole[0], context * whole[1])
    assert torch.equal(ranks[0]["dit context 1.0"], ranks[0]["dit warmup 1"])
    assert not torch.equal(ranks[0]["dit context 0.0"], ranks[0]["dit context 0.5"])


def test_what_travels_in_a_unet(ranks):
    waited, overlapped = ranks[0]["unet displaced waited"], ranks[0]["unet displaced overlapped"]
    moving = [KINDS.index(kind) for kind in ("halo", "attention", "group_norm")]
    assert torch.equal(waited[moving, 0], overlapped[moving, 1])
    assert int(waited[moving, 1].sum()) == int(overlapped[moving, 0].sum()) == 0
    output = KINDS.index("output")
    assert waited[output].tolist() == [2 * 4 * 4 * 8 * 4] * 2


def test_one_rank_changes_nothing_bit_for_bit():
    family, model = models()["unet"]
    whole = trajectory(family, model)
    with patch_parallel(model, Staleness(warmup=1, context=0.0)) as traffic:
        assert torch.equal(trajectory(family, model), whole)
    assert traffic.total() == 0


class TwoRanks:
    """Stands in for the exchange of rank 0 of two: hands out what the other is made to have sent."""

    def __init__(self, replies: list[Tensor]) -> None:
        self.rank, self.ranks, self.others = 0, 2, [1]
        self.replies = iter(replies)

    def displaced(self, *_: object) -> dict[int, Tensor]:
        return {1: next(self.replies)}


def moments(x: Tensor) -> Tensor:
    grouped = x.reshape(len(x), 2, -1).double()
    return torch.stack([grouped.mean(2), grouped.square().mean(2)])


@pytest.mark.parametrize("mode", ["corrected", "stale", "local"])
def test_group_norm_statistics_between_synchronous_steps(mode):
    generator = torch.Generator().manual_seed(0)
    old, new, other = (torch.randn(3, 4, 5, 6, generator=generator) for _ in range(3))
    norm = nn.GroupNorm(2, 4).eval()
    nn.init.normal_(norm.weight, generator=generator)
    patch = Patch(TwoRanks([moments(other)] * 2), 1, None, mode)  # type: ignore[arg-type]
    forward = group_norm(patch, "norm", norm)
    with torch.no_grad():
        patch.counter.advance((None, 900), {})
        first = forward(old)
        patch.counter.advance((None, 800), {})
        second = forward(new)
        whole = norm(torch.cat([old, other], dim=2))[:, :, :5]
        torch.testing.assert_close(first, whole)
        if mode == "local":
            assert torch.equal(second, norm(new))
            return
        if mode == "stale":
            used = (moments(new) + moments(other)) / 2
        else:
            used = (moments(old) + moments(other)) / 2 + moments(new) - moments(old)
        variance = used[1] - used[0] ** 2
        variance = torch.where(variance < 0, (moments(new)[1] - moments(new)[0] ** 2), variance)
        grouped = new.reshape(3, 2, -1)
        normed = (grouped - used[0][..., None]) / (variance + norm.eps)[..., None].sqrt()
        expected = normed.reshape(new.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]
        torch.testing.assert_close(second, expected.float())


def test_steps_are_counted_from_time_steps():
    counter, places = StepCounter(), []
    for timestep in (900, 900, torch.tensor(600), torch.tensor([300, 300]), 900.0):
        counter.advance((None, timestep), {})
        places.append((counter.step, counter.call))
    assert places == [(0, 0), (0, 1), (1, 0), (2, 0), (0, 0)]
    with pytest.raises(ValueError, match="without a timestep"):
        counter.advance((None,), {})


def test_bad_settings_and_inputs():
    with pytest.raises(ValueError, match="warmup must be at least 1"):
        Staleness(warmup=0)
    with pytest.raises(ValueError, match="context must be 0 to 1"):
        Staleness(context=1.5)
    with pytest.raises(ValueError, match="with warmup=None there are none"):
        Staleness(warmup=None, context=0.5)
    with pytest.raises(ValueError, match="group_norm must be one of"):
        Staleness(group_norm="batch")  # type: ignore[arg-type]
    with torch.no_grad(), pytest.raises(ValueError, match=r"8 rows of latents do not divide over 3 ranks.* of 6"):
        _check_call((torch.zeros(1, 4, 8, 8),), {}, 3, 2)
    with torch.no_grad(), pytest.raises(ValueError, match="needs latents"):
        _check_call((torch.zeros(1, 16, 4),), {}, 2, 1)
    with pytest.raises(ValueError, match="not gradients"):
        _check_call((torch.zeros(1, 4, 8, 8),), {}, 2, 1)


def test_networks_that_it_does_not_know():
    patch = SimpleNamespace()
    with pytest.raises(ValueError, match="neither a UNet"):
        _transformer_forwards(patch, random_model("flux"))  # type: ignore[arg-type]
    unet = random_model("unet2d")
    unet.conv_in.padding_mode = "reflect"
    with pytest.raises(ValueError, match="conv_in: only zero padding"):
        _unet_forwards(patch, unet)  # type: ignore[arg-type]


def test_without_a_process_group_a_process_is_alone():
    exchange = Exchange()
    assert (exchange.rank, exchange.ranks, exchange.others) == (0, 1, [])
    traffic = Traffic()
    traffic.begin()
    traffic.add("halo", 3, waited=True)
    traffic.add("output", 4, waited=False)
    assert (traffic.total(), traffic.total(["halo"])) == (7, 3)
