import hashlib
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import lpips as peer

from secateur.metrics import perceptual
from secateur.metrics.perceptual import Backbone, PerceptualDistance, backbone_layers
from tests.secateur.metrics.perceptual import random_distance, random_state

BACKBONES = get_args(Backbone)


def images(count: int = 2, size: int = 40, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_torchmetrics_agrees_on_the_same_weights(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def features(name: str, pretrained: bool = False) -> nn.Sequential:
        layers = nn.Sequential(*(layer for part in backbone_layers(backbone) for layer in part))
        layers.load_state_dict({key.removeprefix("features."): one for key, one in random_state(backbone).items()})
        return layers

    monkeypatch.setattr(peer, "_get_tv_model_features", features)
    theirs = peer._LPIPS(net=backbone, pnet_rand=True)
    made, reference = images(3), images(3, seed=1)
    expected = theirs(made, reference, normalize=True).flatten()
    torch.testing.assert_close(random_distance(backbone)(made, reference), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_is_a_distance(backbone: Backbone) -> None:
    distance = random_distance(backbone)
    assert distance.name == f"LPIPS-{backbone}"
    one, other = images(), images(seed=1)
    assert torch.equal(distance(one, one), torch.zeros(2))
    torch.testing.assert_close(distance(one, other), distance(other, one))
    assert (distance(one, other) > 0).all()
    near = (one + 0.05 * (other - one)).clamp(0, 1)
    assert (distance(one, near) < distance(one, other)).all()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_smallest_image_that_it_names_is_the_smallest_that_passes(backbone: Backbone) -> None:
    distance = random_distance(backbone)
    side = distance.smallest
    assert distance(images(1, side), images(1, side, seed=1)).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {side} pixels"):
        distance(images(1, side - 1), images(1, side - 1))
    with pytest.raises(RuntimeError):
        flat = nn.Sequential(*(layer for part in backbone_layers(backbone) for layer in part))
        flat(images(1, side - 1))


def test_what_cannot_be_compared_is_refused() -> None:
    distance = random_distance("alex")
    with pytest.raises(ValueError, match=r"compares \(N, 3, H, W\)"):
        distance(images(2), images(3))
    with pytest.raises(ValueError, match=r"compares \(N, 3, H, W\)"):
        distance(images()[:, :1], images()[:, :1])
    broken = images(3)
    broken[1] = math.nan
    with pytest.raises(ValueError, match="1 of 3 images"):
        distance(images(3), broken)


def test_weights_come_from_a_file_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "alexnet.pth"
    with pytest.raises(FileNotFoundError, match=r"https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"):
        PerceptualDistance.load(file)
    torch.save(random_state("alex"), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"not a network of LPIPS: SHA-256 {digest[:8]}"):
        PerceptualDistance.load(file)
    monkeypatch.setitem(perceptual._HASHES, digest[:8], "alex")
    loaded = PerceptualDistance.load(file)
    assert (loaded.name, loaded.weights_sha256) == ("LPIPS-alex", digest)
    assert torch.equal(loaded(images(), images(seed=1)), random_distance("alex")(images(), images(seed=1)))


def test_a_file_that_is_cut_short_or_of_another_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "alexnet.pth"
    file.write_bytes(b"PK\x03\x04 cut short")
    monkeypatch.setitem(perceptual._HASHES, hashlib.sha256(file.read_bytes()).hexdigest()[:8], "alex")
    with pytest.raises(ValueError, match="no file of weights"):
        PerceptualDistance.load(file)
    with pytest.raises(ValueError, match="not the weights of alex"):
        PerceptualDistance.of("alex", {"features.0.weight": torch.zeros(64, 3, 11, 11)}, "")
    with pytest.raises(ValueError, match="not the weights of alex"):
        PerceptualDistance.of("alex", random_state("vgg"), "")
