"""Compress a splat scene from Python, and say what it cost: python scripts/compress_splat.py scene.ply scene.sog 25%"""

import sys
from pathlib import Path

from compress3d.splats import compress, read_scene
from secateur.quantities import format_bytes, format_decibels


def main(source: Path, output: Path, keep: str) -> None:
    scene = read_scene(source)
    _, record = compress(scene, output, keep=keep, source=source)

    before, after, quality = record.original, record.compressed, record.quality
    print(f"Gaussians  {before.gaussians:,} -> {after.gaussians:,}")
    print(f"bytes      {format_bytes(before.bytes)} -> {format_bytes(after.bytes)}")
    print(f"quality    {format_decibels(quality.mean_psnr)}, SSIM {quality.mean_ssim:.4f} against {quality.reference}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
