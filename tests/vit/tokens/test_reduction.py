import pytest
import torch

from vit.tokens import Reduction
from vit.tokens.reduction import take_rows


def _values(batch=2, tokens=6, width=3):
    return torch.randn(batch, tokens, width, generator=torch.Generator().manual_seed(0))


def test_what_was_dropped_is_filled_and_the_rest_returns_to_its_place():
    values = _values()
    dropping = Reduction(6, torch.tensor([[0, 2, 5], [1, 3, 4]]))
    restored = dropping.restore(dropping.apply(values), fill=7.0)
    for image, kept in enumerate([[0, 2, 5], [1, 3, 4]]):
        others = [token for token in range(6) if token not in kept]
        assert torch.equal(restored[image, kept], values[image, kept])
        assert bool((restored[image, others] == 7).all())
    assert torch.equal(dropping.restore(dropping.apply(values), fill=values), values)


def test_identity_changes_nothing():
    values = _values()
    everything = Reduction.identity(2, 6)
    assert torch.equal(everything.apply(values), values)
    assert torch.equal(everything.restore(values), values)


def test_merged_tokens_are_weighted_sums_and_are_copied_back():
    values = _values(batch=1, tokens=3)
    merging = Reduction(3, torch.tensor([[0, 2]]), torch.tensor([[0, 1, 1]]), torch.tensor([[1.0, 0.25, 0.75]]))
    merged = merging.apply(values)
    torch.testing.assert_close(merged[0, 1], 0.25 * values[0, 1] + 0.75 * values[0, 2])
    assert torch.equal(merging.restore(merged)[0], merged[0, [0, 1, 1]])
    assert merging.total(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[1.0, 5.0]]
    assert merging.any(torch.tensor([[False, True, False]])).tolist() == [[False, True]]


def test_a_map_followed_by_another_is_their_product():
    values = _values()
    merging = Reduction(
        6,
        torch.tensor([[0, 1, 3, 5], [0, 2, 3, 4]]),
        torch.tensor([[0, 1, 1, 2, 2, 3], [0, 0, 1, 2, 3, -1]]),
        torch.tensor([[1, 0.5, 0.5, 0.2, 0.8, 1], [0.3, 0.7, 1, 1, 1, 1]]),
    )
    dropping = Reduction(4, torch.tensor([[1, 3], [0, 2]]))
    for first, second in ((merging, dropping), (dropping, Reduction(2, torch.tensor([[1], [0]])))):
        both = first.then(second)
        torch.testing.assert_close(
            both.apply(values[:, : first.tokens]), second.apply(first.apply(values[:, : first.tokens]))
        )
        torch.testing.assert_close(both.matrix(), second.matrix() @ first.matrix())
    torch.testing.assert_close(merging.apply(values), merging.matrix() @ values)


def test_rows_are_those_of_a_gather():
    values, rows = _values(), torch.tensor([[5, 0, 0], [1, 2, 3]])
    assert torch.equal(take_rows(values, rows), values.gather(1, rows[..., None].expand(-1, -1, 3)))


def test_maps_that_do_not_fit_are_refused():
    dropping = Reduction(6, torch.tensor([[0, 2, 5]]))
    with pytest.raises(ValueError, match="leaves 3 tokens"):
        dropping.restore(torch.zeros(1, 4, 2))
    with pytest.raises(ValueError, match="followed by one of 6"):
        dropping.then(dropping)
