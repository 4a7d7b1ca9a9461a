"""Lenses against an independent implementation of OpenCV's formulas, and pictures that come out straight."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from compress3d.captures.lens import Lens
from compress3d.captures.undistort import Undistorter, pinhole_of
from tests.contracts import assert_same

PINHOLE = Lens(64, 48, 110.0, 105.0, 34.0, 22.0)
LENSES = {
    "barrel": replace(PINHOLE, numerator=(-0.2, 0.05)),
    "pincushion": replace(PINHOLE, numerator=(0.15,)),
    "tangential": replace(PINHOLE, numerator=(0.05, -0.03, 0.01, 0.002), tangential=(0.004, -0.006)),
    "rational": replace(
        PINHOLE, numerator=(0.3, 0.02, 0.01), denominator=(0.35, 0.01, 0.002), tangential=(-0.002, 0.003)
    ),
    "fisheye": replace(PINHOLE, numerator=(0.05, -0.02, 0.01, -0.004), fisheye=True),
    "ideal fisheye": replace(PINHOLE, fisheye=True),
}
every_lens = pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES)


def distorted(lens: Lens, u: float, v: float) -> tuple[float, float]:
    """OpenCV's formulas for one point, written out."""
    r = math.hypot(u, v)
    if lens.fisheye:
        k1, k2, k3, k4 = (*lens.numerator, 0, 0, 0, 0)[:4]
        theta = math.atan(r)
        bent = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
        scale = bent / r if r else 1.0
        x, y = u * scale, v * scale
    else:
        k1, k2, k3, k7 = (*lens.numerator, 0, 0, 0, 0)[:4]
        k4, k5, k6 = (*lens.denominator, 0, 0, 0)[:3]
        p1, p2 = lens.tangential
        radial = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6 + k7 * r**8) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
        x = u * radial + 2 * p1 * u * v + p2 * (r**2 + 2 * u**2)
        y = v * radial + p1 * (r**2 + 2 * v**2) + 2 * p2 * u * v
    return lens.fx * x + lens.cx, lens.fy * y + lens.cy


def undistorted(lens: Lens) -> np.ndarray:
    """(H, W, 2) the point on the plane z = 1 that each pixel of the lens's own photograph shows, by root finding."""
    found = np.empty((lens.height, lens.width, 2))
    for row, column in np.ndindex(lens.height, lens.width):
        target = np.array([column + 0.5, row + 0.5])
        start = (target - [lens.cx, lens.cy]) / [lens.fx, lens.fy]
        found[row, column] = least_squares(lambda p, t=target: np.array(distorted(lens, *p)) - t, start, xtol=1e-12).x
    return found


@every_lens
def test_points_land_where_the_formulas_say(lens: Lens) -> None:
    points = np.random.default_rng(0).uniform(-0.4, 0.4, (50, 2))
    points[0] = 0
    expected = [distorted(lens, u, v) for u, v in points]
    np.testing.assert_allclose(lens.project(torch.from_numpy(points)), expected, atol=1e-9)


@pytest.mark.parametrize("name", ["barrel", "tangential", "rational", "fisheye"])
def test_a_picture_of_its_own_coordinates_comes_out_straight(name: str) -> None:
    """Each pixel of the photograph holds the ray that it shows: straight lines, and the ray of each pinhole pixel."""
    lens = LENSES[name]
    pinhole = pinhole_of(lens)
    rays = Undistorter()(torch.from_numpy(undistorted(lens)).float(), lens).numpy()
    pixels = rays * [pinhole.fx, pinhole.fy] + [pinhole.cx, pinhole.cy]
    rows, columns = np.indices((lens.height, lens.width))
    assert np.abs(pixels - np.stack([columns + 0.5, rows + 0.5], axis=-1)).max() < 2e-3
    assert np.abs(np.diff(pixels[..., 1], axis=1)).max() < 2e-3, "a straight row is bent"


@every_lens
def test_the_pinhole_is_the_widest_without_a_border(lens: Lens) -> None:
    pinhole = pinhole_of(lens)
    assert pinhole.is_pinhole and (pinhole.width, pinhole.height) == (lens.width, lens.height)
    assert pinhole.fx / pinhole.fy == pytest.approx(lens.fx / lens.fy)

    def reach(camera: Lens) -> float:
        """How many pixels the outermost border pixel lies outside the photograph's pixel centres."""
        border = [(x, y) for x in range(64) for y in range(48) if x in (0, 63) or y in (0, 47)]
        worst = -math.inf
        for x, y in border:
            u, v = (x + 0.5 - camera.cx) / camera.fx, (y + 0.5 - camera.cy) / camera.fy
            seen_x, seen_y = distorted(lens, u, v)
            worst = max(worst, 0.5 - seen_x, seen_x - 63.5, 0.5 - seen_y, seen_y - 47.5)
        return worst

    assert reach(pinhole) < 0.01
    assert reach(pinhole.zoomed(0.99)) > 0.1


def test_no_distortion_changes_nothing() -> None:
    image = torch.rand(48, 64, 3, generator=torch.Generator().manual_seed(0))
    still = replace(PINHOLE, numerator=(0.0, 0.0), denominator=(0.0,))
    assert pinhole_of(still) == still
    assert_same(Undistorter()(image, still), image)


def test_a_vanishing_distortion_hardly_changes_anything() -> None:
    image = torch.rand(48, 64, 3, generator=torch.Generator().manual_seed(0))
    slight = replace(PINHOLE, numerator=(1e-7,))
    assert pinhole_of(slight).fx == pytest.approx(PINHOLE.fx, rel=1e-5)
    torch.testing.assert_close(Undistorter()(image, slight), image, atol=1e-3, rtol=0)


def test_lenses_in_turn_do_not_mix() -> None:
    image = torch.rand(48, 64, 3, generator=torch.Generator().manual_seed(0))
    shared = Undistorter()
    for name in ("barrel", "fisheye", "barrel", "pincushion"):
        assert_same(shared(image, LENSES[name]), Undistorter()(image, LENSES[name]))


@pytest.mark.parametrize("numerator", [(-40.0,), (1e300,), (-3.0, 0.0, 0.0)])
def test_a_distortion_that_folds_the_image_is_refused(numerator: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be undone"):
        pinhole_of(Lens(64, 48, 30.0, 30.0, 32.0, 24.0, numerator))


@pytest.mark.parametrize("long", [64, 4000])
def test_the_zoom_is_bounded_for_a_wide_fisheye(long: int) -> None:
    wide = Lens(long, long, long / math.pi, long / math.pi, long / 2, long / 2, fisheye=True)
    assert pinhole_of(wide).fx >= wide.fx / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fx": 0.0}, "fx must be a positive"),
        ({"fy": -5.0}, "fy must be a positive"),
        ({"fx": math.nan}, "fx must be a positive"),
        ({"fy": math.inf}, "fy must be a positive"),
        ({"cx": 640.0}, "cx = 640 is far outside"),
        ({"cy": math.nan}, "cy = nan is far outside"),
        ({"numerator": (math.nan,)}, "distortion coefficients"),
        ({"width": 0}, "0x48"),
    ],
)
def test_numbers_that_no_camera_has_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PINHOLE, **changes)
