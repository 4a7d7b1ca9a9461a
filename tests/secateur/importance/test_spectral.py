"""Graph spectral importance against the equations of SUNDAE and a dense eigen-decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.graphs import Graph, LaplacianKind, NearestNeighbours, WithinRadius
from secateur.importance.spectral import GraphFilter, Laplacian, SmoothBand, band_limited, response
from secateur.maths import topk_mask
from tests.contracts import assert_deterministic

FILTERS = [Laplacian(), Laplacian("combinatorial"), SmoothBand(0.3, 2), SmoothBand(0, 0.5), SmoothBand(0.2, 0.9)]


def grid(side: int = 12) -> Tensor:
    """(side^2, 3) points of a square lattice."""
    x, y = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)], dim=-1).reshape(-1, 3).float()


def interior(points: Tensor, margin: float = 0.5) -> Tensor:
    low, high = points[:, :2].min(dim=0).values + margin, points[:, :2].max(dim=0).values - margin
    return ((points[:, :2] >= low) & (points[:, :2] <= high)).all(dim=1)


def cloud(n: int = 90, seed: int = 0, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["random_walk", "combinatorial"])
def test_high_pass_is_zero_for_a_constant_signal(kind: LaplacianKind) -> None:
    graph = NearestNeighbours(8).build(cloud())
    assert response(graph, [torch.full((90, 3), 4.7)], Laplacian(kind)).abs().max() == 0


@pytest.mark.parametrize("kind", ["random_walk", "combinatorial"])
def test_high_pass_is_zero_inside_a_regular_grid_for_a_linear_signal(kind: LaplacianKind) -> None:
    points = grid()
    signal = points @ torch.tensor([[0.3, 1.0], [-0.7, 0.5], [0.0, 0.0]])
    answers = response(WithinRadius(1.5).build(points), [signal], Laplacian(kind))
    assert answers[interior(points)].max() < 1e-4
    assert answers[~interior(points)].min() > 0.1


def test_high_pass_is_largest_at_a_step() -> None:
    points = grid()
    signal = (points[:, :1] > 5.5).float()
    answers = response(WithinRadius(1.5).build(points), [signal], Laplacian())
    at_step = (points[:, 0] - 5.5).abs() < 1
    assert answers[at_step].min() > 0.5 and answers[~at_step].max() == 0


def test_response_equals_the_dense_equation() -> None:
    graph = NearestNeighbours(8).build(cloud())
    signals = cloud(seed=1, channels=4)
    weights = torch.from_numpy(graph.weights.toarray()).double()
    expected = (signals - weights @ signals.double() / weights.sum(dim=1, keepdim=True)).norm(dim=1)
    torch.testing.assert_close(
        response(graph, [signals], Laplacian()).double(), expected / expected.mean(), rtol=1e-4, atol=1e-5
    )


def dense_filter(graph: Graph, signals: np.ndarray, band: SmoothBand) -> np.ndarray:
    """h(L) S by eigen-decomposition of the symmetric matrix that L is similar to."""
    weights = graph.weights.toarray().astype(np.float64)
    degrees = weights.sum(axis=1)
    root = np.sqrt(degrees) if band.kind == "random_walk" else np.ones(len(degrees))
    values, vectors = np.linalg.eigh((np.diag(degrees) - weights) / np.outer(root, root))
    gains = band.transfer(np.clip(values, 0, None) * 2 / graph.largest_eigenvalue(band.kind))
    return (vectors * gains) @ vectors.T @ (signals * root[:, None]) / root[:, None]


@pytest.mark.parametrize("kind", ["random_walk", "combinatorial"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.6), (0.5, 1.2), (0.7, 2.0), (0.0, 2.0)])
def test_chebyshev_filter_equals_the_dense_eigen_decomposition(low: float, high: float, kind: LaplacianKind) -> None:
    graph = NearestNeighbours(8).build(cloud())
    signals = cloud(seed=2).numpy()
    band = SmoothBand(low, high, order=40, kind=kind)
    np.testing.assert_allclose(band(graph, signals), dense_filter(graph, signals, band), atol=2e-3)


def test_a_band_and_its_complements_add_up_to_the_signal() -> None:
    graph = NearestNeighbours(8).build(cloud())
    signals = cloud(seed=2).numpy()
    parts = [SmoothBand(low, high)(graph, signals) for low, high in ((0, 0.5), (0.5, 1.1), (1.1, 2))]
    np.testing.assert_allclose(sum(parts), signals, atol=1e-5)


def test_low_pass_keeps_what_high_pass_removes() -> None:
    points = grid()
    smooth = torch.sin(points[:, :1] / 4)
    rough = (points[:, :1] + points[:, 1:2]) % 2 - 0.5
    graph = WithinRadius(1.1).build(points)
    for signal, kept, removed in (
        (smooth, SmoothBand(0, 0.5), SmoothBand(1.5, 2)),
        (rough, SmoothBand(1.5, 2), SmoothBand(0, 0.5)),
    ):
        energies = [float(np.square(band(graph, signal.numpy())).sum()) for band in (kept, removed)]
        assert energies[0] > 20 * energies[1]


def test_signals_count_alike_whatever_their_units() -> None:
    graph = NearestNeighbours(8).build(cloud())
    first, second = cloud(seed=1), cloud(seed=2, channels=1)
    answers = response(graph, [first, second], Laplacian())
    scaled = response(graph, [first * 1e4 + 3e4, second * 1e-3], Laplacian())
    torch.testing.assert_close(answers, scaled, rtol=1e-2, atol=0)
    single = [response(graph, [signal], Laplacian()) for signal in (first, second)]
    torch.testing.assert_close(answers, (single[0] ** 2 + single[1] ** 2).sqrt())


def test_one_floater_does_not_blind_the_rest() -> None:
    points = torch.cat([cloud(), torch.tensor([[1e9, 0, 0]])])
    graph = NearestNeighbours(8).build(points)
    answers = response(graph, [points], Laplacian())[:90]
    alone = response(NearestNeighbours(8).build(cloud()), [cloud()], Laplacian())
    assert np.corrcoef(answers.numpy(), alone.numpy())[0, 1] > 0.9


@pytest.mark.parametrize("graph_filter", FILTERS, ids=repr)
def test_responses_permute_with_the_points(graph_filter: GraphFilter) -> None:
    points, signals = cloud(), cloud(seed=1)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    answers = response(NearestNeighbours(8).build(points), [signals], graph_filter)
    permuted = response(NearestNeighbours(8).build(points[order]), [signals[order]], graph_filter)
    torch.testing.assert_close(permuted, answers[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("graph_filter", FILTERS, ids=repr)
def test_responses_are_deterministic(graph_filter: GraphFilter) -> None:
    assert_deterministic(lambda: response(NearestNeighbours(8).build(cloud()), [cloud(seed=1)], graph_filter))


@given(n=st.integers(0, 40), gamma=st.floats(0, 1), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_budget_of_a_band_limited_mixture_splits_by_gamma(n: int, gamma: float, seed: int) -> None:
    answers = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    scores = band_limited(answers, gamma)
    assert len(torch.unique(scores)) == n and bool(((scores > 0) & (scores <= 1)).all())
    order = answers.argsort(descending=True)
    for k in range(n + 1):
        strong = int(np.floor(gamma * k + 0.5))
        expected = torch.zeros(n, dtype=torch.bool)
        expected[order[:strong]] = True
        expected[order[n - (k - strong) :]] = True
        assert torch.equal(topk_mask(scores, k), expected)


def test_the_ends_of_gamma_are_high_pass_and_low_pass() -> None:
    answers = torch.randn(50, generator=torch.Generator().manual_seed(0))
    for k in (1, 20, 49):
        assert torch.equal(topk_mask(band_limited(answers, 1.0), k), topk_mask(answers, k))
        assert torch.equal(topk_mask(band_limited(answers, 0.0), k), topk_mask(-answers, k))


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_out_of_range_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma"):
        band_limited(torch.ones(3), gamma)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (-0.1, 1), (0, 2.1)])
def test_bands_out_of_range_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low < high"):
        SmoothBand(low, high)


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ([], "at least one signal"),
        ([torch.ones(3, 1)], r"signal 0 must be \(90, C\)"),
        ([torch.ones(90, 1), torch.full((90, 2), torch.nan)], "signal 1 holds 180 values"),
    ],
)
def test_wrong_signals_are_refused(signals: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        response(NearestNeighbours(8).build(cloud()), signals, Laplacian())
