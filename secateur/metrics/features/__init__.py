"""Networks that turn images into vectors, for distances between sets of images."""

from secateur.metrics.features.classifier import ClassifierFeatures
from secateur.metrics.features.demo import digit_features, fashion_features, unseen_digits
from secateur.metrics.features.interface import Features, features_of

__all__ = ["ClassifierFeatures", "Features", "digit_features", "fashion_features", "features_of", "unseen_digits"]
