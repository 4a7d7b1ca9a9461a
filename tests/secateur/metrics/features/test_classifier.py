from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from secateur.metrics.features.classifier import ClassifierFeatures, SmallClassifier
from secateur.metrics.features.interface import features_of, hash_of_weights


@pytest.fixture
def features() -> ClassifierFeatures:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallClassifier(8, (4, 6), (1, 2), 3)
    return ClassifierFeatures("toy", network.requires_grad_(False).eval(), ("a", "b", "c"), {"steps": 7})


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_vectors_and_classes_have_their_shapes(features: ClassifierFeatures) -> None:
    assert features(images(5)).shape == (5, features.dimensions) == (5, 6)
    assert features.classify(images(5)).shape == (5,)
    assert not features(images(5)).requires_grad


def test_a_saved_classifier_comes_back_bit_for_bit(features: ClassifierFeatures, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    size = features.save(tmp_path / "toy.safetensors")
    read = ClassifierFeatures.load(tmp_path / "toy.safetensors")
    assert size == (tmp_path / "toy.safetensors").stat().st_size
    assert torch.equal(read(images(9)), features(images(9)))
    assert (read.name, read.classes, read.card) == (features.name, features.classes, features.card)
    assert read.weights_sha256 == features.weights_sha256
    assert torch.equal(state, torch.random.get_rng_state())


def test_files_of_other_things_are_refused(features: ClassifierFeatures, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: no header"):
        ClassifierFeatures.load(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="none"):
        ClassifierFeatures.load(tmp_path / "none")
    features.save(tmp_path / "cut.safetensors")
    held = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(held[:-100])
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        ClassifierFeatures.load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 3, 8, 8), (5, 1, 9, 8)])
def test_images_of_another_shape_are_refused(features: ClassifierFeatures, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(N, (1|C), "):
        features(torch.zeros(shape))


def test_images_that_are_not_finite_are_counted(features: ClassifierFeatures) -> None:
    broken = images(5)
    broken[1, 0, 2, 3], broken[4] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="2 of 5 images"):
        features(broken)


def test_batches_of_any_size_give_the_same_vectors(features: ClassifierFeatures) -> None:
    whole = features(images(10))
    torch.testing.assert_close(features_of(features, images(10), 3), whole)
    torch.testing.assert_close(features_of(features, iter(images(10).split(4))), whole)
    with pytest.raises(ValueError, match="no images"):
        features_of(features, [])


def test_the_hash_tells_weights_apart_and_nothing_else() -> None:
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
    assert hash_of_weights(state) == hash_of_weights({"b": torch.ones(2), "a": torch.arange(6.0).view(2, 3)})
    changed = [
        {**state, "b": torch.tensor([1.0, 1.0000001])},
        {**state, "a": torch.arange(6.0)},
        {**state, "b": torch.ones(2, dtype=torch.float64)},
        {"a": state["a"], "c": state["b"]},
    ]
    assert len({hash_of_weights(other) for other in [state, *changed]}) == 5


def test_scalars_are_hashed_too() -> None:
    assert hash_of_weights({"n": torch.tensor(3)}) != hash_of_weights({"n": torch.tensor(4)})
