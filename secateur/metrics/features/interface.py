"""What a feature network is to a metric: images in, one vector an image out, and a name that says which network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor


class Features(Protocol):
    """A frozen network that turns images into vectors.

    Attributes:
        name: which network; distances are called after it ("FD-fashion-cnn"). Distances under different names, or under
            the same name with different weights, cannot be compared.
        weights_sha256: of the weights, as `hash_of_weights` or of the file that held them.
        dimensions: length D of a vector.
    """

    @property
    def name(self) -> str: ...

    @property
    def weights_sha256(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def __call__(self, images: Float[Tensor, "N C H W"], /) -> Float[Tensor, "N D"]:
        """The vectors of images in [0, 1], on the network's device, without gradients."""
        ...


def features_of(
    features: Features, images: Float[Tensor, "N C H W"] | Iterable[Float[Tensor, "B C H W"]], batch_size: int = 256
) -> Float[Tensor, "N D"]:
    """The vectors of many images, on the CPU, a batch at a time.

    Args:
        features: the network.
        images: all of them, or batches one after another.
        batch_size: images at a time where they come as one tensor.

    Raises:
        ValueError: there are no images.
    """
    batches = images.split(batch_size) if isinstance(images, Tensor) else images
    vectors = [features(batch).cpu() for batch in batches if len(batch)]
    if not vectors:
        raise ValueError("no images: features need at least one")
    return torch.cat(vectors)


def hash_of_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 in hexadecimal of tensors with their names, types and shapes, whatever file holds them."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` is (N, C, H, W), floating, and finite in every image."""
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(f"images must be (N, C, H, W) floats in [0, 1], got {images.dtype} {tuple(images.shape)}")
    broken = int((~images.isfinite()).flatten(1).any(dim=1).sum()) if images.numel() else 0
    if broken:
        raise ValueError(f"{broken} of {len(images)} images have pixels that are not finite")
