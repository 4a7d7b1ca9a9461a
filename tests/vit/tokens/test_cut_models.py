"""Static and token pruning together: a model that lost heads, neurons, an attention and a layer still loses tokens."""

import pytest
import torch

from tests.contracts import assert_same
from tests.vit.tokens.models import images, logits, plain, vit
from vit.tokens import ClsAttention, Counts, PerLayer, ReducedModel, TokenMerging, TokenNorm, reduce_tokens
from vit.tokens.reduced_model import load, save
from vit.units import prunable


def _cut(model, *kinds, gone=()):
    network = prunable(model, kinds)
    keep = {}
    for group in network.groups():
        mask = torch.ones(group.size, dtype=torch.bool)
        if group.size > 1:
            mask[::2] = False
        elif group.name in gone:
            mask[:] = False
        keep[group.name] = mask
    return network.cut(keep)


@pytest.mark.parametrize("make", [vit, plain])
@pytest.mark.parametrize("place", ["before layer", "between attention and mlp"])
def test_heads_and_neurons_may_be_gone(make, place):
    model = _cut(make(), "heads", "neurons").module.eval()
    options = {} if make is vit else {"prefix": 1}
    for pruner in (TokenMerging(), ClsAttention("sum")):
        with torch.no_grad(), reduce_tokens(model, pruner, PerLayer(3), place=place, **options) as reduction:
            assert logits(model(images())).shape == (3, 5)
        assert [map_.fewer for map_ in reduction.reductions.values()][-1] == 17 - 9 - (make is plain)


def test_an_attention_may_be_gone():
    model = _cut(vit(), "attentions", gone=("vit.layers.1.attention",)).module.eval()
    with (
        torch.no_grad(),
        reduce_tokens(model, TokenNorm(), PerLayer(3), place="between attention and mlp") as reduction,
    ):
        model(images())
    assert reduction.composed().fewer == 8
    cost = reduction.cost(16)
    assert cost.layers[1].mixing == 0 < cost.layers[0].mixing
    with (
        pytest.raises(ValueError, match=r"layers\.1 has no attention\.q_proj"),
        reduce_tokens(model, TokenMerging(), PerLayer(3)),
    ):
        pass


def test_a_layer_may_be_gone():
    model = _cut(vit(), "blocks", gone=("vit.layers.2",)).module.eval()
    with torch.no_grad(), reduce_tokens(model, TokenMerging(), Counts((16, 9, 5))) as reduction:
        model(images())
    assert len(reduction.layers) == 3 and reduction.composed().fewer == 6


def test_a_folder_holds_both_cuts(tmp_path):
    network = _cut(vit(), "heads", "neurons")
    reduced = ReducedModel(network.module, TokenMerging(), PerLayer(3)).eval()
    save(reduced, tmp_path, network)
    with torch.no_grad():
        assert_same(logits(load(tmp_path)(images())), logits(reduced(images())))
    with pytest.raises(ValueError, match="not the one whose tokens"):
        save(reduced, tmp_path, _cut(vit(), "heads"))
