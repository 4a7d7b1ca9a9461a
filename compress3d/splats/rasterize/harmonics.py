"""Spherical-harmonic colours towards a camera, and their gradients."""

from __future__ import annotations

import math

import numba as nb
import numpy as np

from compress3d.splats.rasterize.project import FAST_MATH

_CHUNK = 1024


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def project_colors(means, sh0, shN, camera, degree, order):  # pragma: no cover - compiled
    """Evaluate spherical harmonics along the viewing direction, for the Gaussians at `order`.

    Args:
        means: (N, 3) centres. sh0: (N, 1, D) float32. shN: (N, K, D) float32 with K >= (degree + 1)^2 - 1.
        camera: (3,) camera centre. degree: 0 to 3. order: (M,) int32 indices.

    Returns:
        (M, D) float32 colours max(0, SH + 0.5), in the sign convention of INRIA's 3DGS.
    """
    count, channels = order.shape[0], sh0.shape[2]
    colors = np.empty((count, channels), np.float32)
    rest = (degree + 1) * (degree + 1) - 1
    chunks = (count + _CHUNK - 1) // _CHUNK
    for chunk in nb.prange(chunks):
        basis = np.empty(16, np.float32)
        for rank in range(np.int64(chunk) * _CHUNK, min(count, np.int64(chunk) * _CHUNK + _CHUNK)):
            i = order[rank]
            x, y, z = means[i, 0] - camera[0], means[i, 1] - camera[1], means[i, 2] - camera[2]
            norm = np.float32(1.0) / math.sqrt(x * x + y * y + z * z + np.float32(1e-24))
            fill_basis(basis, x * norm, y * norm, z * norm, degree)
            for channel in range(channels):
                total = np.float32(0.5) + basis[0] * sh0[i, 0, channel]
                for k in range(rest):
                    total += basis[k + 1] * shN[i, k, channel]
                colors[rank, channel] = max(np.float32(0.0), total)
    return colors


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def project_colors_backward(means, sh0, shN, camera, degree, order, colors, v_colors):  # pragma: no cover - compiled
    """Gradients of `project_colors`.

    Args:
        means, sh0, shN, camera, degree, order: as `project_colors` took them. colors: (M, D), what it returned.
        v_colors: (M, D) gradient of the loss with respect to them.

    Returns:
        v_means (N, 3), v_sh0 (N, 1, D), v_shN (N, K, D) and v_camera (3,), float32; a colour that is clamped at black
        passes nothing on.
    """
    count, channels = order.shape[0], sh0.shape[2]
    v_means, v_sh0, v_shN = np.zeros_like(means), np.zeros_like(sh0), np.zeros_like(shN)
    rest = (degree + 1) * (degree + 1) - 1
    chunks = (count + _CHUNK - 1) // _CHUNK
    v_cameras = np.zeros((chunks, 3), np.float64)
    for chunk in nb.prange(chunks):
        basis, slopes, incoming = (
            np.empty(16, np.float32),
            np.empty((16, 3), np.float32),
            np.empty(channels, np.float32),
        )
        for rank in range(np.int64(chunk) * _CHUNK, min(count, np.int64(chunk) * _CHUNK + _CHUNK)):
            i = order[rank]
            x, y, z = means[i, 0] - camera[0], means[i, 1] - camera[1], means[i, 2] - camera[2]
            norm = np.float32(1.0) / math.sqrt(x * x + y * y + z * z + np.float32(1e-24))
            x, y, z = x * norm, y * norm, z * norm
            fill_basis(basis, x, y, z, degree)
            for channel in range(channels):
                lit = colors[rank, channel] > np.float32(0.0)
                incoming[channel] = v_colors[rank, channel] if lit else np.float32(0.0)
                v_sh0[i, 0, channel] = basis[0] * incoming[channel]
            if degree == 0:
                continue
            fill_basis_slopes(slopes, x, y, z, degree)
            v_x, v_y, v_z = np.float32(0.0), np.float32(0.0), np.float32(0.0)
            for k in range(rest):
                along = np.float32(0.0)
                for channel in range(channels):
                    v_shN[i, k, channel] = basis[k + 1] * incoming[channel]
                    along += shN[i, k, channel] * incoming[channel]
                v_x += along * slopes[k + 1, 0]
                v_y += along * slopes[k + 1, 1]
                v_z += along * slopes[k + 1, 2]
            # A direction has unit length: only what turns it reaches the mean.
            radial = x * v_x + y * v_y + z * v_z
            v_x, v_y, v_z = (v_x - x * radial) * norm, (v_y - y * radial) * norm, (v_z - z * radial) * norm
            v_means[i, 0], v_means[i, 1], v_means[i, 2] = v_x, v_y, v_z
            v_cameras[chunk, 0] -= v_x
            v_cameras[chunk, 1] -= v_y
            v_cameras[chunk, 2] -= v_z
    v_camera = np.zeros(3, np.float32)
    for axis in range(3):
        v_camera[axis] = v_cameras[:, axis].sum()
    return v_means, v_sh0, v_shN, v_camera


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def fill_basis(basis, x, y, z, degree):  # pragma: no cover - compiled
    """Real spherical harmonics up to `degree` at the unit vector (x, y, z), written to `basis` ((16,))."""
    basis[0] = 0.28209479177387814
    if degree < 1:
        return
    basis[1], basis[2], basis[3] = -0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x
    if degree < 2:
        return
    xx, yy, zz = x * x, y * y, z * z
    basis[4] = 1.0925484305920792 * x * y
    basis[5] = -1.0925484305920792 * y * z
    basis[6] = 0.31539156525252005 * (2 * zz - xx - yy)
    basis[7] = -1.0925484305920792 * x * z
    basis[8] = 0.5462742152960396 * (xx - yy)
    if degree < 3:
        return
    basis[9] = -0.5900435899266435 * y * (3 * xx - yy)
    basis[10] = 2.890611442640554 * x * y * z
    basis[11] = -0.4570457994644658 * y * (4 * zz - xx - yy)
    basis[12] = 0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy)
    basis[13] = -0.4570457994644658 * x * (4 * zz - xx - yy)
    basis[14] = 1.445305721320277 * z * (xx - yy)
    basis[15] = -0.5900435899266435 * x * (xx - 3 * yy)


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def fill_basis_slopes(slopes, x, y, z, degree):  # pragma: no cover - compiled
    """Derivatives of the polynomials of `fill_basis` along x, y and z, written to `slopes` ((16, 3)); degree >= 1."""
    zero = np.float32(0.0)
    slopes[1, 0], slopes[1, 1], slopes[1, 2] = zero, -0.4886025119029199, zero
    slopes[2, 0], slopes[2, 1], slopes[2, 2] = zero, zero, 0.4886025119029199
    slopes[3, 0], slopes[3, 1], slopes[3, 2] = -0.4886025119029199, zero, zero
    if degree < 2:
        return
    a, b, c = np.float32(1.0925484305920792), np.float32(0.31539156525252005), np.float32(0.5462742152960396)
    slopes[4, 0], slopes[4, 1], slopes[4, 2] = a * y, a * x, zero
    slopes[5, 0], slopes[5, 1], slopes[5, 2] = zero, -a * z, -a * y
    slopes[6, 0], slopes[6, 1], slopes[6, 2] = -2 * b * x, -2 * b * y, 4 * b * z
    slopes[7, 0], slopes[7, 1], slopes[7, 2] = -a * z, zero, -a * x
    slopes[8, 0], slopes[8, 1], slopes[8, 2] = 2 * c * x, -2 * c * y, zero
    if degree < 3:
        return
    xx, yy, zz = x * x, y * y, z * z
    a, b, c = np.float32(0.5900435899266435), np.float32(2.890611442640554), np.float32(0.4570457994644658)
    d, e = np.float32(0.3731763325901154), np.float32(1.445305721320277)
    slopes[9, 0], slopes[9, 1], slopes[9, 2] = -6 * a * x * y, -3 * a * (xx - yy), zero
    slopes[10, 0], slopes[10, 1], slopes[10, 2] = b * y * z, b * x * z, b * x * y
    slopes[11, 0], slopes[11, 1], slopes[11, 2] = 2 * c * x * y, -c * (4 * zz - xx - 3 * yy), -8 * c * y * z
    slopes[12, 0], slopes[12, 1], slopes[12, 2] = -6 * d * x * z, -6 * d * y * z, 3 * d * (2 * zz - xx - yy)
    slopes[13, 0], slopes[13, 1], slopes[13, 2] = -c * (4 * zz - 3 * xx - yy), 2 * c * x * y, -8 * c * x * z
    slopes[14, 0], slopes[14, 1], slopes[14, 2] = 2 * e * x * z, -2 * e * y * z, e * (xx - yy)
    slopes[15, 0], slopes[15, 1], slopes[15, 2] = -3 * a * (xx - yy), 6 * a * x * y, zero
