"""Train a neural field from posed photographs: python scripts/train_nerf.py CAPTURE field.safetensors [STEPS]"""

import sys
from pathlib import Path

from compress3d.captures import read_capture
from compress3d.nerf.files import save_field
from compress3d.nerf.train import STEPS, train
from secateur.console import progress_bar
from secateur.quantities import format_bytes, format_decibels


def main(folder: Path, output: Path, steps: int = STEPS) -> None:
    capture = read_capture(folder)
    with progress_bar() as progress:
        field, record = train(capture, steps=steps, report=progress)
    size = save_field(field, output)

    print(f"size       {format_bytes(size)}")
    print(f"minutes    {record.seconds['train'] / 60:.1f}")
    print(f"rays/s     {record.rays / record.seconds['train']:,.0f}")
    if record.quality is not None:
        print(f"quality    {format_decibels(record.quality.mean_psnr)} against {len(record.quality.psnr)} photographs")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
