import json
import zipfile
from pathlib import Path

import pytest
import torch

from compress3d.splats.formats import write_scene
from compress3d.splats.scene import SplatScene
from compress3d.splats.sizes import bytes_by_attribute, scene_bytes


def scene(count: int = 64, coefficients: int = 3) -> SplatScene:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    shN = 0.1 * normal(count, coefficients, 3)
    return SplatScene(normal(count, 3), normal(count, 4), normal(count, 3) - 4, normal(count), normal(count, 1, 3), shN)


@pytest.mark.parametrize("name", ["a.ply", "a.compressed.ply", "a.splat", "a.spz", "a.sog", "a.glb", "folder"])
def test_attributes_sum_to_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_scene(scene(), path)
    degree = 0 if name == "a.splat" else 1
    sizes = bytes_by_attribute(path, degree)
    assert sum(sizes.values()) == scene_bytes(path)
    assert {"means", "scales", "quats"} <= set(sizes)
    assert all(size > 0 for size in sizes.values())
    assert ("shN" in sizes) == (degree > 0)


def test_a_ply_splits_as_its_floats_do(tmp_path: Path) -> None:
    write_scene(scene(1000), tmp_path / "a.ply")
    sizes = bytes_by_attribute(tmp_path / "a.ply", sh_degree=1)
    assert sizes["means"] / sizes["opacities"] == pytest.approx(3, rel=0.01)
    assert sizes["shN"] / sizes["sh0"] == pytest.approx(3, rel=0.01)


def test_scenes_without_harmonics_have_no_bytes_for_them(tmp_path: Path) -> None:
    write_scene(scene(coefficients=0), tmp_path / "a.ply")
    assert "shN" not in bytes_by_attribute(tmp_path / "a.ply", sh_degree=0)


def test_an_unbundled_sog_counts_only_what_it_names(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    write_scene(scene(), folder)
    alone = scene_bytes(folder)
    (folder / "other.txt").write_bytes(bytes(1000))
    assert scene_bytes(folder) == scene_bytes(folder / "meta.json") == alone
    assert bytes_by_attribute(folder, 1) == bytes_by_attribute(folder / "meta.json", 1)


def test_textures_are_counted_under_their_attribute(tmp_path: Path) -> None:
    meta = {"version": 2, "means": {"files": ["l.webp", "u.webp"]}, "sh0": {"files": ["c.webp"]}}
    with zipfile.ZipFile(tmp_path / "a.sog", "w") as archive:
        archive.writestr("meta.json", json.dumps(meta))
        for name, size in (("l.webp", 10), ("u.webp", 20), ("c.webp", 5)):
            archive.writestr(name, bytes(size))
    sizes = bytes_by_attribute(tmp_path / "a.sog", 0)
    assert (sizes["means"], sizes["sh0 + opacities"]) == (30, 5)
    assert sum(sizes.values()) == (tmp_path / "a.sog").stat().st_size


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.ply"):
        scene_bytes(tmp_path / "gone.ply")
