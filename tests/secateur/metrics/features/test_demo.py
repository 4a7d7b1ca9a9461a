import pytest
import torch

from secateur.datasets import fashion_mnist
from secateur.datasets.fashion_mnist import INSTALLED
from secateur.metrics.distribution import DistributionJudge
from secateur.metrics.features import ClassifierFeatures, digit_features, fashion_features, unseen_digits
from secateur.metrics.features.demo import WEIGHTS, seen_digits


def accuracy(features: ClassifierFeatures, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    return float((features.classify(pixels) == labels).float().mean())


def test_the_shipped_classifiers_are_small() -> None:
    for path in WEIGHTS.glob("*.safetensors"):
        assert path.stat().st_size < 500_000


def test_digits_are_told_apart() -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    features, held = digit_features(), unseen_digits()
    assert accuracy(features, held.pixels(), held.labels) == pytest.approx(features.card["unseen_accuracy"], abs=2e-3)
    assert features.card["unseen_accuracy"] > 0.98
    assert features.classes == held.classes


def test_seen_and_unseen_digits_share_no_place() -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    assert (len(seen_digits()), len(unseen_digits())) == (899, 898)


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="Fashion-MNIST is not installed: dataset-fashion-mnist")
def test_clothes_are_told_apart() -> None:
    features, held = fashion_features(), fashion_mnist("test").subset(slice(0, 1500))
    assert accuracy(features, held.pixels(), held.labels) == pytest.approx(features.card["unseen_accuracy"], abs=0.03)
    assert features.card["unseen_accuracy"] > 0.9
    assert features.classes == held.classes


def test_distances_grow_with_what_is_wrong_with_digits() -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    real = unseen_digits().pixels()
    judge = DistributionJudge.of(digit_features(), real[::2], real[1::2])
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(real[1::2].shape, generator=generator)
    mixed = [real[1::2].lerp(noise, amount) for amount in (0.0, 0.2, 0.5, 1.0)]
    one_class = real[unseen_digits().labels == 3].repeat(3, 1, 1, 1)[:200]
    judged = [judge.distances(judge.features(images)) for images in [*mixed, one_class]]
    values = [distances.frechet for distances in judged]
    assert values[:4] == sorted(values[:4])
    floor = judged[0].floor
    assert floor is not None
    assert floor == pytest.approx(values[0], rel=1e-6)
    assert values[4] > 10 * floor
    assert judged[3].kid.mean > 10 * abs(judged[0].kid.mean)
