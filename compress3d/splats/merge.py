"""Reduce a scene to an exact number of Gaussians by merging neighbours, cheapest expected image error first.

Selection alone removes light and opens holes; a pair that is merged keeps its mean, covariance, colour and coverage.
The cost of a merge is what it is expected to do to the pixels that see the pair:

    cost(i, j) = m_i m_j / (m_i + m_j) |c_i - c_j|^2  +  kappa_ij (m_i (1 - rho_i) + m_j (1 - rho_j))

with m the visibility mass (blending weight summed over views, in pixels), c the colours, rho the overlap (cosine in L2)
between a Gaussian and the merged one after blurring both by a pixel, and kappa the squared contrast that a displaced
footprint uncovers: a floor plus the colour variance of the neighbourhood.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numba as nb
import numpy as np
import torch
from scipy.spatial import cKDTree

from compress3d.cameras import Cameras
from compress3d.splats.rasterize.project import FAST_MATH
from compress3d.splats.scene import SplatScene

_C0 = 0.28209479177387814
_OPACITY_MAX = 0.995


@dataclass(frozen=True, slots=True)
class Merge:
    """Rounds of pairwise merging on a k-nearest-neighbour graph.

    Time is O(N k log N) a round with a geometric number of rounds; memory is O(N k).

    Args:
        neighbours: k of the graph.
        share: at most this share of the Gaussians disappears in a round.
        contrast: kappa's floor, in squared RGB units.
        local_contrast: weight in kappa of the colour variance among the neighbours.
        mass_floor: share of the mean visibility mass that every Gaussian has, so that what the sampled views hardly
            see is not given up.
    """

    neighbours: int = 8
    share: float = 0.25
    contrast: float = 0.05
    local_contrast: float = 2.0
    mass_floor: float = 0.03

    def __call__(
        self,
        scene: SplatScene,
        count: int,
        masses: np.ndarray,
        cameras: Cameras,
        progress: Callable[[int], None] | None = None,
    ) -> SplatScene:
        """Merge down to exactly `count` Gaussians.

        Args:
            scene: N Gaussians on the CPU.
            count: 1 to N.
            masses: (N,) blending weight of each Gaussian summed over the pixels of some views.
            cameras: these views; they tell how large a pixel is at each Gaussian.
            progress: called with the number of Gaussians left after each round.

        Returns:
            A scene of `count` Gaussians: first the untouched ones, bit for bit, then the merged ones.

        Raises:
            ValueError: `count` is out of range.
        """
        if not 1 <= count <= len(scene):
            raise ValueError(f"count must be 1 to {len(scene)}, got {count}")
        cloud = Cloud.of(scene, masses, self.mass_floor, _pixel_sizes(scene, cameras))
        while len(cloud.means) > count:
            cloud = self._round(cloud, count)
            if progress is not None:
                progress(len(cloud.means))
        return cloud.scene(scene)

    def _round(self, cloud: Cloud, count: int) -> Cloud:
        size = len(cloud.means)
        quota = min(size - count, max(1, int(size * self.share)))
        k = min(self.neighbours, size - 1)
        tree = cKDTree(cloud.means, balanced_tree=False, compact_nodes=False)
        distances, indices = tree.query(cloud.means, k=k + 1, workers=-1)
        neighbours = indices.astype(np.int32)
        edges = np.concatenate([_edges(neighbours), _chains(cloud.means, distances[:, -1] == 0)])
        colors = np.ascontiguousarray(cloud.coefficients[:, :3]) * np.float32(_C0)
        contrasts = np.float32(self.contrast) + np.float32(self.local_contrast) * _local_variance(colors, neighbours)
        costs = _edge_costs(edges, cloud.means, cloud.covariances, colors, cloud.masses, cloud.pixels, contrasts)
        pairs, taken = _match(edges, np.argsort(costs, kind="stable"), size, quota)
        return cloud.merged(pairs, taken)


class Cloud(NamedTuple):
    """Gaussians in the form that merging works on; rows of `source` are -1 for merged ones."""

    means: np.ndarray  # (n, 3) float32
    covariances: np.ndarray  # (n, 6) float32: xx xy xz yy yz zz
    opacities: np.ndarray  # (n,) float32 in [0, 1]
    coefficients: np.ndarray  # (n, 3 (K + 1)) float32
    masses: np.ndarray  # (n,) float32
    pixels: np.ndarray  # (n,) float32 variance of a pixel in world units
    source: np.ndarray  # (n,) int64

    @classmethod
    def of(cls, scene: SplatScene, masses: np.ndarray, floor: float, pixels: np.ndarray) -> Cloud:
        """N Gaussians on the CPU; `masses` and `pixels` (N,), and the mean mass's share that each has at least."""
        coefficients = torch.cat([scene.sh0, scene.shN], dim=1).reshape(len(scene), -1).numpy()
        masses = masses.astype(np.float32) + np.float32(max(floor * float(masses.mean()), 1e-12))
        return cls(
            np.ascontiguousarray(scene.means.numpy()),
            _covariances(scene.quats.numpy(), torch.exp(scene.scales).numpy()),
            scene.peak_opacities().numpy(),
            coefficients,
            masses,
            pixels,
            np.arange(len(scene)),
        )

    def merged(self, pairs: np.ndarray, taken: np.ndarray) -> Cloud:
        """Replace each pair ((p, 2) indices) by its moment-matched Gaussian; `taken` (n,) marks the paired.

        What is not paired comes first, in its order, then one Gaussian a pair.
        """
        first, second = pairs[:, 0], pairs[:, 1]
        share = (self.masses[first] / (self.masses[first] + self.masses[second]))[:, None]
        means, covariances = _merge_moments(pairs, self.means, self.covariances, self.masses)
        footprints = self.opacities * _areas(self.covariances)
        opacities = (footprints[first] + footprints[second]) / _areas(covariances)
        # A pair whose coverage no longer fits under full opacity keeps it as area, within reason.
        covariances *= np.clip(opacities / np.float32(_OPACITY_MAX), 1.0, 1.15)[:, None]
        opacities = np.minimum(opacities, np.float32(_OPACITY_MAX))
        left = ~taken

        def joined(rows: np.ndarray, new: np.ndarray) -> np.ndarray:
            return np.concatenate([rows[left], new.astype(rows.dtype)])

        return Cloud(
            joined(self.means, means),
            joined(self.covariances, covariances),
            joined(self.opacities, opacities),
            joined(self.coefficients, self.coefficients[first] * share + self.coefficients[second] * (1 - share)),
            joined(self.masses, self.masses[first] + self.masses[second]),
            joined(self.pixels, np.sqrt(self.pixels[first] * self.pixels[second])),
            joined(self.source, np.full(len(pairs), -1)),
        )

    def scene(self, original: SplatScene) -> SplatScene:
        """Back to raw parameters; untouched Gaussians are copied from `original`."""
        new = self.source < 0
        kept = original.select(torch.from_numpy(self.source[~new]))
        quats, scales = decompose(self.covariances[new])
        opacities = np.clip(self.opacities[new], 1e-4, 0.9999)
        coefficients = torch.from_numpy(self.coefficients[new]).reshape(len(quats), original.shN.shape[1] + 1, 3)
        merged = {
            "means": torch.from_numpy(self.means[new]),
            "quats": torch.from_numpy(quats),
            "scales": torch.from_numpy(scales),
            "opacities": torch.from_numpy(np.log(opacities / (1 - opacities))),
            "sh0": coefficients[:, :1],
            "shN": coefficients[:, 1:],
        }
        return original.with_tensors(
            **{name: torch.cat([tensor, merged[name]]).contiguous() for name, tensor in kept.tensors().items()}
        )


def decompose(covariances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quaternions (n, 4) wxyz and log-scales (n, 3) of covariances (n, 6); eigenvalues are floored at 1e-16."""
    matrices = torch.from_numpy(covariances)[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].double().reshape(-1, 3, 3)
    values, axes = torch.linalg.eigh(matrices)
    axes = torch.where((torch.linalg.det(axes) < 0)[:, None, None], -axes, axes)
    return _quaternions(axes.numpy()), (0.5 * torch.log(values.clamp_min(1e-16))).float().numpy()


def _pixel_sizes(scene: SplatScene, cameras: Cameras) -> np.ndarray:
    """(N,) float32 variance in world units of one pixel at each Gaussian, from the nearest camera."""
    nearest = torch.full((len(scene),), torch.inf)
    for position, focal in zip(cameras.positions, cameras.Ks[:, 0, 0], strict=True):
        nearest = torch.minimum(nearest, ((scene.means - position) ** 2).sum(dim=1) / focal**2)
    return nearest.numpy()


@nb.njit(parallel=True, cache=True, error_model="numpy")
def _covariances(quats, scales):
    out = np.empty((len(quats), 6), np.float32)
    for i in nb.prange(len(quats)):
        w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
        norm = 1.0 / math.sqrt(w * w + x * x + y * y + z * z)
        w, x, y, z = w * norm, x * norm, y * norm, z * norm
        axes = (
            (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        )
        column = 0
        for a in range(3):
            for b in range(a, 3):
                total = 0.0
                for k in range(3):
                    total += axes[a][k] * axes[b][k] * scales[i, k] * scales[i, k]
                out[i, column] = total
                column += 1
    return out


@nb.njit(cache=True)
def _edges(neighbours):
    """(E, 2) undirected edges, once each, of a k-nearest-neighbour table (n, 1 + k) whose rows may hold themselves."""
    size, width = neighbours.shape
    edges = np.empty((size * width, 2), np.int32)
    count = 0
    for i in range(size):
        for column in range(width):
            j = neighbours[i, column]
            if j == i:
                continue
            if j < i:
                mutual = False
                for other in range(width):
                    mutual |= neighbours[j, other] == i
                if mutual:
                    continue
            edges[count, 0], edges[count, 1] = i, j
            count += 1
    return edges[:count]


def _chains(means: np.ndarray, heaped: np.ndarray) -> np.ndarray:
    """(E, 2) edges through each heap of Gaussians at one place, which all may have the same few for neighbours."""
    rows = np.flatnonzero(heaped).astype(np.int32)
    rows = rows[np.lexsort(means[rows].T)]
    same = (means[rows[1:]] == means[rows[:-1]]).all(axis=1)
    return np.stack([rows[:-1][same], rows[1:][same]], axis=1)


@nb.njit(parallel=True, cache=True)
def _local_variance(colors, neighbours):
    """(n,) mean squared colour difference to the neighbours."""
    out = np.empty(len(colors), np.float32)
    for i in nb.prange(len(colors)):
        total = np.float32(0.0)
        for column in range(neighbours.shape[1]):
            j = neighbours[i, column]
            for k in range(3):
                total += (colors[i, k] - colors[j, k]) ** 2
        out[i] = total / np.float32(max(1, neighbours.shape[1] - 1))
    return out


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _moments(first_mean, first, second_mean, second, share):
    """Mean (3) and covariance (6) of a mixture with weights (share, 1 - share), as two tuples of float64."""
    other = 1.0 - share
    dx = np.float64(first_mean[0]) - second_mean[0]
    dy = np.float64(first_mean[1]) - second_mean[1]
    dz = np.float64(first_mean[2]) - second_mean[2]
    spread = share * other
    mean = (second_mean[0] + share * dx, second_mean[1] + share * dy, second_mean[2] + share * dz)
    covariance = (
        share * first[0] + other * second[0] + spread * dx * dx,
        share * first[1] + other * second[1] + spread * dx * dy,
        share * first[2] + other * second[2] + spread * dx * dz,
        share * first[3] + other * second[3] + spread * dy * dy,
        share * first[4] + other * second[4] + spread * dy * dz,
        share * first[5] + other * second[5] + spread * dz * dz,
    )
    return mean, covariance


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _determinant(c, blur):
    a, d, f = c[0] + blur, c[3] + blur, c[5] + blur
    return a * (d * f - c[4] * c[4]) - c[1] * (c[1] * f - c[4] * c[2]) + c[2] * (c[1] * c[4] - d * c[2])


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _overlap(mean, c, merged_mean, merged, blur):
    """Cosine in L2 between two Gaussians that are both blurred by an isotropic variance."""
    a, d, f = c[0] + merged[0] + 2 * blur, c[3] + merged[3] + 2 * blur, c[5] + merged[5] + 2 * blur
    b, g, h = c[1] + merged[1], c[2] + merged[2], c[4] + merged[4]
    xx, xy, xz = d * f - h * h, g * h - b * f, b * h - d * g
    yy, yz, zz = a * f - g * g, b * g - a * h, a * d - b * b
    determinant = a * xx + b * xy + g * xz
    own = _determinant(c, blur) * _determinant(merged, blur)
    if not (determinant > 0 and own > 0):
        return 0.0
    x, y, z = mean[0] - merged_mean[0], mean[1] - merged_mean[1], mean[2] - merged_mean[2]
    distance = (xx * x * x + yy * y * y + zz * z * z + 2 * (xy * x * y + xz * x * z + yz * y * z)) / determinant
    return math.sqrt(8.0 * math.sqrt(own) / determinant) * math.exp(-0.5 * distance)


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def _edge_costs(edges, means, covariances, colors, masses, pixels, contrasts):
    costs = np.empty(len(edges), np.float32)
    for edge in nb.prange(len(edges)):
        i, j = edges[edge, 0], edges[edge, 1]
        mass_i, mass_j = np.float64(masses[i]), np.float64(masses[j])
        total = mass_i + mass_j
        mean, covariance = _moments(means[i], covariances[i], means[j], covariances[j], mass_i / total)
        blur = math.sqrt(np.float64(pixels[i]) * pixels[j])
        moved_i = 1.0 - _overlap(means[i], covariances[i], mean, covariance, blur)
        moved_j = 1.0 - _overlap(means[j], covariances[j], mean, covariance, blur)
        difference = 0.0
        for k in range(3):
            difference += (colors[i, k] - colors[j, k]) ** 2
        contrast = 0.5 * (contrasts[i] + contrasts[j])
        costs[edge] = mass_i * mass_j / total * difference + contrast * (mass_i * moved_i + mass_j * moved_j)
    return costs


@nb.njit(cache=True)
def _match(edges, order, size, quota):
    """Greedy matching: the cheapest edges between free nodes, at most `quota`; pairs (p, 2) and marks (size,)."""
    taken = np.zeros(size, np.bool_)
    pairs = np.empty((quota, 2), np.int64)
    count = 0
    for edge in order:
        i, j = edges[edge, 0], edges[edge, 1]
        if not taken[i] and not taken[j]:
            taken[i] = taken[j] = True
            pairs[count, 0], pairs[count, 1] = i, j
            count += 1
            if count == quota:
                break
    return pairs[:count], taken


@nb.njit(parallel=True, cache=True, error_model="numpy")
def _merge_moments(pairs, means, covariances, masses):
    new_means = np.empty((len(pairs), 3), np.float32)
    new_covariances = np.empty((len(pairs), 6), np.float32)
    for pair in nb.prange(len(pairs)):
        i, j = pairs[pair, 0], pairs[pair, 1]
        share = np.float64(masses[i]) / (np.float64(masses[i]) + masses[j])
        mean, covariance = _moments(means[i], covariances[i], means[j], covariances[j], share)
        for k in range(3):
            new_means[pair, k] = mean[k]
        for k in range(6):
            new_covariances[pair, k] = covariance[k]
    return new_means, new_covariances


@nb.njit(parallel=True, cache=True, error_model="numpy")
def _areas(covariances):
    """(n,) area that stands for the projections of an ellipsoid: root of the sum of its principal 2x2 minors."""
    out = np.empty(len(covariances), np.float32)
    for i in nb.prange(len(covariances)):
        c = covariances[i]
        minors = c[0] * c[3] - c[1] * c[1] + c[0] * c[5] - c[2] * c[2] + c[3] * c[5] - c[4] * c[4]
        out[i] = math.sqrt(max(minors, np.float32(1e-30)))
    return out


def _quaternions(rotations: np.ndarray) -> np.ndarray:
    """(n, 4) float32 wxyz of rotation matrices (n, 3, 3), by the largest component (Shepperd 1978)."""
    r = rotations
    trace = r[:, 0, 0] + r[:, 1, 1] + r[:, 2, 2]
    outer = np.empty((len(r), 4, 4))
    outer[:, 0, 0] = 1 + trace
    for a in range(3):
        b, c = (a + 1) % 3, (a + 2) % 3
        outer[:, a + 1, a + 1] = 1 + 2 * r[:, a, a] - trace
        outer[:, 0, a + 1] = outer[:, a + 1, 0] = r[:, c, b] - r[:, b, c]
        outer[:, b + 1, c + 1] = outer[:, c + 1, b + 1] = r[:, c, b] + r[:, b, c]
    # Every row of 4 q q^T is a multiple of q; the one with the largest diagonal is the best conditioned.
    rows = outer[np.arange(len(r)), np.einsum("nii->ni", outer).argmax(axis=1)]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
