"""Gradients of the projection, by the chain rule through its factor F = J W R diag(s): covariance = F F^T + eps2d I."""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from compress3d.splats.rasterize.project import FAST_MATH

_CHUNK = 1024


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def project_backward(
    means, quats, scales, opacities, viewmat, K, width, height, eps2d, antialiased, conics, peaks, radii,
    v_means2d, v_conics, v_depths, v_peaks,
):  # fmt: skip  # pragma: no cover - compiled
    """Gradients of `project`; what it culled passes nothing on.

    Args:
        means, ..., antialiased: as `project` took them. conics, peaks, radii: what it returned.
        v_means2d (N, 2), v_conics (N, 3), v_depths (N,), v_peaks (N,): gradients of the loss with respect to what it
            returned, float32.

    Returns:
        v_means (N, 3), v_quats (N, 4), v_scales (N, 3), v_opacities (N,), v_viewmat (4, 4), float32.
    """
    n = means.shape[0]
    v_means, v_quats = np.zeros((n, 3), np.float32), np.zeros((n, 4), np.float32)
    v_scales, v_opacities = np.zeros((n, 3), np.float32), np.zeros(n, np.float32)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    margin_x, margin_y = np.float32(0.3 * 0.5) * width / fx, np.float32(0.3 * 0.5) * height / fy
    right, left = (width - cx) / fx + margin_x, cx / fx + margin_x
    bottom, top = (height - cy) / fy + margin_y, cy / fy + margin_y
    two = np.float32(2.0)
    chunks = (n + _CHUNK - 1) // _CHUNK
    v_viewmats = np.zeros((chunks, 3, 4), np.float64)
    for chunk in nb.prange(chunks):
        # Rows: the camera's axes.
        world, camera = np.empty((3, 3), np.float32), np.empty((3, 3), np.float32)
        v_world, v_camera = np.empty((3, 3), np.float32), np.empty((3, 3), np.float32)
        rotation, factor, v_factor = (
            np.empty((3, 3), np.float32),
            np.empty((2, 3), np.float32),
            np.empty((2, 3), np.float32),
        )
        for i in range(np.int64(chunk) * _CHUNK, min(n, np.int64(chunk) * _CHUNK + _CHUNK)):
            if radii[i, 0] <= 0:
                continue
            # Forward again, as far as the derivatives need it.
            x = viewmat[0, 0] * means[i, 0] + viewmat[0, 1] * means[i, 1] + viewmat[0, 2] * means[i, 2] + viewmat[0, 3]
            y = viewmat[1, 0] * means[i, 0] + viewmat[1, 1] * means[i, 1] + viewmat[1, 2] * means[i, 2] + viewmat[1, 3]
            z = viewmat[2, 0] * means[i, 0] + viewmat[2, 1] * means[i, 1] + viewmat[2, 2] * means[i, 2] + viewmat[2, 3]
            inverse = np.float32(1.0) / z
            norm = _fill_rotation(rotation, quats, i)
            for j in range(3):
                for k in range(3):
                    world[j, k] = rotation[j, k] * scales[i, k]
            for j in range(3):
                for k in range(3):
                    camera[j, k] = (
                        viewmat[j, 0] * world[0, k] + viewmat[j, 1] * world[1, k] + viewmat[j, 2] * world[2, k]
                    )
            slope_x, slope_y = min(max(x * inverse, -left), right), min(max(y * inverse, -top), bottom)
            j00, j02, j11, j12 = fx * inverse, -fx * slope_x * inverse, fy * inverse, -fy * slope_y * inverse
            for k in range(3):
                factor[0, k] = j00 * camera[0, k] + j02 * camera[2, k]
                factor[1, k] = j11 * camera[1, k] + j12 * camera[2, k]

            # Conic P to covariance: V = -P V_P P, symmetric, with half of the off-diagonal's gradient in each corner.
            a, b, c = conics[i, 0], conics[i, 1], conics[i, 2]
            va, vb, vc = v_conics[i, 0], v_conics[i, 1] / two, v_conics[i, 2]
            pa, pb = a * va + b * vb, a * vb + b * vc
            qa, qb = b * va + c * vb, b * vb + c * vc
            v_xx, v_xy, v_yy = -(pa * a + pb * b), -(pa * b + pb * c), -(qa * b + qb * c)
            v_opacities[i] = v_peaks[i]
            if antialiased:
                compensation = peaks[i] / opacities[i]
                v_opacities[i] = compensation * v_peaks[i]
                # compensation^2 = |raw| / |raw + eps2d I|, and the conic holds the second matrix's inverse.
                squared = compensation * compensation
                g = opacities[i] * v_peaks[i] / (two * compensation)
                low_pass = eps2d * (a * c - b * b)
                kept = np.float32(1.0) - squared
                v_xx += g * (kept * a - low_pass)
                v_yy += g * (kept * c - low_pass)
                v_xy += g * kept * b

            # Covariance to its factor, and on to the Jacobian and the matrix in camera axes.
            v_j00, v_j02 = np.float32(0.0), np.float32(0.0)
            v_j11, v_j12 = np.float32(0.0), np.float32(0.0)
            for k in range(3):
                v_factor[0, k] = two * (v_xx * factor[0, k] + v_xy * factor[1, k])
                v_factor[1, k] = two * (v_xy * factor[0, k] + v_yy * factor[1, k])
                v_j00 += v_factor[0, k] * camera[0, k]
                v_j02 += v_factor[0, k] * camera[2, k]
                v_j11 += v_factor[1, k] * camera[1, k]
                v_j12 += v_factor[1, k] * camera[2, k]
                v_camera[0, k] = j00 * v_factor[0, k]
                v_camera[1, k] = j11 * v_factor[1, k]
                v_camera[2, k] = j02 * v_factor[0, k] + j12 * v_factor[1, k]

            # The point in camera axes.
            v_u, v_v = v_means2d[i, 0], v_means2d[i, 1]
            v_x, v_y = fx * inverse * v_u, fy * inverse * v_v
            v_z = v_depths[i] - (v_x * x + v_y * y) * inverse
            v_z -= (j00 * v_j00 + j11 * v_j11 + j02 * v_j02 + j12 * v_j12) * inverse
            # Within the field of view the slope x / z moves, beyond it stands at the clamp.
            if slope_x == x * inverse:
                v_slope = -fx * inverse * v_j02
                v_x += v_slope * inverse
                v_z -= v_slope * slope_x * inverse
            if slope_y == y * inverse:
                v_slope = -fy * inverse * v_j12
                v_y += v_slope * inverse
                v_z -= v_slope * slope_y * inverse

            # From camera axes to the world's.
            for k in range(3):
                v_means[i, k] = viewmat[0, k] * v_x + viewmat[1, k] * v_y + viewmat[2, k] * v_z
                for j in range(3):
                    v_world[j, k] = (
                        viewmat[0, j] * v_camera[0, k] + viewmat[1, j] * v_camera[1, k] + viewmat[2, j] * v_camera[2, k]
                    )
            for k in range(3):
                v_scales[i, k] = (
                    rotation[0, k] * v_world[0, k] + rotation[1, k] * v_world[1, k] + rotation[2, k] * v_world[2, k]
                )
                for j in range(3):
                    v_viewmats[chunk, j, k] += (
                        v_camera[j, 0] * world[k, 0] + v_camera[j, 1] * world[k, 1] + v_camera[j, 2] * world[k, 2]
                    )
                v_viewmats[chunk, 0, k] += v_x * means[i, k]
                v_viewmats[chunk, 1, k] += v_y * means[i, k]
                v_viewmats[chunk, 2, k] += v_z * means[i, k]
                for j in range(3):
                    v_world[j, k] *= scales[i, k]
            v_viewmats[chunk, 0, 3] += v_x
            v_viewmats[chunk, 1, 3] += v_y
            v_viewmats[chunk, 2, 3] += v_z
            _rotation_backward(quats, i, norm, v_world, v_quats)
    v_viewmat = np.zeros((4, 4), np.float32)
    for j in range(3):
        for k in range(4):
            v_viewmat[j, k] = v_viewmats[:, j, k].sum()
    return v_means, v_quats, v_scales, v_opacities, v_viewmat


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _fill_rotation(rotation, quats, i):  # pragma: no cover - compiled
    """The rotation of quaternion i, written to `rotation` ((3, 3)); returns one over the quaternion's length."""
    w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
    norm = np.float32(1.0) / math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * norm, x * norm, y * norm, z * norm
    rotation[0, 0], rotation[0, 1], rotation[0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    rotation[1, 0], rotation[1, 1], rotation[1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    rotation[2, 0], rotation[2, 1], rotation[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    return norm


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _rotation_backward(quats, i, norm, v, v_quats):  # pragma: no cover - compiled
    """From the gradient of a rotation matrix, `v` ((3, 3)), to row i of the quaternions', without its radial part."""
    w, x, y, z = quats[i, 0] * norm, quats[i, 1] * norm, quats[i, 2] * norm, quats[i, 3] * norm
    two = np.float32(2.0)
    v_w = two * (x * (v[2, 1] - v[1, 2]) + y * (v[0, 2] - v[2, 0]) + z * (v[1, 0] - v[0, 1]))
    xy, xz, yz = v[1, 0] + v[0, 1], v[2, 0] + v[0, 2], v[2, 1] + v[1, 2]
    v_x = two * (-two * x * (v[1, 1] + v[2, 2]) + y * xy + z * xz + w * (v[2, 1] - v[1, 2]))
    v_y = two * (x * xy - two * y * (v[0, 0] + v[2, 2]) + z * yz + w * (v[0, 2] - v[2, 0]))
    v_z = two * (x * xz + y * yz - two * z * (v[0, 0] + v[1, 1]) + w * (v[1, 0] - v[0, 1]))
    radial = w * v_w + x * v_x + y * v_y + z * v_z
    v_quats[i, 0], v_quats[i, 1] = (v_w - w * radial) * norm, (v_x - x * radial) * norm
    v_quats[i, 2], v_quats[i, 3] = (v_y - y * radial) * norm, (v_z - z * radial) * norm
