import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from secateur.evaluation.chunks import ChunkStore, Rows
from secateur.image_folders import looking
from secateur.image_folders.decoding import as_rgb, read_image
from secateur.image_folders.listing import ImageFolder, pairs_of
from secateur.image_folders.looking import LPIPS, PSNR, SAME_SIZE, SSIM, look_at_folder, look_at_pairs
from secateur.metrics.features import fashion_features
from secateur.metrics.image import psnr, ssim
from tests.secateur.image_folders.pictures import write_pictures
from tests.secateur.metrics.perceptual import random_distance


class Colours:
    """The mean of each channel, and how many images came at a time."""

    name, weights_sha256, dimensions = "colours", "0" * 64, 3

    def __init__(self) -> None:
        self.batches: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor, /) -> Tensor:
        self.batches.append(tuple(images.shape))
        return images.mean(dim=(2, 3))


def pixels(folder: ImageFolder) -> list[Tensor]:
    return [as_rgb(read_image(folder.file(image))) for image in folder.images]


def gathered(one: ImageFolder, other: ImageFolder, store: Path, workers: int = 0, lpips: bool = False) -> Rows:
    distance = random_distance("alex") if lpips else None
    pairs = pairs_of(other, one)
    return ChunkStore.within(store, workers).gather(look_at_pairs(one, other, pairs, distance))


def test_vectors_are_those_of_the_images_one_by_one(tmp_path: Path) -> None:
    folder = ImageFolder.listed(write_pictures(tmp_path / "real", 9))
    fashion = fashion_features()
    rows = ChunkStore.within(tmp_path).gather(look_at_folder(folder, [fashion, Colours()]))
    alone = torch.cat([fashion(image[None, :1]) for image in pixels(folder)])
    torch.testing.assert_close(rows["fashion-cnn"], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows["colours"], torch.stack([image.mean(dim=(1, 2)) for image in pixels(folder)]))


def test_images_of_one_size_that_follow_one_another_are_seen_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "BATCH_PIXELS", 4 * 30 * 20)
    write_pictures(tmp_path / "real", 6, size=(30, 20), names=[f"a{index}.png" for index in range(6)])
    write_pictures(tmp_path / "real", 2, size=(70, 60), channels=3, names=["b0.png", "b1.png"])
    write_pictures(tmp_path / "real", 1, size=(30, 20), channels=3, names=["c0.png"])
    colours = Colours()
    folder = ImageFolder.listed(tmp_path / "real")
    rows = ChunkStore.within(tmp_path).gather(look_at_folder(folder, [colours]))
    sizes = [(4, 3, 30, 20), (2, 3, 30, 20), (1, 3, 70, 60), (1, 3, 70, 60), (1, 3, 30, 20)]
    assert colours.batches == sizes
    torch.testing.assert_close(rows["colours"], torch.stack([image.mean(dim=(1, 2)) for image in pixels(folder)]))


def test_what_a_network_cannot_see_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "real", 2, names=["a.png", "b.png"])
    write_pictures(tmp_path / "real", 1, size=(30, 28), names=["c.png"])
    folder = ImageFolder.listed(tmp_path / "real")
    with pytest.raises(ValueError, match=r"c\.png: fashion-cnn looks at grey images .*28, 28.*30, 28"):
        ChunkStore.within(tmp_path).gather(look_at_folder(folder, [fashion_features()]))


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    class Broken(Colours):
        def __call__(self, images: Tensor, /) -> Tensor:
            return torch.where(images.mean(dim=(2, 3)) > 0.999, torch.nan, 1.0)

    write_pictures(tmp_path / "real", 2, names=["a.png", "c.png"])
    Image.new("L", (28, 28), 255).save(tmp_path / "real" / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: colours gives features that are not finite"):
        ChunkStore.within(tmp_path).gather(look_at_folder(ImageFolder.listed(tmp_path / "real"), [Broken()]))


def test_numbers_of_pairs_are_those_of_the_images_whatever_the_workers(tmp_path: Path) -> None:
    real = ImageFolder.listed(write_pictures(tmp_path / "real", 5, size=(40, 33), channels=3))
    made = ImageFolder.listed(write_pictures(tmp_path / "made", 5, size=(40, 33), channels=3, noise=12))
    alone, by_two = (gathered(made, real, tmp_path / str(workers), workers, lpips=True) for workers in (0, 2))
    assert all(torch.equal(alone[name], by_two[name]) for name in (PSNR, SSIM, LPIPS, SAME_SIZE))
    ours, theirs = (torch.stack(pixels(folder)) for folder in (made, real))
    last = [side.permute(0, 2, 3, 1) for side in (ours, theirs)]
    torch.testing.assert_close(alone[PSNR].float(), psnr(*last))
    torch.testing.assert_close(alone[SSIM].float(), ssim(*last))
    torch.testing.assert_close(alone[LPIPS], random_distance("alex")(ours, theirs))
    assert alone[SAME_SIZE].all()


def test_the_number_of_threads_does_not_matter(tmp_path: Path) -> None:
    real = ImageFolder.listed(write_pictures(tmp_path / "real", 2, size=(90, 130), channels=3))
    made = ImageFolder.listed(write_pictures(tmp_path / "made", 2, size=(90, 130), channels=3, noise=12))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(gathered(made, real, tmp_path / str(threads)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][PSNR], found[1][PSNR]) and torch.equal(found[0][SSIM], found[1][SSIM])


def test_pairs_of_awkward_images_have_the_numbers_that_there_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, size in (("real", (20, 20)), ("made", (20, 21))):
        write_pictures(tmp_path / name, 1, size=size, names=["a_size.png"])
        write_pictures(tmp_path / name, 1, names=["b_equal.png"])
        write_pictures(tmp_path / name, 1, size=(10, 40), noise=9 * (name == "made"), names=["c_small.png"])
        Image.new("RGB", (1, 1), (0, 0, 255 * (name == "made"))).save(tmp_path / name / "d_pixel.png")
    grey = rng.integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(grey).save(tmp_path / "real" / "e_grey.png")
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "made" / "e_grey.png")
    rows = gathered(ImageFolder.listed(tmp_path / "made"), ImageFolder.listed(tmp_path / "real"), tmp_path, lpips=True)
    assert rows[SAME_SIZE].tolist() == [0, 1, 1, 1, 1]
    decibels, similar = rows[PSNR].tolist(), rows[SSIM].tolist()
    assert math.isnan(decibels[0]) and decibels[1] == math.inf and math.isfinite(decibels[2])
    assert decibels[3] == pytest.approx(10 * math.log10(3), abs=1e-5)
    assert decibels[4] == math.inf and similar[4] == pytest.approx(1)
    assert math.isnan(similar[0]) and similar[1] == pytest.approx(1) and math.isnan(similar[2])
    assert math.isnan(similar[3]) and rows[LPIPS].isnan().all()


@pytest.mark.parametrize("side", ["real", "made"])
def test_a_damaged_image_of_a_pair_is_named(side: str, tmp_path: Path) -> None:
    for name in ("real", "made"):
        write_pictures(tmp_path / name, 3)
    file = tmp_path / side / "001.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"{side}/001\.png: a damaged image"):
        gathered(ImageFolder.listed(tmp_path / "made"), ImageFolder.listed(tmp_path / "real"), tmp_path)
