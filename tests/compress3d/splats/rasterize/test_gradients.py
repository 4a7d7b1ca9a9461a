"""Gradients of the CPU rasteriser, against torch's own of a float64 composition and against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.rasterize import rasterization, render
from tests.compress3d.splats.rasterize.clouds import Cloud, Pinhole, awkward, pinhole, rounded, scene_of
from tests.compress3d.splats.rasterize.composition import splat
from tests.compress3d.splats.rasterize.reference import composite
from tests.contracts import assert_deterministic, assert_same

gsplat = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed")

CAMERA = pinhole(52, 41, focal=40.0, centre=(0.6, 0.45))


def crowded() -> Cloud:
    """Rounded Gaussians, the awkward ones, solid ones at the alpha clamp, and some beyond the field of view."""
    beyond = rounded(40, seed=3, size=1.2)
    beyond = beyond._replace(means=beyond.means * torch.tensor([6.0, 4.0, 1.0]))
    flat = rounded(30, seed=4)
    flat = flat._replace(scales=flat.scales * torch.tensor([1.0, 1.0, 1e-3]))
    needles = rounded(20, seed=6)
    needles = needles._replace(scales=needles.scales * torch.tensor([3.0, 1e-3, 1e-3]))
    solid = rounded(30, seed=5, size=0.4)._replace(opacities=torch.full((30,), 0.9995))
    return Cloud.join(rounded(80, seed=1, size=0.3), awkward(CAMERA), beyond, flat, needles, solid)


def tensors_of(cloud: Cloud, degree: int | None, camera: Pinhole = CAMERA, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    colors = cloud.features
    if degree is not None:
        colors = 0.6 * torch.randn(len(cloud.means), (degree + 1) ** 2, 3, generator=random)
    return {
        "means": cloud.means,
        "quats": cloud.quats,
        "scales": cloud.scales,
        "opacities": cloud.opacities,
        "colors": colors,
        "viewmat": camera.viewmat,
        "background": torch.rand(3 if degree is not None else colors.shape[1], generator=random),
    }


def by_us(tensors: dict[str, Tensor], camera: Pinhole, **options: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    values = dict(tensors)
    viewmats, backgrounds = values.pop("viewmat")[None], values.pop("background")[None]
    images, alphas, meta = rasterization(
        **values, viewmats=viewmats, Ks=camera.K[None], width=camera.width, height=camera.height,
        backgrounds=backgrounds, render_mode="RGB+D", **options,
    )  # fmt: skip
    return images[0], alphas[0, ..., 0], meta


def assert_close(ours: Tensor, theirs: Tensor, name: str, tolerance: float = 2e-3) -> None:
    """Each Gaussian's gradient within a share of itself, or a small one of what is typical."""
    ours, theirs = ours.double(), theirs.double()
    rows = theirs.reshape(len(theirs), -1).norm(dim=1)
    typical = rows[rows > 0].quantile(0.5)
    error = (ours - theirs).reshape(len(theirs), -1).norm(dim=1) / (rows + 0.05 * typical)
    worst = int(error.argmax())
    assert float(error.max()) < tolerance, f"{name}[{worst}]: {ours[worst]} for {theirs[worst]}, {float(error.max())}"


@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
@pytest.mark.parametrize("degree", [None, 0, 1, 2, 3])
def test_gradients_are_those_of_the_torch_composition(degree: int | None, antialiased: bool) -> None:
    cloud = crowded()
    exact = {name: t.double().requires_grad_() for name, t in tensors_of(cloud, degree).items()}
    image, alpha, means2d, clear = splat(gsplat, exact, CAMERA.K, CAMERA.width, CAMERA.height, antialiased)
    means2d.retain_grad()
    assert float(clear.float().mean()) > 0.9
    random = torch.Generator().manual_seed(7)
    toward = torch.randn(image.shape, generator=random, dtype=torch.float64) * clear[..., None]
    toward_alpha = torch.randn(alpha.shape, generator=random, dtype=torch.float64) * clear
    ((image * toward).sum() + (alpha * toward_alpha).sum()).backward()

    single = {name: t.clone().requires_grad_() for name, t in tensors_of(cloud, degree).items()}
    mode: Any = "antialiased" if antialiased else "classic"
    ours, our_alpha, meta = by_us(single, CAMERA, sh_degree=degree, rasterize_mode=mode)
    meta["means2d"].retain_grad()
    torch.testing.assert_close((ours * clear[..., None]).double(), image * clear[..., None], rtol=0, atol=3e-4)
    ((ours * toward.float()).sum() + (our_alpha * toward_alpha.float()).sum()).backward()
    seen = meta["radii"][0, :, 0] > 0
    assert 100 < int(seen.sum()) < len(seen)
    for name, tensor in exact.items():
        gradient = single[name].grad
        assert gradient is not None and tensor.grad is not None
        assert bool(torch.isfinite(gradient).all()), name
        if len(gradient) == len(seen):
            assert not gradient[~seen].any(), f"{name}: what is culled has a gradient"
            # A Gaussian that the pixels show but our culling dropped would differ here.
            assert_close(gradient, tensor.grad, name)
        else:
            wanted, got = tensor.grad[:3], gradient[:3].double()
            torch.testing.assert_close(got, wanted, rtol=2e-3, atol=2e-3 * float(wanted.norm()))
    assert_close(meta["means2d"].grad[0], means2d.grad, "means2d")


def test_gradients_are_those_of_central_differences() -> None:
    """Of a brute force that knows nothing of torch, along random directions in each tensor."""
    cloud = rounded(60, seed=2, size=0.3)
    random = torch.Generator().manual_seed(1)
    toward = torch.randn(CAMERA.height, CAMERA.width, 3, generator=random, dtype=torch.float64).numpy()
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in zip(cloud._fields, cloud, strict=True)}
    clear = composite(cloud, CAMERA).clear
    image, _, _ = rasterization(
        tensors["means"], tensors["quats"], tensors["scales"], tensors["opacities"], tensors["features"],
        CAMERA.viewmat[None], CAMERA.K[None], CAMERA.width, CAMERA.height,
    )  # fmt: skip
    (image[0] * torch.from_numpy(toward * clear[..., None]).float()).sum().backward()
    double = Cloud(*(tensor.double() for tensor in cloud))
    for name in cloud._fields:
        direction = torch.randn(getattr(cloud, name).shape, generator=random, dtype=torch.float64)
        values = []
        for step in (-1e-7, 1e-7):
            moved = double._replace(**{name: getattr(double, name) + step * direction})
            values.append(
                float((composite(moved, CAMERA).image(moved.features.numpy()) * toward * clear[..., None]).sum())
            )
        slope = (values[1] - values[0]) / 2e-7
        gradient = tensors[name].grad
        assert gradient is not None
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=2e-3, abs=2e-3 * float(gradient.norm()))


def test_absgrad_sums_the_absolute_gradients_of_the_pixels() -> None:
    tensors = {name: t.clone().requires_grad_() for name, t in tensors_of(rounded(30, size=0.2), None).items()}
    total = torch.zeros(30, 2)
    toward = torch.randn(CAMERA.height, CAMERA.width, 4, generator=torch.Generator().manual_seed(3))
    for row in range(0, CAMERA.height, 4):
        for column in range(0, CAMERA.width, 4):
            image, _, meta = by_us(tensors, CAMERA)
            meta["means2d"].retain_grad()
            pixel = (slice(row, row + 1), slice(column, column + 1))
            (image[pixel] * toward[pixel]).sum().backward()
            total += meta["means2d"].grad[0].abs()
    image, _, meta = by_us(tensors, CAMERA, absgrad=True)
    sparse = torch.zeros_like(toward)
    sparse[::4, ::4] = toward[::4, ::4]
    (image * sparse).sum().backward()
    torch.testing.assert_close(meta["means2d"].absgrad[0], total, rtol=1e-4, atol=1e-5 * float(total.max()))
    assert bool((meta["means2d"].absgrad > 0).any())


def test_a_batch_of_cameras_sums_their_gradients() -> None:
    cloud = rounded(50, size=0.3)
    cameras = [pinhole(40, 30, azimuth=azimuth) for azimuth in (0.0, 1.0)]
    batch = Cameras(torch.stack([c.viewmat for c in cameras]), torch.stack([c.K for c in cameras]), 40, 30)

    def gradients(views: Cameras) -> dict[str, Tensor]:
        scene = scene_of(cloud, degree=1)
        scene = scene.with_tensors(**{name: t.clone().requires_grad_() for name, t in scene.tensors().items()})
        (render(scene, views) ** 2).sum().backward()
        return {name: t.grad for name, t in scene.tensors().items() if t.grad is not None}

    both, parts = gradients(batch), [gradients(batch[index]) for index in (0, 1)]
    assert set(both) == {"means", "quats", "scales", "opacities", "sh0", "shN"}
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, parts[0][name] + parts[1][name], rtol=1e-4, atol=1e-4)


def test_a_mask_has_a_gradient_and_nothing_else_needs_one() -> None:
    scene = scene_of(rounded(40, size=0.3))
    mask = torch.ones(40, requires_grad=True)
    with scene.masked({"gaussians": mask}):
        image = render(scene, CAMERA.cameras)
    image.sum().backward()
    assert mask.grad is not None and int((mask.grad != 0).sum()) > 20


def test_gradients_do_not_depend_on_threads_or_chance() -> None:
    import numba

    def gradients(threads: int) -> list[Tensor]:
        numba.set_num_threads(threads)
        tensors = {name: t.clone().requires_grad_() for name, t in tensors_of(crowded(), 2).items()}
        image, _, _ = by_us(tensors, CAMERA, sh_degree=2)
        (image**2).sum().backward()
        return [t.grad for t in tensors.values() if t.grad is not None]

    most = numba.config.NUMBA_NUM_THREADS
    try:
        assert_same(assert_deterministic(lambda: gradients(1)), gradients(most))
    finally:
        numba.set_num_threads(most)


def test_nothing_visible_gives_zeros() -> None:
    cloud = rounded(5)._replace(means=torch.full((5, 3), 100.0))
    tensors = {name: t.clone().requires_grad_() for name, t in tensors_of(cloud, 0).items()}
    image, alpha, _ = by_us(tensors, CAMERA, sh_degree=0)
    (image.sum() + alpha.sum()).backward()
    for name in ("means", "quats", "scales", "opacities", "colors"):
        gradient = tensors[name].grad
        assert gradient is not None and not gradient.any()
    assert np.isclose(float(tensors["background"].grad.sum()), 3 * CAMERA.width * CAMERA.height)  # type: ignore[union-attr]
