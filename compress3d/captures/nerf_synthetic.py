"""The NeRF-synthetic data set: `transforms_train.json` and `transforms_test.json`, and images with alpha.

Source: Mildenhall et al. 2020, "NeRF". The frames are those of `transforms_json.py`, their images named without suffix.
"""

from __future__ import annotations

from pathlib import Path

from compress3d.captures.frames import FrameList, Part
from compress3d.captures.transforms_json import read_frames
from compress3d.splats.formats.checked_json import Json

FILE_NAME = "transforms_train.json"

_FILES: dict[Part, str] = {"train": FILE_NAME, "test": "transforms_test.json"}


def find(folder: Path) -> Path | None:
    """The file in a folder of this format."""
    path = folder / FILE_NAME
    return path if path.is_file() else None


def read(path: Path) -> FrameList:
    """List the frames of the training file at `path`, and of the test file beside it where there is one: the split.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file, or a frame whose image is there, is not as the format asks for: it names file and frame.
    """
    frames, missing, has_test = [], [], False
    for part, name in _FILES.items():
        file = path.with_name(name)
        if part == "test" and not file.is_file():
            continue
        has_test = part == "test"
        found, lost = read_frames(Json.parse(file.read_bytes(), str(file)), path.parent, part=part)
        frames += found
        missing += lost
    return FrameList(path, frames, missing, has_split=has_test)
