"""Splatting by the book in float64 numpy: every Gaussian at every pixel, no tiles, no culling by extent.

Written from Zwicker et al. 2001 (EWA splatting), Kerbl et al. 2023 (compositing) and Yu et al. 2024 (antialiasing).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.compress3d.splats.rasterize.clouds import Cloud, Pinhole

ALPHA_MIN, ALPHA_MAX, TRANSMITTANCE_MIN = 1 / 255, 0.999, 1e-4


class Ellipses(NamedTuple):
    """Gaussians on the screen: means2d (N, 2), covariances (N, 2, 2) after the low-pass, depths (N,), peaks (N,)."""

    means2d: np.ndarray
    covariances: np.ndarray
    depths: np.ndarray
    peaks: np.ndarray

    @property
    def conics(self) -> np.ndarray:
        """(N, 3) upper triangle of the inverse covariances."""
        inverse = np.linalg.inv(self.covariances)
        return np.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], axis=1)


class Composite(NamedTuple):
    """What reaches each pixel.

    Args:
        order: (M,) Gaussians in front of the camera, nearest first.
        weights: (M, H, W) alpha T in that order.
        light: (M, H, W) T in front of each Gaussian where it has a weight, else 0.
        left_over: (H, W) light that reaches the background.
        clear: (H, W) False where a threshold is so close that rounding decides it.
    """

    order: np.ndarray
    weights: np.ndarray
    light: np.ndarray
    left_over: np.ndarray
    clear: np.ndarray

    def image(self, features: np.ndarray, background: np.ndarray | float = 0.0) -> np.ndarray:
        """(H, W, D) of (N, D) features in front of a background."""
        return np.einsum("mhw,md->hwd", self.weights, features[self.order]) + self.left_over[..., None] * background

    def by_gaussian(self, values: np.ndarray, count: int) -> np.ndarray:
        """(N, ...) from (M, ...) values in depth order; zeros for what is behind the camera."""
        out = np.zeros((count, *values.shape[1:]), values.dtype)
        out[self.order] = values
        return out


def rotations(quats: np.ndarray) -> np.ndarray:
    """(N, 3, 3) rotation matrices of quaternions (N, 4) wxyz of any length."""
    w, v = quats[:, :1], quats[:, 1:]
    w, v = w / np.linalg.norm(quats, axis=1, keepdims=True), v / np.linalg.norm(quats, axis=1, keepdims=True)
    cross = np.zeros((len(quats), 3, 3))
    cross[:, 2, 1], cross[:, 0, 2], cross[:, 1, 0] = v[:, 0], v[:, 1], v[:, 2]
    cross -= cross.transpose(0, 2, 1)
    return np.eye(3) + 2 * w[:, :, None] * cross + 2 * cross @ cross


def project(cloud: Cloud, camera: Pinhole, antialiased: bool = False, eps2d: float = 0.3) -> Ellipses:
    """Project (N) Gaussians; those behind the camera too, with whatever numbers come out."""
    means, quats, scales, opacities = (tensor.double().numpy() for tensor in cloud[:4])
    viewmat, K = camera.viewmat.double().numpy(), camera.K.double().numpy()
    x, y, z = (means @ viewmat[:3, :3].T + viewmat[:3, 3]).T
    (fx, _, cx), (_, fy, cy) = K[0], K[1]
    limits_x = np.array([-cx, camera.width - cx]) / fx + np.array([-0.15, 0.15]) * camera.width / fx
    limits_y = np.array([-cy, camera.height - cy]) / fy + np.array([-0.15, 0.15]) * camera.height / fy
    jacobians = np.zeros((len(means), 2, 3))
    jacobians[:, 0, 0], jacobians[:, 1, 1] = fx / z, fy / z
    jacobians[:, 0, 2], jacobians[:, 1, 2] = -fx / z * np.clip(x / z, *limits_x), -fy / z * np.clip(y / z, *limits_y)
    factors = jacobians @ viewmat[:3, :3] @ rotations(quats) * scales[:, None]
    raw = factors @ factors.transpose(0, 2, 1)
    covariances = raw + eps2d * np.eye(2)
    # Cauchy-Binet: the determinant of F F^T without the cancellation that needles suffer from.
    determinants = (np.cross(factors[:, 0], factors[:, 1]) ** 2).sum(axis=1)
    compensations = np.sqrt(determinants / np.linalg.det(covariances)) if antialiased else 1.0
    return Ellipses(np.stack([fx * x / z + cx, fy * y / z + cy], axis=1), covariances, z, opacities * compensations)


def raw_alphas(ellipses: Ellipses, width: int, height: int) -> np.ndarray:
    """(N, H, W) peak times falloff at every pixel centre, before any threshold."""
    dx = np.arange(width) + 0.5 - ellipses.means2d[:, 0, None, None]
    dy = np.arange(height)[:, None] + 0.5 - ellipses.means2d[:, 1, None, None]
    a, b, c = ellipses.conics.T[..., None, None]
    return ellipses.peaks[:, None, None] * np.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)


def composite(
    cloud: Cloud, camera: Pinhole, antialiased: bool = False, near: float = 0.01, far: float = 1e10
) -> Composite:
    """Blend front to back in the order of depth over the whole image."""
    ellipses = project(cloud, camera, antialiased)
    order = np.argsort(ellipses.depths, kind="stable")
    order = order[(ellipses.depths[order] >= near) & (ellipses.depths[order] <= far)]
    alphas = raw_alphas(Ellipses(*(part[order] for part in ellipses)), camera.width, camera.height)
    clear = ~_close(alphas, ALPHA_MIN).any(axis=0)
    alphas = np.where(alphas >= ALPHA_MIN, np.minimum(alphas, ALPHA_MAX), 0.0)
    weights, lights = np.zeros_like(alphas), np.zeros_like(alphas)
    light, is_open = np.ones(alphas.shape[1:]), np.ones(alphas.shape[1:], bool)
    for rank, alpha in enumerate(alphas):
        after = light * (1 - alpha)
        clear &= ~(is_open & _close(after, TRANSMITTANCE_MIN, 1e-3))
        is_open &= after > TRANSMITTANCE_MIN
        weights[rank] = np.where(is_open, alpha * light, 0.0)
        lights[rank] = np.where(weights[rank] > 0, light, 0.0)
        light = np.where(is_open, after, light)
    return Composite(order, weights, lights, light, clear)


def _close(values: np.ndarray, threshold: float, tolerance: float = 2e-4) -> np.ndarray:
    return np.abs(values / threshold - 1) < tolerance
