"""EWA projection of 3D Gaussians to screen-space ellipses (Zwicker et al. 2001, as gsplat 1.5 does it)."""

from __future__ import annotations

import math

import numba as nb
import numpy as np

# No nnan/ninf: a NaN must stay one, so that it fails the comparisons that cull it.
FAST_MATH = {"contract", "reassoc", "nsz", "arcp"}

ALPHA_MIN = 1.0 / 255.0
"""Contributions below this alpha are skipped."""

ALPHA_MAX = 0.999
"""No Gaussian covers a pixel by more than this (gsplat 1.5)."""


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _camera_factor(viewmat, quats, scales, i):
    """The 3x3 matrix W R diag(s), so that its product with its transpose is the covariance in camera axes."""
    w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
    norm = np.float32(1.0) / math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * norm, x * norm, y * norm, z * norm
    s0, s1, s2 = scales[i, 0], scales[i, 1], scales[i, 2]
    r00, r01, r02 = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    r10, r11, r12 = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    r20, r21, r22 = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    v = viewmat
    return (
        (v[0, 0] * r00 + v[0, 1] * r10 + v[0, 2] * r20) * s0,
        (v[0, 0] * r01 + v[0, 1] * r11 + v[0, 2] * r21) * s1,
        (v[0, 0] * r02 + v[0, 1] * r12 + v[0, 2] * r22) * s2,
        (v[1, 0] * r00 + v[1, 1] * r10 + v[1, 2] * r20) * s0,
        (v[1, 0] * r01 + v[1, 1] * r11 + v[1, 2] * r21) * s1,
        (v[1, 0] * r02 + v[1, 1] * r12 + v[1, 2] * r22) * s2,
        (v[2, 0] * r00 + v[2, 1] * r10 + v[2, 2] * r20) * s0,
        (v[2, 0] * r01 + v[2, 1] * r11 + v[2, 2] * r21) * s1,
        (v[2, 0] * r02 + v[2, 1] * r12 + v[2, 2] * r22) * s2,
    )


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def project(
    means, quats, scales, opacities, viewmat, K, width, height, near, far, eps2d, radius_clip, antialiased
):  # pragma: no cover - compiled
    """Project N Gaussians through one camera.

    Args:
        means: (N, 3) float32. quats: (N, 4) wxyz. scales: (N, 3) linear. opacities: (N,) in [0, 1].
        viewmat: (4, 4) float32 world to camera. K: (3, 3) float32 intrinsics in pixels.
        width, height: image size in pixels.
        near, far: depth range in world units.
        eps2d: variance in square pixels added to the projected covariance (low-pass filter).
        radius_clip: Gaussians whose radius in pixels is at most this are dropped.
        antialiased: scale opacity by sqrt(det before / det after) of that low-pass (Yu et al. 2024, mip-splatting).

    Returns:
        means2d (N, 2), conics (N, 3) upper triangle of the inverse covariance, depths (N,) camera z, peaks (N,)
        opacity after compensation, radii (N, 2) int32 half-extents in pixels; radii are 0 where a Gaussian is culled.
    """
    n = means.shape[0]
    means2d = np.zeros((n, 2), np.float32)
    conics = np.zeros((n, 3), np.float32)
    depths = np.zeros(n, np.float32)
    peaks = np.zeros(n, np.float32)
    radii = np.zeros((n, 2), np.int32)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = np.float32(0.3 * 0.5) * width / fx, np.float32(0.3 * 0.5) * height / fy
    right, left = (width - cx) / fx + margin_x, cx / fx + margin_x
    bottom, top = (height - cy) / fy + margin_y, cy / fy + margin_y
    for i in nb.prange(n):
        z = viewmat[2, 0] * means[i, 0] + viewmat[2, 1] * means[i, 1] + viewmat[2, 2] * means[i, 2] + viewmat[2, 3]
        peak = opacities[i]
        if not (z >= near and z <= far and peak >= ALPHA_MIN):
            continue
        x = viewmat[0, 0] * means[i, 0] + viewmat[0, 1] * means[i, 1] + viewmat[0, 2] * means[i, 2] + viewmat[0, 3]
        y = viewmat[1, 0] * means[i, 0] + viewmat[1, 1] * means[i, 1] + viewmat[1, 2] * means[i, 2] + viewmat[1, 3]
        m00, m01, m02, m10, m11, m12, m20, m21, m22 = _camera_factor(viewmat, quats, scales, i)
        inverse = np.float32(1.0) / z
        # The Jacobian is taken at a point clamped to 1.3 times the field of view, where it is still sane.
        j00, j02 = fx * inverse, -fx * min(max(x * inverse, -left), right) * inverse
        j11, j12 = fy * inverse, -fy * min(max(y * inverse, -top), bottom) * inverse
        a0, a1, a2 = j00 * m00 + j02 * m20, j00 * m01 + j02 * m21, j00 * m02 + j02 * m22
        b0, b1, b2 = j11 * m10 + j12 * m20, j11 * m11 + j12 * m21, j11 * m12 + j12 * m22
        raw_xx = a0 * a0 + a1 * a1 + a2 * a2
        raw_yy = b0 * b0 + b1 * b1 + b2 * b2
        xy = a0 * b0 + a1 * b1 + a2 * b2
        xx, yy = raw_xx + eps2d, raw_yy + eps2d
        determinant = xx * yy - xy * xy
        if not (determinant > 0):
            continue
        if antialiased:
            peak *= math.sqrt(max(np.float32(0.0), (raw_xx * raw_yy - xy * xy) / determinant))
            if not (peak >= ALPHA_MIN):
                continue
        extent = math.sqrt(np.float32(2.0) * math.log(peak / np.float32(ALPHA_MIN)))
        radius_x, radius_y = math.ceil(extent * math.sqrt(xx)), math.ceil(extent * math.sqrt(yy))
        if radius_x <= radius_clip and radius_y <= radius_clip:
            continue
        u, v = fx * x * inverse + cx, fy * y * inverse + cy
        if not (u + radius_x > 0 and u - radius_x < width and v + radius_y > 0 and v - radius_y < height):
            continue
        means2d[i, 0], means2d[i, 1] = u, v
        conics[i, 0], conics[i, 1], conics[i, 2] = yy / determinant, -xy / determinant, xx / determinant
        depths[i] = z
        peaks[i] = peak
        # Clamped well inside int32: a Gaussian wider than a million pixels covers any image anyway.
        radii[i, 0], radii[i, 1] = max(1, min(radius_x, 1000000)), max(1, min(radius_y, 1000000))
    return means2d, conics, depths, peaks, radii
