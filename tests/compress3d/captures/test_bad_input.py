"""Broken and malicious captures: each is read, or refused in one ValueError that names file and frame."""

from __future__ import annotations

import copy
import json
import math
import shutil
import struct
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from compress3d.captures import Capture, read_capture
from tests.compress3d.captures.synthetic import (
    image_name,
    photograph,
    transforms,
    write_colmap_binary,
    write_photographs,
    write_transforms,
)

LARGEST_PEAK = 8 << 20
"""Bytes that reading nine tiny photographs may take at most."""


def set_pose(row: int, column: int, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda frame: frame["transform_matrix"][row].__setitem__(column, value)


def scale_rotation(factor: float) -> Callable[[dict[str, Any]], None]:
    def change(frame: dict[str, Any]) -> None:
        pose = np.array(frame["transform_matrix"])
        pose[:3, :3] *= factor
        frame["transform_matrix"] = pose.tolist()

    return change


WRONG_FRAMES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "nan pose": (set_pose(1, 2, math.nan), r"transform_matrix\[1\]\[2\] must be a finite number"),
    "infinite pose": (set_pose(0, 3, math.inf), r"transform_matrix\[0\]\[3\] must be a finite number"),
    "text in a pose": (set_pose(0, 0, "one"), r"transform_matrix\[0\]\[0\] must be a finite number"),
    "pose beyond measure": (set_pose(0, 3, 1e20), "translation"),
    "scaled": (scale_rotation(1.3), "not a rotation: it stretches by"),
    "vanishing": (scale_rotation(0.0), "not a rotation"),
    "mirrored": (scale_rotation(-1.0), "not a rotation.*determinant -1"),
    "huge": (scale_rotation(1e200), "32 bits"),
    "sheared": (set_pose(0, 0, 0.9), "not a rotation"),
    "projective": (set_pose(3, 0, 0.5), "last row"),
    "two rows": (lambda f: f["transform_matrix"].__delitem__(slice(2, 4)), "must have 3 or 4 rows"),
    "short rows": (lambda f: f["transform_matrix"].__setitem__(1, [0, 1]), "must have 4 numbers"),
    "no pose": (lambda f: f.pop("transform_matrix"), "transform_matrix is missing"),
    "no focal length": (lambda f: f.update(fl_x=0.0), "fx must be a positive"),
    "negative focal length": (lambda f: f.update(fl_y=-30.0), "fy must be a positive"),
    "nan focal length": (lambda f: f.update(fl_x=math.nan), "fl_x must be a finite"),
    "principal point outside": (lambda f: f.update(cx=500.0), "cx = 500 is far outside"),
    "size of another aspect": (lambda f: f.update(w=16, h=24), "16x24 pixels, but the image has 24x16"),
    "negative size": (lambda f: f.update(w=-24), "w must be a whole number"),
    "distortion beyond repair": (lambda f: f.update(k1=-50.0), "distortion cannot be undone"),
    "nan distortion": (lambda f: f.update(k1=math.nan), "k1 must be a finite"),
    "unknown camera": (lambda f: f.update(camera_model="EQUIRECTANGULAR"), "camera_model 'EQUIRECTANGULAR'"),
    "fisheye of sorts": (lambda f: f.update(is_fisheye="maybe"), "must be true or false"),
    "mask that is not there": (lambda f: f.update(mask_path="masks/none.png"), "there is no mask"),
    "mask outside": (lambda f: f.update(mask_path="../mask.png"), "leads out of"),
}


@pytest.mark.parametrize("name", WRONG_FRAMES)
def test_what_is_wrong_with_a_frame_names_file_and_frame(tmp_path: Path, name: str) -> None:
    change, message = WRONG_FRAMES[name]
    record = transforms()
    change(record["frames"][3])
    folder = write_transforms(tmp_path, record)
    with pytest.raises(ValueError, match=rf"transforms\.json: frame '.*view 03\.png': (?s:.*){message}"):
        read_capture(folder)


@pytest.mark.parametrize(
    "path", ["../outside.png", "images/../../outside.png", "/etc/hostname", "..\\outside.png", ".", "", "images/\0.png"]
)
def test_paths_that_lead_out_of_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    photograph(0).save(tmp_path / "outside.png")
    record = transforms()
    record["frames"][3]["file_path"] = path
    with pytest.raises(ValueError, match=r"transforms\.json: frame .*leads out of the capture's folder"):
        read_capture(write_transforms(tmp_path / "capture", record))


@pytest.mark.parametrize("path", ["images/" + "x" * 5000, "images/" + "y/" * 3000 + "z", "images/\ud800.png", "images"])
def test_names_that_no_file_can_have_are_missing(tmp_path: Path, path: str) -> None:
    record = transforms()
    record["frames"][3]["file_path"] = path
    assert read_capture(write_transforms(tmp_path, record)).skipped == 1


def test_colmap_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    write_photographs(tmp_path / "images")
    write_colmap_binary(tmp_path / "sparse", "PINHOLE", [30.0, 30.0, 12.0, 8.0])
    path = tmp_path / "sparse" / "images.bin"
    path.write_bytes(path.read_bytes().replace(b"view 03.png", b"../../x.png"))
    with pytest.raises(ValueError, match=r"images\.bin: frame '../../x\.png': .*leads out"):
        read_capture(tmp_path)


def test_a_slightly_scaled_rotation_is_made_exact(tmp_path: Path) -> None:
    record = transforms()
    scale_rotation(1.004)(record["frames"][3])
    rotation = read_capture(write_transforms(tmp_path, record)).cameras.viewmats[3, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)


def test_a_photograph_listed_twice_is_refused(tmp_path: Path) -> None:
    record = transforms()
    record["frames"].append(record["frames"][3])
    with pytest.raises(ValueError, match=r"'images/view 03.png' is listed 2 times"):
        read_capture(write_transforms(tmp_path, record))


def png(width: int, height: int) -> bytes:
    """A PNG of black pixels that says to be of that size; its data is for a few rows only."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"not an image", "cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\n", "cannot be read"),
        (png(20_000, 20_000), "cannot be read.*pixels"),
        (png(12_000, 8_000), "cannot be read.*pixels"),
        (png(24, 16), "cannot be read"),
        (png(0, 16), "cannot be read|must be positive"),
    ],
)
def test_damaged_photographs_name_their_frame(tmp_path: Path, content: bytes, message: str) -> None:
    folder = write_transforms(tmp_path)
    (folder / "images" / image_name(3)).write_bytes(content)
    with pytest.raises(ValueError, match=rf"frame '.*view 03\.png': .*{message}"):
        read_capture(folder)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_truncated_photographs_name_their_frame(tmp_path: Path, suffix: str) -> None:
    record = transforms()
    record["frames"][3]["file_path"] = f"images/cut.{suffix}"
    folder = write_transforms(tmp_path, record)
    path = folder / "images" / f"cut.{suffix}"
    photograph(3).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ValueError, match=rf"frame '.*cut\.{suffix}': .*cannot be read"):
        read_capture(folder)


def test_16_bit_grey_is_refused(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path)
    Image.fromarray(np.full((16, 24), 40_000, np.uint16)).save(folder / "images" / image_name(3))
    with pytest.raises(ValueError, match=r"view 03\.png: the image's mode is I;16"):
        read_capture(folder)


def test_more_than_memory_holds_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_transforms(tmp_path)
    monkeypatch.setattr("os.sysconf", lambda name: 64)
    with pytest.raises(ValueError, match=r"9 photographs of 24x16 take .*give a long_side"):
        read_capture(folder)
    assert len(read_capture(folder, long_side=6)) == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[1, 2", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "must be an object"),
        ("{}", "frames is missing"),
        ('{"frames": {}}', "must be an array"),
        ('{"frames": [7]}', "must be an object"),
        ('{"frames": [{"file_path": 7}]}', "must be a string"),
        ('{"frames": []}', "0 of the 0 photographs"),
        ('{"frames": [], "train_filenames": 7, "test_filenames": []}', "must be an array"),
        ('{"frames": [], "ply_file_path": "../points.ply"}', "ply_file_path: the path .* leads out"),
    ],
)
def test_json_of_another_shape(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(ValueError, match=rf"transforms\.json(?s:.*){message}"):
        read_capture(tmp_path)


def test_a_folder_without_a_capture_says_what_one_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no transforms_train\.json, no transforms\.json and no COLMAP model"):
        read_capture(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such capture"):
        read_capture(tmp_path / "nowhere")
    (tmp_path / "scene.ply").write_bytes(b"ply\n")
    with pytest.raises(ValueError, match="expected a folder"):
        read_capture(tmp_path / "scene.ply")


@pytest.fixture(scope="module")
def colmap_folder() -> Any:
    folder = Path(tempfile.mkdtemp())
    write_photographs(folder / "images")
    write_colmap_binary(folder / "sparse", "OPENCV", [30.0, 30.0, 12.0, 8.0, 0.05, 0.0, 0.001, 0.0])
    read_capture(folder)
    yield folder
    shutil.rmtree(folder)


def outcome(folder: Path, file: Path) -> Capture | str:
    tracemalloc.start()
    try:
        return read_capture(folder)
    except ValueError as error:
        assert str(file.parent) in str(error), f"the message does not name the file: {error}"
        return str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < LARGEST_PEAK, f"{peak} bytes were allocated"


fuzz = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
tables = pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])


@tables
def test_tables_cut_short_anywhere_are_refused(colmap_folder: Path, name: str) -> None:
    path = colmap_folder / "sparse" / name
    content = path.read_bytes()
    try:
        for length in range(0, len(content), max(1, len(content) // 60)):
            path.write_bytes(content[:length])
            result = outcome(colmap_folder, path)
            assert isinstance(result, str) and name in result, f"{length} of {len(content)} bytes: {result}"
    finally:
        path.write_bytes(content)


@tables
@fuzz
@given(data=st.data())
def test_flipped_bits_of_tables_never_escape(colmap_folder: Path, name: str, data: st.DataObject) -> None:
    path = colmap_folder / "sparse" / name
    content = path.read_bytes()
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(content) - 1) | st.integers(0, 70))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        path.write_bytes(changed)
        outcome(colmap_folder, path)
    finally:
        path.write_bytes(content)


ODD_VALUES = st.sampled_from(
    [None, True, -1, 0, 1e308, -1e-300, math.nan, math.inf, 10**400, "", "..", "images", [], [[]], {}, [1, 2, 3, 4]]
)


@pytest.fixture(scope="module")
def json_folder() -> Any:
    folder = Path(tempfile.mkdtemp())
    yield write_transforms(folder)
    shutil.rmtree(folder)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


@fuzz
@given(data=st.data())
def test_odd_values_in_json_never_escape(json_folder: Path, data: st.DataObject) -> None:
    record = copy.deepcopy(transforms(k1=0.01, p1=0.0, camera_model="OPENCV", is_fisheye=False))
    everywhere = places(record)
    shallow = [place for place in everywhere if place[0] is record]
    for _ in range(data.draw(st.integers(1, 2))):
        container, key = data.draw(st.sampled_from(everywhere) | st.sampled_from(shallow))
        container[key] = data.draw(ODD_VALUES)
    path = json_folder / "transforms.json"
    path.write_text(json.dumps(record))
    outcome(json_folder, path)


@fuzz
@given(data=st.data())
def test_flipped_bits_and_cuts_of_json_never_escape(json_folder: Path, data: st.DataObject) -> None:
    content = bytearray(json.dumps(transforms(k1=0.01)).encode())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    path = json_folder / "transforms.json"
    path.write_bytes(content)
    outcome(json_folder, path)
