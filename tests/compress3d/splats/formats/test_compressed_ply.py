from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch

from compress3d.splats.formats import compressed_ply, read_scene
from compress3d.splats.formats.morton import morton_order
from compress3d.splats.formats.quantization import LARGEST_LOGIT, SH_C0

BOUNDS = ["x", "y", "z", "scale_x", "scale_y", "scale_z", "r", "g", "b"]


def file_bytes(chunks: list[list[float]], vertices: list[tuple[int, ...]], sh: list[bytes] = ()) -> bytes:
    """A compressed PLY from its definition; chunks list minima and maxima by groups of three."""
    header = f"ply\nformat binary_little_endian 1.0\nelement chunk {len(chunks)}\n"
    for first in range(0, len(chunks[0]) // 2, 3):
        header += "".join(f"property float {end}_{n}\n" for end in ("min", "max") for n in BOUNDS[first : first + 3])
    header += f"element vertex {len(vertices)}\n"
    header += "".join(f"property uint packed_{name}\n" for name in ("position", "rotation", "scale", "color"))
    if sh:
        header += f"element sh {len(sh)}\n" + "".join(f"property uchar f_rest_{i}\n" for i in range(len(sh[0])))
    body = b"".join(struct.pack(f"<{len(chunk)}f", *chunk) for chunk in chunks)
    body += b"".join(struct.pack("<4I", *vertex) for vertex in vertices)
    return header.encode() + b"end_header\n" + body + b"".join(sh)


POSITION = (2047 << 21) | (0 << 11) | 1023  # x at its maximum, y at its minimum, z at 1023/2047
SCALE = (0 << 21) | (1023 << 11) | 2047
ROTATION = (2 << 30) | (1023 << 20) | (511 << 10) | 0  # y is the largest; w, x, z follow
COLOR = (255 << 24) | (0 << 16) | (51 << 8) | 255


@pytest.mark.parametrize("with_colors", [False, True])
def test_bytes_decode_as_the_format_defines(tmp_path, with_colors):
    chunk = [-1, -2, -3, 1, 2, 3, -8, -7, -6, -2, -1, 0] + ([0.5, 0.25, 0, 1.5, 0.75, 1] if with_colors else [])
    (tmp_path / "a.ply").write_bytes(file_bytes([chunk], [(POSITION, ROTATION, SCALE, COLOR)]))
    scene = compressed_ply.read(tmp_path / "a.ply")
    z = -3 + 6 * 1023 / 2047
    torch.testing.assert_close(scene.means, torch.tensor([[1.0, -2.0, z]]))
    torch.testing.assert_close(scene.scales, torch.tensor([[-8.0, -1.0, 0.0]]))
    middle = (511 / 1023 - 0.5) * math.sqrt(2)
    w, x, zq = math.sqrt(0.5), middle, -math.sqrt(0.5)
    y = math.sqrt(max(0.0, 1 - w * w - x * x - zq * zq))
    torch.testing.assert_close(scene.quats, torch.tensor([[w, x, y, zq]]), atol=1e-3, rtol=0)
    color = [1.5, 0.25, 0.2] if with_colors else [1.0, 0.0, 0.2]
    torch.testing.assert_close(scene.sh0[0, 0], (torch.tensor(color) - 0.5) / SH_C0)
    assert scene.opacities.tolist() == [LARGEST_LOGIT]
    assert not scene.antialiased


def test_harmonics_decode_as_the_format_defines(tmp_path):
    sh = bytes([0, 255, 127, 128, *range(5)])
    content = file_bytes([[0.0] * 12], [(POSITION, ROTATION, SCALE, COLOR)], [sh])
    (tmp_path / "a.ply").write_bytes(content)
    scene = compressed_ply.read(tmp_path / "a.ply")
    channel_major = [-4, 4, (127.5 / 256 - 0.5) * 8, (128.5 / 256 - 0.5) * 8, -4]
    channel_major += [((u + 0.5) / 256 - 0.5) * 8 for u in range(1, 5)]
    assert scene.shN[0].T.flatten().tolist() == pytest.approx(channel_major)


def test_a_file_is_written_as_the_format_defines(tmp_path, make_scene):
    scene = make_scene(1).with_tensors(
        means=torch.tensor([[1.0, 2.0, 3.0]]),
        scales=torch.tensor([[-30.0, -2.0, 25.0]]),
        quats=torch.tensor([[0.0, 0.0, -2.0, 0.0]]),
        opacities=torch.tensor([0.0]),
        sh0=torch.tensor([[[0.0, 1.0, -1.0]]]),
        shN=torch.zeros(1, 3, 3),
    )
    compressed_ply.write(scene, tmp_path / "a.ply")
    r, g, b = (np.float32(0.5) + np.float32(SH_C0) * value for value in (0, 1, -1))
    chunk = [1, 2, 3] * 2 + [-20, -2, 20] * 2 + [r, g, b] * 2
    half = 512  # floor(0.5 * 1023 + 0.5)
    vertex = (0, (2 << 30) | (half << 20) | (half << 10) | half, 0, 128)
    assert (tmp_path / "a.ply").read_bytes() == file_bytes([chunk], [vertex], [bytes([128] * 9)])


@pytest.mark.parametrize(("count", "degree"), [(1, 0), (5, 1), (256, 2), (700, 3)])
def test_round_trip_stays_within_half_a_step(tmp_path, make_scene, count, degree):
    scene = make_scene(count, degree)
    scene = scene.with_tensors(shN=scene.shN.clamp(-3.9, 3.9))
    compressed_ply.write(scene, tmp_path / "a.ply")
    read = compressed_ply.read(tmp_path / "a.ply")
    scene = scene.select(torch.from_numpy(morton_order(scene.means.numpy())))
    for start in range(0, count, 256):
        rows = slice(start, start + 256)
        for name, steps in (("means", [2047, 1023, 2047]), ("scales", [2047, 1023, 2047]), ("sh0", [255] * 3)):
            before, after = (getattr(each, name)[rows].reshape(-1, 3) for each in (scene, read))
            extent = before.amax(0) - before.amin(0)
            assert ((after - before).abs() <= 0.5001 * extent / torch.tensor(steps) + 2e-6).all(), name
    before, after = (torch.nn.functional.normalize(each.quats) for each in (scene, read))
    assert torch.minimum((before - after).norm(dim=1), (before + after).norm(dim=1)).max() < 2.5 * math.sqrt(2) / 1023
    alphas = torch.sigmoid(scene.opacities) - torch.sigmoid(read.opacities)
    assert alphas.abs().max() <= 0.5001 / 255
    if degree:
        assert (read.shN - scene.shN).abs().max() <= 0.5001 * 8 / 256


def test_antialiased_survives(tmp_path, make_scene):
    scene = make_scene(3)
    scene.antialiased = True
    compressed_ply.write(scene, tmp_path / "a.ply")
    assert compressed_ply.read(tmp_path / "a.ply").antialiased


def test_identical_gaussians_come_back_exactly(tmp_path, make_scene):
    scene = make_scene(1).select(torch.zeros(300, dtype=torch.long))
    compressed_ply.write(scene, tmp_path / "a.ply")
    read = compressed_ply.read(tmp_path / "a.ply")
    assert torch.equal(read.means, scene.means)
    assert torch.equal(read.scales, scene.scales)


def test_extents_far_apart_do_not_overflow(tmp_path, make_scene):
    means = torch.tensor([[3e38, 0.0, 0.0], [-3e38, 1e-30, 0.0], [0.0, 0.0, 1e-30]])
    compressed_ply.write(make_scene(3).with_tensors(means=means), tmp_path / "a.ply")
    read = compressed_ply.read(tmp_path / "a.ply")
    assert torch.isfinite(read.means).all()
    assert read.means[:, 0].max() == np.float32(3e38)


def test_gaussians_that_would_spoil_their_chunk_are_refused(tmp_path, make_scene):
    scene = make_scene(3)
    scene.means[1, 2] = torch.nan
    with pytest.raises(ValueError, match="1 with a non-finite position"):
        compressed_ply.write(scene, tmp_path / "a.ply")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"element chunk 1", b"element chunk 0", "element 'chunk' has 0 rows, expected 1"),
        (b"property uint packed_scale", b"property float packed_scale", "'packed_scale' is f4, expected u4"),
        (b"float min_scale_y", b"float min_scale_q", "'min_scale_y' is missing, expected f4 or f8"),
        (b"element sh 3", b"element sh 2", "element 'sh' has 2 rows, but element 'vertex' has 3"),
        (b"uchar f_rest_8", b"uchar g_rest_8", "element 'sh' has 8 f_rest properties"),
        (b"element vertex 3", b"element vertex 4000000000", "declares 4000000000 rows"),
    ],
)
def test_headers_that_are_wrong(tmp_path, make_scene, old, new, message):
    compressed_ply.write(make_scene(3, 1), tmp_path / "a.ply")
    content = (tmp_path / "a.ply").read_bytes()
    assert old in content
    (tmp_path / "a.ply").write_bytes(content.replace(old, new, 1))
    with pytest.raises(ValueError, match=message) as caught:
        compressed_ply.read(tmp_path / "a.ply")
    assert "a.ply" in str(caught.value)


def test_the_real_biker_is_read_and_survives_a_second_quantisation(tmp_path, shared_data):
    scene = read_scene(shared_data / "splats" / "biker.compressed.ply")
    assert (len(scene), scene.sh_degree) == (152_746, 0)
    compressed_ply.write(scene, tmp_path / "a.compressed.ply")
    read = read_scene(tmp_path / "a.compressed.ply")
    order = torch.from_numpy(morton_order(scene.means.numpy()))
    assert (read.means - scene.means[order]).abs().max() < 0.01
    assert (read.scales - scene.scales[order]).abs().max() < 0.01
    torch.testing.assert_close(read.opacities, scene.opacities[order])
