"""Merging: exact counts, moments kept, what is not merged left alone, and no scene too odd for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress3d.cameras import Cameras
from compress3d.splats.merge import Merge, decompose
from compress3d.splats.scene import SplatScene
from tests.compress3d.splats.rasterize.clouds import pinhole, rounded, scene_of
from tests.compress3d.splats.rasterize.reference import rotations
from tests.contracts import assert_deterministic, assert_same

CAMERAS = pinhole(64, 48).cameras


def ball(count: int, degree: int = 1, seed: int = 0) -> SplatScene:
    return scene_of(rounded(count, seed), degree, seed)


def masses_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1.0, 3.0, count)


def covariances(scene: SplatScene) -> np.ndarray:
    """(N, 3, 3) float64."""
    factors = rotations(scene.quats.double().numpy()) * np.exp(scene.scales.double().numpy())[:, None]
    return factors @ factors.transpose(0, 2, 1)


def packed(matrices: np.ndarray) -> np.ndarray:
    """(n, 6) float32 upper triangles."""
    rows, columns = np.triu_indices(3)
    return np.ascontiguousarray(matrices[:, rows, columns], np.float32)


def areas(matrices: np.ndarray) -> np.ndarray:
    """Root of the second elementary symmetric polynomial of the eigenvalues."""
    traces = np.trace(matrices, axis1=1, axis2=2)
    return np.sqrt((traces**2 - np.trace(matrices @ matrices, axis1=1, axis2=2)) / 2)


def assert_sound(scene: SplatScene, count: int) -> None:
    assert len(scene) == count
    for name, tensor in scene.tensors().items():
        assert bool(torch.isfinite(tensor).all()), f"{name} is not finite"
        assert tensor.is_contiguous(), name


def duplicates(count: int) -> SplatScene:
    """All at one place, otherwise different."""
    scene = ball(count)
    return scene.with_tensors(means=torch.full_like(scene.means, 0.3))


def identical(count: int) -> SplatScene:
    return ball(1).select(torch.zeros(count, dtype=torch.int64))


def colinear(count: int) -> SplatScene:
    scene = ball(count)
    return scene.with_tensors(means=torch.linspace(-1, 1, count)[:, None] * torch.tensor([[1.0, 0.5, -0.2]]))


def pairs_of_duplicates(count: int) -> SplatScene:
    return ball(count).select(torch.arange(count) // 2)


def extreme(count: int) -> SplatScene:
    random = torch.Generator().manual_seed(3)
    scene = ball(count)
    return scene.with_tensors(
        scales=25 * torch.rand(count, 3, generator=random) - 20, opacities=40 * torch.rand(count, generator=random) - 20
    )


@pytest.mark.parametrize("make", [ball, duplicates, identical, colinear, pairs_of_duplicates, extreme])
def test_counts_are_exact_whatever_the_scene(make) -> None:
    for size in (1, 2, 3, 10, 60):
        scene = make(size)
        for count in {1, 2, size // 3, size // 2, size - 1, size} & set(range(1, size + 1)):
            assert_sound(Merge()(scene, count, masses_of(size), CAMERAS), count)


def test_every_count_of_a_small_scene() -> None:
    scene = ball(17, degree=0)
    for count in range(1, 18):
        assert_sound(Merge(neighbours=3)(scene, count, masses_of(17), CAMERAS), count)


@pytest.mark.parametrize("make", [duplicates, identical])
def test_heaps_halve_in_a_few_rounds(make) -> None:
    """Everything at one place has the same few neighbours; merging those alone would take hundreds of rounds."""
    left: list[int] = []
    assert_sound(Merge(share=0.5)(make(2000), 100, masses_of(2000), CAMERAS, left.append), 100)
    assert len(left) < 20


@pytest.mark.parametrize("masses", [np.zeros(40), np.eye(1, 40)[0] * 1e6, np.full(40, 1e-30)])
def test_masses_may_be_nothing(masses: np.ndarray) -> None:
    for count in (1, 7, 39):
        assert_sound(Merge()(ball(40), count, masses, CAMERAS), count)
    assert_sound(Merge(mass_floor=0.0)(ball(40), 7, masses, CAMERAS), 7)


@pytest.mark.parametrize("count", [0, -1, 11])
def test_counts_out_of_range_are_named(count: int) -> None:
    with pytest.raises(ValueError, match=r"count must be 1 to 10"):
        Merge()(ball(10), count, masses_of(10), CAMERAS)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_full_count_changes_nothing(degree: int) -> None:
    scene = ball(30, degree)
    assert_same(dict(scene.tensors()), dict(Merge()(scene, 30, masses_of(30), CAMERAS).tensors()))


def test_pairs_merge_and_the_rest_is_left_alone() -> None:
    loners, twins = ball(20), ball(10, seed=1)
    loners = loners.with_tensors(means=10 * loners.means)
    twins = twins.with_tensors(means=10 * twins.means + 100)
    near = twins.with_tensors(means=twins.means + 1e-3)
    scene = loners.with_tensors(
        **{
            name: torch.cat([loners.tensors()[name], twins.tensors()[name], near.tensors()[name]])
            for name in loners.tensors()
        }
    )
    merged = Merge()(scene, 30, np.ones(40), CAMERAS)
    assert_same(dict(loners.tensors()), dict(merged.select(torch.arange(20)).tensors()), "loners")
    pairs = merged.select(torch.arange(20, 30))
    distances = torch.cdist(twins.means + 5e-4, pairs.means)
    assert float(distances.min(dim=1).values.max()) < 1e-3
    assert len(set(distances.argmin(dim=1).tolist())) == 10, "each pair became one"


def test_untouched_gaussians_come_first_bit_for_bit() -> None:
    scene = ball(100, degree=2)
    merged = Merge()(scene, 80, masses_of(100), CAMERAS)
    originals = {row.numpy().tobytes(): i for i, row in enumerate(_rows(scene))}
    sources = [originals.get(row.numpy().tobytes(), -1) for row in _rows(merged)]
    kept = [source for source in sources if source >= 0]
    assert len(kept) >= 60 and sources == kept + [-1] * (80 - len(kept))
    assert kept == sorted(set(kept)), "in their order, once each"


def _rows(scene: SplatScene) -> torch.Tensor:
    return torch.cat([tensor.reshape(len(scene), -1) for tensor in scene.tensors().values()], dim=1)


@pytest.mark.parametrize("seed", range(4))
def test_two_become_their_mixture(seed: int) -> None:
    scene = ball(2, degree=3, seed=seed)
    scene = scene.with_tensors(opacities=torch.tensor([-2.0, -1.0]))
    masses = masses_of(2, seed)
    merged = Merge(mass_floor=0.0)(scene, 1, masses, CAMERAS)
    share = masses / masses.sum()
    means, matrices = scene.means.double().numpy(), covariances(scene)
    mean = share @ means
    offsets = means - mean
    covariance = np.einsum("i,iab->ab", share, matrices + offsets[:, :, None] * offsets[:, None, :])
    np.testing.assert_allclose(merged.means[0], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(covariances(merged)[0], covariance, rtol=1e-4, atol=1e-6 * covariance.max())
    for name in ("sh0", "shN"):
        expected = np.einsum("i,ikc->kc", share, scene.tensors()[name].double().numpy())
        np.testing.assert_allclose(merged.tensors()[name][0], expected, rtol=1e-4, atol=1e-6)
    coverage = torch.sigmoid(scene.opacities).double().numpy() @ areas(matrices) / areas(covariance[None])[0]
    assert coverage < 0.99
    np.testing.assert_allclose(torch.sigmoid(merged.opacities)[0], coverage, rtol=1e-4)


def test_coverage_beyond_solid_becomes_area() -> None:
    scene = identical(2).with_tensors(opacities=torch.tensor([0.3, 0.3]))
    merged = Merge()(scene, 1, np.ones(2), CAMERAS)
    coverage = 2 * torch.sigmoid(torch.tensor(0.3)).item() / 0.995
    assert coverage > 1.1
    np.testing.assert_allclose(torch.sigmoid(merged.opacities)[0], 0.995, atol=1e-4)
    np.testing.assert_allclose(covariances(merged)[0], covariances(scene)[0] * min(coverage, 1.15), rtol=1e-4)


def test_identical_gaussians_merge_into_their_like() -> None:
    scene = identical(8)
    merged = Merge()(scene, 3, np.ones(8), CAMERAS)
    for name in ("means", "sh0", "shN"):
        torch.testing.assert_close(merged.tensors()[name], scene.tensors()[name][:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spread", [1.0, 1e3])
def test_decompose_round_trips(spread: float) -> None:
    random = np.random.default_rng(0)
    quats = random.normal(size=(500, 4))
    scales = np.exp(random.uniform(-np.log(spread), np.log(spread), (500, 3))) * 0.1
    # Equal and half-equal axes, and rotations by half turns, where one component of the quaternion is all there is.
    scales[:50] = scales[:50, :1]
    scales[50:100, 1:] = scales[50:100, 1:2]
    quats[100:180] = np.eye(4)[np.arange(80) % 4] + 1e-9 * random.normal(size=(80, 4))
    factors = rotations(quats) * scales[:, None]
    matrices = factors @ factors.transpose(0, 2, 1)
    new_quats, new_scales = decompose(packed(matrices))
    assert new_quats.dtype == new_scales.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(new_quats, axis=1), 1, atol=1e-6)
    new_rotations = rotations(new_quats.astype(float))
    np.testing.assert_allclose(np.linalg.det(new_rotations), 1, atol=1e-5)
    new_factors = new_rotations * np.exp(new_scales.astype(float))[:, None]
    largest = np.linalg.eigvalsh(matrices)[:, -1]
    error = np.abs(new_factors @ new_factors.transpose(0, 2, 1) - matrices).max(axis=(1, 2)) / largest
    assert error.max() < 2e-6


def test_decompose_of_what_is_flat_or_nothing_is_finite() -> None:
    flat = np.array([[1, 0, 0, 1, 0, 0], [0] * 6, [1e-30, 0, 0, 0, 0, 1e4], [1, 1, 1, 1, 1, 1]], np.float32)
    quats, scales = decompose(flat)
    assert np.isfinite(quats).all() and np.isfinite(scales).all()
    np.testing.assert_allclose(np.linalg.norm(quats, axis=1), 1, atol=1e-6)


def test_permuting_gaussians_permutes_what_is_merged() -> None:
    scene, masses = ball(200), masses_of(200)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    for count in (199, 150, 60):
        first = Merge()(scene, count, masses, CAMERAS)
        second = Merge()(scene.select(order), count, masses[order.numpy()], CAMERAS)
        rows, others = (
            _rows(part.with_tensors(quats=torch.zeros(count, 4)))[part.means[:, 0].argsort()]
            for part in (first, second)
        )
        torch.testing.assert_close(rows, others, rtol=1e-3, atol=1e-3)


def test_what_looks_alike_goes_before_what_does_not() -> None:
    """Four Gaussians at the corners of a square: two red, two green; like merges with like."""
    means = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0.1, 0.1, 0]])
    scene = identical(4).with_tensors(means=means, sh0=torch.tensor([[[2.0, 0, 0]], [[0, 2.0, 0]]]).repeat(2, 1, 1))
    merged = Merge()(scene, 2, np.ones(4), CAMERAS)
    torch.testing.assert_close(merged.sh0[merged.sh0[:, 0, 0].argsort()][:, 0], torch.tensor([[0.0, 2, 0], [2, 0, 0]]))


def test_what_matters_little_goes_first() -> None:
    """Far pairs of equal shape and contrast: those with the least visibility mass are merged."""
    places = 5.0 * torch.arange(6)[:, None] * torch.ones(1, 3)
    means = torch.cat([places, places + 0.05])
    masses = np.array([5e3, 1, 6e3, 2, 7e3, 3] * 2)
    merged = Merge(mass_floor=0.0)(identical(12).with_tensors(means=means), 9, masses, CAMERAS)
    gone = sorted((merged.means[6:, 0] / 5.0).round().int().tolist())
    assert gone == [1, 3, 5]


def test_progress_counts_down_and_input_is_left_alone() -> None:
    scene, masses, left = ball(100), masses_of(100), []
    before = {name: tensor.clone() for name, tensor in scene.tensors().items()}
    copy = masses.copy()
    assert_deterministic(lambda: dict(Merge()(scene, 20, masses, CAMERAS).tensors()))
    Merge()(scene, 20, masses, CAMERAS, left.append)
    assert left == sorted(left, reverse=True) and left[-1] == 20 and len(left) > 3
    assert_same(before, dict(scene.tensors()))
    np.testing.assert_array_equal(masses, copy)


def test_a_scene_stays_what_it_was_trained_for() -> None:
    scene = scene_of(rounded(20), antialiased=True)
    assert Merge()(scene, 10, masses_of(20), CAMERAS).antialiased


def test_many_cameras_tell_the_pixel_by_the_nearest() -> None:
    """A view from afar on top changes nothing: the nearest camera decides how much a pixel hides."""
    scene, masses = ball(60), masses_of(60)
    far = pinhole(64, 48).viewmat.clone()
    far[2, 3] += 500
    both = Cameras(torch.stack([CAMERAS.viewmats[0], far]), CAMERAS.Ks.repeat(2, 1, 1), 64, 48)
    assert_same(dict(Merge()(scene, 30, masses, CAMERAS).tensors()), dict(Merge()(scene, 30, masses, both).tensors()))
