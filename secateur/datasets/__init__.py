"""Small real data sets that need no download."""

from secateur.datasets.digits import digits
from secateur.datasets.fashion_mnist import fashion_mnist
from secateur.datasets.labelled import Labelled

__all__ = ["Labelled", "digits", "fashion_mnist"]
