import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.metrics.size import bytes_by_entry, bytes_by_file, bytes_by_share, bytes_of


def test_bytes_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "one.bin").write_bytes(bytes(5))
    (tmp_path / "deep" / "two.bin").write_bytes(bytes(7))
    assert bytes_of(tmp_path / "one.bin") == 5
    assert bytes_of(tmp_path) == 12
    assert bytes_by_file(tmp_path) == {"one.bin": 5, "deep/two.bin": 7}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for measure in (bytes_of, bytes_by_entry):
        with pytest.raises(FileNotFoundError, match=r"gone\.sog"):
            measure(tmp_path / "gone.sog")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_entries_and_container_sum_to_the_file(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "scene.sog"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("means.webp", bytes(1000))
        archive.writestr("meta.json", "{}")
    sizes = bytes_by_entry(path)
    assert set(sizes) == {"means.webp", "meta.json", "container"}
    assert sum(sizes.values()) == path.stat().st_size
    if compression == zipfile.ZIP_STORED:
        assert sizes["means.webp"] == 1000


def test_what_is_no_zip_is_named(tmp_path: Path) -> None:
    (tmp_path / "scene.sog").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"scene\.sog: not a zip"):
        bytes_by_entry(tmp_path / "scene.sog")


@given(st.integers(0, 10**9), st.dictionaries(st.text(max_size=3), st.integers(0, 10**6), min_size=1, max_size=6))
def test_shares_sum_to_the_total(total: int, layout: dict[str, int]) -> None:
    split = bytes_by_share(total, layout)
    assert list(split) == list(layout)
    if sum(layout.values()):
        assert sum(split.values()) == total
        for name, size in layout.items():
            assert abs(split[name] - total * size / sum(layout.values())) < 1
