from __future__ import annotations

import logging
import math
import struct

import pytest
import torch

from compress3d.splats.formats import read_scene, splat
from compress3d.splats.formats.quantization import FLAT_LOG_SCALE, LARGEST_LOGIT, SH_C0


def record(position, scale, color, rotation) -> bytes:
    return struct.pack("<3f3f4B4B", *position, *scale, *color, *rotation)


def test_bytes_decode_as_the_format_defines(tmp_path):
    content = record((1, -2, 3), (1, math.e, 0), (255, 0, 51, 255), (255, 128, 0, 64))
    content += record((0, 0, 0), (1, 1, 1), (0, 0, 0, 0), (128, 128, 128, 192))
    (tmp_path / "a.splat").write_bytes(content)
    scene = splat.read(tmp_path / "a.splat")
    assert scene.means.tolist() == [[1, -2, 3], [0, 0, 0]]
    torch.testing.assert_close(scene.scales[0], torch.tensor([0.0, 1.0, FLAT_LOG_SCALE]))
    assert scene.quats.tolist() == [[127 / 128, 0, -1, -0.5], [0, 0, 0, 0.5]]
    torch.testing.assert_close(scene.sh0[0, 0], (torch.tensor([1, 0, 0.2]) - 0.5) / SH_C0)
    assert scene.opacities.tolist() == [LARGEST_LOGIT, -LARGEST_LOGIT]
    assert scene.sh_degree == 0


def test_a_file_is_written_as_the_format_defines_the_most_important_first(tmp_path, make_scene):
    scene = make_scene(2).with_tensors(
        means=torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        scales=torch.zeros(2, 3),
        quats=torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, 0.0, -2.0, 0.0]]),
        opacities=torch.tensor([-20.0, 20.0]),
        sh0=torch.tensor([[[0.0, 9.0, -9.0]], [[0.0, 0.0, 0.0]]]),
    )
    splat.write(scene, tmp_path / "a.splat")
    expected = record((4, 5, 6), (1, 1, 1), (128, 128, 128, 255), (128, 128, 0, 128))
    expected += record((1, 2, 3), (1, 1, 1), (128, 255, 0, 0), (255, 128, 128, 128))
    assert (tmp_path / "a.splat").read_bytes() == expected


def test_round_trip_stays_within_half_a_step(tmp_path, make_scene):
    scene = make_scene(500)
    scene = scene.with_tensors(sh0=scene.sh0.clamp(-1.7, 1.7))
    splat.write(scene, tmp_path / "a.splat")
    read = splat.read(tmp_path / "a.splat")
    importance = scene.scales.sum(dim=1).exp() * torch.sigmoid(scene.opacities)
    order = importance.argsort(descending=True)
    assert torch.equal(read.means, scene.means[order])
    torch.testing.assert_close(read.scales, scene.scales[order])
    assert (read.sh0 - scene.sh0[order]).abs().max() <= 0.5001 / 255 / SH_C0
    assert (torch.sigmoid(read.opacities) - torch.sigmoid(scene.opacities[order])).abs().max() <= 0.5001 / 255
    quats = torch.nn.functional.normalize(scene.quats[order])
    # A component of exactly 1 has no byte of its own.
    assert (read.quats - quats).abs().max() <= 0.5001 / 128 + (quats > 127.5 / 128).any() / 256


def test_higher_harmonics_are_left_out_with_a_warning(tmp_path, make_scene, caplog):
    with caplog.at_level(logging.WARNING, "secateur"):
        splat.write(make_scene(3, 2), tmp_path / "a.splat")
    assert "no spherical harmonics" in caplog.text
    assert splat.read(tmp_path / "a.splat").sh_degree == 0


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_size_that_is_no_multiple_is_refused(tmp_path, size):
    (tmp_path / "a.splat").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=f"a.splat: file size is {size} bytes; a .splat is a positive multiple of 32"):
        splat.read(tmp_path / "a.splat")


def test_a_gaussian_that_cannot_be_rendered_is_refused(tmp_path, make_scene):
    scene = make_scene(3)
    scene.quats[2] = 0
    with pytest.raises(ValueError, match="1 with a rotation of zero or overflowing norm"):
        splat.write(scene, tmp_path / "a.splat")


def test_the_real_plant_is_read_and_written_again(tmp_path, shared_data):
    path = shared_data / "splats" / "plant.splat"
    scene = read_scene(path)
    assert len(scene) == path.stat().st_size // 32 == 113_648
    assert (scene.scales < 0).all() and (scene.quats.norm(dim=1) - 1).abs().max() < 0.02
    splat.write(scene, tmp_path / "a.splat")
    read = splat.read(tmp_path / "a.splat")
    assert torch.equal(read.means.sort(dim=0).values, scene.means.sort(dim=0).values)
