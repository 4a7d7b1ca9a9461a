import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from secateur.image_folders.decoding import DecodedImages, Unreadable, as_grey, as_rgb, read_image


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 2**20))
def test_levels_of_a_png_are_shares_of_255(height: int, width: int, channels: int, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        read = read_image(saved(Image.fromarray(levels[..., 0] if channels == 1 else levels), Path(folder, "a.png")))
    assert read.dtype == torch.float32 and read.shape == (channels, height, width)
    assert torch.equal(read, torch.from_numpy(levels).permute(2, 0, 1).float() / 255)


def test_what_is_transparent_stands_before_white(tmp_path: Path) -> None:
    levels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    read = read_image(saved(Image.fromarray(levels), tmp_path / "a.png"))
    expected = torch.tensor([[255, 255, 204], [0, 255, 204], [0, 255, 204]]) / 255
    assert torch.equal(read[:, 0], expected)
    grey = np.array([[[10, 255], [10, 0]]], np.uint8)
    read = read_image(saved(Image.fromarray(grey, "LA"), tmp_path / "b.png"))
    assert torch.equal(read[:, 0], torch.tensor([[10, 255]] * 3) / 255)


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    colours = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    read = read_image(saved(colours.convert("P", palette=Image.Palette.ADAPTIVE), tmp_path / "a.png"))
    assert torch.equal(read[:, 0], torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))
    file = saved(colours.convert("P", palette=Image.Palette.ADAPTIVE), tmp_path / "b.png", transparency=0)
    assert torch.equal(read_image(file).amin(dim=0).sum(), torch.tensor(1.0))


def test_sixteen_bits_of_grey_are_kept(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 40000, 65535]], np.uint16)
    read = read_image(saved(Image.fromarray(levels), tmp_path / "a.png"))
    assert torch.equal(read[0, 0], torch.from_numpy(levels.astype(np.float32))[0] / 65535)


def test_one_bit_is_black_or_white(tmp_path: Path) -> None:
    read = read_image(saved(Image.fromarray(np.array([[True, False]])), tmp_path / "a.png"))
    assert torch.equal(read, torch.tensor([[[1.0, 0.0]]]))


def test_photographs_are_turned_as_they_say(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    read = read_image(saved(image, tmp_path / "a.png", exif=exif))
    assert torch.equal((read[0] * 255).round(), torch.tensor([[3.0, 0.0], [4.0, 1.0], [5.0, 2.0]]))


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("YCbCr", "jpg"), ("L", "jpg"), ("RGB", "webp")])
def test_other_kinds_are_read(mode: str, suffix: str, tmp_path: Path) -> None:
    read = read_image(saved(Image.new(mode, (5, 4)), tmp_path / f"a.{suffix}"))
    assert read.shape == (1 if mode == "L" else 3, 4, 5)
    assert 0 <= float(read.min()) <= float(read.max()) <= 1


def test_a_single_pixel_is_an_image(tmp_path: Path) -> None:
    assert read_image(saved(Image.new("RGB", (1, 1), (255, 0, 51)), tmp_path / "a.png")).shape == (3, 1, 1)


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in ("png", "jpg", "webp"):
        file = saved(Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), tmp_path / f"a.{suffix}")
        file.write_bytes(file.read_bytes()[:1500])
        with pytest.raises(ValueError, match=rf"a\.{suffix}: "):
            read_image(file)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(20)])
def test_what_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: (not a PNG, JPEG or WebP image|a damaged image)"):
        read_image(tmp_path / "a.png")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.png: no such file"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("side", [12, 40])
def test_an_image_that_may_fill_the_memory_is_refused(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(Image.new("L", (side, side)), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"a\.png: more than 100 pixels, which Pillow takes for an attack"):
        read_image(file)


def test_errors_travel_as_values(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"nothing")
    saved(Image.new("L", (2, 2)), tmp_path / "a.png")
    items = DecodedImages([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"])
    assert len(items) == 3 and not isinstance(items[0], Unreadable)
    found = [items[index] for index in (1, 2)]
    assert all(isinstance(one, Unreadable) for one in found)
    errors = [one.error() for one in found if isinstance(one, Unreadable)]
    assert [type(error) for error in errors] == [ValueError, FileNotFoundError]
    assert "b.png" in str(errors[0]) and "c.png" in str(errors[1])


def test_grey_of_grey_colours_is_the_grey() -> None:
    grey = torch.rand(1, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(as_grey(as_rgb(grey)), grey)
    assert torch.equal(as_grey(grey), grey)
    red = torch.zeros(3, 1, 1)
    red[0] = 1
    assert float(as_grey(red)) == pytest.approx(0.299)
