"""The script that trains on a capture and says what came of it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress3d.splats import read_scene
from compress3d.splats.anchors import load_field
from scripts.train_anchors import main
from tests.compress3d.captures.synthetic import OPENGL
from tests.compress3d.splats.anchors.captures import SIZE, capture


def write_capture(folder: Path) -> None:
    shown = capture()
    frames = []
    for name, image, viewmat in zip(shown.names, shown.images, shown.cameras.viewmats, strict=True):
        Image.fromarray(image.numpy()).save(folder / name)
        pose = np.linalg.inv(viewmat.double().numpy()) @ OPENGL
        frames.append({"file_path": name, "transform_matrix": pose.tolist()})
    focal = float(shown.cameras.Ks[0, 0, 0])
    size = {"fl_x": focal, "fl_y": focal, "cx": SIZE / 2, "cy": SIZE / 2, "w": SIZE, "h": SIZE}
    (folder / "transforms.json").write_text(json.dumps({**size, "frames": frames}))


@pytest.mark.parametrize("method", ["scaffold", "forest"])
def test_the_script_leaves_a_field_a_scene_and_a_record(method: str, tmp_path: Path) -> None:
    write_capture(tmp_path)
    output = tmp_path / "field.safetensors"
    options = argparse.Namespace(
        capture=tmp_path,
        method=method,
        steps=5,
        output=output,
        long_side=None,
        points=500,
        sh_degree=1,
        half=False,
        seed=0,
    )
    record = json.loads(json.dumps(main(options)))
    field, scene = load_field(output), read_scene(output.with_suffix(".ply"))
    assert record[field.group] == len(field)
    assert record["bytes"] == output.stat().st_size
    assert record["scene"]["gaussians"] == len(scene)
    assert record["scene"]["bytes"] == output.with_suffix(".ply").stat().st_size
    assert record["test_photographs"] == 2
    assert 5 < record["psnr"] < 60 and 0 < record["ssim"] <= 1
    assert record["frames_per_second"] > 0
