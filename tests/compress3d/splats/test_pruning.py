import pytest
import torch

from compress3d.splats.importance import Opacity, RayContribution, Spectral, Visibility
from compress3d.splats.pruning import PruneAt, radsplat, spectral_selection, sundae, to_budget
from secateur.allocation import Budget
from secateur.importance import Sampled
from tests.compress3d.splats.photographed import around, blobs


def test_moments_are_shares_of_the_run() -> None:
    assert radsplat().moments(30_000) == (16_000, 24_000)
    assert radsplat().moments(300) == (160, 240)
    assert PruneAt((0.9, 0.1, 0.1), Opacity(), Budget(share=0.5)).moments(10) == (1, 9)


def test_a_threshold_keeps_what_reaches_it_and_at_least_one() -> None:
    scene, cameras = blobs(), around(3)
    scores = RayContribution("max").score(scene, cameras)["gaussians"]
    middle = float(scores.median())
    assert torch.equal(radsplat(middle).keep(scene, cameras), scores >= middle)
    assert int(radsplat(2.0).keep(scene, cameras).sum()) == 1


def test_a_budget_keeps_the_best() -> None:
    scene, cameras = blobs(), around(3)
    scores = Visibility().score(scene, cameras)["gaussians"]
    kept = to_budget(5).keep(scene, cameras)
    assert int(kept.sum()) == 5 and float(scores[kept].min()) >= float(scores[~kept].max())
    assert bool(to_budget(50).keep(scene, cameras).all())


def test_prunes_leave_the_share_together() -> None:
    scene, cameras = blobs(400), around(2)
    for pruning in (to_budget(0.25), sundae(0.25, prunes=4)):
        left = scene
        for _ in pruning.moments(100):
            left = left.select(pruning.keep(left, cameras))
        assert 96 <= len(left) <= 100


def test_sundae_goes_by_the_spectrum() -> None:
    pruning = sundae(0.5, gamma=0.75, prunes=3, start=0.4, stop=0.8)
    assert pruning.criterion == spectral_selection(0.75) == Sampled(Spectral("high"), uniform=0.25)
    assert sundae(0.5, gamma=0.3, strict=True).criterion == Spectral("mixture", 0.3)
    assert pruning.at == pytest.approx((0.4, 0.6, 0.8))


def test_refuses_what_means_nothing() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        PruneAt((0.5, 1.2), budget=Budget(share=0.5))
    with pytest.raises(ValueError, match="between 0 and 1"):
        PruneAt((), budget=Budget(share=0.5))
    with pytest.raises(ValueError, match="either a budget or a threshold"):
        PruneAt((0.5,))
    with pytest.raises(ValueError, match="prunes must be at least 1"):
        sundae(prunes=0)
