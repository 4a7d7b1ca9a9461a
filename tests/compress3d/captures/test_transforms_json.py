from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compress3d.captures import Capture, read_capture
from compress3d.captures.lens import Lens
from compress3d.captures.undistort import pinhole_of
from tests.compress3d.captures.synthetic import (
    FOCAL,
    HEIGHT,
    WIDTH,
    image_name,
    photograph,
    transforms,
    truth,
    write_photographs,
    write_transforms,
)
from tests.contracts import assert_same


def test_poses_intrinsics_and_pixels(tmp_path: Path) -> None:
    capture = read_capture(write_transforms(tmp_path / "pots"))
    assert capture.name == "pots" and len(capture) == 9 and capture.skipped == 0
    assert capture.names == tuple(f"images/{image_name(i)}" for i in range(9))
    np.testing.assert_allclose(capture.cameras.viewmats, truth().viewmats, atol=1e-6)
    assert_same(capture.cameras.Ks[0], torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]]))
    for i in range(9):
        assert np.array_equal(capture.images[i], np.array(photograph(i)))
    assert capture.alphas is None and capture.masks is None and capture.points is None
    assert capture.test.tolist() == [0, 8] and capture.train.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_the_file_itself_under_any_name(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path)
    (folder / "transforms.json").rename(folder / "base_cam.json")
    assert len(read_capture(folder / "base_cam.json")) == 9


def test_frames_are_sorted_by_name_for_the_split(tmp_path: Path) -> None:
    record = transforms()
    record["frames"].reverse()
    capture = read_capture(write_transforms(tmp_path, record))
    assert capture.names[0] == f"images/{image_name(0)}"
    np.testing.assert_allclose(capture.cameras.viewmats, truth().viewmats, atol=1e-6)


def test_missing_photographs_are_counted(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path)
    for i in (0, 4):
        (folder / "images" / image_name(i)).unlink()
    capture = read_capture(folder)
    assert capture.skipped == 2 and len(capture) == 7
    assert capture.names[0] == f"images/{image_name(1)}" and capture.test.tolist() == [0]
    with pytest.raises(ValueError, match=r"2 of the 9 photographs listed are missing .*view 00"):
        read_capture(folder, strict=True)


def test_too_few_photographs_are_refused(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path)
    for i in range(7):
        (folder / "images" / image_name(i)).unlink()
    with pytest.raises(ValueError, match=r"2 of the 9 photographs listed are there, at least 3"):
        read_capture(folder)


INTRINSICS: dict[str, dict[str, Any]] = {
    "angle": {"fl_x": None, "fl_y": None, "camera_angle_x": 2 * math.atan(WIDTH / 2 / FOCAL)},
    "two angles": {
        "fl_x": None,
        "fl_y": None,
        "camera_angle_x": 2 * math.atan(WIDTH / 2 / FOCAL),
        "camera_angle_y": 2 * math.atan(HEIGHT / 2 / FOCAL),
    },
    "degrees": {"fl_x": None, "fl_y": None, "x_fov": math.degrees(2 * math.atan(WIDTH / 2 / FOCAL))},
    "no fl_y": {"fl_y": None},
    "no size": {"w": None, "h": None},
    "no principal point": {"cx": None, "cy": None},
    "float size": {"w": float(WIDTH), "h": float(HEIGHT)},
    "twice the size": {"w": 48, "h": 32, "fl_x": 60.0, "fl_y": 60.0, "cx": 24.0, "cy": 16.0},
    "named pinhole": {"camera_model": "PINHOLE"},
    "no distortion": {"camera_model": "OPENCV", "k1": 0.0, "k2": 0, "p1": 0.0, "p2": 0.0, "is_fisheye": False},
}


@pytest.mark.parametrize("changes", INTRINSICS.values(), ids=INTRINSICS)
def test_all_ways_to_say_the_same_intrinsics(tmp_path: Path, changes: dict[str, Any]) -> None:
    capture = read_capture(write_transforms(tmp_path, transforms(**changes)))
    expected = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    torch.testing.assert_close(capture.cameras.Ks, expected.expand(9, 3, 3))


def test_intrinsics_of_a_frame_go_before_those_of_all(tmp_path: Path) -> None:
    record = transforms()
    record["frames"][3].update(fl_x=33.0, cx=11.0)
    capture = read_capture(write_transforms(tmp_path, record))
    assert capture.cameras.Ks[3, 0].tolist() == [33.0, 0.0, 11.0]
    assert capture.cameras.Ks[4, 0].tolist() == [FOCAL, 0.0, WIDTH / 2]


@pytest.mark.parametrize(
    ("changes", "lens"),
    [
        ({"k1": 0.1, "k2": -0.02, "p1": 0.003, "p2": -0.001}, {"tangential": (0.003, -0.001)}),
        ({"k1": 0.1, "k2": -0.02, "camera_model": "OPENCV_FISHEYE"}, {"fisheye": True}),
        ({"k1": 0.1, "k2": -0.02, "is_fisheye": True}, {"fisheye": True}),
    ],
)
def test_distortion_is_undone(tmp_path: Path, changes: dict[str, Any], lens: dict[str, Any]) -> None:
    capture = read_capture(write_transforms(tmp_path, transforms(**changes)))
    expected = Lens(WIDTH, HEIGHT, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, (0.1, -0.02), **lens)
    torch.testing.assert_close(capture.cameras.Ks[2], pinhole_of(expected).K.float())
    assert not np.array_equal(capture.images[2], np.array(photograph(2)))


def test_alpha_is_kept_and_opaque_alpha_is_not(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path / "a", mode="RGBA")
    photograph(3).convert("RGBA").save(folder / "images" / image_name(3))
    photograph(4).save(folder / "images" / image_name(4))
    capture = read_capture(folder, background=(0.0, 0.0, 0.0))
    pixels = np.array(photograph(2, mode="RGBA"))
    assert np.array_equal(capture.images[2], pixels[..., :3]) and np.array_equal(capture.alphas[2], pixels[..., 3])
    assert bool((capture.alphas[3:5] == 255).all())
    np.testing.assert_allclose(capture.image(2), pixels[..., :3] / 255.0 * (pixels[..., 3:] / 255.0), atol=1e-6)
    for i in range(9):
        photograph(i).convert("RGBA").save(folder / "images" / image_name(i))
    assert read_capture(folder).alphas is None


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "CMYK"])
def test_other_kinds_of_pixels_become_rgb(tmp_path: Path, mode: str) -> None:
    folder = write_transforms(tmp_path)
    suffix = ".jpg" if mode == "CMYK" else ".png"
    record = transforms()
    image = photograph(0, mode="L").convert(mode)
    image.save(folder / "images" / f"other{suffix}")
    record["frames"][0]["file_path"] = f"images/other{suffix}"
    (folder / "transforms.json").write_text(json.dumps(record))
    capture = read_capture(folder)
    with Image.open(folder / "images" / f"other{suffix}") as stored:
        assert np.array_equal(capture.images[0], np.array(stored.convert("RGB")))


def test_long_side_reads_smaller_even_of_mixed_sizes(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path)
    photograph(5, 2 * WIDTH, 2 * HEIGHT).save(folder / "images" / image_name(5))
    with pytest.raises(ValueError, match=r"'images/view 05.png' has 48x32 pixels, but most frames have 24x16"):
        read_capture(folder)
    capture = read_capture(folder, long_side=12)
    assert (capture.cameras.width, capture.cameras.height) == (12, 8)
    torch.testing.assert_close(capture.cameras.Ks[5], capture.cameras.Ks[4])
    expected = np.array(photograph(1)).reshape(8, 2, 12, 2, 3).mean(axis=(1, 3))
    assert np.abs(capture.images[1].numpy() - expected).max() <= 0.51
    later = read_capture(write_transforms(tmp_path / "same")).resized(long_side=12)
    assert_same(later.images[1], capture.images[1])
    assert_same(later.cameras.Ks, capture.cameras.Ks[[0] * 9])


def nerfstudio(folder: Path, **changes: Any) -> Capture:
    record = transforms(**changes)
    write_photographs(folder / "masks", mode="L")
    for i, frame in enumerate(record["frames"]):
        frame["mask_path"] = f"masks/{image_name(i)}"
    return read_capture(write_transforms(folder, record))


def test_masks(tmp_path: Path) -> None:
    capture = nerfstudio(tmp_path / "pinhole")
    assert capture.alphas is None
    np.testing.assert_allclose(capture.mask(3), np.array(photograph(3, mode="L")) / 255.0, atol=1e-6)
    bent = nerfstudio(tmp_path / "bent", k1=0.2)
    assert bent.mask(3).shape == (HEIGHT, WIDTH) and not torch.equal(bent.mask(3), capture.mask(3))


def test_points_to_start_from(tmp_path: Path) -> None:
    scene = truth()
    header = [
        "ply",
        "format ascii 1.0",
        f"element vertex {len(scene.xyz)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uint8 {colour}" for colour in ("red", "green", "blue")),
        "end_header",
    ]
    rows = [" ".join(map(str, (*xyz, *rgb))) for xyz, rgb in zip(scene.xyz, scene.rgb, strict=True)]
    (tmp_path / "sparse_pc.ply").write_text("\n".join([*header, *rows]) + "\n")
    changes = {"ply_file_path": "sparse_pc.ply", "applied_transform": [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]]}
    capture = read_capture(write_transforms(tmp_path, transforms(**changes)))
    np.testing.assert_allclose(capture.points.xyz, scene.xyz, atol=1e-6)
    assert np.array_equal(capture.points.rgb, scene.rgb)
    np.testing.assert_allclose(capture.cameras.viewmats, truth().viewmats, atol=1e-6)
    (tmp_path / "sparse_pc.ply").unlink()
    with pytest.raises(FileNotFoundError, match="ply_file_path: there is no file"):
        read_capture(tmp_path)


def test_the_split_of_the_file(tmp_path: Path) -> None:
    names = [f"images/{image_name(i)}" for i in range(9)]
    lists = {"train_filenames": names[:5], "val_filenames": names[5:7], "test_filenames": [f"./{names[7]}"]}
    folder = write_transforms(tmp_path, transforms(**lists))
    capture = read_capture(folder)
    assert capture.train.tolist() == [0, 1, 2, 3, 4] and capture.test.tolist() == [7]
    assert read_capture(folder, split="every8").test.tolist() == [0, 8]
    (folder / "transforms.json").write_text(json.dumps(transforms(**{**lists, "test_filenames": None})))
    assert read_capture(folder).test.tolist() == [5, 6]
    (folder / "transforms.json").write_text(json.dumps(transforms(**{**lists, "test_filenames": names[4:6]})))
    with pytest.raises(ValueError, match=r"view 04.png' is in the training and in the test split"):
        read_capture(folder)


def test_splits_that_are_not_there(tmp_path: Path) -> None:
    folder = write_transforms(tmp_path)
    with pytest.raises(ValueError, match="no split of its own"):
        read_capture(folder, split="file")
    with pytest.raises(ValueError, match="split must be"):
        read_capture(folder, split="every9")  # type: ignore[arg-type]


def test_nerf_synthetic(tmp_path: Path) -> None:
    record = transforms(camera_angle_x=0.8, fl_x=None, fl_y=None, cx=None, cy=None, w=None, h=None)
    for part, frames in (("train", record["frames"][:6]), ("test", record["frames"][6:])):
        write_photographs(tmp_path / part, mode="RGBA")
        listed = [{**f, "file_path": f"./{part}/{Path(f['file_path']).stem}"} for f in frames]
        (tmp_path / f"transforms_{part}.json").write_text(json.dumps({"camera_angle_x": 0.8, "frames": listed}))
    capture = read_capture(tmp_path)
    assert sorted(capture.names[i] for i in capture.test) == [f"test/{image_name(i)}" for i in (6, 7, 8)]
    assert sorted(capture.names[i] for i in capture.train) == [f"train/{image_name(i)}" for i in range(6)]
    first = capture.names.index(f"train/{image_name(0)}")
    np.testing.assert_allclose(capture.cameras.viewmats[first], truth().viewmats[0], atol=1e-6)
    assert capture.cameras.Ks[0, 0, 0] == pytest.approx(0.5 * WIDTH / math.tan(0.4))
    assert capture.cameras.Ks[0, 1, 1] == capture.cameras.Ks[0, 0, 0]
    assert np.array_equal(capture.alphas[first], np.array(photograph(0, mode="RGBA"))[..., 3])
    assert read_capture(tmp_path, split="every8").test.tolist() == [0, 8]
    (tmp_path / "transforms_test.json").unlink()
    assert read_capture(tmp_path).test.tolist() == [0]
