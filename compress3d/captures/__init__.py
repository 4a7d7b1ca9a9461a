"""Posed photographs from disk, whatever the format: `read_capture`."""

from __future__ import annotations

from pathlib import Path

from compress3d.captures import colmap, nerf_synthetic, transforms_json
from compress3d.captures.capture import WHITE, Capture, Colour, StartPoints
from compress3d.captures.frames import FrameList
from compress3d.captures.load import Split, load
from secateur.console import Report, silent

__all__ = ["Capture", "Split", "StartPoints", "read_capture"]


def read_capture(
    path: str | Path,
    *,
    strict: bool = False,
    split: Split | None = None,
    long_side: int | None = None,
    background: Colour = WHITE,
    report: Report = silent,
) -> Capture:
    """Read posed photographs, undistorted, from a folder: NeRF-synthetic, instant-ngp, nerfstudio or COLMAP.

    The folder's content decides: `transforms_train.json`, else `transforms.json`, else a COLMAP model in `sparse/0`,
    `sparse`, `colmap/sparse/0` or the folder itself, with its photographs in `images`. Cameras and points stay in the
    world of the file. Photographs of another size than the file says, but of its aspect, have their intrinsics scaled.

    Args:
        path: the folder, or a JSON file of the first two kinds.
        strict: refuse a capture with missing photographs; otherwise they are left out and counted in `skipped`.
        split: "file" for the capture's own; "every8" for every eighth photograph, sorted by name, the first included,
            to test on; None for the capture's own where it has one, else "every8".
        long_side: the most pixels that the longer side may have; larger photographs are averaged over areas.
        background: behind transparent pixels, in [0, 1].
        report: told how far the reading is.

    Raises:
        FileNotFoundError: no such folder, or a file that the capture asks for (not a photograph) is absent.
        ValueError: no capture of these formats; a file is damaged or leads out of the folder; a frame's photograph,
            pose or intrinsics are wrong (it names file and frame); sizes are mixed; too few photographs are there.
    """
    path = Path(path)
    listing = _listing(path)
    folder = path.parent if path.is_file() else path
    return load(
        listing,
        folder.resolve().name,
        strict=strict,
        split=split,
        long_side=long_side,
        background=background,
        report=report,
    )


def _listing(path: Path) -> FrameList:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such capture")
    if path.is_file():
        if path.suffix.lower() != ".json":
            raise ValueError(f"{path}: not a capture; expected a folder or a transforms.json")
        return (nerf_synthetic if path.name == nerf_synthetic.FILE_NAME else transforms_json).read(path)
    if found := nerf_synthetic.find(path):
        return nerf_synthetic.read(found)
    if found := transforms_json.find(path):
        return transforms_json.read(found)
    if found := colmap.find(path):
        return colmap.read(found, path)
    raise ValueError(
        f"{path}: not a capture: it has no {nerf_synthetic.FILE_NAME}, no {transforms_json.FILE_NAME} and no COLMAP "
        f"model (cameras and images, .bin or .txt) in sparse/0, sparse, colmap/sparse/0 or the folder itself"
    )
