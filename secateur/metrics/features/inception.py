"""Features of TensorFlow's Inception of 2015-12-05: the only ones whose Frechet distance may be called FID."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.files import replacing_file
from secateur.metrics.features.interface import check_images

INCEPTION = "inception-2015-12-05"
WEIGHTS_SHA256 = "6726825d"
"""First digits of the SHA-256 of the ported weights; the file's published name ends with them."""

WEIGHTS_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


@dataclass(frozen=True)
class InceptionFeatures:
    """The 2048 pooled features, as torch-fidelity ports them.

    Images are made bytes and scaled to 299x299 as TensorFlow 1 did it, bilinearly without antialiasing. Tools that
    resize otherwise (clean-fid) give other distances.

    Args:
        network: uint8 (N, 3, H, W) -> (N, 2048).
        weights_sha256: of the file of weights.
    """

    network: nn.Module
    weights_sha256: str
    name: str = INCEPTION
    dimensions: int = 2048

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The network with weights from a file that was downloaded from `WEIGHTS_URL`.

        Raises:
            FileNotFoundError: there is no such file; says where it can be had.
            ValueError: the file is another one.
            ModuleNotFoundError: torch-fidelity, or torchvision on which it depends, is not installed or does not work.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; Inception's weights are at {WEIGHTS_URL}")
        digest = _sha256(path)
        if not digest.startswith(WEIGHTS_SHA256):
            raise ValueError(f"{path}: not the Inception of 2015-12-05: SHA-256 {digest[:8]}, not {WEIGHTS_SHA256}")
        return cls(_network(path), digest)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "N C H W"], /) -> Float[Tensor, "N 2048"]:
        """The features of images in [0, 1], of one channel or three.

        Raises:
            ValueError: the images are not (N, 1, H, W) or (N, 3, H, W), or not finite.
        """
        return self.network(as_rgb_bytes(images).to(next(self.network.parameters()).device))


def downloaded() -> Path:
    """The file of `WEIGHTS_URL` in torch's cache, fetched where it is not there; its hash is checked.

    Raises:
        FileNotFoundError: it cannot be fetched; says why.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_URL.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        with replacing_file(path) as temporary:
            torch.hub.download_url_to_file(WEIGHTS_URL, str(temporary), hash_prefix=WEIGHTS_SHA256, progress=False)
    except (OSError, HTTPException, RuntimeError) as error:  # no network, a cut line, another hash
        raise FileNotFoundError(
            f"Inception's weights cannot be downloaded from {WEIGHTS_URL} ({error}): give their file"
        ) from error
    return path


def as_rgb_bytes(images: Float[Tensor, "N C H W"]) -> Tensor:
    """(N, 3, H, W) uint8 of grey or RGB images in [0, 1], rounded as they would be in a file."""
    check_images(images)
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {tuple(images.shape)}")
    return (images.clamp(0.0, 1.0) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _network(path: Path) -> nn.Module:
    try:
        import torch_fidelity  # noqa: F401
        from torchmetrics.image.fid import NoTrainInceptionV3
    except (ImportError, RuntimeError) as error:  # a torchvision for another torch fails with a RuntimeError
        raise ModuleNotFoundError(
            f"FID needs torch-fidelity and the torchvision of your torch: pip install torch-fidelity ({error})"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{path}: no file of weights ({error})") from error
    with tempfile.TemporaryDirectory() as folder:
        # torch-fidelity would unpickle the file as it came.
        torch.save(state, Path(folder) / "weights.pth")
        return NoTrainInceptionV3(INCEPTION, ["2048"], str(Path(folder) / "weights.pth"), antialias=False)
