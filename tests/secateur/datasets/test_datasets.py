import gzip
import struct
from pathlib import Path

import pytest
import torch

from secateur.datasets import digits, fashion_mnist
from secateur.datasets.fashion_mnist import INSTALLED
from secateur.datasets.idx import read_idx


def idx(values: torch.Tensor) -> bytes:
    header = struct.pack(">HBB", 0, 8, values.dim()) + struct.pack(f">{values.dim()}I", *values.shape)
    return header + values.to(torch.uint8).numpy().tobytes()


def test_packed_and_plain_idx_files_hold_the_same_tensor(tmp_path: Path) -> None:
    values = torch.arange(24).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(idx(values))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(values)))
    for name in ("plain", "packed.gz"):
        assert torch.equal(read_idx(tmp_path / name), values.to(torch.uint8))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cut short"),
        (idx(torch.arange(6))[:7], "cut short"),
        (idx(torch.arange(6))[:-1], "header tells of 6 bytes, the file holds 5"),
        (idx(torch.arange(6)) + b"!", "holds more"),
        (struct.pack(">HBB", 0, 13, 1) + bytes(8), "no idx file of unsigned bytes"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1) + b"a", "the file holds 17 at most"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_idx(tmp_path / "damaged")


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.gz").write_bytes(gzip.compress(idx(torch.arange(600)))[:-12])
    with pytest.raises(ValueError, match="cut short or damaged"):
        read_idx(tmp_path / "damaged.gz")


def test_a_folder_of_idx_files_is_read_and_checked(tmp_path: Path) -> None:
    images = torch.arange(2 * 28 * 28).reshape(2, 28, 28) % 256
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images))
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist("test", tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(torch.tensor([9, 0])))
    held = fashion_mnist("test", tmp_path)
    assert [held.classes[label] for label in held.labels] == ["ankle boot", "t-shirt"]
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(torch.tensor([9, 10])))
    with pytest.raises(ValueError, match="label 10"):
        fashion_mnist("test", tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(torch.tensor([9])))
    with pytest.raises(ValueError, match="do not fit together"):
        fashion_mnist("test", tmp_path)


@pytest.mark.skipif(not INSTALLED.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_balanced() -> None:
    held = fashion_mnist("test")
    assert held.images.shape == (10_000, 28, 28)
    assert held.labels.bincount().tolist() == [1000] * 10


def test_digits_are_grey_images_between_the_limits_asked_for() -> None:
    held = digits().subset(range(100))
    pixels = held.pixels(-1, 1)
    assert pixels.shape == (100, 1, 8, 8)
    assert (pixels.min(), pixels.max()) == (-1, 1)
