"""Refitting: its linear model against a dense one in float64, and errors that fall and never rise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from compress3d.cameras import Cameras
from compress3d.splats.rasterize import render
from compress3d.splats.refit import Refit, _Linearised, _Vector
from compress3d.splats.scene import SplatScene
from tests.compress3d.splats.rasterize.clouds import Cloud, Pinhole, awkward, pinhole, rounded, scene_of
from tests.compress3d.splats.rasterize.reference import ALPHA_MIN, composite, project, raw_alphas
from tests.contracts import assert_deterministic, assert_same

VIEWS = [pinhole(30, 22, azimuth=azimuth, focal=32.0) for azimuth in (0.0, 2.0)]


def cameras_of(views: list[Pinhole]) -> Cameras:
    first = views[0]
    return Cameras(
        torch.stack([v.viewmat for v in views]), torch.stack([v.K for v in views]), first.width, first.height
    )


def orbit(count: int, width: int = 64, height: int = 48) -> Cameras:
    return cameras_of([pinhole(width, height, azimuth=6.28 * k / count) for k in range(count)])


def small_scene(degree: int = 1, black: bool = False, antialiased: bool = False) -> SplatScene:
    """Thirty Gaussians, none so solid that an alpha is clamped; on request, some colours are below black."""
    scene = scene_of(rounded(30, seed=4, size=0.8), degree, antialiased=antialiased)
    if black:
        scene.sh0[::3, :, 1] -= 4.0
    return scene.with_tensors(opacities=scene.opacities.clamp(-3, 2))


class Dense(NamedTuple):
    """One view in float64: Jacobian (pixels * 3, unknowns), residuals (pixels * 3,)."""

    jacobian: np.ndarray
    residuals: np.ndarray


def activated(scene: SplatScene) -> Cloud:
    return Cloud(
        scene.means, scene.quats, scene.scales.exp(), torch.sigmoid(scene.opacities), torch.zeros(len(scene), 3)
    )


def basis_toward(scene: SplatScene, view: Pinhole) -> np.ndarray:
    """(N, K) real spherical harmonics, by rendering's own convention up to degree 1, in float64."""
    rotation, translation = view.viewmat[:3, :3].double(), view.viewmat[:3, 3].double()
    directions = torch.nn.functional.normalize(scene.means.double() + rotation.T @ translation, dim=1)
    x, y, z = directions.T.numpy()
    c0, c1 = np.sqrt(1 / (4 * np.pi)), np.sqrt(3 / (4 * np.pi))
    return np.stack([np.full_like(x, c0), -c1 * y, c1 * z, -c1 * x], axis=1)[:, : scene.shN.shape[1] + 1]


def dense_model(scene: SplatScene, view: Pinhole, image: np.ndarray) -> Dense:
    """Central differences of compositing by the book in each colour, log-opacity and log-size.

    A Gaussian's falloff is exp(-s); growing it by a factor e^t in all axes makes that exp(-s e^(-2t)).
    """
    cloud, count = activated(scene), len(scene)
    book = composite(cloud, view, scene.antialiased)
    ellipses = project(cloud, view, scene.antialiased)
    alphas = raw_alphas(ellipses, view.width, view.height)
    visible = alphas >= ALPHA_MIN
    falloffs = np.log(ellipses.peaks[:, None, None] / alphas)
    basis = basis_toward(scene, view)
    coefficients = torch.cat([scene.sh0, scene.shN], dim=1).double().numpy()
    raw_colors = 0.5 + np.einsum("nk,nkc->nc", basis, coefficients)

    def pixels(log_opacities: np.ndarray, log_sizes: np.ndarray, colors: np.ndarray) -> np.ndarray:
        light, out = np.ones((view.height, view.width)), np.zeros((view.height, view.width, 3))
        for i in book.order:
            grown = np.exp(-falloffs[i] * np.exp(-2 * log_sizes[i]))
            alpha = np.where(visible[i], ellipses.peaks[i] * np.exp(log_opacities[i]) * grown, 0)
            out += (alpha * light)[..., None] * colors[i]
            light = light * (1 - alpha)
        return out + light[..., None]

    zeros, colors, step = np.zeros(count), np.maximum(raw_colors, 0), 1e-5
    columns = []
    for i in range(count):
        for channel in range(3):
            up = colors.copy()
            up[i, channel] += 1.0
            change = pixels(zeros, zeros, up) - pixels(zeros, zeros, colors)
            columns.append(change * (raw_colors[i, channel] > 0))
    by_color = np.stack(columns).reshape(count, 3, -1)
    by_coefficient = np.einsum("nk,ncp->nkcp", basis, by_color).reshape(-1, by_color.shape[-1])
    nudges = step * np.eye(count)
    by_opacity = [(pixels(n, zeros, colors) - pixels(-n, zeros, colors)).ravel() / (2 * step) for n in nudges]
    by_size = [(pixels(zeros, n, colors) - pixels(zeros, -n, colors)).ravel() / (2 * step) for n in nudges]
    jacobian = np.concatenate([by_coefficient, by_opacity, by_size]).T
    return Dense(jacobian, (image - pixels(zeros, zeros, colors)).ravel())


def flat(vector: _Vector) -> np.ndarray:
    return np.concatenate([part.astype(np.float64).ravel() for part in vector])


@pytest.mark.parametrize("black", [False, True], ids=["colours", "some below black"])
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("degree", [0, 1])
def test_the_linear_model_is_the_dense_one(degree: int, antialiased: bool, black: bool) -> None:
    scene = small_scene(degree, black, antialiased)
    random = np.random.default_rng(0)
    images = random.random((2, 22, 30, 3)).astype(np.float32)
    model = _Linearised.of(scene, cameras_of(VIEWS), images, stride=1, shift=0)
    dense = [dense_model(scene, view, image) for view, image in zip(VIEWS, images, strict=True)]
    jacobian = np.concatenate([part.jacobian for part in dense])
    residuals = np.concatenate([part.residuals for part in dense])

    gradient, diagonal = model.gradient()
    expected = jacobian.T @ residuals
    np.testing.assert_allclose(flat(gradient), expected, atol=3e-3 * np.abs(expected).max())
    np.testing.assert_allclose(model.error, np.square(residuals).mean() * model_share(model, residuals), rtol=1e-3)

    curvature = (jacobian**2).sum(axis=0)
    count, terms = len(scene), scene.shN.shape[1] + 1
    np.testing.assert_allclose(diagonal.opacities, curvature[-2 * count : -count], rtol=2e-2, atol=1e-3)
    np.testing.assert_allclose(diagonal.sizes, curvature[-count:], rtol=3e-2, atol=5e-3)
    if not black:
        by_channel = curvature[: -2 * count].reshape(count, terms, 3)
        np.testing.assert_allclose(diagonal.coefficients[..., 0], by_channel[..., 0], rtol=2e-2, atol=1e-3)

    for seed in range(3):
        random = np.random.default_rng(seed)
        vector = _Vector(*(random.normal(size=part.shape).astype(np.float32) for part in gradient))
        expected = jacobian.T @ (jacobian @ flat(vector))
        np.testing.assert_allclose(flat(model.product(vector)), expected, atol=3e-3 * np.abs(expected).max())


def model_share(model: _Linearised, residuals: np.ndarray) -> float:
    """The model averages over whole tiles: pixels outside the image count as exact."""
    return residuals.size / sum(view.residuals.size for view in model.views)


def test_the_product_is_symmetric_and_positive() -> None:
    scene = small_scene(3, black=True)
    cameras = cameras_of(VIEWS)
    model = _Linearised.of(scene, cameras, render(scene, cameras).numpy(), stride=2, shift=1)
    random = np.random.default_rng(0)
    vectors = [_Vector(*(random.normal(size=p.shape).astype(np.float32) for p in model.gradient()[0])) for _ in "ab"]
    products = [model.product(vector) for vector in vectors]
    first, second = (flat(vectors[i]) @ flat(products[1 - i]) for i in (0, 1))
    scale = np.linalg.norm(flat(vectors[0])) * np.linalg.norm(flat(products[1]))
    assert abs(first - second) < 1e-4 * scale
    assert flat(vectors[0]) @ flat(products[0]) > 0


@pytest.mark.parametrize("unknown", ["sh0", "shN", "opacities", "scales"])
def test_the_model_foretells_what_rendering_does(unknown: str) -> None:
    """A small true change of a parameter moves the images as J does; of size to the few per cent of the low-pass."""
    scene, cameras = small_scene(2), cameras_of(VIEWS)
    images = render(scene, cameras).numpy()
    model = _Linearised.of(scene, cameras, images, stride=1, shift=0)
    random = torch.Generator().manual_seed(0)
    step = 2e-3 * torch.randn(scene.tensors()[unknown].shape, generator=random)
    if unknown == "scales":
        step = step[:, :1].expand(-1, 3)
    moved = scene.with_tensors(**{unknown: scene.tensors()[unknown] + step})
    vector = _Vector(*(np.zeros_like(part) for part in model.gradient()[0]))
    if unknown == "sh0":
        vector.coefficients[:, :1] = step
    elif unknown == "shN":
        vector.coefficients[:, 1:] = step
    elif unknown == "opacities":
        vector.opacities[:] = torch.log(moved.peak_opacities() / scene.peak_opacities())
    else:
        vector.sizes[:] = step[:, 0]
    change = torch.from_numpy(render(moved, cameras).numpy() - images).double().numpy()
    # Gradients at the moved images, less those at the images themselves, are J^T of the change.
    expected = flat(_Linearised.of(scene, cameras, images + change.astype(np.float32), 1, 0).gradient()[0])
    expected -= flat(model.gradient()[0])
    got = flat(model.product(vector))
    assert np.linalg.norm(got - expected) < (0.1 if unknown == "scales" else 0.06) * np.linalg.norm(expected)


def perturbed(scene: SplatScene, seed: int = 0) -> SplatScene:
    random = torch.Generator().manual_seed(seed)

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=random)

    return scene.with_tensors(
        sh0=scene.sh0 + 0.4 * noise(scene.sh0),
        shN=scene.shN + 0.05 * noise(scene.shN),
        opacities=scene.opacities + 0.4 * noise(scene.opacities),
        scales=scene.scales + 0.15 * noise(scene.scales[:, :1]),
    )


def errors(scene: SplatScene, cameras: Cameras, images: torch.Tensor) -> float:
    return float((render(scene, cameras) - images).double().square().mean())


@pytest.mark.parametrize(("degree", "antialiased"), [(0, False), (1, True), (2, False), (3, False)])
def test_perturbed_scenes_come_back(degree: int, antialiased: bool) -> None:
    scene = scene_of(rounded(150, seed=2, size=0.5), degree, antialiased=antialiased)
    cameras = orbit(5)
    images = render(scene, cameras)
    start = perturbed(scene)
    fitted = Refit(rounds=3, iterations=12)(start, cameras, images.numpy())
    before, after = errors(start, cameras, images), errors(fitted, cameras, images)
    assert after < 0.05 * before
    held_out = cameras_of([pinhole(64, 48, azimuth=0.6), pinhole(64, 48, azimuth=3.3)])
    truth = render(scene, held_out)
    assert errors(fitted, held_out, truth) < 0.5 * errors(start, held_out, truth), "and not on the given views alone"
    for name in ("means", "quats"):
        assert_same(scene.tensors()[name], fitted.tensors()[name], name)


@pytest.mark.parametrize("black", [False, True], ids=["in range", "below black"])
@pytest.mark.parametrize("seed", range(2))
def test_the_error_never_rises(seed: int, black: bool) -> None:
    scene = scene_of(rounded(60, seed, size=0.6), 1)
    cameras = orbit(3, 40, 30)
    start = perturbed(scene, seed)
    if black:
        start.sh0[::2] -= 3.0
    random = torch.Generator().manual_seed(seed)
    for images in (render(scene, cameras), torch.rand(3, 30, 40, 3, generator=random), render(start, cameras)):
        for refit in (Refit(), Refit(rounds=1), Refit(rounds=3, iterations=3, entries=20_000, damping_scale=1e-6)):
            fitted = refit(start, cameras, images.numpy())
            for name, tensor in fitted.tensors().items():
                assert bool(torch.isfinite(tensor).all()), name
            assert errors(fitted, cameras, images) <= errors(start, cameras, images) * (1 + 1e-6) + 1e-12


def test_a_scene_that_fits_stays_as_it_is() -> None:
    scene, cameras = scene_of(rounded(80, size=0.4), 1), orbit(3, 40, 30)
    fitted = Refit()(scene, cameras, render(scene, cameras).numpy())
    assert float((render(fitted, cameras) - render(scene, cameras)).abs().max()) < 1e-3


def test_colours_below_black_are_left_there() -> None:
    """Black on black: their slope is zero, and no step may fling them into the light."""
    scene, cameras = small_scene(0, black=True), cameras_of(VIEWS)
    target = torch.full((2, 22, 30, 3), 0.6)
    fitted = Refit(rounds=1)(scene, cameras, target.numpy())
    torch.testing.assert_close(fitted.sh0[::3, :, 1], scene.sh0[::3, :, 1], rtol=0, atol=1e-5)


def test_no_rounds_and_no_iterations_change_nothing() -> None:
    scene, cameras = scene_of(rounded(40), 1), orbit(2)
    images = np.zeros((2, 48, 64, 3), np.float32)
    for refit in (Refit(rounds=0), Refit(iterations=0)):
        assert_same(dict(scene.tensors()), dict(refit(scene, cameras, images).tensors()))


def test_what_is_never_seen_stays_bit_for_bit() -> None:
    camera = pinhole(40, 30)
    unseen = awkward(camera).select(torch.tensor([0, 1, 2, 9]))
    scene = perturbed(scene_of(Cloud.join(rounded(60, size=0.4), unseen), 2))
    scene.opacities[-1] = -9.0
    images = render(scene_of(rounded(60, size=0.4), 2), camera.cameras)
    fitted = Refit()(scene, camera.cameras, images.numpy())
    assert not torch.equal(fitted.opacities[:60], scene.opacities[:60])
    last = torch.arange(60, 64)
    assert_same(dict(scene.select(last).tensors()), dict(fitted.select(last).tensors()))


def test_nothing_to_see_is_no_error() -> None:
    camera = pinhole(40, 30)
    for scene in (scene_of(rounded(0)), scene_of(awkward(camera).select(torch.tensor([0, 1])), 1)):
        fitted = Refit()(scene, camera.cameras, np.zeros((1, 30, 40, 3), np.float32))
        assert_same(dict(scene.tensors()), dict(fitted.tensors()))


def test_runs_agree_and_inputs_are_left_alone() -> None:
    scene, cameras = scene_of(rounded(60, size=0.4), 1), orbit(3, 40, 30)
    start, images = perturbed(scene), render(scene, cameras).numpy()
    before, copy, shares = {k: v.clone() for k, v in start.tensors().items()}, images.copy(), list[float]()
    assert_deterministic(lambda: dict(Refit()(start, cameras, images).tensors()))
    Refit()(start, cameras, images, shares.append)
    assert_same(before, dict(start.tensors()))
    np.testing.assert_array_equal(images, copy)
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] <= 1
