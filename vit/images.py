"""Images as a vision transformer was trained to see them: sizes, crops, scales, means, without torchvision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from secateur.surgery.model_folder import read_json

PREPROCESSOR = "preprocessor_config.json"
_BICUBIC, _BILINEAR = int(Image.Resampling.BICUBIC), int(Image.Resampling.BILINEAR)
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, slots=True)
class ImagePreparation:
    """What is done to an image before a model sees it, in this order: resize, centre crop, rescale, normalise.

    Args:
        size: (height, width) to resize to; None: the image keeps its size, or `shortest_edge` holds.
        shortest_edge: pixels that the shorter side is resized to, the other in proportion; None: it is not.
        crop: (height, width) of the crop at the centre; None: there is none.
        resample: Pillow's number of the filter: 2 bilinear, 3 bicubic.
        scale: what values from 0 to 255 are multiplied by.
        mean: of each channel after that, which the model sees as 0.
        std: likewise, what it sees as 1.

    Raises:
        ValueError: a size is below 1, `size` and `shortest_edge` are both given, or mean and std do not fit.
    """

    size: tuple[int, int] | None = (224, 224)
    shortest_edge: int | None = None
    crop: tuple[int, int] | None = None
    resample: int = _BILINEAR
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.size is not None and self.shortest_edge is not None:
            raise ValueError(f"images are resized to size or shortest_edge, got {self.size} and {self.shortest_edge}")
        sides = [*(self.size or ()), *(self.crop or ()), *([self.shortest_edge] if self.shortest_edge else [])]
        if any(side < 1 for side in sides):
            raise ValueError(f"sizes must be at least 1 pixel, got {sides}")
        if len(self.mean) != len(self.std) or len(self.mean) not in _MODES or min(self.std) <= 0:
            raise ValueError(f"mean and std need 1 or 3 values each, std above 0, got {self.mean} and {self.std}")

    def __call__(
        self, images: Image.Image | Sequence[Image.Image] | Float[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """The images as pixel values, a batch of them, on the CPU.

        Args:
            images: Pillow's, of any mode and size; or one tensor or a batch of them, floats in [0, 1], of the size that
                they are to have: tensors are normalised only.

        Raises:
            ValueError: a tensor of another shape, type or range, NaN among its values, or no image at all.
        """
        if isinstance(images, Tensor):
            return self._normalised(self._checked(images))
        several = [images] if isinstance(images, Image.Image) else list(images)
        if not several:
            raise ValueError("there is no image")
        return torch.cat([self._normalised(self._pixels(image)) for image in several])

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of what comes out; None where it depends on the image."""
        return self.crop or self.size

    def _pixels(self, image: Any) -> Tensor:
        """(1, channels, height, width) of an image, resized and cropped, in [0, 255] times the scale."""
        if not isinstance(image, Image.Image):
            raise ValueError(f"an image must be Pillow's, or all images one tensor; got {type(image).__name__}")
        image = image.convert(_MODES[len(self.mean)])
        size = self._resized(image.height, image.width)
        if size != (image.height, image.width):
            image = image.resize((size[1], size[0]), resample=self.resample)
        values = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1)
        if self.crop is not None:
            values = _centre(values, *self.crop)
        return torch.from_numpy(values * np.float32(self.scale)).permute(2, 0, 1)[None]

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.shortest_edge is None:
            return (height, width) if self.size is None else self.size
        short, long = min(height, width), max(height, width)
        longer = int(self.shortest_edge * long / short)
        return (self.shortest_edge, longer) if height <= width else (longer, self.shortest_edge)

    def _checked(self, images: Tensor) -> Tensor:
        batch = images[None] if images.dim() == 3 else images
        if batch.dim() != 4 or batch.shape[1] != len(self.mean):
            raise ValueError(
                f"a tensor of images must be (batch, {len(self.mean)}, height, width), got {tuple(images.shape)}"
            )
        if self.output_size is not None and tuple(batch.shape[2:]) != self.output_size:
            height, width = self.output_size
            raise ValueError(f"images must be {height} x {width} pixels, got {batch.shape[2]} x {batch.shape[3]}")
        if not batch.is_floating_point():
            raise ValueError(f"a tensor of images must hold floats in [0, 1], got {batch.dtype}; divide by 255")
        if not bool(((batch >= 0) & (batch <= 1)).all()):
            raise ValueError("a tensor of images must hold floats in [0, 1]; these hold others, or NaN")
        return batch * (255 * self.scale)

    def _normalised(self, values: Tensor) -> Tensor:
        mean, std = (torch.tensor(each, dtype=values.dtype)[:, None, None] for each in (self.mean, self.std))
        return (values - mean.to(values.device)) / std.to(values.device)


def _centre(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """The crop at the centre of (height, width, channels) values, with zeros around where they are smaller."""
    missing = (max(0, height - values.shape[0]), max(0, width - values.shape[1]))
    if any(missing):
        before = [(-(-each // 2)) for each in missing]
        after = [each - half for each, half in zip(missing, before, strict=True)]
        values = np.pad(values, ((before[0], after[0]), (before[1], after[1]), (0, 0)))
    top, left = (values.shape[0] - height) // 2, (values.shape[1] - width) // 2
    return np.ascontiguousarray(values[top : top + height, left : left + width])


def read_preparation(path: Path) -> ImagePreparation:
    """The preparation that a `preprocessor_config.json` of transformers describes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or describes what is not done here.
    """
    try:
        return preparation_of(read_json(path))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: sizes, means or their kind are not understood ({error})") from error


def preparation_of(fields: Mapping[str, Any]) -> ImagePreparation:
    """The preparation that fields of a processor of transformers describe.

    Raises:
        ValueError: a field has no value that it can have.
    """
    size = fields.get("size", {"height": 224, "width": 224})
    shortest = size.get("shortest_edge") if isinstance(size, dict) else None
    resizes, crops = bool(fields.get("do_resize", True)), bool(fields.get("do_center_crop", "crop_size" in fields))
    normalises, rescales = bool(fields.get("do_normalize", True)), bool(fields.get("do_rescale", True))
    mean, std = fields.get("image_mean") or (0.5,) * 3, fields.get("image_std") or (0.5,) * 3
    return ImagePreparation(
        size=_pair(size) if resizes and shortest is None else None,
        shortest_edge=int(shortest) if resizes and shortest is not None else None,
        crop=_pair(fields["crop_size"]) if crops and fields.get("crop_size") else None,
        resample=int(fields.get("resample", _BILINEAR)),
        scale=float(fields.get("rescale_factor", 1 / 255)) if rescales else 1.0,
        mean=tuple(map(float, mean)) if normalises else (0.0,) * len(mean),
        std=tuple(map(float, std)) if normalises else (1.0,) * len(mean),
    )


def _pair(size: Any) -> tuple[int, int]:
    """(height, width) of a size as transformers writes it: a number, a pair, or an object of both."""
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
