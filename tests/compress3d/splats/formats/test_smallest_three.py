"""The coding of rotations by three components, against one quaternion at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compress3d.splats.formats.smallest_three import LARGEST_OTHER, leave_out_largest, restore_largest


def one_at_a_time(quat: list[float]) -> tuple[list[float], int]:
    norm = math.sqrt(sum(value * value for value in quat))
    largest = max(range(4), key=lambda index: abs(quat[index]))
    sign = -1 if quat[largest] < 0 else 1
    return [sign * quat[index] / norm for index in range(4) if index != largest], largest


@pytest.fixture
def quats() -> np.ndarray:
    """Random ones of many norms, the axes and their negatives, and ones with equal components."""
    random = np.random.default_rng(0)
    several = random.normal(size=(500, 4)) * 10.0 ** random.uniform(-6, 6, (500, 1))
    signs = np.stack(np.meshgrid(*[[-1, 1]] * 4), axis=-1).reshape(-1, 4)
    return np.concatenate([several, np.eye(4), -np.eye(4), signs, signs * [1, 1, 0, 0]]).astype(np.float32)


def test_it_leaves_out_what_a_loop_leaves_out(quats: np.ndarray) -> None:
    others, largest = leave_out_largest(quats)
    wanted = [one_at_a_time(quat) for quat in quats.tolist()]
    assert largest.tolist() == [index for _, index in wanted]
    np.testing.assert_allclose(others, [values for values, _ in wanted], rtol=0, atol=1e-6)
    assert np.abs(others).max() <= LARGEST_OTHER + 1e-6


def test_the_rotation_comes_back(quats: np.ndarray) -> None:
    restored = restore_largest(*leave_out_largest(quats))
    unit = quats / np.linalg.norm(quats.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs((restored * unit).sum(axis=1)), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(restored, axis=1), 1, atol=1e-6)
    assert (restored[np.arange(len(quats)), np.abs(unit).argmax(axis=1)] > 0).all()


def test_components_beyond_the_unit_sphere_leave_nothing_for_the_last() -> None:
    restored = restore_largest(np.full((1, 3), LARGEST_OTHER, np.float32), np.array([2]))
    assert restored[0, 2] == 0 and np.isfinite(restored).all()
