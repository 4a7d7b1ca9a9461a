"""What is found out about folders of images, before it becomes a record and a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secateur.image_folders.listing import ImageFolder
from secateur.image_folders.networks import AUTO, Networks
from secateur.metrics.distribution import Distances


@dataclass(frozen=True, slots=True)
class Settings:
    """How folders are compared.

    Args:
        features: "fashion-cnn", "digits-cnn", the file of a classifier, "auto" (that of the two which fits) or "none".
        inception: file of Inception's weights, for FID, or "download".
        clip: folder of a CLIP model, for CMMD and CLIP score.
        captions: JSON file, an object of file name and caption, for CLIP score.
        lpips: file of the weights of AlexNet or VGG-16.
        unpaired: whether images of one name have nothing to do with one another.
        workers: processes that decode.
        seed: of subsets, halves and intervals.
    """

    features: str = AUTO
    inception: Path | None = None
    clip: Path | None = None
    captions: Path | None = None
    lpips: Path | None = None
    unpaired: bool = False
    workers: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Floor:
    """What two random halves of the reference score against each other: real against real, at half as many images.

    Args:
        images: in each half.
        frechet: between them.
        kid: between them.
    """

    images: int
    frechet: float
    kid: float


@dataclass(frozen=True, slots=True)
class SetDistance:
    """How far a folder is from the reference on the features of one network.

    Args:
        features: name of the network.
        distances: Frechet and kernel distance, sample counts.
        error: standard error of the Frechet distance; None for fewer than 30 images.
    """

    features: str
    distances: Distances
    error: float | None


@dataclass(frozen=True, slots=True)
class PairNumbers:
    """Numbers of the pairs of one size, in the order of the reference's names.

    Args:
        names: in the reference.
        candidates: names of the same images in the candidate.
        psnr: in dB; infinite where a pair is equal.
        ssim: NaN where an image is below 11 pixels on a side.
        lpips: NaN where an image is too small for the network; None without one.
        other_size: names of pairs that were left out, for their sizes differ.
    """

    names: tuple[str, ...]
    candidates: tuple[str, ...]
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    lpips: tuple[float, ...] | None
    other_size: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FolderResult:
    """What was found out about a candidate.

    Args:
        folder: of its images.
        distances: one for each network of features.
        cmmd: None without a CLIP model.
        clip_scores: of images that have a caption, by name; None without captions.
        pairs: None where no names are the same.
    """

    folder: ImageFolder
    distances: tuple[SetDistance, ...]
    cmmd: float | None
    clip_scores: dict[str, float] | None
    pairs: PairNumbers | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found out about all folders.

    Args:
        reference: its folder.
        floors: name of a network -> real against real; only where the reference has 8 images or more.
        cmmd_floor: CMMD of the same halves.
        clip_scores: of the reference's images.
        candidates: in the order in which they were given.
        networks: that looked at them.
        missing: metric -> why it was not measured, and how it would be.
        seconds: by step.
    """

    reference: ImageFolder
    floors: dict[str, Floor]
    cmmd_floor: float | None
    clip_scores: dict[str, float] | None
    candidates: tuple[FolderResult, ...]
    networks: Networks
    missing: dict[str, str]
    seconds: dict[str, float]
