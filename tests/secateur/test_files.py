"""What is there before stays whole until all of the new is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.files import check_folder, replacing_file, replacing_folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_a_file_is_replaced_with_the_rights_of_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with replacing_file(tmp_path / "a.txt") as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == tmp_path
        temporary.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"
    (tmp_path / "other").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert contents(tmp_path) == {"a.txt": "new", "other": ""}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_file_that_is_not_finished_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), replacing_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert contents(tmp_path) == {"a.txt": "old"}


def test_a_folder_gets_the_new_files_and_keeps_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    for number in (1, 2):
        with replacing_folder(folder) as temporary:
            (temporary / f"{number}.txt").write_text(str(number))
            (temporary / "both.txt").write_text(str(number))
    assert contents(folder) == {"1.txt": "1", "2.txt": "2", "both.txt": "2"}
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_a_folder_that_is_not_finished_keeps_the_old_files(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing_folder(folder, former=["a.txt"]) as temporary:
        (temporary / "a.txt").write_text("half")
        raise KeyboardInterrupt
    assert contents(folder) == {"a.txt": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_files_of_the_former_version_go_and_foreign_ones_stay(tmp_path: Path) -> None:
    for name in ("index", "stays", "goes", "foreign"):
        (tmp_path / name).write_text("old")
    (tmp_path / "folder").mkdir()
    with replacing_folder(tmp_path, former=["index", "stays", "goes", "gone before", "folder"]) as temporary:
        for name in ("index", "stays", "added"):
            (temporary / name).write_text("new")
    assert contents(tmp_path) == {"index": "new", "stays": "new", "added": "new", "foreign": "old"}
    assert (tmp_path / "folder").is_dir()


def test_the_index_comes_after_all_that_it_names_and_before_anything_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "goes").touch()
    moved = []

    def replace(source: Path, target: Path) -> None:
        assert (tmp_path / "goes").exists()
        moved.append(target.name)
        source.rename(target)

    monkeypatch.setattr(Path, "replace", replace)
    with replacing_folder(tmp_path, index="index", former=["goes"]) as temporary:
        for name in ("z", "index", "a"):
            (temporary / name).touch()
    assert moved == ["a", "z", "index"] and not (tmp_path / "goes").exists()


@pytest.mark.parametrize("name", ["file", "file/below", "file/far/below"])
def test_what_can_be_no_folder_is_told_so_beforehand(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("old")
    for attempt in (check_folder, lambda path: replacing_folder(path).__enter__()):
        with pytest.raises(NotADirectoryError, match=r"cannot be a folder: .* is a file"):
            attempt(tmp_path / name)
    check_folder(tmp_path / "new" / "folder")
    assert contents(tmp_path) == {"file": "old"} and len(list(tmp_path.iterdir())) == 1


def test_a_file_is_not_written_over_a_folder_nor_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder is a folder"), replacing_file(tmp_path / "folder"):
        pass
    with pytest.raises(NotADirectoryError, match=r"file cannot be a folder"), replacing_file(tmp_path / "file" / "a"):
        pass
    assert not list((tmp_path / "folder").iterdir())
