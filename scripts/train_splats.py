"""Train a splat scene from posed photographs: python scripts/train_splats.py CAPTURE scene.ply [STEPS]"""

import sys
from pathlib import Path

from compress3d.captures import read_capture
from compress3d.splats import write_scene
from compress3d.splats.train import STEPS, train
from secateur.console import progress_bar
from secateur.quantities import format_decibels


def main(folder: Path, output: Path, steps: int = STEPS) -> None:
    capture = read_capture(folder)
    with progress_bar() as progress:
        scene, record = train(capture, steps=steps, report=progress)
    write_scene(scene, output)

    print(f"Gaussians  {len(scene):,}")
    print(f"minutes    {record.seconds['train'] / 60:.1f}")
    if record.quality is not None:
        print(f"quality    {format_decibels(record.quality.mean_psnr)} against {len(record.quality.psnr)} photographs")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
