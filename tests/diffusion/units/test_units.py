"""Every kind of unit on every family: what a mask hides is what a cut takes away, and counts add up."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion.units import Kind, prunable
from secateur.surgery import Network
from secateur.surgery.cost import count_bytes, count_macs, count_params, measure_usage
from secateur.units import Keep
from tests.contracts import (
    assert_full_keep_changes_nothing,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
)
from tests.diffusion.models import FAMILIES, inputs, random_model, run

_TRANSFORMER: tuple[Kind, ...] = ("heads", "neurons", "attentions", "feed_forwards", "transformer_blocks", "operators")
_UNET: tuple[Kind, ...] = ("channels", "resnets", "stacks")
KINDS: dict[str, tuple[Kind, ...]] = {
    "unet2d": ("heads", "channels", "resnets", "attentions", "operators"),
    "unet": (*_TRANSFORMER, *_UNET),
    "sdxl": (*_TRANSFORMER, *_UNET),
    "dit": (*_TRANSFORMER, "modulation"),
    "pixart": _TRANSFORMER,
    "sd3": (*_TRANSFORMER, "modulation"),
    "flux": (*_TRANSFORMER, "modulation"),
}
CASES = [(family, kind) for family, kinds in KINDS.items() for kind in kinds]
ADDING: tuple[Kind, ...] = ("heads", "neurons", "channels", "modulation")


@cache
def dense(family: str) -> nn.Module:
    return random_model(family)


def network(family: str, *kinds: Kind, **options: Any) -> Network:
    return prunable(dense(family), kinds, inputs(family), min_keep=0, **options)


def some(target: Network, seed: int = 0, share: float = 0.5, empty: bool = False) -> Keep:
    """Random units stay; with `empty`, every other group loses all."""
    generator = torch.Generator().manual_seed(seed)
    keep = {group.name: torch.rand(group.size, generator=generator) < share for group in target.groups()}
    for index, group in enumerate(target.groups()):
        if empty and index % 2 and group.min_keep == 0:
            keep[group.name][:] = False
        elif not bool(keep[group.name].any()):
            keep[group.name][: group.min_keep] = True
    return keep


def macs(module: nn.Module, family: str) -> int:
    return count_macs(module, inputs(family))


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_cut_is_what_the_mask_hides(family: str, kind: Kind) -> None:
    target = network(family, kind)
    assert_full_keep_changes_nothing(target)
    assert_mask_of_ones_changes_nothing(target, run(family))
    for empty in (False, True):
        keep = some(target, empty=empty)
        assert any(not bool(mask.all()) for mask in keep.values())
        # Without norms, outputs may be hundreds.
        largest = float(run(family)(target.cut(keep)).abs().max())
        assert_mask_equals_cut(target, keep, run(family), rtol=1e-5, atol=1e-5 * max(1.0, largest))


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_every_kind_takes_away_what_the_outputs_depend_on(family: str, kind: Kind) -> None:
    target = network(family, kind)
    smaller = target.cut(some(target))
    assert count_params(smaller.module) < count_params(target.module)
    assert float((run(family)(smaller) - run(family)(target)).abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_of_units_add_up_to_what_a_cut_saves(family: str) -> None:
    target = network(family, *[kind for kind in KINDS[family] if kind in ADDING])
    keep = some(target)
    for group in target.groups():
        if not bool(keep[group.name].any()):
            keep[group.name][0] = True
    smaller = target.cut(keep)
    lost = {
        cost: sum(float(group.cost[cost][~keep[group.name]].sum()) for group in target.groups())
        for cost in ("params", "bytes", "macs")
    }
    assert count_params(target.module) - count_params(smaller.module) == lost["params"]
    assert macs(target.module, family) - macs(smaller.module, family) == pytest.approx(lost["macs"], rel=1e-9)
    scatter = sum(buffer.numel() * 8 for name, buffer in smaller.module.named_buffers() if name.endswith("linear.rows"))
    assert count_bytes(target.module) - count_bytes(smaller.module) + scatter == lost["bytes"]


@pytest.mark.parametrize(("family", "kind"), [case for case in CASES if case[1] not in (*ADDING, "operators")])
def test_a_whole_module_costs_what_its_going_saves(family: str, kind: Kind) -> None:
    target = network(family, kind)
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in target.groups()}
    last = target.groups()[-1]
    keep[last.name][0] = False
    smaller = target.cut(keep)
    assert count_params(target.module) - count_params(smaller.module) == float(last.cost["params"][0])
    saved = macs(target.module, family) - macs(smaller.module, family)
    assert saved == pytest.approx(float(last.cost["macs"][0]), rel=1e-9)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_the_meta_device_predicts_the_cut_model(family: str, kind: Kind) -> None:
    with torch.device("meta"):
        model = FAMILIES[family]().eval()
    planned = prunable(model, [kind], min_keep=0)
    target = network(family, kind)
    keep = some(target, empty=True)
    predicted, smaller = planned.cut(keep).module, target.cut(keep).module
    assert count_params(predicted) == count_params(smaller)
    assert count_bytes(predicted) == count_bytes(smaller)
    on_meta = {name: _meta(value) for name, value in inputs(family).items()}
    assert measure_usage(predicted, on_meta).macs == macs(smaller, family)


def _meta(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _meta(entry) for name, entry in value.items()}
    return value.to("meta") if isinstance(value, Tensor) else value


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_model_is_cut_again(family: str) -> None:
    target = network(family, *KINDS[family][:2])
    first = target.cut(some(target, share=0.8))
    again = some(first, seed=1, empty=True)
    assert_mask_equals_cut(first, again, run(family), rtol=1e-5, atol=1e-5)
    twice = first.cut(again)
    assert twice.cuts.rows and all(kept.rows.max() < kept.size for kept in twice.cuts.rows.values() if len(kept.rows))
    found_anew = prunable(first.module, KINDS[family][:2], inputs(family), min_keep=0, cuts=first.cuts)
    assert {group.name: group.size for group in found_anew.groups()} == {
        group.name: group.size for group in first.groups()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_all_kinds_at_once(family: str) -> None:
    target = network(family, *[kind for kind in KINDS[family] if kind != "operators"])
    assert_mask_equals_cut(target, some(target, share=0.85), run(family), rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_mask() -> None:
    target = network("flux", "heads", "neurons", "modulation", "transformer_blocks")
    masks = {group.name: torch.full((group.size,), 0.9, requires_grad=True) for group in target.groups()}
    with target.masked(masks):
        target(**inputs("flux"), return_dict=False)[0].square().sum().backward()
    # The last text stream's modulation of a joint block reaches the image through later blocks only.
    assert all(mask.grad is not None and bool((mask.grad != 0).any()) for mask in masks.values())


def test_an_attention_without_heads_adds_its_bias() -> None:
    target = network("unet", "heads")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1"
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in target.groups()}
    keep[f"{name}.heads"][:] = False
    left = target.cut(keep).module.get_submodule(name)
    tokens = torch.randn(2, 3, 32)
    bias = target.module.get_submodule(name).to_out[0].bias  # type: ignore[index, union-attr]
    torch.testing.assert_close(left(tokens), bias.expand(2, 3, 32))


def test_fused_projections_and_dual_attention() -> None:
    model = random_model("unet")
    model.fuse_qkv_projections()
    assert_mask_equals_cut(prunable(model, ("heads",)), some(prunable(model, ("heads",))), run("unet"), atol=1e-5)
    changes = {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}
    dual = prunable(random_model("sd3", **changes), ("heads", "neurons", "attentions"), min_keep=0)
    assert any(".attn2." in group.name for group in dual.groups())
    assert_mask_equals_cut(dual, some(dual, empty=True), run("sd3"), rtol=1e-5, atol=1e-5)


def test_resnets_that_scale_by_time_and_resize() -> None:
    changes = {"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"}
    model = random_model("unet2d", **changes)
    channels = prunable(model, ("channels",), min_keep=0)
    assert_mask_equals_cut(channels, some(channels), run("unet2d"), rtol=1e-5, atol=1e-5)
    assert list(prunable(model, ("resnets",)).left_out) == ["up_blocks.0.upsamplers.0"]


def test_a_pattern_chooses_modules() -> None:
    target = network("unet", "heads", "neurons", modules=("mid_block*", "*attn2"))
    names = [group.name for group in target.groups()]
    assert all(name.startswith("mid_block") or ".attn2.heads" in name for name in names) and len(names) > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules": ("middle*",)}, "'middle\\*' matches none"),
        ({"kinds": ("stacks",)}, "DiTTransformer2DModel has no stacks"),
        ({"kinds": ("layers",)}, "no units of kind 'layers'"),
        ({"kinds": ("channels", "operators")}, "in two runs"),
    ],
)
def test_what_is_not_there_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prunable(dense("dit"), **options)
