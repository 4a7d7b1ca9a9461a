import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from secateur.surgery.cost import count_macs
from tests.vit.tokens.models import MODELS, images, segmenter
from vit.tokens import (
    ClsAttention,
    Counts,
    Cropr,
    DynamicViT,
    PerLayer,
    RandomDropping,
    TokenMerging,
    TokenNorm,
    reduce_tokens,
)

AT = (1, 2, 3)
PRUNERS = {
    "random": RandomDropping().eval(),
    "norm": TokenNorm(),
    "class attention": ClsAttention(),
    "fused": ClsAttention("sum"),
    "merging": TokenMerging(),
    "DynamicViT": DynamicViT(32, AT).eval(),
    "Cropr": Cropr(32, 5, AT).eval(),
}


def _flops(model):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images(1))
    return counter.get_total_flops()


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("name", ["vit", "deit", "dinov2", "dinov2_with_registers"])
def test_macs_are_those_that_torch_counts(name, pruner):
    model = MODELS[name](attn_implementation="eager")
    for place in ("before layer", "between attention and mlp"):
        with reduce_tokens(model, PRUNERS[pruner], PerLayer(3), place=place) as reduction:
            assert 2 * reduction.macs(16) == _flops(model)
    assert 2 * reduction.cost(16).dense == _flops(model)


@pytest.mark.parametrize("pruner", PRUNERS)
def test_macs_of_torch_layers(pruner):
    model = MODELS["plain"]()
    # Class attention needs a token in front, which the patch embedding makes here, too.
    prefix = 1 if PRUNERS[pruner].needs_cls_attention else 0
    with reduce_tokens(model, PRUNERS[pruner], PerLayer(3), prefix=prefix) as reduction:
        assert reduction.macs(16 - prefix) + prefix * 32 * 16 == count_macs(model, images(1))


def test_macs_with_fusion_before_the_last_layer():
    model = MODELS["vit"](attn_implementation="eager")
    with reduce_tokens(model, TokenNorm(), Counts((16, 8, 4, 4)), last_layer_fusion=True) as reduction:
        assert 2 * reduction.macs(16) == _flops(model)


def test_a_classifier_of_patches_is_counted_by_patch():
    """By hand: 16 patches of 16 pixels, 32 features, 5 classes; 16, 8, 4 and again 16 patches and the class token."""
    model = segmenter()
    embedding, classifier = 16 * 16 * 32, 16 * 32 * 5
    layers = sum(tokens * (4 * 32 * 32 + 2 * 32 * 48) + 2 * tokens * tokens * 32 for tokens in (17, 9, 5, 17))
    with reduce_tokens(model, TokenNorm(), Counts((16, 8, 4, 4)), last_layer_fusion=True) as reduction:
        assert reduction.macs(16) == embedding + layers + classifier
        assert 2 * reduction.macs(16) == _flops(model)


def test_cropr_costs_what_random_dropping_costs_and_one_product_a_patch():
    model, found = MODELS["vit"](attn_implementation="eager"), {}
    for name in ("random", "Cropr"):
        with reduce_tokens(model, PRUNERS[name], PerLayer(3)):
            found[name] = _flops(model)
    assert found["Cropr"] - found["random"] == 2 * 32 * (16 + 13 + 10)
