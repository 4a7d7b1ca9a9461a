"""Images come with labels that fit, batches are functions of their step, and folders are read or refused as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from secateur.datasets import Labelled
from tests.contracts import assert_deterministic, assert_same
from tests.vit.images import noise
from vit.augmentation import Augmentation
from vit.data import ImageBatches, LabelledImages, read_folder, split
from vit.images import ImagePreparation


def test_networks_see_normalised_pixels() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    data = LabelledImages(images, torch.tensor([0, 1, 0]), ("a", "b"), (0.2, 0.0, 0.5), (1.0, 0.5, 0.5))
    expected = torch.tensor([[-0.2, 0.0, -1.0], [0.0, 0.4, -0.6], [0.8, 2.0, 1.0]])
    torch.testing.assert_close(data.pixel_values().flatten(1), expected)
    assert_same(data.pixel_values(torch.tensor([2])), data.pixel_values()[2:])
    assert data.subset(slice(1, None)).mean == data.mean


def test_grey_images_of_the_core_get_a_channel() -> None:
    grey = Labelled(torch.zeros(2, 4, 4, dtype=torch.uint8), torch.tensor([1, 0]), ("a", "b"))
    data = LabelledImages.of(grey)
    assert data.images.shape == (2, 1, 4, 4) and (data.pixel_values() == -1).all()


def test_images_come_once_in_order() -> None:
    data = noise(7)
    batches = list(data.in_order(3))
    assert [len(batch["labels"]) for batch in batches] == [3, 3, 1]
    assert_same(torch.cat([batch["pixel_values"] for batch in batches]), data.pixel_values())
    assert_same(torch.cat([batch["labels"] for batch in batches]), data.labels)


def test_labels_that_do_not_fit_are_refused() -> None:
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"need labels \(2,\) or \(2, 4, 4\), got \(3,\)"):
        LabelledImages(images, torch.zeros(3, dtype=torch.int64), ("a",))
    with pytest.raises(ValueError, match="labels must be 0 to 1, got 0 to 2"):
        LabelledImages(images, torch.tensor([0, 2]), ("a", "b"))
    with pytest.raises(ValueError, match="mean and std need 1 or 1 values"):
        LabelledImages(images, torch.tensor([0, 0]), ("a",), (0.5, 0.5))


def test_batches_are_functions_of_their_step() -> None:
    augmentation = Augmentation(shift=2, flip=0.5, erase=0.5, mixup=0.4, cutmix=1.0)

    def drawn() -> list[dict[str, torch.Tensor]]:
        batches = ImageBatches(noise(), 5, seed=3, augmentation=augmentation)
        return [batches.batch_at(step) for step in (4, 0, 4)]

    third, first, again = assert_deterministic(drawn)
    assert_same(third, again)
    assert not torch.equal(third["pixel_values"], first["pixel_values"])
    assert third["labels"].shape == (5, 5)


def test_an_epoch_has_every_image_once() -> None:
    batches = ImageBatches(noise(12), 4)
    seen = torch.cat([batches.batch_at(step)["pixel_values"] for step in range(3)])
    whole = noise(12).pixel_values()
    assert_same(seen.flatten(1).sum(1).sort().values, whole.flatten(1).sum(1).sort().values)
    with pytest.raises(ValueError, match="batch_size"):
        ImageBatches(noise(12), 0)


def test_splits_share_nothing_and_lose_nothing() -> None:
    data = noise(12)
    training, held_out = assert_deterministic(lambda: [vars_of(part) for part in split(data, 5, seed=2)])
    assert (len(training[1]), len(held_out[1])) == (7, 5)
    both = torch.cat([training[0], held_out[0]]).flatten(1).long().sum(1)
    assert_same(both.sort().values, data.images.flatten(1).long().sum(1).sort().values)
    for wrong in (0, 12):
        with pytest.raises(ValueError, match=f"1 to 11 can be held out, got {wrong}"):
            split(data, wrong)


def vars_of(data: LabelledImages) -> tuple[torch.Tensor, torch.Tensor]:
    return data.images, data.labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (12, 20), colour).save(tmp_path / name / "1.png")
        Image.new("RGB", (9, 9), colour).save(tmp_path / name / "2.JPG")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_a_folder_of_classes_is_read(folder: Path) -> None:
    data = read_folder(folder, ImagePreparation((8, 8)))
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [0, 0, 1, 1]
    assert data.images.shape == (4, 3, 8, 8)
    assert data.images[:, :, 4, 4].argmax(1).tolist() == [0, 0, 2, 2]
    grey = ImagePreparation((4, 6), mean=(0.5,), std=(0.5,))
    assert read_folder(folder, grey).images.shape == (4, 1, 4, 6)


@pytest.mark.parametrize("scale", [1 / 255, 1 / 127.5])
def test_networks_see_what_the_preparation_gives(tmp_path: Path, scale: float) -> None:
    (tmp_path / "a").mkdir()
    pixels = torch.randint(256, (11, 15, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(pixels.numpy())
    image.save(tmp_path / "a" / "1.png")
    preparation = ImagePreparation(None, 9, (8, 8), scale=scale, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    torch.testing.assert_close(read_folder(tmp_path, preparation).pixel_values(), preparation(image))


def test_bad_images_are_counted_and_named(folder: Path) -> None:
    (folder / "cat" / "3.png").write_bytes(b"no image at all")
    whole = (folder / "dog" / "1.png").read_bytes()
    (folder / "dog" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"2 of 5 images: .*cat.3\.png: cannot be read.*dog.1\.png"):
        read_folder(folder, ImagePreparation((8, 8)))


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no folder"):
        read_folder(tmp_path / "absent", ImagePreparation())
    with pytest.raises(FileNotFoundError, match="no folders with images"):
        read_folder(tmp_path, ImagePreparation())
    with pytest.raises(ValueError, match="one size"):
        read_folder(tmp_path, ImagePreparation(None, 9))
