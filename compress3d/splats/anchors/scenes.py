"""Ordinary Gaussians for a neural field as it looks from a set of viewpoints: `decode_scene`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.anchors.field import NeuralField, NeuralGaussians, touches
from compress3d.splats.formats.axes import sh_basis
from compress3d.splats.merge import decompose
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene

SH0 = 0.28209479177387814
VISIBLE = 1 / 255
"""Opacity below which the rasteriser draws nothing."""

_CHUNK = 8192


def decode_scene(field: NeuralField, viewpoints: Cameras, sh_degree: int = 2, ridge: float = 1e-2) -> SplatScene:
    """A scene that any viewer shows, which looks like the field from the viewpoints, as far as ordinary Gaussians can.

    A field may give each viewpoint another Gaussian; the scene has one for all of them. Its centre is the field's, its
    opacity the mean over the viewpoints that have it in their frustum (0 where the field draws none), its covariance
    the mean weighted by opacity, and its colour a least-squares fit of spherical harmonics to the decoded colours,
    weighted by opacity, too. Gaussians that no viewpoint shows are left out.

    Args:
        field: any; that of the training is left as it is.
        viewpoints: V cameras. What lies between them is what the fit makes of it.
        sh_degree: of the scene, 0 to 3.
        ridge: weight of the squared coefficients above degree 0, in units of the mean weight of a viewpoint: it keeps
            fewer viewpoints than coefficients from fitting wildly.

    Raises:
        ValueError: there is no viewpoint; `sh_degree` or `ridge` is out of range; no Gaussian is visible.
    """
    if not len(viewpoints):
        raise ValueError("a scene is decoded for at least one viewpoint")
    if sh_degree not in SH_COEFFICIENTS or not ridge > 0:
        raise ValueError(f"sh_degree must be 0 to 3 and ridge above 0, got {sh_degree} and {ridge}")
    chunks = [
        _decode_units(field, units, viewpoints, sh_degree, ridge)
        for units in torch.arange(len(field)).split(max(1, _CHUNK // field.slots_per_unit))
    ]
    columns = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
    means, covariances, opacities, coefficients = columns
    if not len(means):
        raise ValueError(f"none of the field's {len(field)} units is visible from the {len(viewpoints)} viewpoints")
    quats, scales = decompose(covariances.numpy())
    return SplatScene(
        means=means.float(),
        quats=torch.from_numpy(quats),
        scales=torch.from_numpy(scales),
        opacities=opacities.clamp(max=1 - 1e-6).logit().float(),
        sh0=coefficients[:, :1].float().contiguous(),
        shN=coefficients[:, 1:].float().contiguous(),
    )


@dataclass(slots=True)
class _Sums:
    """What is added up over the viewpoints for S Gaussians, in float64."""

    views: Float[Tensor, " S"]
    opacities: Float[Tensor, " S"]
    covariances: Float[Tensor, "S 6"]
    normal: Float[Tensor, "S K K"]
    right: Float[Tensor, "S K 3"]


@torch.no_grad()
def _decode_units(
    field: NeuralField, units: Int64[Tensor, " U"], viewpoints: Cameras, degree: int, ridge: float
) -> tuple[Tensor, ...]:
    """Means, covariances (n, 6), opacities and coefficients (n, K, 3) of the visible Gaussians of some units."""
    count, size = len(units) * field.slots_per_unit, (degree + 1) ** 2
    shapes = ((count,), (count,), (count, 6), (count, size, size), (count, size, 3))
    sums = _Sums(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
    centres, radii = (bound[units] for bound in field.bounds())
    means = torch.zeros(count, 3)
    for index in range(len(viewpoints)):
        camera = viewpoints[index]
        seen = touches(centres, radii, camera).repeat_interleave(field.slots_per_unit)
        gaussians = field.gaussians(camera.positions[0], units)
        means = gaussians.means
        _add(sums, gaussians, seen, camera.positions[0], degree)
    opacities = sums.opacities / sums.views.clamp_min(1)
    visible = opacities >= VISIBLE
    weights = sums.opacities[visible]
    normal, right = sums.normal[visible], sums.right[visible]
    penalty = torch.full((size,), ridge, dtype=torch.float64)
    penalty[0] = 1e-9
    normal = normal + torch.diag(penalty) * (weights / sums.views[visible])[:, None, None]
    coefficients = torch.linalg.solve(normal, right)
    return means[visible].detach(), sums.covariances[visible] / weights[:, None], opacities[visible], coefficients


def _add(sums: _Sums, gaussians: NeuralGaussians, seen: Tensor, position: Tensor, degree: int) -> None:
    weights = gaussians.opacities.double().clamp_min(0) * seen
    directions = torch.nn.functional.normalize(gaussians.means.double() - position.double(), dim=1)
    basis = torch.full((len(gaussians), 1), SH0, dtype=torch.float64)
    if degree:
        basis = torch.cat([basis, torch.from_numpy(sh_basis(directions.numpy(), degree))], dim=1)
    sums.views += seen
    sums.opacities += weights
    sums.covariances += weights[:, None] * _covariances(gaussians)
    weighted = basis * weights[:, None]
    sums.normal += weighted[:, :, None] * basis[:, None, :]
    sums.right += weighted[:, :, None] * (gaussians.colors.double() - 0.5)[:, None, :]


def _covariances(gaussians: NeuralGaussians) -> Float[Tensor, "M 6"]:
    """Upper triangles, row by row."""
    w, x, y, z = gaussians.quats.double().unbind(dim=1)
    rotation = torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ], dim=1,
    ).reshape(-1, 3, 3)  # fmt: skip
    axes = rotation * gaussians.scales.double()[:, None, :]
    rows, columns = torch.triu_indices(3, 3)
    return (axes @ axes.transpose(1, 2))[:, rows, columns]
