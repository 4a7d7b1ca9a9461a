import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from compress3d.splats.formats.morton import morton_order
from compress3d.splats.rasterize import render
from compress3d.splats.scene import SplatScene
from compress3d.splats.standalone.packing import GAUSSIANS_PER_ENTRY, PLANES, Harmonics, Ranges, pack, unpack
from compress3d.splats.viewer.arrays import covariances
from compress3d.splats.views import orbit
from secateur.metrics.image import psnr
from tests.compress3d.splats.viewer.balls import scene, with_harmonics


def matched(ball: SplatScene, packed: SplatScene) -> SplatScene:
    """The Gaussian of `packed` that is nearest to each of `ball`."""
    return packed.select(torch.cdist(ball.means, packed.means).argmin(dim=1))


def test_what_is_packed_comes_back_within_its_steps() -> None:
    ball = scene(400)
    again = matched(ball, unpack(*pack(ball)))
    assert float((again.means - ball.means).abs().max()) < 1e-4
    assert float((again.scales - ball.scales).abs().max()) <= 0.51 * float(ball.scales.max() - ball.scales.min()) / 255
    colours = (0.5 + 0.28209479 * ball.sh0).clamp_min(0)
    assert float((0.5 + 0.28209479 * again.sh0 - colours).abs().max()) <= 0.51 * float(colours.max()) / 255 + 1e-6
    assert float((again.peak_opacities() - ball.peak_opacities()).abs().max()) <= 0.51 / 255
    turned = (covariances(again) - covariances(ball)).norm(dim=(1, 2)) / covariances(ball).norm(dim=(1, 2))
    assert float(turned.max()) < 0.05


def test_pictures_of_it_are_those_of_the_scene() -> None:
    ball = scene(400)
    cameras = orbit(ball, 3, 96, 96)
    assert float(psnr(render(unpack(*pack(ball)), cameras), render(ball, cameras)).min()) > 45


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_few_harmonics_come_back_within_the_codebook(degree: int) -> None:
    ball = with_harmonics(scene(400), degree)
    ranges, data = pack(ball)
    again = matched(ball, unpack(ranges, data))
    assert again.sh_degree == degree and ranges.harmonics is not None and ranges.harmonics.entries == 400
    assert float((again.shN - ball.shN).abs().max()) < 0.02
    assert len(zlib.decompress(data)) == ranges.bytes == (PLANES + 2 + 3 * ball.shN.shape[1]) * 400
    cameras = orbit(ball, 3, 96, 96)
    assert float(psnr(render(unpack(ranges, data), cameras), render(ball, cameras)).min()) > 40


def test_many_harmonics_share_entries_that_stand_for_them() -> None:
    ball = with_harmonics(scene(20_000), strength=0.02)
    ball = ball.with_tensors(shN=0.3 * ball.means[:, None] + ball.shN)
    ranges, data = pack(ball)
    again = unpack(ranges, data)
    assert ranges.harmonics is not None and ranges.harmonics.entries == 20_000 // GAUSSIANS_PER_ENTRY
    # The order is the packing's own, so what belongs together is told by where it is.
    assert float((again.shN - 0.3 * again.means[:, None]).square().mean()) < 0.03**2
    assert float((again.shN.mean(dim=0) - ball.shN.mean(dim=0)).abs().max()) < 1e-3


def test_colours_below_0_are_kept_where_harmonics_may_raise_them() -> None:
    ball = with_harmonics(scene(200), 1)
    dark = ball.with_tensors(sh0=torch.full_like(ball.sh0, -2.5))
    assert float((unpack(*pack(dark)).sh0 + 2.5).abs().max()) < 0.02
    plain = dark.with_sh_degree(0)
    assert float(unpack(*pack(plain)).sh0.min()) == pytest.approx(-0.5 / 0.28209479, abs=1e-4)


def test_packing_again_changes_nothing() -> None:
    once = unpack(*pack(scene(100)))
    ranges, data = pack(once)
    twice = unpack(ranges, data)
    for name in ("means", "scales", "sh0", "opacities"):
        torch.testing.assert_close(matched(once, twice).tensors()[name], once.tensors()[name], rtol=1e-3, atol=1e-3)


def test_a_floater_far_away_does_not_cost_the_middle_its_precision() -> None:
    ball = scene(400)
    far = ball.with_tensors(means=torch.cat([ball.means[:-1], torch.tensor([[3e4, -1e4, 2e4]])]))
    again = matched(far, unpack(*pack(far)))
    assert float((again.means - far.means)[:-1].abs().max()) < 2e-3
    assert float((again.means - far.means)[-1].abs().max()) < 50


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_or_equal_gaussians(count: int) -> None:
    ball = scene(1).select(torch.zeros(count, dtype=torch.int64))
    again = unpack(*pack(ball))
    torch.testing.assert_close(again.means, ball.means, rtol=0, atol=1e-6)
    torch.testing.assert_close(again.scales, ball.scales, rtol=0, atol=0.04)


def test_the_order_is_that_of_neighbours_and_no_permutation_matters() -> None:
    ball = scene(300)
    shuffled = ball.select(torch.randperm(300, generator=torch.Generator().manual_seed(2)))
    (ranges, data), (other, same) = pack(ball), pack(shuffled)
    assert ranges == other and zlib.decompress(data) == zlib.decompress(same)
    means = unpack(ranges, data).means.numpy()
    assert (
        np.linalg.norm(np.diff(means, axis=0), axis=1).mean()
        < 0.6 * np.linalg.norm(np.diff(ball.means, axis=0), axis=1).mean()
    )
    assert len(morton_order(means)) == 300


def test_damaged_data_is_refused() -> None:
    ranges, data = pack(scene(50))
    for broken in (data[:-9], b"nothing", zlib.compress(bytes(PLANES * 50 + 1)), zlib.compress(bytes(10**6))):
        with pytest.raises(ValueError, match="packed scene"):
            unpack(ranges, broken)
    with pytest.raises(ValueError, match="expected of 49 Gaussians"):
        unpack(replace(ranges, count=49), data)


def test_damaged_ranges_are_refused() -> None:
    record = pack(scene(50))[0].to_json()
    assert Ranges.from_json(record) == pack(scene(50))[0]
    for name, value in (("count", 0), ("count", 10**12), ("low", [1, 2]), ("unit", float("nan")), ("centre", None)):
        with pytest.raises(ValueError, match="packed scene"):
            Ranges.from_json(record | {name: value})
    for name in ("high", "harmonics"):
        with pytest.raises(ValueError, match="packed scene"):
            Ranges.from_json({other: value for other, value in record.items() if other != name})


def test_damaged_harmonics_are_refused() -> None:
    ranges, data = pack(with_harmonics(scene(50), 1))
    assert ranges.harmonics is not None
    record = asdict(ranges.harmonics)
    assert Harmonics.from_json(record) == ranges.harmonics
    wrong = {"degree": 4, "entries": 0, "codebook": [float("nan")]}
    for name, value in [*wrong.items(), ("entries", 1 << 20), ("codebook", [0.0] * 257), ("codebook", None)]:
        with pytest.raises(ValueError, match="harmonics"):
            Harmonics.from_json(record | {name: value})
    for fewer in (replace(ranges.harmonics, codebook=(0.0,)), replace(ranges.harmonics, entries=49)):
        raw = zlib.decompress(data)[: replace(ranges, harmonics=fewer).bytes]
        with pytest.raises(ValueError, match="packed scene names"):
            unpack(replace(ranges, harmonics=fewer), zlib.compress(raw))
