"""The frames of any format -> a capture: pixels read, undistorted and made smaller, and the split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.captures.capture import Capture, Colour
from compress3d.captures.frames import Frame, FrameList
from compress3d.captures.photograph import read_image, read_mask
from compress3d.captures.resample import area_average, premultiplied, reduced_size, straight
from compress3d.captures.undistort import Undistorter, pinhole_of
from secateur.console import Report

Split = Literal["file", "every8"]

Size = tuple[int, int]
"""(width, height)."""

FEWEST = 3
"""A capture of fewer photographs is refused, as is one with less than a twentieth of those that it lists."""


def load(
    listing: FrameList,
    name: str,
    *,
    strict: bool,
    split: Split | None,
    long_side: int | None,
    background: Colour,
    report: Report,
) -> Capture:
    """Read the photographs of a capture; `compress3d.captures.read_capture` says what the arguments mean.

    Raises:
        ValueError: see `read_capture`.
    """
    _check_count(listing, strict)
    frames = sorted(listing.frames, key=lambda frame: frame.name)
    _check_unique(listing, frames)
    width, height = _common_size(listing, frames, long_side)
    _check_memory(listing, len(frames), width, height)
    train, test = _split(listing, frames, split)
    pixels = _Pixels(len(frames), width, height)
    undistorter = Undistorter()
    Ks = torch.empty(len(frames), 3, 3)
    for i, frame in enumerate(frames):
        report(i / len(frames), "reading photographs")
        with _naming(listing, frame):
            pinhole = pinhole_of(frame.lens)
            factors = torch.tensor([width / pinhole.width, height / pinhole.height, 1.0])
            Ks[i] = pinhole.K.float() * factors[:, None]
            pixels.put(i, frame, undistorter)
    report(1.0, "reading photographs")
    viewmats = torch.from_numpy(np.stack([frame.viewmat for frame in frames])).float()
    return Capture(
        name,
        Cameras(viewmats, Ks, width, height),
        pixels.images,
        tuple(frame.name for frame in frames),
        train,
        test,
        pixels.alphas,
        pixels.masks,
        listing.points,
        background,
        len(listing.missing),
    )


class _Pixels:
    """The stacks of a capture: (C, H, W, 3) images, and (C, H, W) alphas and masks once one frame has some."""

    def __init__(self, count: int, width: int, height: int) -> None:
        self.images = torch.empty(count, height, width, 3, dtype=torch.uint8)
        self.alphas: UInt8[Tensor, "C H W"] | None = None
        self.masks: UInt8[Tensor, "C H W"] | None = None

    def put(self, i: int, frame: Frame, undistorter: Undistorter) -> None:
        size = (frame.lens.width, frame.lens.height)
        image = read_image(frame.image, size)
        if image.shape[2] == 4 and bool((image[..., 3] == 255).all()):
            image = image[..., :3]
        if self._changes(frame):
            image = straight(self._changed(premultiplied(image), frame, undistorter))
        self.images[i] = image[..., :3]
        if image.shape[2] == 4:
            self.alphas = self._opaque() if self.alphas is None else self.alphas
            self.alphas[i] = image[..., 3]
        if frame.mask is not None:
            self.masks = self._opaque() if self.masks is None else self.masks
            mask = read_mask(frame.mask, size)
            if self._changes(frame):
                mask = straight(self._changed(mask.float() / 255, frame, undistorter))
            self.masks[i] = mask[..., 0]

    def _changes(self, frame: Frame) -> bool:
        return not frame.lens.is_pinhole or (frame.lens.height, frame.lens.width) != tuple(self.images.shape[1:3])

    def _changed(self, image: Float[Tensor, "H W D"], frame: Frame, undistorter: Undistorter) -> Float[Tensor, "h w D"]:
        height, width = self.images.shape[1:3]
        image = undistorter(image, frame.lens)
        return image if tuple(image.shape[:2]) == (height, width) else area_average(image, width, height)

    def _opaque(self) -> UInt8[Tensor, "C H W"]:
        return torch.full(self.images.shape[:3], 255, dtype=torch.uint8)


@contextmanager
def _naming(listing: FrameList, frame: Frame) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{listing.file}: frame {frame.name!r}: {error}") from error


def _check_count(listing: FrameList, strict: bool) -> None:
    found, missing = len(listing.frames), len(listing.missing)
    listed = found + missing
    example = f" (such as {listing.missing[0][:200]!r})" if missing else ""
    if strict and missing:
        raise ValueError(f"{listing.file}: {missing} of the {listed} photographs listed are missing{example}")
    fewest = max(FEWEST, listed // 20)
    if found < fewest:
        raise ValueError(
            f"{listing.file}: {found} of the {listed} photographs listed are there, at least {fewest} are needed; "
            f"{missing} are missing{example}"
        )


def _check_unique(listing: FrameList, frames: Sequence[Frame]) -> None:
    name, count = Counter(frame.name for frame in frames).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{listing.file}: frame {name!r} is listed {count} times; expected one pose a photograph")


def _common_size(listing: FrameList, frames: Sequence[Frame], long_side: int | None) -> Size:
    sizes: list[Size] = [(frame.lens.width, frame.lens.height) for frame in frames]
    if long_side is not None:
        sizes = [reduced_size(*size, long_side) for size in sizes]
    common = Counter(sizes).most_common(1)[0][0]
    for frame, size in zip(frames, sizes, strict=True):
        if size != common:
            raise ValueError(
                f"{listing.file}: frame {frame.name!r} has {size[0]}x{size[1]} pixels, but most frames have "
                f"{common[0]}x{common[1]}; all must have one size (a long_side makes one size of one aspect)"
            )
    return common


def _check_memory(listing: FrameList, count: int, width: int, height: int) -> None:
    if not hasattr(os, "sysconf"):
        return
    needed, there = count * width * height * 3, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there > 0:
        raise ValueError(
            f"{listing.file}: {count} photographs of {width}x{height} take {needed / 1e9:.1f} GB, but this machine has "
            f"{there / 1e9:.1f} GB; give a long_side to read them smaller"
        )


def _split(listing: FrameList, frames: Sequence[Frame], split: Split | None) -> tuple[Tensor, Tensor]:
    """Indices to train on and to test on."""
    if split == "file" and not listing.has_split:
        raise ValueError(f"{listing.file}: the capture has no split of its own; expected split 'every8'")
    if split not in (None, "file", "every8"):
        raise ValueError(f"split must be 'file', 'every8' or None, got {split!r}")
    if split == "every8" or not listing.has_split:
        parts = ["train" if i % 8 else "test" for i in range(len(frames))]
    else:
        parts = [frame.part or "" for frame in frames]
    train, test = (
        torch.tensor([i for i, part in enumerate(parts) if part == wanted], dtype=torch.int64)
        for wanted in ("train", "test")
    )
    if not len(train):
        raise ValueError(f"{listing.file}: the split leaves no photograph to train on")
    return train, test
