"""The router of APTP: where its gates act, what it sends where, and what it is trained on."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.aptp.captions import EMBEDDINGS, Captioned
from diffusion.aptp.layout import Layout, layout_of
from diffusion.aptp.losses import LossWeights, contrastive_loss, headroom_loss, resource_loss, spread_loss
from diffusion.aptp.router import Router
from diffusion.units import prunable
from secateur.surgery import Network
from secateur.surgery.cost import count_macs
from secateur.surgery.soft_cost import soft_macs
from secateur.training import generator_at
from tests.contracts import assert_mask_equals_cut, assert_same
from tests.diffusion.models import inputs, random_model, run
from tests.diffusion.routing import captioned, reaching

KINDS: dict[str, Any] = {
    "unet": ("heads", "neurons", "channels", "resnets", "stacks"),
    "dit": ("heads", "neurons", "transformer_blocks"),
}


def network(family: str = "unet") -> Network:
    return prunable(random_model(family), KINDS[family], inputs(family))


def router(family: str = "unet", codes: int = 3, **options: Any) -> Router:
    return Router(layout_of(network(family)), 6, codes, **options)


def embeddings(count: int, width: int = 6, seed: int = 0) -> Tensor:
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


@pytest.mark.parametrize("family", KINDS)
def test_gates_act_on_every_group_and_open_ones_change_nothing(family: str) -> None:
    target = network(family)
    layout = layout_of(target, gates=4)
    masks = layout.masks(torch.ones(len(layout)))
    assert {name: len(mask) for name, mask in masks.items()} == {g.name: g.size for g in target.groups()}
    assert all(width.gates == min(4, width.size) for width in layout.widths)
    before = run(family)(target)
    with target.masked(masks):
        assert_same(before, run(family)(target))


def test_a_gate_opens_a_run_of_neighbouring_units() -> None:
    layout = layout_of(reaching(), gates=4)
    masks = layout.masks(torch.tensor([1.0, 0.0, 0.5, 1.0]))
    assert_same(masks["hidden"], torch.tensor([1.0, 0.0, 0.5, 1.0]).repeat_interleave(4))


def test_blocks_go_from_the_middle_outwards() -> None:
    blocks = [depth.group for depth in layout_of(network()).depths]
    assert {"down_blocks.0.resnets.0", "up_blocks.1.attentions.1"} == set(blocks[:2])
    assert blocks[-1].startswith("mid_block") or blocks[-2].startswith("mid_block")
    layers = [depth.group for depth in layout_of(network("dit")).depths]
    assert layers == ["transformer_blocks.0", "transformer_blocks.1"]


def test_architectures_are_alike_where_blocks_that_hold_the_difference_are_gone() -> None:
    layout = layout_of(network())
    held = next(index for index, width in enumerate(layout.widths) if width.blocks)
    gates = torch.ones(2, len(layout))
    gates[1, sum(layout.sizes[:held])] = 0
    assert not torch.equal(*layout.features(gates))
    gates[:, len(layout) - len(layout.depths) + layout.widths[held].blocks[0]] = 0
    assert_same(*layout.features(gates))


def test_a_layout_is_kept_as_json_holds_it() -> None:
    layout = layout_of(network())
    assert Layout.from_fields(layout.to_fields()) == layout


def test_networks_without_what_gates_need_are_refused() -> None:
    with pytest.raises(ValueError, match="example inputs"):
        layout_of(prunable(random_model("unet"), ("heads",)))
    with pytest.raises(ValueError, match="blocks alone"):
        layout_of(prunable(random_model("unet"), ("resnets",), inputs("unet")))
    with pytest.raises(ValueError, match="another network"):
        router("dit").layout.check_fits(network("unet"))


def test_before_training_everything_is_open() -> None:
    for family in KINDS:
        made = router(family)
        assert all(bool(mask.all()) for mask in made.keep(0).values())


def test_in_every_draw_the_first_blocks_stay_and_layers_keep_a_gate() -> None:
    made = router()
    torch.manual_seed(0)
    vectors = torch.cat([4 * torch.randn(50, len(made.layout)) - 3, torch.full((1, len(made.layout)), -99.0)])
    hard = made.hard(made.gates(vectors, made.noise(len(vectors))))
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    parts = hard.split(made.layout.sizes, dim=1)
    assert all(bool((part.sum(1) >= 1).all()) for part in parts[:-1])
    assert bool((parts[-1][:, :-1] >= parts[-1][:, 1:]).all())
    assert len(parts[-1].sum(1).unique()) > 2


def test_hard_gates_have_the_gradient_of_soft_ones() -> None:
    made = router()
    vectors = torch.full((1, len(made.layout)), -3.0, requires_grad=True)
    hard, soft = (
        torch.autograd.grad(make(made.gates(vectors)).sum(), vectors)[0] for make in (made.hard, lambda gates: gates)
    )
    assert_same(hard, soft)
    assert bool((hard[:, : -len(made.layout.depths)] > 0).all())


@pytest.mark.parametrize("family", KINDS)
def test_an_experts_cut_equals_its_gates_and_costs_what_they_say(family: str) -> None:
    target, made = network(family), router(family)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        made.codes.copy_(4 * torch.randn(made.codes.shape, generator=generator) - 3)
        made.codes[:, -len(made.layout.depths) :].mul_(0.5)
    for code in range(3):
        keep = made.keep(code)
        assert_mask_equals_cut(target, keep, run(family), rtol=1e-4, atol=1e-4)
        counted = soft_macs(target, {name: mask.double() for name, mask in keep.items()})
        assert round(float(counted)) == count_macs(target.cut(keep).module, inputs(family))
    assert len({str(made.keep(code)) for code in range(3)}) == 3


def test_a_batch_is_spread_over_all_codes() -> None:
    made = router(codes=4)
    with torch.no_grad():
        made.codes[1:] -= 6
    prompts = embeddings(64)
    nearest, spread = (torch.bincount(found, minlength=4) for found in (made.route(prompts), made.assign(prompts)))
    assert int(nearest.max()) > 60
    assert int(spread.min()) >= 3 and int(spread.max()) <= 36


def test_prices_route_as_the_assignment_does_and_every_prompt_by_itself() -> None:
    made = router(codes=4)
    with torch.no_grad():
        made.codes[1:] -= 6
    prompts = embeddings(64)
    made.balance(prompts, torch.ones(64, dtype=torch.int64))
    routed = made.route(prompts)
    assert int(torch.bincount(routed, minlength=4).min()) >= 3
    assert float((routed == made.assign(prompts, iterations=1000)).float().mean()) == 1
    assert_same(routed[[5, 9]], made.route(prompts[[5, 9]]))
    assert_same(routed.flip(0), made.route(prompts.flip(0)))


def test_one_code_is_static_pruning() -> None:
    made, prompts = router(codes=1), embeddings(5)
    made.balance(prompts, torch.ones(5, dtype=torch.int64))
    for chosen in (made.assign(prompts), made.route(prompts)):
        assert_same(chosen, torch.zeros(5, dtype=torch.int64))


def test_some_codes_alone_route_as_before() -> None:
    made, prompts = router(codes=4, seed=2), embeddings(30)
    routed = made.route(prompts)
    used = routed.unique()
    fewer = made.only(used.tolist())
    assert_same(used[fewer.route(prompts)], routed)
    assert_same(fewer.keep(0), made.keep(int(used[0])))


def test_prompts_that_the_router_cannot_read_are_refused() -> None:
    made = router()
    for wrong in (torch.zeros(0, 6), torch.zeros(6)):
        with pytest.raises(ValueError, match="at least one prompt"):
            made.route(wrong)
    with pytest.raises(ValueError, match="width 6, these have 7: they come from another encoder"):
        made.route(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="at least 1"):
        router(codes=0)


def test_the_cost_is_drawn_to_the_goal() -> None:
    assert float(resource_loss(torch.tensor([0.4, 0.8]), 0.6)) == pytest.approx(0, abs=1e-6)
    for ratio in (0.3, 1.2):
        assert float(resource_loss(torch.tensor([ratio]), 0.6)) == pytest.approx(math.log(2), abs=1e-6)
    target, made = network(), router(codes=1)
    assert target.usage is not None
    optimizer = torch.optim.Adam([made.codes], 0.1)
    torch.manual_seed(0)
    ratios = []
    for _ in range(80):
        (gates,) = made.hard(made.gates(made.codes, made.noise(1)))
        ratio = soft_macs(target, made.layout.masks(gates)) / target.usage.macs
        optimizer.zero_grad()
        resource_loss(ratio[None], 0.6).backward()
        optimizer.step()
        ratios.append(float(ratio.detach()))
    assert ratios[0] > 0.9 and sum(ratios[-30:]) / 30 == pytest.approx(0.6, abs=0.08)


def test_similar_prompts_come_to_similar_architectures() -> None:
    prompts = captioned().embeddings
    vectors = torch.randn(8, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.Adam([vectors], 0.05)
    losses = []
    for _ in range(150):
        loss = contrastive_loss(prompts, vectors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    found = torch.nn.functional.normalize(vectors.detach(), dim=1)
    alike = found @ found.T
    assert losses[-1] < losses[0]
    assert float(alike[:4, :4].min()) > float(alike[:4, 4:].max()) + 0.05
    same = contrastive_loss(prompts, prompts)
    assert float(same) <= min(float(contrastive_loss(prompts, embeddings(8, seed=seed))) for seed in range(5))


def test_equal_costs_have_finite_gradients_and_unequal_ones_less_loss() -> None:
    ratios = torch.full((4,), 0.6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(spread_loss(ratios) + headroom_loss(ratios), ratios)
    assert bool(gradient.isfinite().all())
    apart = torch.tensor([0.2, 1.0, 0.2, 1.0])
    assert float(spread_loss(apart)) == pytest.approx(-0.4)
    assert float(headroom_loss(apart)) == 0
    with pytest.raises(ValueError, match="weight of blocks"):
        LossWeights(blocks=-1)


def test_captions_are_drawn_with_their_prompts() -> None:
    data = captioned()
    batch = data.batches(16).batch_at(0)
    assert set(batch) == {"latents", "difficulty", EMBEDDINGS}
    rows = (batch[EMBEDDINGS][:, None] == data.embeddings).all(2).nonzero()[:, 1]
    assert_same(batch["difficulty"], data.conditions["difficulty"][rows])
    easy = data.with_prompts(torch.arange(4, 8))
    assert int(easy.prompts.min()) == 4 and len(easy) == int(data.counts()[4:].sum())


def test_the_router_sees_prompts_that_the_network_does_not() -> None:
    data = captioned()
    parts = (data.latents, data.prompts, data.texts, data.embeddings, data.conditions)
    null = {"difficulty": torch.full((1, 2), 7.0)}
    indices = torch.arange(64)
    batch = Captioned(*parts, null=null, drop=0.5).at(indices, generator_at(0, 0))
    gone = (batch["difficulty"] == 7).all(1)
    assert 0.2 < float(gone.float().mean()) < 0.8
    assert_same(batch[EMBEDDINGS], data.embeddings[data.prompts])


def test_captions_that_do_not_fit_are_refused() -> None:
    data = captioned()
    with pytest.raises(ValueError, match="needs prompts and samples, got 0"):
        Captioned(data.latents, data.prompts, (), data.embeddings[:0], {})
    with pytest.raises(ValueError, match="as many prompts"):
        Captioned(data.latents, data.prompts, data.texts[1:], data.embeddings, data.conditions)
    with pytest.raises(ValueError, match="prompts 0 to 7"):
        Captioned(data.latents, data.prompts + 1, data.texts, data.embeddings, data.conditions)
    with pytest.raises(ValueError, match="got 8 and 0"):
        data.with_prompts(torch.tensor([99]))
