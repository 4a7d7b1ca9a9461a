"""How `secateur evaluate` takes folders of images. What it does is in `cli.py`, imported when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli import argument_type
from secateur.image_folders.listing import holds_images

if TYPE_CHECKING:
    from secateur.evaluation.evaluator import Evaluated


def _parse_workers(value: Any) -> int:
    if not str(value).isdecimal() or int(value) > 256:
        raise ValueError(f"{value!r} is not a number of processes from 0 to 256")
    return int(value)


WORKERS: dict[str, Any] = {
    "type": argument_type(_parse_workers),
    "default": 0,
    "metavar": "N",
    "help": "processes that decode images (default: 0, this one)",
}
"""How `--workers` is read, for every evaluator that decodes images."""


class ImagesEvaluator:
    """Compares folders of images with one of reference images."""

    options: Mapping[str, Mapping[str, Any]] = {
        "--features": {
            "default": "auto",
            "metavar": "NAME",
            "help": "network of a Frechet and kernel distance: fashion-cnn, digits-cnn, the file of a classifier, none "
            "(default: that of the two whose size fits)",
        },
        "--inception": {
            "type": Path,
            "metavar": "FILE",
            "help": "weights of Inception of 2015-12-05, for FID; download: fetch them, once",
        },
        "--clip": {"type": Path, "metavar": "FOLDER", "help": "a CLIP model of transformers, for CMMD and CLIP score"},
        "--captions": {
            "type": Path,
            "metavar": "FILE.json",
            "help": "an object of file name and caption, for CLIP score",
        },
        "--lpips": {"type": Path, "metavar": "FILE", "help": "weights of AlexNet or VGG-16, for LPIPS"},
        "--unpaired": {"action": "store_true", "help": "images of one name have nothing to do with one another"},
        "--workers": WORKERS,
        "--seed": {"type": int, "default": 0, "metavar": "N", "help": "seed of all that is random (default: 0)"},
    }

    def accepts(self, path: Path) -> bool:
        """Whether `path` is a folder with an image in it, or in a folder within it."""
        return holds_images(path)

    def run(self, reference: Path, candidates: list[Path], output: Path, **options: Any) -> Evaluated:
        """Measure, and draw the page; see `secateur.image_folders.cli.evaluate_folders`."""
        evaluated: Evaluated = import_module("secateur.image_folders.cli").evaluate_folders(
            reference, candidates, output, **options
        )
        return evaluated


IMAGES_EVALUATOR = ImagesEvaluator()
