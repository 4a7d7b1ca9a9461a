import os
from pathlib import Path

import pytest

from secateur.image_folders.commands import IMAGES_EVALUATOR
from secateur.image_folders.listing import ImageFolder, pairs_of


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * len(name))
    return folder


def test_images_of_all_inner_folders_are_listed_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b.PNG", "a.jpg", "inner/c.webp", "inner/deep/d.jpeg", ".hidden.png", ".cache/e.png", "f.txt", "g")
    folder = ImageFolder.listed(tmp_path)
    assert [image.name for image in folder.images] == ["a.jpg", "b.PNG", "inner/c.webp", "inner/deep/d.jpeg"]
    assert folder.bytes == sum(map(len, ("a.jpg", "b.PNG", "inner/c.webp", "inner/deep/d.jpeg")))
    assert folder.file(folder.images[2]) == tmp_path / "inner" / "c.webp"


def test_a_change_of_a_file_shows_in_the_signature(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    before = ImageFolder.listed(tmp_path).signature()
    assert before == ImageFolder.listed(tmp_path).signature()
    os.utime(tmp_path / "b.png", ns=(1, 1))
    assert before != ImageFolder.listed(tmp_path).signature()


def test_what_has_no_images_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    with pytest.raises(ValueError, match="no images in it"):
        ImageFolder.listed(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"a\.txt: no folder of images"):
        ImageFolder.listed(tmp_path / "a.txt")


def test_the_evaluator_accepts_folders_with_an_image_one_level_down(tmp_path: Path) -> None:
    assert IMAGES_EVALUATOR.accepts(touch(tmp_path / "flat", "a.png"))
    assert IMAGES_EVALUATOR.accepts(touch(tmp_path / "classes", "cat/a.webp", "notes.txt"))
    assert not IMAGES_EVALUATOR.accepts(touch(tmp_path / "deep", "x/y/a.png"))
    assert not IMAGES_EVALUATOR.accepts(touch(tmp_path / "none", "a.txt", ".a.png"))
    assert not IMAGES_EVALUATOR.accepts(tmp_path / "flat" / "a.png")
    assert not IMAGES_EVALUATOR.accepts(tmp_path / "absent")


def test_names_pair_up_whole_or_without_their_ending(tmp_path: Path) -> None:
    one = ImageFolder.listed(touch(tmp_path / "one", "a.png", "b.png", "c.png", "x/a.png", "d.png", "d.jpg"))
    other = ImageFolder.listed(touch(tmp_path / "other", "a.png", "b.jpg", "e.png", "x/a.webp", "d.webp", "d.jpg"))
    found = [(mine.name, theirs.name) for mine, theirs in pairs_of(one, other)]
    assert found == [("a.png", "a.png"), ("b.png", "b.jpg"), ("d.jpg", "d.jpg"), ("x/a.png", "x/a.webp")]
    back = {(theirs.name, mine.name) for mine, theirs in pairs_of(other, one)}
    assert back == set(found)
