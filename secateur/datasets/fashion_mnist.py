"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747): 28x28 pictures of clothes in ten classes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from secateur.datasets.idx import read_idx
from secateur.datasets.labelled import Labelled

INSTALLED = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""

CLASSES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def fashion_mnist(split: Literal["train", "test"], folder: Path | None = None) -> Labelled:
    """60,000 pictures to train on, or 10,000 to test with.

    Args:
        split: which of them.
        folder: where the four idx files are, packed (.gz) or not; None: where Debian's package puts them.

    Raises:
        FileNotFoundError: the files are not there; the message says how to get them.
        ValueError: a file is damaged, or images and labels do not fit together.
    """
    folder = INSTALLED if folder is None else folder
    stem = {"train": "train", "test": "t10k"}[split]
    images = read_idx(_file(folder, f"{stem}-images-idx3-ubyte"))
    labels = read_idx(_file(folder, f"{stem}-labels-idx1-ubyte"))
    if images.dim() != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{folder}: {tuple(images.shape)} images and {tuple(labels.shape)} labels do not fit together")
    if len(labels) and int(labels.max()) >= len(CLASSES):
        raise ValueError(f"{folder}: label {int(labels.max())}, but there are {len(CLASSES)} classes from 0")
    return Labelled(images, labels.to(torch.int64), CLASSES)


def _file(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{folder}: no {name}.gz. On Debian and Ubuntu: apt-get install dataset-fashion-mnist; elsewhere put the four "
        "files of github.com/zalandoresearch/fashion-mnist into a folder and name it"
    )
