from pathlib import Path

import pytest

from secateur.shipped_recipes import find_recipe, shipped_recipes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small-20.yaml").write_text(
        "# Twenty percent go\n# (arXiv 2412.02852).\nmodel: {id: some}\n# not this\n"
    )
    (tmp_path / "large.yaml").write_text("model: {id: other}\n")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    return tmp_path


def test_recipes_are_listed_with_their_first_comment(folder: Path) -> None:
    large, small = shipped_recipes(folder)
    assert (large.name, large.about) == ("large", "")
    assert (small.name, small.about) == ("small-20", "Twenty percent go (arXiv 2412.02852).")
    assert small.path == folder / "small-20.yaml"


@pytest.mark.parametrize("given", ["small-20", "small-20.yaml"])
def test_a_name_is_found_where_no_file_is_meant(
    given: str, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    assert find_recipe(Path(given), folder) == folder / "small-20.yaml"
    (here / given).write_text("model: {id: own}\n")
    assert find_recipe(Path(given), folder) == Path(given)


@pytest.mark.parametrize("given", ["smal-20", "elsewhere/smal-20.yaml", "elsewhere/small-20.yaml"])
def test_what_is_neither_is_told_what_was_likely_meant(given: str, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{given}: no such file.*small-20"):
        find_recipe(Path(given), folder)
