from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from compress3d.splats.formats import ksplat, write_scene
from compress3d.splats.formats.quantization import SH_C0

HALF = {0: "f", 1: "e", 2: "e"}
BANDS = {0: 0, 1: 9, 2: 24, 3: 45}


def stored_harmonics(degree: int) -> list[tuple[int, int]]:
    """(coefficient, channel) in the order of the file."""
    order = []
    for band in range(1, degree + 1):
        order += [(band * band - 1 + m, channel) for channel in range(3) for m in range(2 * band + 1)]
    return order


def splat_bytes(level, position, scale, rotation, color, harmonics) -> bytes:
    head = struct.pack("<3f" if level == 0 else "<3H", *position)
    head += struct.pack(f"<7{HALF[level]}", *scale, *rotation) + bytes(color)
    return head + struct.pack(f"<{len(harmonics)}" + {0: "f", 1: "e", 2: "B"}[level], *harmonics)


def section_header(count, room, degree=0, bucket=(0, 0, 0.0, 0), quantization=0, full=0, partial=0) -> bytes:
    size, buckets, block, bucket_bytes = bucket
    fields = struct.pack(
        "<4IfH2xIIIIH", count, room, size, buckets, block, bucket_bytes, quantization, 0, full, partial, degree
    )
    return fields.ljust(1024, b"\0")


def file_bytes(level, sections: list[tuple[bytes, bytes]], total, sh_range=(0.0, 0.0)) -> bytes:
    header = struct.pack("<4B4IH2x3f", 0, 1, 0, 0, len(sections), len(sections), total, total, level, 0, 0, 0)
    header += struct.pack("<2f", *sh_range)
    return header.ljust(4096, b"\0") + b"".join(head for head, _ in sections) + b"".join(body for _, body in sections)


def tiny_file(level: int, degree: int) -> bytes:
    """Two Gaussians; at level 1 and 2 in a partial bucket."""
    harmonics = [1] * BANDS[degree]
    splats = [splat_bytes(level, (1, 2, 3), (1, 1, 1), (1, 0, 0, 0), (9, 9, 9, 9), harmonics)] * 2
    if level == 0:
        return file_bytes(0, [(section_header(2, 2, degree), b"".join(splats))], 2)
    buckets = struct.pack("<I3f", 2, 0, 0, 0)
    head = section_header(2, 2, degree, bucket=(256, 1, 5.0, 12), quantization=32767, partial=1)
    return file_bytes(level, [(head, buckets + b"".join(splats))], 2)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_level_0(tmp_path, degree):
    order = stored_harmonics(degree)
    harmonics = [coefficient + 100 * channel for coefficient, channel in order]
    body = splat_bytes(0, (1, 2, 3), (1, math.e, 0.5), (0.5, -0.5, 0.1, 0.2), (255, 0, 51, 51), harmonics)
    (tmp_path / "a.ksplat").write_bytes(file_bytes(0, [(section_header(1, 1, degree), body)], 1))
    scene = ksplat.read(tmp_path / "a.ksplat")
    assert scene.means.tolist() == [[1, 2, 3]]
    torch.testing.assert_close(scene.scales, torch.tensor([[0, 1, math.log(0.5)]]))
    torch.testing.assert_close(scene.quats, torch.tensor([[0.5, -0.5, 0.1, 0.2]]))
    torch.testing.assert_close(scene.sh0[0, 0], (torch.tensor([1, 0, 0.2]) - 0.5) / SH_C0)
    torch.testing.assert_close(torch.sigmoid(scene.opacities), torch.tensor([0.2]))
    expected = [[j, 100 + j, 200 + j] for j in range(BANDS[degree] // 3)]
    assert scene.shN[0].tolist() == expected


@pytest.mark.parametrize("level", [1, 2])
def test_buckets_and_sections(tmp_path, level):
    """Five Gaussians in a full bucket of two, an empty one, and partial ones of one and two; then a second section."""
    centers = [(10, 0, 0), (20, 0, 0), (30, 0, 0), (40, 0, 0)]
    buckets = struct.pack("<3I", 1, 0, 2) + b"".join(struct.pack("<3f", *center) for center in centers)
    raw = [(0, 1000, 2000), (1000, 1000, 1000), (500, 1500, 2000), (1, 2, 3), (4, 5, 6)]
    harmonics = list(range(24)) if level == 2 else [index / 8 for index in range(24)]
    splats = [splat_bytes(level, each, (1, 1, 2), (1, 0, 0, 0), (1, 2, 3, 4), harmonics) for each in raw]
    room = bytes(len(splats[0]))
    head = section_header(5, 6, 2, bucket=(2, 4, 10.0, 12), quantization=1000, full=1, partial=3)
    second = splat_bytes(level, (32767, 0, 65534), (1, 1, 1), (0, 1, 0, 0), (5, 5, 5, 5), [])
    second_head = section_header(1, 1, bucket=(256, 1, 5.0, 12), partial=1)
    second_body = struct.pack("<I3f", 1, -1, -1, -1) + second
    sections = [(head, buckets + b"".join(splats) + room), (second_head, second_body)]
    (tmp_path / "a.ksplat").write_bytes(file_bytes(level, sections, 6, (-2.0, 3.1)))
    scene = ksplat.read(tmp_path / "a.ksplat")
    of_splat = np.array([10, 10, 20, 40, 40])
    expected = (np.array(raw) - 1000) * (10.0 / 2 / 1000) + np.stack([of_splat, 0 * of_splat, 0 * of_splat], axis=1)
    expected = np.concatenate([expected, [[-1, -1 - 2.5, -1 + 2.5]]])
    np.testing.assert_allclose(scene.means.numpy(), expected, atol=1e-5)
    torch.testing.assert_close(scene.scales[0], torch.tensor([0, 0, math.log(2)]))
    values = [-2.0 + u / 255 * 5.1 for u in range(24)] if level == 2 else harmonics
    for (coefficient, channel), value in zip(stored_harmonics(2), values, strict=True):
        assert scene.shN[0, coefficient, channel] == pytest.approx(value, abs=1e-5)
    assert not scene.shN[5].any()


def test_default_range_of_8_bit_harmonics(tmp_path):
    (tmp_path / "a.ksplat").write_bytes(tiny_file(2, 1))
    scene = ksplat.read(tmp_path / "a.ksplat")
    torch.testing.assert_close(scene.shN, torch.full((2, 3, 3), -1.5 + 3 / 255))


def test_writing_is_refused_clearly(tmp_path, make_scene):
    with pytest.raises(ValueError, match=r"a.ksplat: .ksplat is only read, not written; choose from .*\.spz"):
        write_scene(make_scene(1), tmp_path / "a.ksplat")


def put(content: bytes, form: str, offset: int, value: float) -> bytes:
    packed = struct.pack(form, value)
    return content[:offset] + packed + content[offset + len(packed) :]


@pytest.mark.parametrize(
    ("form", "offset", "value", "message"),
    [
        ("<B", 0, 1, "version is 1.1"),
        ("<B", 1, 0, "version is 0.0"),
        ("<H", 20, 3, "compression level is 3; expected 0, 1 or 2"),
        ("<I", 4, 0, "declares room for 0 sections"),
        ("<I", 4, 4_000_000_000, "declares room for 4000000000 sections"),
        ("<I", 16, 3, "declares 3 splats, but its sections 2"),
        ("<I", 4096 + 4, 4_000_000_000, "section 0 declares 4000000000 splats"),
        ("<I", 4096 + 4, 1, "section 0 has 2 splats of 1"),
        ("<I", 4096 + 12, 4_000_000_000, "section 0 declares 2 splats and 4000000000 buckets"),
        ("<I", 4096 + 32, 1, "section 0: 1 full and 1 partial buckets are more than the 1 declared"),
        ("<I", 4096 + 36, 0, "section 0: the buckets hold 0 splats, but the section has 2"),
        ("<H", 4096 + 20, 10, "section 0: a bucket takes 10 bytes"),
        ("<H", 4096 + 40, 4, "section 0: SH degree is 4"),
        ("<I", 5120, 1, "section 0: the buckets hold 1 splats, but the section has 2"),
    ],
)
def test_headers_that_are_wrong(tmp_path: Path, form, offset, value, message):
    (tmp_path / "a.ksplat").write_bytes(put(tiny_file(1, 1), form, offset, value))
    with pytest.raises(ValueError, match=message) as caught:
        ksplat.read(tmp_path / "a.ksplat")
    assert "a.ksplat" in str(caught.value)
