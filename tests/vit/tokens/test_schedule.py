from itertools import pairwise

import pytest

from vit.tokens import Counts, KeepRates, PerLayer, Target
from vit.tokens.costs import EncoderCost, LayerCost

LAYER = LayerCost(attention=400, mixing=20, mlp=800)
TWELVE = EncoderCost((LAYER,) * 12, prefix=1, patches=196, fixed=50_000)


def test_constant_numbers_go():
    assert PerLayer(8).counts(TWELVE) == tuple(196 - 8 * layer for layer in range(12))
    assert PerLayer(8, first=3, last=4).counts(TWELVE) == (196, 196, 196, 188) + (180,) * 8


@pytest.mark.parametrize("slope", [-1.0, -0.5, 0.0, 1.0])
def test_ramps_remove_as_many_in_all(slope):
    counts = PerLayer(8.5, slope).counts(TWELVE)
    gone = [before - after for before, after in pairwise(counts)]
    assert counts[-1] == 196 - 94
    # Fractions that are carried over may turn neighbours round by one.
    wanted = sorted(gone, reverse=slope < 0)
    assert all(abs(number - other) <= 1 for number, other in zip(gone, wanted, strict=True))
    if slope:
        assert abs(gone[0] - 8.5 * (1 - slope)) <= 1 and abs(gone[-1] - 8.5 * (1 + slope)) <= 1


def test_rates_keep_shares_of_what_is_left():
    counts = KeepRates({3: 0.7, 6: 0.7, 9: 0.7}).counts(TWELVE)
    assert counts == (196,) * 3 + (138,) * 3 + (97,) * 3 + (68,) * 3
    assert KeepRates({1: 0.7}).counts(EncoderCost((LAYER,) * 2, 0, 10)) == (10, 7)


@pytest.mark.parametrize("of", ["macs", "tokens"])
@pytest.mark.parametrize("at", [None, (3, 6, 9)])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.37])
@pytest.mark.parametrize("place", ["before layer", "between attention and mlp"])
def test_targets_are_met_to_within_one_patch(of, at, share, place):
    counts = Target(share, of, at).counts(TWELVE, place)

    def spent(counts):
        if of == "macs":
            return TWELVE.macs(counts, place) / TWELVE.dense
        return TWELVE.mean_tokens(counts, place) / 197

    assert spent(counts) <= share
    stages = list(range(1, 12)) if at is None else list(at)
    for stage, end in zip(stages, [*stages[1:], 12], strict=True):
        more = [count + (stage <= layer < end) for layer, count in enumerate(counts)]
        assert spent(more) > share or more[stage] > more[stage - 1]
    assert Target(1.0, of, at).counts(TWELVE, place) == (196,) * 12


def test_attention_is_counted():
    cost = EncoderCost((LAYER, LAYER), 1, 9)
    assert cost.dense == 2 * (10 * 1200 + 100 * 20)
    assert cost.macs((9, 4)) == 10 * 1200 + 100 * 20 + 5 * 1200 + 25 * 20
    assert cost.macs((9, 4), "between attention and mlp") == 10 * 1200 + 100 * 20 + 10 * 400 + 100 * 20 + 5 * 800
    assert (
        EncoderCost((LAYER, LAYER), 1, 9, last_sees_all=True).macs((4, 4)) == 5 * 1200 + 25 * 20 + 10 * 1200 + 100 * 20
    )


@pytest.mark.parametrize(
    "schedule,message",
    [
        (PerLayer(50), "leaves layer 4 0 of 196 patches"),
        (KeepRates({5: 0.0}), "leaves layer 5 0 of 196"),
        (KeepRates({12: 0.5}), "layers 0 to 11, not at 12"),
        (Counts((196,) * 11), "one count a layer: 12, got 11"),
        (Counts((196,) * 6 + (90,) + (100,) * 5), "gives layer 7 100 patches, but only 90"),
        (Target(0.01), "cannot be met: one patch from layer 1 on still takes 0.0"),
        (Target(0.5, at=(12,)), "layers 0 to 11"),
        (PerLayer(1, first=5, last=3), "not at 5 to 3"),
    ],
)
def test_what_does_not_fit_is_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        schedule.counts(TWELVE)


def test_nonsense_is_refused_when_it_is_made():
    for make in (lambda: PerLayer(-1), lambda: PerLayer(1, 2), lambda: KeepRates({1: 1.5}), lambda: Target(0)):
        with pytest.raises(ValueError):
            make()
