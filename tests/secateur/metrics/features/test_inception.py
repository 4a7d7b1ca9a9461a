import hashlib
import importlib.util
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn

from secateur.metrics.features import inception
from secateur.metrics.features.inception import InceptionFeatures, as_rgb_bytes


def test_only_the_weights_of_2015_are_taken(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"6726825d\.pth"):
        InceptionFeatures.load(tmp_path / "none.pth")
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not the Inception of 2015-12-05"):
        InceptionFeatures.load(tmp_path / "other.pth")


def test_weights_are_fetched_once_and_only_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    calls = []

    def fetch(url: str, target: str, hash_prefix: str, progress: bool) -> None:
        calls.append((url, hash_prefix))
        Path(target).write_bytes(b"half")
        if len(calls) == 1:
            raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded from https.*no route to host.*give their file"):
        inception.downloaded()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    path = inception.downloaded()
    assert path.read_bytes() == b"half" and path.name == "weights-inception-2015-12-05-6726825d.pth"
    assert inception.downloaded() == path
    assert calls == [(inception.WEIGHTS_URL, "6726825d")] * 2
    with pytest.raises(ValueError, match="not the Inception of 2015-12-05"):
        InceptionFeatures.load(path)


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"x": torch.zeros(1)}, path)
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    with pytest.raises(ModuleNotFoundError, match="pip install torch-fidelity"):
        InceptionFeatures.load(path)


def test_images_are_shown_as_bytes_of_three_channels() -> None:
    shown = as_rgb_bytes(torch.tensor([0.0, 0.499 / 255, 0.501 / 255, 1.0, 7.0, -1.0]).view(1, 1, 2, 3))
    assert shown.shape == (1, 3, 2, 3)
    assert shown[0, 1].flatten().tolist() == [0, 0, 1, 255, 255, 0]
    with pytest.raises(ValueError, match="1 or 3 channels"):
        as_rgb_bytes(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="1 of 2 images"):
        as_rgb_bytes(torch.tensor([0.0, torch.nan]).view(2, 1, 1, 1))


class Bytes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2048))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        return images.float().mean(dim=(1, 2, 3))[:, None] * self.weight


def test_features_are_called_after_their_year() -> None:
    features = InceptionFeatures(Bytes(), "0" * 64)
    assert features(torch.ones(2, 1, 4, 4)).shape == (2, features.dimensions)
    assert features.name == "inception-2015-12-05"
