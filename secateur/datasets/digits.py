"""scikit-learn's digits (the test set of UCI's "Optical Recognition of Handwritten Digits"): 1,797 of 8x8 pixels."""

from __future__ import annotations

import torch

from secateur.datasets.labelled import Labelled


def digits() -> Labelled:
    """1,797 handwritten digits of 8x8 pixels; they come inside the scikit-learn package.

    Raises:
        ModuleNotFoundError: scikit-learn is absent.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the digits come with scikit-learn: pip install scikit-learn") from error
    held = load_digits()
    # Counts of 4x4 binary pixels, 0 to 16.
    images = (torch.from_numpy(held.images) * (255 / 16)).round().to(torch.uint8)
    return Labelled(images, torch.from_numpy(held.target).to(torch.int64), tuple(str(digit) for digit in range(10)))
