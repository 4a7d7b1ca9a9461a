from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compress3d.captures import read_capture
from compress3d.captures.lens import Lens
from compress3d.captures.undistort import pinhole_of
from tests.compress3d.captures.synthetic import (
    FOCAL,
    HEIGHT,
    WIDTH,
    image_name,
    photograph,
    truth,
    write_colmap_binary,
    write_colmap_text,
    write_photographs,
)
from tests.contracts import assert_same

PINHOLE = [FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]
Write = Callable[[Path, str, list[float]], None]
both = pytest.mark.parametrize("write", [write_colmap_binary, write_colmap_text], ids=["binary", "text"])


def model(folder: Path, write: Write, name: str = "PINHOLE", parameters: list[float] = PINHOLE) -> Path:
    write_photographs(folder / "images")
    write(folder / "sparse" / "0", name, parameters)
    return folder


@both
def test_points_project_where_they_were_observed(tmp_path: Path, write: Write) -> None:
    capture = read_capture(model(tmp_path, write))
    scene = truth()
    assert capture.names == tuple(f"images/{image_name(i)}" for i in range(9))
    assert np.array_equal(capture.points.rgb, scene.rgb) and len(capture.points) == 7
    for i in range(9):
        homogeneous = torch.cat([capture.points.xyz, torch.ones(7, 1)], dim=1)
        seen = capture.cameras.Ks[i] @ (capture.cameras.viewmats[i] @ homogeneous.T)[:3]
        np.testing.assert_allclose((seen[:2] / seen[2]).T, scene.pixels(i), atol=1e-3)
        assert np.array_equal(capture.images[i], np.array(photograph(i)))
    assert capture.test.tolist() == [0, 8]


def test_binary_and_text_read_alike(tmp_path: Path) -> None:
    binary = read_capture(model(tmp_path / "one", write_colmap_binary))
    text = read_capture(model(tmp_path / "two", write_colmap_text))
    assert_same([binary.cameras.Ks, binary.images, binary.points.rgb], [text.cameras.Ks, text.images, text.points.rgb])
    torch.testing.assert_close(binary.cameras.viewmats, text.cameras.viewmats, atol=1e-6, rtol=0)
    torch.testing.assert_close(binary.points.xyz, text.points.xyz)


MODELS = {
    "SIMPLE_PINHOLE": ([30.0, 12.5, 8.5], Lens(WIDTH, HEIGHT, 30.0, 30.0, 12.5, 8.5)),
    "PINHOLE": ([30.0, 31.0, 12.5, 8.5], Lens(WIDTH, HEIGHT, 30.0, 31.0, 12.5, 8.5)),
    "SIMPLE_RADIAL": ([30.0, 12.0, 8.0, 0.1], Lens(WIDTH, HEIGHT, 30.0, 30.0, 12.0, 8.0, (0.1,))),
    "OPENCV": (
        [30.0, 31.0, 12.0, 8.0, 0.1, -0.02, 0.003, -0.001],
        Lens(WIDTH, HEIGHT, 30.0, 31.0, 12.0, 8.0, (0.1, -0.02), tangential=(0.003, -0.001)),
    ),
    "OPENCV_FISHEYE": (
        [30.0, 31.0, 12.0, 8.0, 0.1, -0.02, 0.01, -0.005],
        Lens(WIDTH, HEIGHT, 30.0, 31.0, 12.0, 8.0, (0.1, -0.02, 0.01, -0.005), fisheye=True),
    ),
}


@both
@pytest.mark.parametrize("name", MODELS)
def test_camera_models(tmp_path: Path, write: Write, name: str) -> None:
    parameters, lens = MODELS[name]
    capture = read_capture(model(tmp_path, write, name, parameters))
    torch.testing.assert_close(capture.cameras.Ks, pinhole_of(lens).K.float().expand(9, 3, 3))


def test_a_full_opencv_camera_is_rational(tmp_path: Path) -> None:
    values = [30.0, 31.0, 12.0, 8.0, 0.3, 0.02, 0.003, -0.001, 0.01, 0.35, 0.01, 0.002]
    capture = read_capture(model(tmp_path, write_colmap_text, "FULL_OPENCV", values))
    lens = Lens(WIDTH, HEIGHT, 30.0, 31.0, 12.0, 8.0, (0.3, 0.02, 0.01), (0.35, 0.01, 0.002), (0.003, -0.001))
    torch.testing.assert_close(capture.cameras.Ks[0], pinhole_of(lens).K.float())


@both
def test_a_model_that_is_not_supported_names_frame_and_choices(tmp_path: Path, write: Write) -> None:
    with pytest.raises(ValueError, match=r"images\.(bin|txt): frame 'view 08.png': the camera model FOV .*PINHOLE"):
        read_capture(model(tmp_path, write, "FOV", [*PINHOLE, 0.5]))


@pytest.mark.parametrize("place", ["sparse/0", "sparse", "colmap/sparse/0", "."])
def test_where_models_are_found(tmp_path: Path, place: str) -> None:
    write_photographs(tmp_path / "images")
    write_colmap_binary(tmp_path / place, "PINHOLE", PINHOLE)
    assert len(read_capture(tmp_path)) == 9


@both
def test_points_may_be_absent(tmp_path: Path, write: Write) -> None:
    folder = model(tmp_path, write)
    next((folder / "sparse" / "0").glob("points3D.*")).unlink()
    assert read_capture(folder).points is None


def test_photographs_of_half_the_size(tmp_path: Path) -> None:
    folder = model(tmp_path, write_colmap_binary)
    for i in range(9):
        photograph(i, WIDTH // 2, HEIGHT // 2).save(folder / "images" / image_name(i))
    capture = read_capture(folder)
    assert capture.cameras.Ks[0, 0].tolist() == [FOCAL / 2, 0.0, WIDTH / 4]


def test_missing_photographs_are_counted(tmp_path: Path) -> None:
    folder = model(tmp_path, write_colmap_binary)
    (folder / "images" / image_name(2)).unlink()
    assert read_capture(folder).skipped == 1
    with pytest.raises(ValueError, match="1 of the 9"):
        read_capture(folder, strict=True)


@both
def test_models_without_any_image_are_refused(tmp_path: Path, write: Callable[..., None]) -> None:
    write_photographs(tmp_path / "images")
    write(tmp_path / "sparse", "PINHOLE", PINHOLE, count=0)
    with pytest.raises(ValueError, match="0 of the 0 photographs"):
        read_capture(tmp_path)


def test_an_image_without_observations_at_the_end_of_the_text(tmp_path: Path) -> None:
    folder = model(tmp_path, write_colmap_text)
    path = folder / "sparse" / "0" / "images.txt"
    path.write_text(path.read_text().rstrip("\n"))
    assert len(read_capture(folder)) == 9


def test_rows_that_lie_name_their_place(tmp_path: Path) -> None:
    folder = model(tmp_path, write_colmap_binary)
    tables = folder / "sparse" / "0"

    def refused(name: str, content: bytes, message: str) -> None:
        original = (tables / name).read_bytes()
        (tables / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            read_capture(folder)
        (tables / name).write_bytes(original)

    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        content = (tables / name).read_bytes()
        refused(name, struct.pack("<Q", 1 << 62) + content[8:], "rows of at least")
        refused(name, content + b"\0", "1 bytes are left")
        refused(name, content[:-1], "needed at byte")
        refused(name, b"", "the count")
    cameras = (tables / "cameras.bin").read_bytes()
    refused("cameras.bin", struct.pack("<QIi", 1, 5, 99) + cameras[16:], "has the model 99")
    refused("cameras.bin", struct.pack("<Q", 2) + cameras[8:] * 2, "id 5 of an earlier")
    refused("images.bin", (tables / "images.bin").read_bytes().replace(b".png\0", b".png/"), "does not end|needed|left")
    points = bytearray((tables / "points3D.bin").read_bytes())
    points[16:24] = struct.pack("<d", float("nan"))
    refused("points3D.bin", bytes(points), "point 0 lies at")
