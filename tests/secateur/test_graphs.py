"""Neighbour graphs: symmetric, complete where they should be, and unharmed by duplicates and floaters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.graphs import Graph, GraphBuilder, NearestNeighbours, WithinRadius
from tests.contracts import assert_deterministic

BUILDERS = [NearestNeighbours(6), NearestNeighbours(6, bandwidth=0.3), WithinRadius(), WithinRadius(0.5)]


def cloud(n: int = 120, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed))


def dense(graph: Graph) -> np.ndarray:
    return graph.weights.toarray()


@pytest.mark.parametrize("builder", BUILDERS, ids=repr)
def test_graphs_are_symmetric_without_loops(builder: GraphBuilder) -> None:
    weights = dense(builder.build(cloud()))
    np.testing.assert_array_equal(weights, weights.T)
    assert (weights >= 0).all() and (weights <= 1).all() and (np.diag(weights) == 0).all()
    np.testing.assert_allclose(builder.build(cloud()).degrees, weights.sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("builder", BUILDERS, ids=repr)
def test_permuting_the_points_permutes_the_graph(builder: GraphBuilder) -> None:
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    weights = dense(builder.build(cloud()))
    permuted = dense(builder.build(cloud()[order]))
    np.testing.assert_allclose(permuted, weights[np.ix_(order.numpy(), order.numpy())], rtol=1e-5)


def test_nearest_neighbours_against_all_pairs() -> None:
    points = cloud()
    distances = torch.cdist(points.double(), points.double()).fill_diagonal_(torch.inf)
    nearest = distances.argsort(dim=1)[:, :6]
    reach = distances.gather(1, nearest).max(dim=1).values
    listed = torch.zeros(120, 120, dtype=torch.bool).scatter_(1, nearest, True)
    expected = torch.exp(-(distances**2) / (2 * reach[:, None] * reach)) * (listed | listed.T)
    np.testing.assert_allclose(dense(NearestNeighbours(6).build(points)), expected.numpy(), rtol=1e-4, atol=1e-9)


def test_within_radius_against_all_pairs() -> None:
    points = cloud()
    distances = torch.cdist(points.double(), points.double()).fill_diagonal_(torch.inf)
    near = distances < 0.4
    variance = (distances[near] ** 2).mean()
    expected = torch.exp(-(distances**2) / (2 * variance)) * near
    np.testing.assert_allclose(dense(WithinRadius(0.4).build(points)), expected.numpy(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("builder", [NearestNeighbours(6), WithinRadius()], ids=repr)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_unit_of_length_does_not_matter(builder: GraphBuilder, scale: float) -> None:
    small, large = dense(builder.build(cloud())), dense(builder.build(cloud() * scale))
    np.testing.assert_allclose(large, small, rtol=1e-3, atol=1e-6)


def test_near_duplicates_do_not_empty_the_radius_graph() -> None:
    """The released SUNDAE code takes its radius from the smallest distance, which a pair of near-duplicates ruins."""
    points = torch.cat([cloud(), cloud()[:1] + 1e-7, cloud()[5:8]])
    degrees = WithinRadius().build(points).degrees
    assert (degrees > 0).mean() > 0.95


def test_floaters_stay_connected_to_their_nearest() -> None:
    points = torch.cat([cloud() * 1e-3, torch.tensor([[1e4, 0, 0], [0, -1e5, 0]])])
    graph = NearestNeighbours(6).build(points)
    assert (graph.degrees > 0).all()
    assert (WithinRadius().build(points).degrees[-2:] == 0).all()


@pytest.mark.parametrize("builder", BUILDERS, ids=repr)
def test_points_at_one_place_are_neighbours_of_full_weight(builder: GraphBuilder) -> None:
    points = torch.cat([cloud(), cloud()[:1], cloud()[:1]])
    weights = dense(builder.build(points))
    np.testing.assert_array_equal(weights[np.ix_([0, 120, 121], [0, 120, 121])], 1 - np.eye(3))


def test_a_heap_of_thousands_of_copies_is_handled() -> None:
    points = torch.cat([cloud(), torch.full((4000, 3), 0.5)])
    graph = NearestNeighbours(8).build(points)
    assert (graph.degrees > 0).all() and np.isfinite(graph.weights.data).all()
    assert_deterministic(lambda: NearestNeighbours(8).build(points).weights.data.tolist())


@pytest.mark.parametrize("builder", BUILDERS, ids=repr)
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_tiny_clouds(builder: GraphBuilder, n: int) -> None:
    graph = builder.build(cloud(n))
    assert graph.weights.shape == (n, n)
    assert np.isfinite(graph.laplacian(np.ones((n, 1), np.float32))).all()


@pytest.mark.parametrize("builder", BUILDERS, ids=repr)
def test_all_points_at_one_place(builder: GraphBuilder) -> None:
    graph = builder.build(torch.ones(20, 3))
    assert np.isfinite(graph.weights.data).all()


@pytest.mark.parametrize("builder", BUILDERS, ids=repr)
def test_points_that_are_not_finite_are_refused_with_a_count(builder: GraphBuilder) -> None:
    points = cloud()
    points[3, 1] = torch.nan
    points[7] = torch.inf
    with pytest.raises(ValueError, match="2 of 120 points are not finite"):
        builder.build(points)


def test_a_point_without_neighbours_has_no_response() -> None:
    graph = WithinRadius(0.1).build(torch.tensor([[0.0, 0, 0], [0.05, 0, 0], [9, 9, 9]]))
    signals = np.array([[1.0], [2.0], [7.0]], np.float32)
    np.testing.assert_allclose(graph.laplacian(signals), [[-1], [1], [0]])
    assert graph.laplacian(signals, "combinatorial")[2] == 0


def test_laplacians_against_the_dense_equations() -> None:
    graph = NearestNeighbours(6).build(cloud())
    weights = dense(graph).astype(np.float64)
    degrees = weights.sum(axis=1)
    signals = cloud(120, seed=3).numpy()
    np.testing.assert_allclose(graph.laplacian(signals), signals - weights @ signals / degrees[:, None], atol=1e-5)
    combinatorial = (np.diag(degrees) - weights) @ signals
    np.testing.assert_allclose(graph.laplacian(signals, "combinatorial"), combinatorial, atol=1e-5)


def test_eigenvalues_stay_below_their_bound() -> None:
    graph = NearestNeighbours(6).build(cloud())
    weights = dense(graph).astype(np.float64)
    laplacian = np.diag(weights.sum(axis=1)) - weights
    assert np.linalg.eigvalsh(laplacian).max() <= graph.largest_eigenvalue("combinatorial") + 1e-6
    root = np.sqrt(weights.sum(axis=1))
    assert np.linalg.eigvalsh(laplacian / np.outer(root, root)).max() <= graph.largest_eigenvalue() + 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NearestNeighbours(0), "count"),
        (lambda: NearestNeighbours(3, bandwidth=0.0), "bandwidth"),
        (lambda: WithinRadius(radius=-1.0), "radius"),
        (lambda: WithinRadius(medians=0.0), "medians"),
    ],
)
def test_wrong_parameters_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
