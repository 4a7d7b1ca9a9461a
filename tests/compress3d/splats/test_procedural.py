"""The parts that procedural scenes are built of, held to closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from compress3d.splats.procedural.light import SUN, DensityGrid, illuminate
from compress3d.splats.procedural.lobes import FRAME, LobeTable, glaze, sh_basis
from compress3d.splats.procedural.noise import fractal_noise, smoothstep
from compress3d.splats.procedural.surfaces import Turned, ellipsoids, low_discrepancy, rounded, sample
from compress3d.splats.procedural.surfels import Surfels, any_tangents, quaternions, to_scene, unit
from compress3d.splats.procedural.tree import BarkSurface, curve, fork, grow


def sphere_points(count: int) -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(count, 3)))


def globe(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A unit sphere from its south pole up."""
    polar, turn = np.pi * (1 - u), 2 * np.pi * v
    return np.stack([np.sin(polar) * np.cos(turn), np.cos(polar), np.sin(polar) * np.sin(turn)], axis=1)


def panel(height: float, normal: tuple[float, float, float], count: int = 4000) -> Surfels:
    """A square of side 1 at a height, nearly opaque."""
    flat = low_discrepancy(count, np.random.default_rng(0)) - 0.5
    positions = np.stack([flat[:, 0], np.full(count, height), flat[:, 1]], axis=1)
    normals = np.broadcast_to(normal, positions.shape)
    return Surfels.of(positions, any_tangents(normals), normals, np.array([0.012, 0.012, 0.001]), np.full(3, 0.5))


def test_noise_is_smooth_stays_in_range_and_follows_its_seed() -> None:
    points = np.random.default_rng(0).uniform(-20, 20, (4000, 3))
    values = fractal_noise(points, 3, 5)
    assert values.min() >= 0 and values.max() < 1 and values.std() > 0.08
    assert np.abs(fractal_noise(points + 1e-4, 3, 5) - values).max() < 5e-3
    assert np.array_equal(fractal_noise(points, 3, 5), values)
    assert np.abs(fractal_noise(points, 3, 6) - values).mean() > 0.05


def test_smoothstep_ramps_between_its_ends() -> None:
    assert smoothstep(1, 3, np.array([0.0, 1.0, 2.0, 3.0, 9.0])).tolist() == [0, 0, 0.5, 1, 1]


def test_quaternions_turn_axes_as_their_matrices_do() -> None:
    rotations = Rotation.random(200, random_state=0).as_matrix()
    quats = quaternions(np.concatenate([rotations, np.diag([1.0, -1, -1])[None], np.eye(3)[None]]))
    back = Rotation.from_quat(quats[:, [1, 2, 3, 0]]).as_matrix()
    assert np.allclose(back[:200], rotations, atol=1e-12)
    assert np.allclose(back[200], np.diag([1, -1, -1])) and np.allclose(back[201], np.eye(3))


def test_any_tangent_is_unit_and_perpendicular() -> None:
    normals = np.concatenate([sphere_points(500), np.eye(3), -np.eye(3)])
    tangents = any_tangents(normals)
    assert np.allclose((tangents * normals).sum(1), 0, atol=1e-12)
    assert np.allclose(np.linalg.norm(tangents, axis=1), 1)


def test_a_scene_lies_as_its_surfels_do_turned_upside_down() -> None:
    surfels = panel(0.25, (0.0, 1.0, 0.0), 50)
    scene = to_scene(surfels, np.zeros((50, 16, 3), np.float32), np.array([0.0, 0.05, 0.0]))
    assert np.allclose(scene.means.numpy(), (surfels.positions - [0, 0.05, 0]) * FRAME, atol=1e-6)
    axes = Rotation.from_quat(scene.quats.numpy()[:, [1, 2, 3, 0]]).as_matrix()
    assert np.allclose(np.abs(axes[:, :, 2]), [0, 1, 0], atol=1e-5)
    assert np.allclose(np.exp(scene.scales.numpy()), surfels.sizes, rtol=1e-5)


def test_samples_cover_a_sphere_evenly_with_normals_outside() -> None:
    points = sample(globe, 6000, np.random.default_rng(0))
    assert np.allclose(np.linalg.norm(points.positions, axis=1), 1)
    assert (points.normals * points.positions).sum(1).min() > 0.98
    for height in (-0.5, 0.0, 0.8):
        assert (points.positions[:, 1] < height).mean() == pytest.approx((1 + height) / 2, abs=0.02)
    assert points.spacing.prod(1).sum() == pytest.approx(4 * np.pi, rel=0.05)


def test_weight_moves_samples_and_widens_the_rest() -> None:
    points = sample(globe, 4000, np.random.default_rng(0), lambda p: np.where(p[:, 1] > 0, 4.0, 1.0))
    up = points.positions[:, 1] > 0
    assert up.mean() == pytest.approx(0.8, abs=0.02)
    assert points.spacing[~up].mean() / points.spacing[up].mean() == pytest.approx(2, rel=0.1)


def test_a_turned_body_is_closed_and_faces_outwards() -> None:
    profile = rounded(np.array([[0.01, -1.0], [1.0, -1.0], [1.0, 1.0], [0.01, 1.0]]), 3)
    points = sample(Turned(0.5, 0.4, 4.0, profile), 3000, np.random.default_rng(0))
    assert ((points.normals * points.positions).sum(1) > 0).mean() > 0.99
    assert np.abs(points.positions[:, 0]).max() <= 0.5 + 1e-9
    assert np.abs(points.positions[:, 2]).max() <= 0.4 + 1e-9


def test_ellipsoid_points_lie_on_their_ellipsoids() -> None:
    centres = np.array([[0.0, 0, 0], [5.0, 0, 0]])
    half = np.array([[1.0, 0.5, 0.8], [2.0, 1.0, 1.6]])
    which, positions, normals, _ = ellipsoids(centres, half, 3000, np.random.default_rng(0))
    local = (positions - centres[which]) / half[which]
    assert np.allclose((local**2).sum(1), 1)
    assert ((positions - centres[which]) * normals).sum(1).min() > 0
    assert (which == 1).mean() == pytest.approx(0.8, abs=0.03)


def test_bark_faces_away_from_the_limb() -> None:
    limb = curve(np.array([[0.0, 0, 0], [0.1, 0.3, 0], [0.0, 0.6, 0.1]]), np.array([0.06, 0.05, 0.03]), 40)
    bark = BarkSurface(limb).sample(2000, np.random.default_rng(0))
    centre, _, radius = limb.at(bark.limb, bark.share)
    outward = bark.positions - centre
    assert ((unit(outward) * bark.normals).sum(1) > 0.3).mean() > 0.98
    assert np.all(np.abs(np.linalg.norm(outward, axis=1) / radius - 1) < 0.13)
    assert bark.relief.min() >= 0 and bark.relief.max() <= 1


def test_limbs_grow_to_their_length_and_children_start_on_their_parents() -> None:
    rng = np.random.default_rng(0)
    parents = grow(np.zeros((3, 3)), np.eye(3), np.full(3, 0.5), np.full(3, 0.02), rng)
    assert np.allclose(parents.lengths[:, -1], 0.5)
    children = fork(
        parents, 4, rng, reach=(0.3, 1.0), spread=1.0, flatness=1, rise=0, length=0.5, thickness=0.6, bend=0
    )
    assert len(children) == 12
    for parent in range(3):
        for start in children.centres[4 * parent : 4 * parent + 4, 0]:
            assert np.linalg.norm(parents.centres[parent] - start, axis=1).min() < 0.5 / 11
    assert (children.radii[:, -1] < children.radii[:, 0]).all()


def test_light_through_a_uniform_block_follows_beer_and_lambert() -> None:
    grid = DensityGrid(np.full((20, 20, 20), 2.0), np.zeros(3), 0.05)
    through = grid.transmittance(np.full((1, 3), 0.5), np.array([0.0, 1.0, 0.0]), 0.3, start=0.0)
    assert through[0] == pytest.approx(np.exp(-2.0 * 0.3), rel=1e-5)
    outside = grid.transmittance(np.array([[0.5, 3.0, 0.5]]), np.array([0.0, 1.0, 0.0]), 0.3)
    assert outside[0] == 1


def test_a_roof_shades_the_floor_and_leaves_its_own_top_in_the_sun() -> None:
    roof, floor = panel(0.3, (0.0, 1.0, 0.0)), panel(0.0, (0.0, 1.0, 0.0), 200)
    both = Surfels.join([roof, floor])
    light = illuminate(both, occluders=both, voxel=0.02)
    below = floor.positions + SUN / SUN[1] * 0.3
    covered = (np.abs(below[:, [0, 2]]) < 0.35).all(1)
    assert light.sun[len(roof) :][covered].mean() < 0.2
    assert light.sun[: len(roof)].mean() > 0.95
    assert light.reflected[: len(roof)].mean() > light.reflected[len(roof) :][covered].mean() + 0.1
    assert light.reflected.min() >= 0 and light.reflected.max() <= 1


def test_sh_basis_is_orthonormal() -> None:
    i = np.arange(5000) + 0.5
    height, turn = 1 - 2 * i / 5000, np.pi * (1 + 5**0.5) * i
    flat = np.sqrt(1 - height**2)
    basis = sh_basis(np.stack([flat * np.cos(turn), flat * np.sin(turn), height], axis=1))
    assert np.allclose(basis.T @ basis * 4 * np.pi / 5000, np.eye(16), atol=2e-3)


def test_a_lobe_within_degree_three_is_kept_exactly() -> None:
    table = LobeTable.fit(lambda axis, eye: ((axis * eye).sum(-1) + 0.3) ** 3, one_sided=True)
    axes, eye = sphere_points(300), sphere_points(301)[1:]
    values = np.einsum("ni,ni->n", table(axes), sh_basis(-eye * FRAME))
    assert np.allclose(values, ((axes * eye).sum(1) + 0.3) ** 3, atol=0.03)


def test_a_glaze_gleams_towards_the_mirrored_sun() -> None:
    table = LobeTable.fit(glaze, one_sided=True)
    normal = unit(np.array([[0.2, 0.9, 0.3]]))
    mirrored = unit(2 * (normal @ SUN)[:, None] * normal - SUN)
    away = unit(2 * (normal @ mirrored[0])[:, None] * normal * [1, 0.4, 1] + np.array([[-0.9, 0.4, -0.9]]))
    towards, elsewhere = (float((table(normal) @ sh_basis(-eye * FRAME).T)[0, 0]) for eye in (mirrored, away))
    assert towards > 0.3
    assert towards > elsewhere + 0.2
