"""SPZ against a scalar encoder written from the specification, round trips, and damaged files."""

from __future__ import annotations

import gzip
import logging
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

from compress3d.splats.formats import spz
from compress3d.splats.formats.axes import reframe
from compress3d.splats.formats.morton import morton_order
from compress3d.splats.scene import SplatScene

SHARED_SPLATS = Path(__file__).parents[5] / "shared" / "data" / "splats"
DEGREES = {0: 0, 1: 3, 2: 8, 3: 15}


def random_scene(count: int, degree: int, seed: int = 0, antialiased: bool = False) -> SplatScene:
    """Values inside what SPZ can hold, in the order in which it is written."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) * 2 - 1

    scene = SplatScene(
        means=uniform(count, 3) * 4,
        quats=torch.randn(count, 4, generator=generator),
        scales=uniform(count, 3) * 3 - 4,
        opacities=uniform(count) * 4,
        sh0=uniform(count, 1, 3),
        shN=uniform(count, DEGREES[degree], 3) * 0.9,
        antialiased=antialiased,
    )
    return in_z_order(scene)


def in_z_order(scene: SplatScene) -> SplatScene:
    return scene.select(torch.from_numpy(morton_order(scene.means.numpy())))


def rounded(value: float) -> int:
    """Halves away from zero, as C++ rounds."""
    return math.floor(abs(value) + 0.5) * (-1 if value < 0 else 1)


def byte(value: float) -> int:
    return max(0, min(255, rounded(value)))


def encode_by_hand(scene: SplatScene, version: int, sh_bits: tuple[int, int] = (5, 4)) -> list[bytes]:
    """The arrays of a scene that is already in RUB axes, one value at a time, with 12 fractional bits."""
    positions, alphas, colours, scales, rotations, harmonics = (bytearray() for _ in range(6))
    for i in range(len(scene)):
        for value in scene.means[i].tolist():
            positions += struct.pack("<i", rounded(value * 4096))[:3]
        alphas.append(byte(255 / (1 + math.exp(-float(scene.opacities[i])))))
        colours += bytes(byte(value * 0.15 * 255 + 127.5) for value in scene.sh0[i, 0].tolist())
        scales += bytes(byte((value + 10) * 16) for value in scene.scales[i].tolist())
        w, x, y, z = (scene.quats[i] / scene.quats[i].norm()).tolist()
        if version == 2:
            sign = -1 if w < 0 else 1
            rotations += bytes(byte(sign * value * 127.5 + 127.5) for value in (x, y, z))
        else:
            parts = [x, y, z, w]
            largest = max(range(4), key=lambda k: abs(parts[k]))
            word = largest
            for k in range(4):
                if k != largest:
                    negative = (parts[k] < 0) != (parts[largest] < 0)
                    word = word << 10 | negative << 9 | int(511 * abs(parts[k]) / math.sqrt(0.5) + 0.5)
            rotations += struct.pack("<I", word)
        for j in range(scene.shN.shape[1]):
            bucket = 1 << (8 - sh_bits[0 if j < 3 else 1])
            harmonics += bytes(byte(128 + bucket * rounded(value * 128 / bucket)) for value in scene.shN[i, j].tolist())
    return [bytes(array) for array in (positions, alphas, colours, scales, rotations, harmonics)]


def legacy_file(arrays: list[bytes], version: int, count: int, degree: int, flags: int = 0, bits: int = 12) -> bytes:
    return gzip.compress(struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, bits, flags, 0) + b"".join(arrays))


def zstd_file(arrays: list[bytes], count: int, degree: int, flags: int = 0, extensions: bytes = b"") -> bytes:
    streams = [array for array in arrays if array]
    packed = [zstandard.compress(stream) for stream in streams]
    header = struct.pack(
        "<4sIIBBBBI12x", b"NGSP", 4, count, degree, 12, flags, len(streams), 32 + len(extensions)
    )  # fmt: skip
    toc = b"".join(struct.pack("<QQ", len(a), len(b)) for a, b in zip(packed, streams, strict=True))
    return header + extensions + toc + b"".join(packed)


def unpacked_payload(path: Path, version: int) -> list[bytes]:
    """What a file holds, without the compression."""
    data = path.read_bytes()
    if version < 4:
        return [gzip.decompress(data)]
    count, (toc,) = data[15], struct.unpack_from("<I", data, 16)
    start, streams = toc + 16 * count, []
    for i in range(count):
        packed, _ = struct.unpack_from("<QQ", data, toc + 16 * i)
        streams.append(zstandard.decompress(data[start : start + packed]))
        start += packed
    assert start == len(data)
    return [data[:12] + data[12:15], *streams]


def assert_close(got: SplatScene, want: SplatScene, version: int, bits: int = 12) -> None:
    assert got.antialiased == want.antialiased
    torch.testing.assert_close(got.means, want.means, rtol=0, atol=2.0**-bits / 2 + 1e-6)
    torch.testing.assert_close(got.scales, want.scales, rtol=0, atol=1 / 32 + 1e-5)
    torch.testing.assert_close(got.sh0, want.sh0, rtol=0, atol=0.5 / (0.15 * 255) + 1e-5)
    torch.testing.assert_close(torch.sigmoid(got.opacities), torch.sigmoid(want.opacities), rtol=0, atol=0.501 / 255)
    torch.testing.assert_close(got.shN[:, :3], want.shN[:, :3], rtol=0, atol=4 / 128 + 1e-5)
    torch.testing.assert_close(got.shN[:, 3:], want.shN[:, 3:], rtol=0, atol=8 / 128 + 1e-5)
    got_quats, want_quats = (torch.nn.functional.normalize(scene.quats, dim=1) for scene in (got, want))
    cosines = (got_quats * want_quats).sum(dim=1).abs()
    # Near w = 0 the first-three coding loses half its digits: w = sqrt(1 - |xyz|^2).
    assert cosines.min() > (0.99 if version == 2 else 0.99999)


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 300])
def test_round_trip_within_the_quantisation_step(tmp_path: Path, version: int, degree: int, count: int) -> None:
    scene = random_scene(count, degree, antialiased=degree == 2)
    spz.write(scene, tmp_path / "scene.spz", version=version)
    back = spz.read(tmp_path / "scene.spz")
    assert len(back) == count and back.sh_degree == degree
    assert_close(back, scene, version)


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("degree", [0, 2, 3])
def test_bytes_are_those_of_a_scalar_encoder(tmp_path: Path, version: int, degree: int) -> None:
    stored = reframe(random_scene(6, degree, seed=3, antialiased=True), "RDF", "RUB")
    spz.write(reframe(stored, "RUB", "RDF"), tmp_path / "scene.spz", version=version)
    header = struct.pack("<4sIIBBB", b"NGSP", version, 6, degree, 12, 1)
    arrays = encode_by_hand(stored, version)
    want = [header, *(array for array in arrays if array)] if version == 4 else [header + b"\0" + b"".join(arrays)]
    assert unpacked_payload(tmp_path / "scene.spz", version) == want


@pytest.mark.parametrize("version", [2, 3, 4])
def test_reads_a_file_built_by_hand(tmp_path: Path, version: int) -> None:
    stored = random_scene(4, 1, seed=5)
    arrays = encode_by_hand(stored, version)
    data = zstd_file(arrays, 4, 1) if version == 4 else legacy_file(arrays, version, 4, 1)
    (tmp_path / "scene.spz").write_bytes(data)
    assert_close(spz.read(tmp_path / "scene.spz"), reframe(stored, "RUB", "RDF"), version)


def test_reads_the_half_floats_of_version_1(tmp_path: Path) -> None:
    stored = random_scene(3, 0)
    arrays = encode_by_hand(stored, 2)
    arrays[0] = stored.means.numpy().astype("<f2").tobytes()
    (tmp_path / "scene.spz").write_bytes(legacy_file(arrays, 1, 3, 0))
    back = reframe(spz.read(tmp_path / "scene.spz"), "RDF", "RUB")
    torch.testing.assert_close(back.means, stored.means.half().float(), rtol=0, atol=0)


def test_reads_other_fractional_bits(tmp_path: Path) -> None:
    arrays = encode_by_hand(random_scene(1, 0), 3)
    arrays[0] = b"\x01\x00\x00\xff\xff\xff\x00\x00\x80"
    (tmp_path / "scene.spz").write_bytes(legacy_file(arrays, 3, 1, 0, bits=4))
    assert spz.read(tmp_path / "scene.spz").means.tolist() == [[1 / 16, 1 / 16, 2**19]]


def test_degree_4_is_cut_to_3_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = random_scene(2, 3)
    arrays = encode_by_hand(reframe(scene, "RDF", "RUB"), 3)
    rows = np.frombuffer(arrays[5], np.uint8).reshape(2, 45)
    arrays[5] = np.concatenate([rows, np.full((2, 27), 7, np.uint8)], axis=1).tobytes()
    (tmp_path / "scene.spz").write_bytes(zstd_file(arrays, 2, 4))
    with caplog.at_level(logging.WARNING, "secateur"):
        assert_close(spz.read(tmp_path / "scene.spz"), scene, 3)
    assert "degree 4" in caplog.text


def test_opacities_of_0_and_1_stay_finite(tmp_path: Path) -> None:
    scene = random_scene(3, 0).with_tensors(opacities=torch.tensor([math.inf, -math.inf, 40.0]))
    spz.write(scene, tmp_path / "scene.spz")
    opacities = spz.read(tmp_path / "scene.spz").opacities
    assert torch.isfinite(opacities).all()
    torch.testing.assert_close(torch.sigmoid(opacities), torch.tensor([1.0, 0.0, 1.0]), rtol=0, atol=0.5 / 255)


def test_positions_take_the_finest_bits_that_fit(tmp_path: Path) -> None:
    path = tmp_path / "scene.spz"
    scene = random_scene(5, 0)
    wide = scene.with_tensors(means=scene.means * 1000)
    spz.write(wide, path)
    assert_close(spz.read(path), wide, 3, bits=11)
    spz.write(scene, path, fractional_bits=20)
    assert_close(spz.read(path), scene, 3, bits=20)


def test_positions_out_of_reach_are_an_error_that_says_what_fits(tmp_path: Path) -> None:
    scene = random_scene(5, 0)
    far = scene.with_tensors(means=scene.means.index_fill(0, torch.tensor([1, 3]), 3000.0))
    with pytest.raises(ValueError, match=r"fractional_bits=12, 2 of 5 means .* 11 or fewer would fit"):
        spz.write(far, tmp_path / "scene.spz", fractional_bits=12)
    with pytest.raises(ValueError, match="SPZ holds at most"):
        spz.write(scene.with_tensors(means=scene.means * 1e7), tmp_path / "scene.spz")
    assert not (tmp_path / "scene.spz").exists()


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("axes", ["RDF", "LUF", "RFU", "LBD"])
def test_other_axes_are_declared_and_honoured(tmp_path: Path, version: int, axes: str) -> None:
    scene = random_scene(20, 3).with_tensors(shN=random_scene(20, 3).shN * 0.4)
    path = tmp_path / "scene.spz"
    # Turning harmonics by a quarter mixes their rounding errors, hence the finest steps.
    spz.write(scene, path, version=version, axes=axes, sh1_bits=8, sh_rest_bits=8)
    assert_close(spz.read(path), scene, version)
    stored = reframe(scene, "RDF", axes).means
    torch.testing.assert_close(spz.read(path, axes="RDF").means, stored, rtol=0, atol=2**-12)


def test_unknown_extensions_are_skipped(tmp_path: Path) -> None:
    scene = random_scene(2, 0)
    arrays = encode_by_hand(reframe(scene, "RDF", "LUF"), 3)
    extensions = struct.pack("<II5s", 0x12340001, 5, b"hello") + struct.pack("<III", 0xADBE0003, 4, 7)
    (tmp_path / "scene.spz").write_bytes(zstd_file(arrays, 2, 0, flags=2, extensions=extensions))
    assert_close(spz.read(tmp_path / "scene.spz"), scene, 4)


@pytest.mark.parametrize("version", [2, 3, 4])
def test_the_same_scene_gives_the_same_bytes_in_whatever_order_it_comes(tmp_path: Path, version: int) -> None:
    scene = random_scene(50, 2)
    spz.write(scene, tmp_path / "a", version=version)
    spz.write(random_scene(50, 2), tmp_path / "b", version=version)
    spz.write(scene.select(torch.arange(49, -1, -1)), tmp_path / "c", version=version)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_harmonics_are_not_shifted_by_their_rounding(tmp_path: Path) -> None:
    scene = random_scene(500, 3)
    spz.write(scene, tmp_path / "scene.spz")
    errors = spz.read(tmp_path / "scene.spz").shN - scene.shN
    assert errors.mean().abs() < 0.1 / 128


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"version": 1}, "version must be"),
        ({}, {"sh1_bits": 9}, "sh1_bits"),
        ({}, {"fractional_bits": 24}, "fractional_bits must be"),
        ({}, {"axes": "XYZ"}, "axes must be"),
        ({"opacities": torch.full((2,), math.nan)}, {}, "2 with a NaN opacity"),
        ({"means": torch.full((2, 3), math.inf)}, {}, "2 with a non-finite position"),
    ],
)
def test_what_cannot_be_written_is_an_error(tmp_path: Path, changes: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spz.write(random_scene(2, 0).with_tensors(**changes), tmp_path / "scene.spz", **options)


def test_an_empty_scene_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without Gaussians"):
        spz.write(random_scene(0, 0), tmp_path / "scene.spz")


def test_matches_knows_the_two_containers(tmp_path: Path) -> None:
    for version in (2, 4):
        spz.write(random_scene(50, 1), tmp_path / "scene.spz", version=version)
        assert spz.matches(tmp_path / "scene.spz", (tmp_path / "scene.spz").read_bytes()[:64])
    for head in (b"", b"ply\n", gzip.compress(b"something else"), b"\x1f\x8b", b"\x1f\x8bjunk and more junk"):
        assert not spz.matches(tmp_path / "scene.spz", head)


def hostile_files() -> dict[str, tuple[bytes, str]]:
    arrays = encode_by_hand(random_scene(5, 1), 3)
    good, modern = legacy_file(arrays, 3, 5, 1), zstd_file(arrays, 5, 1)
    bomb = struct.pack("<4sIIBBBB", b"NGSP", 3, 5, 1, 12, 0, 0) + bytes(50 << 20)
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 0xFF
    streams = bytearray(modern)
    streams[32:40] = struct.pack("<Q", 1 << 60)
    unpacked = bytearray(modern)
    unpacked[40:48] = struct.pack("<Q", 1 << 60)
    endless = zstd_file([bytes(50 << 20), *arrays[1:]], 5, 1)
    endless = endless[:40] + struct.pack("<Q", 45) + endless[48:]
    return {
        "empty": (b"", "not SPZ"),
        "other gzip": (gzip.compress(b"hello"), "not SPZ"),
        "version 9": (legacy_file(arrays, 9, 5, 1), "version is 9"),
        "version 3 in the open": (b"NGSP" + struct.pack("<I", 3) + modern[8:], "version is 3"),
        "degree 5": (legacy_file(arrays, 3, 5, 5), "shDegree is 5"),
        "fraction of 200 bits": (legacy_file(arrays, 3, 5, 1, bits=200), "fractionalBits is 200"),
        "no Gaussians": (legacy_file(arrays, 3, 0, 1), "numPoints is 0"),
        "two thousand million Gaussians": (legacy_file(arrays, 3, 2**31, 1), "numPoints is 2147483648"),
        "two thousand million, zstd": (zstd_file(arrays, 2**31, 1), "numPoints is 2147483648"),
        "a few too many": (legacy_file(arrays, 3, 9, 1), "numPoints is 9"),
        "cut short": (good[:-6], "cut short"),
        "cut in the arrays": (good[:40], "numPoints is 5"),
        "damaged": (bytes(damaged), "damaged|numPoints"),
        "gzip bomb": (gzip.compress(bomb), "goes on past"),
        "zstd cut": (modern[:-3], "stream 5 declares"),
        "zstd header cut": (modern[:20], "header needs 32"),
        "zstd trailing bytes": (modern + b"x", "streams end at"),
        "zstd stream beyond the file": (bytes(streams), "stream 0 declares"),
        "zstd stream that unpacks to 2^60": (bytes(unpacked), "stream 0 declares"),
        "zstd stream longer than declared": (endless, "stream 0 does not unpack"),
        "zstd junk": (modern.replace(zstandard.FRAME_HEADER, b"junk"), "stream 0 is damaged"),
        "zstd stream count": (zstd_file(arrays[:5], 5, 1), "numStreams is 5"),
        "extension beyond the file": (
            zstd_file(arrays, 5, 1, flags=2, extensions=struct.pack("<II", 1, 99)),
            "extension 0x1 declares 99",
        ),
        "half an extension": (zstd_file(arrays, 5, 1, flags=2, extensions=b"abc"), "cut short"),
        "coordinate system 99": (
            zstd_file(arrays, 5, 1, flags=2, extensions=struct.pack("<III", 0xADBE0003, 4, 99)),
            "coordinate system is 99",
        ),
    }


@pytest.mark.parametrize("name", hostile_files())
def test_a_bad_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    data, message = hostile_files()[name]
    (tmp_path / "bad.spz").write_bytes(data)
    with pytest.raises(ValueError, match=f"bad.spz: .*({message})"):
        spz.read(tmp_path / "bad.spz")


def test_trailing_bytes_without_the_extension_flag_are_ignored(tmp_path: Path) -> None:
    scene = random_scene(3, 0)
    arrays = encode_by_hand(reframe(scene, "RDF", "RUB"), 3)
    (tmp_path / "scene.spz").write_bytes(legacy_file([*arrays, b"padding"], 3, 3, 0))
    assert_close(spz.read(tmp_path / "scene.spz"), scene, 3)


def test_real_biker(tmp_path: Path) -> None:
    path = SHARED_SPLATS / "biker.spz"
    if not path.exists():
        pytest.skip("shared/data/splats is not beside this checkout")
    scene = in_z_order(spz.read(path))
    assert len(scene) == 152_746 and scene.sh_degree == 0
    # The rider's wheels stand at y = 0 with y pointing down, as in the PLY of the same scene.
    assert -3.3 < scene.means[:, 1].min() < -3.1 and scene.means[:, 1].max() <= 0.0
    spz.write(scene, tmp_path / "again.spz", version=4)
    again = spz.read(tmp_path / "again.spz")
    for name in ("means", "scales", "opacities", "sh0"):
        assert torch.equal(again.tensors()[name], scene.tensors()[name]), name
