"""Train Scaffold-GS or GaussianForest: python scripts/train_anchors.py CAPTURE scaffold 2000 field.safetensors

Writes the field and an ordinary scene beside it (.ply), which looks like the field from the training cameras. Prints a
JSON record: quality on the test photographs, units, bytes of both files, frames a second, seconds of training.
"""

import argparse
import json
from pathlib import Path

import torch

from compress3d.captures import Capture, read_capture
from compress3d.splats import write_scene
from compress3d.splats.anchors import (
    AnchorGrower,
    ForestField,
    ForestGrower,
    GrowthSchedule,
    NeuralField,
    ScaffoldField,
    decode_scene,
    save_field,
    start_points,
    train_field,
)
from compress3d.splats.anchors.rows import Grower
from compress3d.splats.anchors.train import field_images
from compress3d.splats.rasterize import render
from secateur.console import progress_bar
from secateur.metrics.image import psnr, ssim
from secateur.metrics.speed import measure_speed


def start(method: str, capture: Capture, steps: int, count: int, seed: int) -> tuple[NeuralField, Grower]:
    points, schedule = start_points(capture, count, seed), GrowthSchedule.scaled(steps)
    if method == "scaffold":
        scaffold = ScaffoldField.from_points(points, seed=seed)
        return scaffold, AnchorGrower(scaffold, schedule, seed=seed)
    forest = ForestField.from_points(points, seed=seed)
    return forest, ForestGrower(forest, schedule, seed=seed)


def main(options: argparse.Namespace) -> dict[str, object]:
    capture = read_capture(options.capture, long_side=options.long_side)
    field, grower = start(options.method, capture, options.steps, options.points, options.seed)
    with progress_bar() as report:
        training = train_field(field, capture, grower, steps=options.steps, seed=options.seed, report=report)
    size = save_field(options.output, field, half_features=options.half)
    scene_path = options.output.with_suffix(".ply")
    scene = decode_scene(field, capture.cameras[capture.train], options.sh_degree)
    write_scene(scene, scene_path)

    photographs = torch.stack([capture.image(index) for index in capture.test.tolist()])
    shown = field_images(field, capture, capture.test)
    decoded = render(scene, capture.cameras[capture.test], capture.background)
    speed = measure_speed(
        lambda frame: field_images(field, capture, capture.test[frame : frame + 1]), min(4, len(shown))
    )
    return {
        "capture": capture.name,
        "method": options.method,
        "steps": options.steps,
        "width": capture.cameras.width,
        "height": capture.cameras.height,
        "test_photographs": len(capture.test),
        "psnr": float(psnr(shown, photographs).mean()),
        "ssim": float(ssim(shown, photographs).mean()),
        field.group: len(field),
        "bytes": size,
        "frames_per_second": speed.frames_per_second,
        "seconds": training.seconds,
        "scene": {
            "gaussians": len(scene),
            "bytes": scene_path.stat().st_size,
            "psnr": float(psnr(decoded, photographs).mean()),
            "ssim": float(ssim(decoded, photographs).mean()),
            "psnr_against_field": float(psnr(decoded, shown).mean()),
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("capture", type=Path, help="folder of posed photographs")
    parser.add_argument("method", choices=["scaffold", "forest"])
    parser.add_argument("steps", type=int)
    parser.add_argument("output", type=Path, help="the field, as safetensors")
    parser.add_argument("--long-side", type=int, help="the most pixels of the longer side of the photographs")
    parser.add_argument("--points", type=int, default=10_000, help="random points to start from where there are none")
    parser.add_argument("--sh-degree", type=int, default=2, help="of the ordinary scene")
    parser.add_argument("--half", action="store_true", help="write features as float16")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(main(parser.parse_args()), indent=2))
