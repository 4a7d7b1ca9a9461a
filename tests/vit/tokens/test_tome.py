import pytest
import torch

from tests.contracts import assert_deterministic
from tests.vit.tokens.models import images, logits, vit
from vit.tokens import Counts, PerLayer, TokenMerging, reduce_tokens
from vit.tokens.tome import match_patches, merge_closures


def _random(batch, tokens, width, seed=0):
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(seed))


def _brute_force(metric, count, prefix):
    """Groups of token indices after merging, one image, by the words of the paper."""
    first = list(range(prefix, len(metric), 2))
    second = list(range(prefix + 1, len(metric), 2))
    edges = []
    for a in first:
        likeness = [float(torch.cosine_similarity(metric[a], metric[b], dim=0)) for b in second]
        best = max(range(len(second)), key=lambda b: likeness[b])
        edges.append((-likeness[best], a, second[best]))
    groups = {token: [token] for token in range(len(metric))}
    for _, a, b in sorted(edges)[:count]:
        groups[b] += groups.pop(a)
    return sorted(sorted(members) for members in groups.values())


@pytest.mark.parametrize("tokens,prefix,count", [(9, 1, 3), (8, 0, 4), (11, 2, 4), (10, 5, 1)])
def test_matching_is_that_of_the_paper(tokens, prefix, count):
    metric = _random(3, tokens, 4)
    reduction = match_patches(metric, tokens - prefix - count, prefix)
    for image in range(3):
        owners = reduction.owners[image].tolist()
        groups = [[t for t in range(tokens) if owners[t] == slot] for slot in range(tokens - count)]
        assert sorted(groups) == _brute_force(metric[image], count, prefix)
        assert reduction.kept[image].tolist() == sorted(reduction.kept[image].tolist())
        assert reduction.kept[image, :prefix].tolist() == list(range(prefix))


def test_merged_values_are_means_by_size_and_sizes_add_up():
    metric, values = _random(2, 9, 4), _random(2, 9, 5, seed=1)
    sizes = torch.rand(2, 9, generator=torch.Generator().manual_seed(2)) * 3 + 1
    reduction = match_patches(metric, 5, 1, sizes)
    after = reduction.total(sizes)
    torch.testing.assert_close(after.sum(1), sizes.sum(1))
    merged = reduction.apply(values)
    torch.testing.assert_close((merged * after[..., None]).sum(1), (values * sizes[..., None]).sum(1))


def test_merging_what_is_alike_changes_nothing():
    model = vit()
    with torch.no_grad():
        model.vit.embeddings.position_embeddings.zero_()
        patch = images(2)[:, :, :4, :4]
        dense = model(patch.repeat(1, 1, 4, 4)).logits
        for place in ("before layer", "between attention and mlp"):
            with reduce_tokens(model, TokenMerging(), PerLayer(4), place=place) as reduction:
                merged = model(patch.repeat(1, 1, 4, 4)).logits
            torch.testing.assert_close(merged, dense, rtol=1e-5, atol=1e-5)
            assert reduction.composed().fewer == 1 + 4
        with reduce_tokens(model, TokenMerging(proportional=False), PerLayer(4)):
            assert not torch.allclose(model(patch.repeat(1, 1, 4, 4)).logits, dense, atol=1e-3)


def test_dense_layers_get_their_tokens_back():
    metric, values = _random(2, 9, 4), _random(2, 9, 5, seed=1)
    merge, unmerge = merge_closures(metric, 5, prefix=1)
    assert merge(values).shape == (2, 6, 5)
    back = unmerge(merge(values))
    assert back.shape == values.shape and torch.equal(back[:, 0], values[:, 0])
    torch.testing.assert_close(merge(back), merge(values))


def test_padding_is_merged_with_padding_only():
    metric, values = _random(1, 9, 4), _random(1, 9, 5, seed=1)
    valid = torch.ones(1, 9, dtype=torch.bool)
    valid[:, 4:7] = False
    reduction = match_patches(metric, 5, 1, valid.float(), valid)
    owners, holds = reduction.owners, reduction.any(valid)
    merged = reduction.apply(values)
    for slot in range(6):
        members = [t for t in range(9) if owners[0, t] == slot and valid[0, t]]
        assert bool(holds[0, slot]) == bool(members)
        if members:
            torch.testing.assert_close(merged[0, slot], values[0, members].mean(0))


def test_the_same_image_is_merged_alike():
    model = vit()

    def run():
        with torch.no_grad(), reduce_tokens(model, TokenMerging(), PerLayer(3)):
            return logits(model(images()))

    assert_deterministic(run)


def test_more_than_half_cannot_be_merged_at_once():
    with pytest.raises(ValueError, match="4 to 8 of 8 patches, not 3"):
        match_patches(_random(1, 9, 4), 3, 1)
    model = vit()
    with (
        pytest.raises(ValueError, match="from 16 to 7 patches at layer 1: 8 is the fewest"),
        reduce_tokens(model, TokenMerging(), Counts((16, 7, 7, 7))),
    ):
        model(images())
