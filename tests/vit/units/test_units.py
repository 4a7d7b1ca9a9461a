"""Every kind of unit on every family: what a mask hides is what a cut takes away, and counts add up."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.surgery import Network
from secateur.surgery.cost import count_bytes, count_macs, count_params, measure_usage
from secateur.surgery.cut_cost import CutCost
from secateur.units import Keep
from tests.contracts import (
    assert_full_keep_changes_nothing,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
)
from tests.vit.models import (
    FAMILIES,
    FusedAttention,
    inputs,
    random_model,
    run,
    transformers,
    vit,
    vit_backbone,
    whole_sam,
)
from vit.units import Kind, prunable

_MOST: tuple[Kind, ...] = ("heads", "neurons", "embedding", "attentions", "blocks")
_ALL: tuple[Kind, ...] = (*_MOST, "head_dims", "feed_forwards")
KINDS: dict[str, tuple[Kind, ...]] = dict.fromkeys(FAMILIES, _ALL) | {
    "sam": (*_MOST, "feed_forwards"),
    "torch": _MOST,
    "fused": (*_MOST, "feed_forwards"),
}
CASES = [(family, kind) for family, kinds in KINDS.items() for kind in kinds]
TOGETHER: tuple[Kind, ...] = ("heads", "neurons", "embedding", "attentions", "blocks")


@cache
def dense(family: str) -> nn.Module:
    return random_model(family)


def network(family: str, *kinds: Kind, **options: Any) -> Network:
    return prunable(dense(family), kinds, inputs(family), **{"min_keep": 0} | options)


def some(target: Network, seed: int = 0, share: float = 0.5, empty: bool = False) -> Keep:
    """Random units stay; with `empty`, every other group loses all that it can lose."""
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
        # Without norms (SAM's neck is random), outputs may be large.
        largest = float(run(family)(target.cut(keep)).abs().max())
        assert_mask_equals_cut(target, keep, run(family), rtol=1e-5, atol=1e-5 * max(1.0, largest))


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_every_kind_takes_away_what_the_outputs_depend_on(family: str, kind: Kind) -> None:
    target = network(family, kind)
    smaller = target.cut(some(target))
    assert count_params(smaller.module) < count_params(target.module)
    assert float((run(family)(smaller) - run(family)(target)).abs().max()) > 1e-3


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_costs_are_known_before_the_cut(family: str, kind: Kind) -> None:
    target = network(family, kind)
    keep = some(target, share=0.7)
    smaller = target.cut(keep).module
    assert CutCost(target, "params")(keep) == count_params(smaller)
    assert CutCost(target, "bytes")(keep) == count_bytes(smaller)
    assert CutCost(target, "macs")(keep) == pytest.approx(macs(smaller, family), rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_and_neurons_cost_what_their_going_saves(family: str) -> None:
    target = network(family, "heads", "neurons", min_keep=1)
    keep = some(target)
    smaller = target.cut(keep)
    for cost, before, after in (
        ("params", count_params(target.module), count_params(smaller.module)),
        ("bytes", count_bytes(target.module), count_bytes(smaller.module)),
        ("macs", macs(target.module, family), macs(smaller.module, family)),
    ):
        lost = sum(float(group.cost[cost][~keep[group.name]].sum()) for group in target.groups())
        assert before - after == pytest.approx(lost, rel=1e-9), cost


@pytest.mark.parametrize("family", FAMILIES)
def test_the_meta_device_predicts_the_cut_model(family: str) -> None:
    with torch.device("meta"):
        model = FAMILIES[family]().eval()
    target = network(family, *TOGETHER)
    keep = some(target, share=0.8)
    predicted, smaller = prunable(model, TOGETHER, min_keep=0).cut(keep).module, target.cut(keep).module
    assert count_params(predicted) == count_params(smaller)
    assert count_bytes(predicted) == count_bytes(smaller)
    on_meta = {name: value.to("meta") for name, value in inputs(family).items()}
    assert measure_usage(predicted, on_meta).macs == macs(smaller, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_kinds_at_once_and_again(family: str) -> None:
    target = network(family, *[kind for kind in KINDS[family] if kind != "head_dims"])
    keep = some(target, share=0.8)
    for group in [group for group in target.groups() if group.size == 1][:-3]:
        keep[group.name][:] = True
    assert_mask_equals_cut(target, keep, run(family), rtol=1e-5, atol=1e-5)
    first = target.cut(keep)
    again = some(first, seed=1, share=0.7)
    assert_mask_equals_cut(first, again, run(family), rtol=1e-5, atol=1e-5)
    found_anew = prunable(first.module, ("heads", "neurons", "embedding"), inputs(family), min_keep=0, cuts=first.cuts)
    sizes = {group.name: group.size for group in first.groups()}
    assert {group.name: group.size for group in found_anew.groups()}.items() <= sizes.items()


@pytest.mark.parametrize("family", ["vit", "dinov2", "swin"])
def test_dimensions_of_heads_go_after_whole_heads(family: str) -> None:
    first = network(family, "heads", min_keep=1).cut(some(network(family, "heads", min_keep=1)))
    dims = prunable(first.module, ("head_dims",), inputs(family), cuts=first.cuts)
    keep = some(dims)
    assert_mask_equals_cut(dims, keep, run(family), rtol=1e-5, atol=1e-5)
    assert CutCost(dims, "macs")(keep) == pytest.approx(macs(dims.cut(keep).module, family), rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_is_found_again_where_branches_are_gone(family: str) -> None:
    target = network(family, "heads", "neurons", "attentions")
    first = target.cut(some(target, empty=True))
    streams = prunable(first.module, ("embedding",), cuts=first.cuts)
    assert_mask_equals_cut(streams, some(streams), run(family), rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_mask() -> None:
    target = network("swin", "heads", "neurons", "embedding", "attentions", "blocks")
    masks = {group.name: torch.full((group.size,), 0.9, requires_grad=True) for group in target.groups()}
    with target.masked(masks):
        target(**inputs("swin")).logits.square().sum().backward()
    assert all(mask.grad is not None and bool((mask.grad != 0).any()) for mask in masks.values())


def test_dimensions_of_queries_are_masked_softly() -> None:
    target = network("vit", "head_dims", min_keep=1)
    masks = {group.name: torch.full((group.size,), 0.5, requires_grad=True) for group in target.groups()}
    with target.masked(masks):
        target(**inputs("vit")).logits.square().sum().backward()
    assert all(mask.grad is not None and bool((mask.grad != 0).all()) for mask in masks.values())


def test_counts_and_scale_follow() -> None:
    attention = "vit.layers.1.attention"
    for kind, attribute, left in (("heads", "num_attention_heads", 3), ("head_dims", "head_dim", 5)):
        target = network("vit", kind)  # type: ignore[arg-type]
        keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in target.groups()}
        keep[f"{attention}.{kind}"][0] = False
        module = target.cut(keep).module.get_submodule(attention)
        assert getattr(module, attribute) == left
        assert module.scaling == 6**-0.5


def test_two_tokens_side_by_side_are_cut_in_both() -> None:
    target = network("dinov2", "embedding")
    keep = {"dinov2.encoder.embedding": torch.arange(24) % 3 > 0}
    classifier = target.cut(keep).module.classifier
    both = keep["dinov2.encoder.embedding"].repeat(2)
    torch.testing.assert_close(classifier.weight, dense("dinov2").classifier.weight[:, both], rtol=0, atol=0)


def test_patch_merging_is_cut_in_all_four_patches() -> None:
    target = network("swin", "embedding")
    assert [group.name for group in target.groups()] == [f"swin.encoder.layers.{stage}.embedding" for stage in (0, 1)]
    first = torch.arange(8) != 2
    keep = {"swin.encoder.layers.0.embedding": first, "swin.encoder.layers.1.embedding": torch.ones(16) > 0}
    merging = "swin.encoder.layers.0.downsample"
    smaller, large = target.cut(keep).module.get_submodule(merging), dense("swin").get_submodule(merging)
    assert smaller.norm.normalized_shape == (28,)
    torch.testing.assert_close(smaller.reduction.weight, large.reduction.weight[:, first.repeat(4)], rtol=0, atol=0)


def test_variants_of_torch_layers_and_of_other_classes() -> None:
    for model, family in (
        (random_model("torch", norm_first=False), "torch"),
        (vit_backbone().eval(), "vit"),
        (random_model("sam", output_channels=12), "sam"),
        (random_model("swin", use_absolute_embeddings=True, depths=(1, 1)), "swin"),
        (random_model("vit", attn_implementation="eager"), "vit"),
    ):
        target = prunable(model, ("heads", "neurons"), min_keep=0)
        assert_mask_equals_cut(target, some(target, empty=True), run(family), rtol=1e-5, atol=1e-5)
        if family != "vit":
            stream = prunable(model, ("embedding",))
            assert_mask_equals_cut(stream, some(stream), run(family), rtol=1e-5, atol=1e-5)


_OTHER: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "image_size": 8,
    "patch_size": 4,
}


def other(kind: str, **changes: Any) -> nn.Module:
    """A model of a class that nothing here was written for."""
    config = getattr(transformers, kind.replace("ForImageClassification", "").replace("Model", "") + "Config")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, kind)(config(**_OTHER | changes)).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(
    ("kind", "changes", "kinds"),
    [
        ("BeitForImageClassification", {"use_relative_position_bias": True}, ("heads", "neurons", "embedding")),
        ("BeitForImageClassification", {"use_relative_position_bias": True}, ("head_dims", "blocks")),
        ("CLIPVisionModel", {}, ("heads", "neurons", "attentions", "blocks")),
        ("SiglipVisionModel", {}, ("heads", "neurons", "attentions", "blocks")),
        ("DINOv3ViTModel", {"hidden_size": 32, "use_gated_mlp": True}, ("heads", "neurons", "attentions", "blocks")),
        ("IJepaForImageClassification", {}, ("head_dims", "neurons", "embedding")),
    ],
)
def test_classes_that_nothing_was_written_for(kind: str, changes: dict[str, Any], kinds: tuple[Kind, ...]) -> None:
    target = prunable(other(kind, **changes), kinds, min_keep=0)
    assert_mask_equals_cut(target, some(target, share=0.7), run("vit"), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_whole_sam_is_cut_where_its_layers_run_in_a_row() -> None:
    model = whole_sam()
    prompt = {**inputs("sam", batch=1), "input_points": torch.tensor([[[[3.0, 4.0]]]])}
    target = prunable(model, ("heads", "neurons", "attentions", "feed_forwards", "blocks"))
    assert sorted(target.left_out) == [f"mask_decoder.transformer.layers.{index}" for index in (0, 1)]
    assert_mask_equals_cut(target, some(target, share=0.7), lambda each: each(**prompt).pred_masks, atol=1e-5)


class FixedWidth(FusedAttention):
    """In the form of older versions of timm: the values are as wide as the stream."""

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj((q @ k.transpose(-2, -1) @ v).transpose(1, 2).reshape(batch, tokens, width))


def test_heads_stay_where_the_forward_fixes_their_width() -> None:
    model = random_model("fused")
    model.blocks[1].attn.__class__ = FixedWidth  # type: ignore[index, union-attr]
    assert list(prunable(model).left_out) == ["blocks.1.attn"]
    assert not any(parameter.is_meta for parameter in model.parameters())
    with pytest.raises(ValueError, match="fixes the width"):
        prunable(_all_fixed(), ("heads",))


def _all_fixed() -> nn.Module:
    model = random_model("fused")
    for block in model.blocks:  # type: ignore[union-attr]
        block.attn.__class__ = FixedWidth
    return model


def test_what_cannot_be_cut_says_why() -> None:
    shared = other("BeitForImageClassification", use_shared_relative_position_bias=True)
    with pytest.raises(ValueError, match="has a column for a head of every layer"):
        prunable(shared, ("heads",))
    pooled = other("SiglipVisionModel")
    with pytest.raises(ValueError, match="head attends to its stream at its end"):
        prunable(pooled, ("embedding",))
    assert list(prunable(pooled, ("blocks",)).left_out) == ["head"]
    with pytest.raises(ValueError, match="so it is the model's own output"):
        prunable(vit_backbone(), ("embedding",))
    with pytest.raises(ValueError, match="scales its logits by the width that is left"):
        prunable(dense("torch"), ("head_dims",))
    assert list(network("torch", "blocks").left_out) == ["encoder.layers.0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modules": ("middle*",)}, "'middle\\*' matches none"),
        ({"kinds": ("layers",)}, "no units of kind 'layers'"),
        ({"kinds": ("heads", "head_dims")}, "in two runs"),
    ],
)
def test_what_is_not_there_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prunable(vit(), **options)


def test_a_model_that_is_no_vision_transformer_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 2))
    with pytest.raises(ValueError, match="Sequential is no vision transformer: no module of it holds an attention"):
        prunable(model)


def test_a_pattern_chooses_modules() -> None:
    target = network("swin", "heads", "neurons", modules=("swin.encoder.layers.1*",))
    names = [group.name for group in target.groups()]
    assert len(names) == 4 and all(name.startswith("swin.encoder.layers.1") for name in names)
