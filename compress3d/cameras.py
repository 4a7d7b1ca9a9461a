"""Pinhole cameras in the OpenCV convention: x right, y down, z forward, pixel centres at +0.5."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Cameras:
    """A batch of C pinhole cameras that share one image size.

    Args:
        viewmats: (C, 4, 4) float32 world-to-camera transforms.
        Ks: (C, 3, 3) float32 intrinsics in pixels.
        width: image width in pixels.
        height: image height in pixels.

    Raises:
        ValueError: shapes do not fit, or a number is not finite.
    """

    viewmats: Float[Tensor, "C 4 4"]
    Ks: Float[Tensor, "C 3 3"]
    width: int
    height: int

    def __post_init__(self) -> None:
        count = len(self.viewmats)
        if self.viewmats.shape != (count, 4, 4) or self.Ks.shape != (count, 3, 3):
            raise ValueError(
                f"viewmats must be (C, 4, 4) and Ks (C, 3, 3), got {tuple(self.viewmats.shape)}, {tuple(self.Ks.shape)}"
            )
        if self.width < 1 or self.height < 1:
            raise ValueError(f"image size must be positive, got {self.width}x{self.height}")
        if not (torch.isfinite(self.viewmats).all() and torch.isfinite(self.Ks).all()):
            raise ValueError("viewmats and Ks must be finite")

    def __len__(self) -> int:
        return len(self.viewmats)

    def __getitem__(self, index: int | slice | Tensor) -> Self:
        """A batch again: an int gives a batch of one."""
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(index, None)
        return replace(self, viewmats=self.viewmats[index], Ks=self.Ks[index])

    @property
    def positions(self) -> Float[Tensor, "C 3"]:
        """Camera centres in the world."""
        rotation, translation = self.viewmats[:, :3, :3], self.viewmats[:, :3, 3:]
        return -(rotation.transpose(1, 2) @ translation)[..., 0]

    @property
    def extent(self) -> float:
        """1.1 times the largest distance of a camera from the mean of all, in world units: 3DGS's size of a scene."""
        return 1.1 * float((self.positions - self.positions.mean(dim=0)).norm(dim=1).max())

    @property
    def sha256(self) -> str:
        """Of intrinsics and poses, by which a record knows the views."""
        numbers = (tensor.cpu().contiguous().numpy().tobytes() for tensor in (self.Ks, self.viewmats))
        return hashlib.sha256(b"".join(numbers)).hexdigest()

    def resized(self, width: int, height: int) -> Self:
        """The same views at another image size."""
        factor = self.Ks.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(self, Ks=self.Ks * factor[:, None], width=width, height=height)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """From {"width", "height", "K" (3x3) or "Ks" (C, 3, 3), "viewmats" (C, 4, 4)}."""
        try:
            viewmats = torch.tensor(record["viewmats"], dtype=torch.float32)
            Ks = torch.tensor(record["Ks"] if "Ks" in record else record["K"], dtype=torch.float32)
            width, height = int(record["width"]), int(record["height"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"cameras need width, height, K or Ks, and viewmats ({error!r})") from error
        if Ks.ndim == 2:
            Ks = Ks.expand(len(viewmats), 3, 3)
        return cls(viewmats, Ks, width, height)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the JSON that `to_json` gives.

        Raises:
            ValueError: the file is not such a JSON.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text()))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """A record that `from_json` reads back."""
        return {
            "width": self.width,
            "height": self.height,
            "Ks": self.Ks.tolist(),
            "viewmats": self.viewmats.tolist(),
        }
