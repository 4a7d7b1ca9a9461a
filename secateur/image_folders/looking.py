"""What is kept of each image, and of each pair of images of one name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from secateur.evaluation.chunks import Gathering, Rows
from secateur.image_folders.decoding import Decoded, DecodedImages, Unreadable, as_rgb, decoded
from secateur.image_folders.listing import ImageFolder, ListedImage
from secateur.image_folders.networks import as_seen
from secateur.metrics.features import Features
from secateur.metrics.image import SSIM_WINDOW, psnr, ssim
from secateur.metrics.perceptual import PerceptualDistance
from secateur.metrics.speed import pinned_threads

_TOGETHER, _BYTES_TOGETHER = 16, 1 << 20
"""What a worker process hands over at a time, at the most: items, and bytes of their files."""

BATCH_PIXELS = 1 << 22
"""Pixels that a network sees at a time, about: images of one size that follow one another make a batch."""

PSNR, SSIM, LPIPS, SAME_SIZE = "psnr", "ssim", "lpips", "same_size"
"""Rows of a pair: dB; NaN where the images are below the window; the distance; 1 where both have one size, or 0."""


def look_at_folder(folder: ImageFolder, networks: Sequence[Features]) -> Gathering:
    """The vectors of a folder's images: a row (D,) for each network, under its name.

    Raises (when it is gathered):
        ValueError: an image cannot be read, or is not what a network looks at; names the file.
    """
    identity = {
        "folder": folder.signature(),
        "networks": [(network.name, network.weights_sha256) for network in networks],
        "device": str(torch.accelerator.current_accelerator()),
    }
    files = [folder.file(image) for image in folder.images]

    def look(images: Iterator[Decoded]) -> Rows:
        held: dict[str, list[Tensor]] = {network.name: [] for network in networks}
        for batch in _batches(images):
            for network in networks:
                held[network.name].append(_vectors(network, batch))
        return {name: torch.cat(vectors) for name, vectors in held.items()}

    together = max(1, min(_TOGETHER, _BYTES_TOGETHER * len(folder) // max(1, folder.bytes)))
    return Gathering(folder.name, identity, DecodedImages(files), look, together)


def look_at_pairs(
    candidate: ImageFolder,
    reference: ImageFolder,
    pairs: Sequence[tuple[ListedImage, ListedImage]],
    perceptual: PerceptualDistance | None,
) -> Gathering:
    """How alike the images of each pair are: rows `PSNR`, `SSIM`, `SAME_SIZE`, and `LPIPS` where a network is given.

    Images of two sizes have NaN for each number.

    Args:
        candidate: whose images are measured.
        reference: what they should look like.
        pairs: (of the reference, of the candidate).
        perceptual: for LPIPS.

    Raises (when it is gathered):
        ValueError: an image cannot be read; names the file.
    """
    identity = {
        "pairs": [(_key(one), _key(other)) for one, other in pairs],
        "perceptual": None if perceptual is None else (perceptual.name, perceptual.weights_sha256),
    }
    files = [(candidate.file(other), reference.file(one)) for one, other in pairs]

    def look(seen: Iterator[Seen]) -> Rows:
        held = list(_with_distance(seen, perceptual))
        rows = {
            PSNR: torch.tensor([one.psnr for one in held], dtype=torch.float64),
            SSIM: torch.tensor([one.ssim for one in held], dtype=torch.float64),
            SAME_SIZE: torch.tensor([one.same_size for one in held], dtype=torch.uint8),
        }
        return rows if perceptual is None else rows | {LPIPS: torch.tensor([one.lpips for one in held])}

    items = ComparedPairs(files, keep_pixels=perceptual is not None)
    return Gathering(f"{candidate.name}-pairs", identity, items, look, 1 if perceptual is not None else _TOGETHER)


@dataclass(slots=True)
class Seen:
    """What a worker process found out about a pair; its pixels only where LPIPS is still to come."""

    psnr: float = math.nan
    ssim: float = math.nan
    lpips: float = math.nan
    same_size: bool = False
    pixels: tuple[Float[Tensor, "3 H W"], Float[Tensor, "3 H W"]] | None = None


class ComparedPairs(Dataset[Seen | Unreadable]):
    """Pairs of images by their place in a list, decoded and compared when they are asked for.

    Args:
        files: (candidate, reference) of each pair.
        keep_pixels: whether the images are handed on.
    """

    def __init__(self, files: Sequence[tuple[Path, Path]], keep_pixels: bool) -> None:
        self.files, self.keep_pixels = files, keep_pixels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Seen | Unreadable:
        sides = []
        for file in self.files[index]:
            side = decoded(file)
            if isinstance(side, Unreadable):
                return side
            sides.append(as_rgb(side.pixels))
        if sides[0].shape != sides[1].shape:
            return Seen()
        image, reference = (side.permute(1, 2, 0)[None] for side in sides)
        # A worker process has one thread; sums in more could differ in the last bit.
        with pinned_threads(1):
            similar = float(ssim(image, reference)) if min(image.shape[1:3]) >= SSIM_WINDOW else math.nan
            kept = (sides[0].contiguous(), sides[1].contiguous()) if self.keep_pixels else None
            return Seen(float(psnr(image, reference)), similar, same_size=True, pixels=kept)


def _batches(images: Iterator[Decoded]) -> Iterator[list[Decoded]]:
    """Runs of images of one size, of about `BATCH_PIXELS` pixels at the most."""
    batch: list[Decoded] = []
    for image in images:
        size = image.pixels.shape[1:]
        if batch and (size != batch[0].pixels.shape[1:] or (len(batch) + 1) * size.numel() > BATCH_PIXELS):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


def _vectors(network: Features, batch: Sequence[Decoded]) -> Float[Tensor, "N D"]:
    images = torch.stack([as_seen(network, image.pixels) for image in batch])
    try:
        vectors = network(images).cpu()
    except ValueError as error:
        raise ValueError(f"{batch[0].file}: {error}") from error
    broken = (~vectors.isfinite()).flatten(1).any(dim=1)
    if bool(broken.any()):
        raise ValueError(f"{batch[int(broken.int().argmax())].file}: {network.name} gives features that are not finite")
    return vectors


def _with_distance(seen: Iterator[Seen], perceptual: PerceptualDistance | None) -> Iterator[Seen]:
    """Each pair with its perceptual distance, where both images have one size that the network can see."""
    for one in seen:
        if one.pixels is not None and perceptual is not None:
            image, reference = one.pixels
            if min(image.shape[1:]) >= perceptual.smallest:
                one.lpips = float(perceptual(image[None], reference[None]))
            one.pixels = None
        yield one


def _key(image: ListedImage) -> tuple[str, int, int]:
    return image.name, image.bytes, image.modified_ns
