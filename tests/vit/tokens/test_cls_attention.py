import pytest
import torch

from vit.tokens import ClsAttention
from vit.tokens.pruner import Tokens


def _tokens(prefix=1, patches=8):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, prefix + patches, 4, generator=generator)
    attention = torch.rand(2, prefix + patches, generator=generator).softmax(dim=1)
    return Tokens(hidden, prefix, cls_attention=attention)


@pytest.mark.parametrize("prefix", [1, 2, 5])
@pytest.mark.parametrize("keep", [1, 4, 7])
def test_the_fused_token_is_the_weighted_sum_of_what_went(prefix, keep):
    tokens = _tokens(prefix)
    for fusion in ("sum", "mean"):
        reduction = ClsAttention(fusion).choose(tokens, keep).reduction
        reduced = reduction.apply(tokens.hidden_states)
        assert reduced.shape[1] == prefix + keep
        for image in range(2):
            attention = tokens.cls_attention[image]
            order = (prefix + attention[prefix:].argsort(descending=True)).tolist()
            best, others = sorted(order[: keep - 1]), order[keep - 1 :]
            weights = attention[others] if fusion == "sum" else attention[others] / attention[others].sum()
            kept = [*range(prefix), *best]
            torch.testing.assert_close(reduced[image, :-1], tokens.hidden_states[image, kept], rtol=0, atol=0)
            fused = (weights[:, None] * tokens.hidden_states[image, others]).sum(0)
            torch.testing.assert_close(reduced[image, -1], fused)
            assert bool((reduction.owners[image, others] == prefix + keep - 1).all())


def test_without_fusion_the_best_patches_stay_in_order():
    tokens = _tokens()
    reduction = ClsAttention().choose(tokens, 3).reduction
    best = 1 + tokens.cls_attention[:, 1:].topk(3).indices.sort(dim=1).values
    assert torch.equal(reduction.kept[:, 1:], best)


def test_a_class_token_is_needed():
    with pytest.raises(ValueError, match="no token before its patches"):
        ClsAttention().choose(_tokens(prefix=0), 3)
