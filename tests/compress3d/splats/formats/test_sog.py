"""SOG against files built by hand, round trips, and real scenes."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from compress3d.splats.formats import sog
from compress3d.splats.formats.morton import morton_order
from compress3d.splats.scene import SplatScene

MakeScene = Callable[..., SplatScene]


def png(texels: list[list[int]], width: int) -> bytes:
    """Texels as a PNG of that width, which the specification allows in place of WebP."""
    channels = len(texels[0])
    rows = -(-len(texels) // width)
    array = np.zeros((rows * width, channels), np.uint8)
    array[: len(texels)] = texels
    buffer = io.BytesIO()
    Image.fromarray(array.reshape(rows, width, channels)).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(folder: Path, meta: dict[str, Any], images: dict[str, bytes]) -> Path:
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps(meta))
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return folder


def two_gaussians() -> tuple[dict[str, Any], dict[str, bytes]]:
    """Version 2, degree 1, two Gaussians, with everything that they decode to easy to see."""
    meta = {
        "version": 2,
        "count": 2,
        "model": "antialiased",
        "means": {"mins": [-1, 0, 0], "maxs": [1, 0, 65.535 / 8], "files": ["l.png", "u.png"]},
        "scales": {"codebook": [-i / 10 for i in range(256)], "files": ["s.png"]},
        "quats": {"files": ["q.png"]},
        "sh0": {"codebook": [i / 100 for i in range(256)], "files": ["c.png"]},
        "shN": {"count": 65, "bands": 1, "codebook": [i / 1000 for i in range(256)], "files": ["p.png", "n.png"]},
    }
    palette = [[(3 * entry + j) % 251, entry % 7, j] for entry in range(128) for j in range(3)]
    images = {
        "l.png": png([[0, 9, 0], [255, 9, 64]], 4),
        "u.png": png([[0, 9, 0], [255, 9, 31]], 4),
        "s.png": png([[10, 20, 30], [0, 1, 255]], 4),
        "q.png": png([[255, 0, 128, 252], [7, 7, 7, 251]], 4),
        "c.png": png([[1, 2, 3, 51], [4, 5, 6, 255]], 4),
        "p.png": png(palette, 192),
        "n.png": png([[2, 0, 0], [64, 0, 0]], 4),
    }
    return meta, images


def test_reads_a_folder_built_by_hand(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "scene", *two_gaussians())
    for path in (folder, folder / "meta.json"):
        scene = sog.read(path)
        assert len(scene) == 2 and scene.sh_degree == 1 and scene.antialiased
        high = math.expm1(65.535 / 8 * (64 + 256 * 31) / 65535)
        want = torch.tensor([[1 - math.e, 0, 0], [math.e - 1, 0, high]])
        torch.testing.assert_close(scene.means, want, rtol=1e-6, atol=1e-6)
        root = math.sqrt(0.5)
        want = torch.tensor([[0.0, root, -root, root / 255], [1, 0, 0, 0]])
        torch.testing.assert_close(scene.quats, want, rtol=0, atol=1e-6)
        torch.testing.assert_close(scene.scales, torch.tensor([[-1.0, -2, -3], [0, -0.1, -25.5]]))
        torch.testing.assert_close(scene.sh0[:, 0], torch.tensor([[0.01, 0.02, 0.03], [0.04, 0.05, 0.06]]))
        torch.testing.assert_close(torch.sigmoid(scene.opacities), torch.tensor([0.2, 1.0]), rtol=0, atol=1e-6)
        want = torch.tensor([[[6, 2, 0], [7, 2, 1], [8, 2, 2]], [[192, 1, 0], [193, 1, 1], [194, 1, 2]]]) / 1000
        torch.testing.assert_close(scene.shN, want)


def test_reads_version_1(tmp_path: Path) -> None:
    meta, images = two_gaussians()
    meta = {
        "means": {**meta["means"], "shape": [2, 3]},
        "scales": {"mins": [-10, -20, -30], "maxs": [0, 0, 0], "files": ["s.png"]},
        "quats": meta["quats"],
        "sh0": {"mins": [0, 0, 0, -5], "maxs": [2.55, 2.55, 2.55, 46], "files": ["c.png"]},
        "shN": {"mins": -1, "maxs": 1.55, "files": ["p.png", "n.png"]},
    }
    scene = sog.read(write_folder(tmp_path / "scene", meta, images))
    torch.testing.assert_close(scene.scales[1], torch.tensor([-10.0, -20 + 20 / 255, 0]))
    torch.testing.assert_close(scene.sh0[1, 0], torch.tensor([0.04, 0.05, 0.06]))
    torch.testing.assert_close(scene.opacities, torch.tensor([-5 + 51 * 0.2, 46.0]))
    torch.testing.assert_close(scene.shN[0, 1], torch.tensor([-0.93, -0.98, -0.99]))
    del meta["shN"]
    assert sog.read(write_folder(tmp_path / "plain", meta, images)).sh_degree == 0


def assert_close(back: SplatScene, scene: SplatScene, harmonics: float = 1e-3) -> None:
    """Within half a step of each code, against the scene in the order that SOG gives it."""
    scene = scene.select(torch.from_numpy(morton_order(scene.means.numpy())))
    assert back.antialiased == scene.antialiased
    logs = scene.means.sign() * scene.means.abs().log1p()
    step = (logs.amax(0) - logs.amin(0)) / 65535
    assert ((back.means.sign() * back.means.abs().log1p() - logs).abs() <= 0.501 * step + 1e-6).all()
    got, want = (torch.nn.functional.normalize(quats, dim=1) for quats in (back.quats, scene.quats))
    assert (got * want).sum(1).abs().min() > 0.99998
    torch.testing.assert_close(torch.sigmoid(back.opacities), torch.sigmoid(scene.opacities), rtol=0, atol=0.501 / 255)
    for name, atol in (("scales", 0.05), ("sh0", 0.03)):
        torch.testing.assert_close(back.tensors()[name], scene.tensors()[name], rtol=0, atol=atol)
        assert (back.tensors()[name] - scene.tensors()[name]).square().mean() < 1e-4
    assert (back.shN - scene.shN).square().sum() <= harmonics * max(scene.shN.numel(), 1)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 300])
@pytest.mark.parametrize("name", ["scene.sog", "folder", "other/meta.json"])
def test_round_trip(tmp_path: Path, make_scene: MakeScene, name: str, count: int, degree: int) -> None:
    scene = make_scene(count, degree)
    scene.antialiased = degree == 2
    sog.write(scene, tmp_path / name)
    back = sog.read(tmp_path / name)
    assert len(back) == count and back.sh_degree == degree
    # Up to 1,024 distinct rows the palette is exact but for its 256 values.
    assert_close(back, scene, harmonics=1e-5)


def test_many_gaussians_share_a_palette(tmp_path: Path, make_scene: MakeScene) -> None:
    scene = make_scene(3000, 2)
    errors = []
    for size in (64, 512, None):
        sog.write(scene, tmp_path / "scene.sog", palette_size=size)
        back = sog.read(tmp_path / "scene.sog")
        order = torch.from_numpy(morton_order(scene.means.numpy()))
        errors.append(float((back.shN - scene.shN[order]).square().mean()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.04 * 0.8


def test_codes_survive_a_second_time(tmp_path: Path, make_scene: MakeScene) -> None:
    sog.write(make_scene(500, 2), tmp_path / "first.sog")
    first = sog.read(tmp_path / "first.sog")
    sog.write(first, tmp_path / "second.sog")
    second = sog.read(tmp_path / "second.sog")
    for name in ("means", "scales", "opacities", "sh0", "shN"):
        again = first.tensors()[name][torch.from_numpy(morton_order(first.means.numpy()))]
        torch.testing.assert_close(second.tensors()[name], again, rtol=1e-6, atol=1e-6)


def test_constant_and_equal_gaussians(tmp_path: Path, make_scene: MakeScene) -> None:
    scene = make_scene(1, 1).select(torch.zeros(7, dtype=torch.int64))
    sog.write(scene, tmp_path / "scene.sog")
    back = sog.read(tmp_path / "scene.sog")
    for name in ("means", "scales", "sh0", "shN"):
        torch.testing.assert_close(back.tensors()[name], scene.tensors()[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("opacities", [[math.inf, -math.inf, 40.0, -40.0], [-math.inf] * 4])
def test_opacities_of_0_and_1_stay_finite_and_keep_their_colours(
    tmp_path: Path, make_scene: MakeScene, opacities: list[float]
) -> None:
    scene = make_scene(40, 1).with_tensors(opacities=torch.tensor(opacities * 10))
    sog.write(scene, tmp_path / "scene.sog")
    back = sog.read(tmp_path / "scene.sog")
    assert torch.isfinite(back.opacities).all()
    assert_close(back, scene)


def test_the_same_scene_gives_the_same_bytes(tmp_path: Path, make_scene: MakeScene) -> None:
    for name in "ab":
        sog.write(make_scene(2000, 2), tmp_path / f"{name}.sog", palette_size=100)
    assert (tmp_path / "a.sog").read_bytes() == (tmp_path / "b.sog").read_bytes()


def test_an_archive_is_stored_and_its_images_are_lossless_with_sides_of_fours(
    tmp_path: Path, make_scene: MakeScene
) -> None:
    sog.write(make_scene(77, 3), tmp_path / "scene.sog")
    with zipfile.ZipFile(tmp_path / "scene.sog") as archive:
        assert archive.namelist()[0] == "meta.json"
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            if entry.filename.endswith(".webp"):
                data = archive.read(entry)
                assert b"VP8L" in data
                with Image.open(io.BytesIO(data)) as image:
                    assert entry.filename == "shN_centroids.webp" or (image.width % 4, image.height % 4) == (0, 0)


@pytest.mark.parametrize("size", [0, 65537])
def test_palette_sizes_out_of_range_are_refused(tmp_path: Path, make_scene: MakeScene, size: int) -> None:
    with pytest.raises(ValueError, match="palette_size must be 1 to 65536"):
        sog.write(make_scene(5, 1), tmp_path / "scene.sog", palette_size=size)


def test_scenes_that_cannot_be_written_leave_nothing(tmp_path: Path, make_scene: MakeScene) -> None:
    scene = make_scene(5)
    with pytest.raises(ValueError, match="SOG holds 1 to"):
        sog.write(make_scene(0), tmp_path / "scene.sog")
    with pytest.raises(ValueError, match="1 with a non-finite position"):
        sog.write(scene.with_tensors(means=scene.means.index_fill(0, torch.tensor([2]), math.nan)), tmp_path / "a.sog")
    assert not list(tmp_path.iterdir())


def bad_scenes() -> dict[str, tuple[Callable[[dict[str, Any], dict[str, bytes]], object], str]]:
    def lossy(meta: dict[str, Any], images: dict[str, bytes]) -> None:
        buffer = io.BytesIO()
        Image.new("RGBA", (4, 4)).save(buffer, "WEBP", lossless=False)
        images["s.png"] = buffer.getvalue()

    return {
        "version 3": (lambda m, i: m.update(version=3), "version is 3"),
        "no means": (lambda m, i: m.pop("means"), "means is missing"),
        "two mins": (lambda m, i: m["means"].update(mins=[0, 1]), "means.mins must have 3 numbers"),
        "huge logs": (lambda m, i: m["means"].update(maxs=[0, 1, 500]), "means.maxs must be logarithms"),
        "one file": (lambda m, i: m["means"].update(files=["l.png"]), r"means.files\[1\] is missing"),
        "missing": (lambda m, i: i.pop("q.png"), r"quats.files\[0\]: .* has no file 'q.png'"),
        "outside": (lambda m, i: m["quats"].update(files=["../q.png"]), "must be a plain file name"),
        "too small": (lambda m, i: m.update(count=5), "has 4x1 texels, expected 5"),
        "too large": (lambda m, i: i.update({"c.png": png([[1, 1, 1, 1]] * 66_000, 300)}), "has 300x220 texels"),
        "no image": (lambda m, i: i.update({"c.png": b"nonsense"}), "is not a WebP or PNG image"),
        "damaged": (lambda m, i: i.update({"c.png": i["c.png"][:45]}), "is a damaged image|is not a WebP or PNG"),
        "lossy": (lossy, "compressed with losses"),
        "short codebook": (lambda m, i: m["scales"].update(codebook=[0.5] * 20), "has 20 values, the texture asks"),
        "null in codebook": (
            lambda m, i: m["sh0"].update(codebook=[None] * 256),
            r"sh0.codebook\[0\] must be",
        ),
        "label beyond": (lambda m, i: m["shN"].update(count=3), "label 64, the palette ends at 2"),
        "wrong width": (lambda m, i: m["shN"].update(bands=2, count=1), "is 192 wide|texels"),
    }


@pytest.mark.parametrize("name", bad_scenes())
def test_a_bad_scene_is_one_clear_error(tmp_path: Path, name: str) -> None:
    meta, images = two_gaussians()
    change, message = bad_scenes()[name]
    change(meta, images)
    folder = write_folder(tmp_path / "scene", meta, images)
    with pytest.raises(ValueError, match=message):
        sog.read(folder)


def test_a_missing_scene_is_a_missing_file(tmp_path: Path) -> None:
    for name in ("none.sog", "none/meta.json", "."):
        with pytest.raises(FileNotFoundError):
            sog.read(tmp_path / name)


def test_a_folder_is_rid_of_the_former_scene_and_of_nothing_else(tmp_path: Path, make_scene: MakeScene) -> None:
    folder = write_folder(tmp_path / "scene", *two_gaussians())
    meta = json.loads((folder / "meta.json").read_text())
    meta["quats"]["files"].append("notes.txt")
    meta["extra"] = {"files": ["../outside.png", "folder.png", None]}
    (folder / "meta.json").write_text(json.dumps(meta))
    foreign = [folder / "notes.txt", folder / "mine.png", tmp_path / "outside.png"]
    for path in foreign:
        path.write_text("foreign")
    (folder / "folder.png").mkdir()
    sog.write(make_scene(5, 2), folder)
    assert (folder / "shN_labels.webp").exists() and not (folder / "l.png").exists()
    sog.write(make_scene(5, 0), folder / "meta.json")
    named = {"means_l.webp", "means_u.webp", "quats.webp", "scales.webp", "sh0.webp", "meta.json"}
    assert {path.name for path in folder.iterdir()} == named | {"notes.txt", "mine.png", "folder.png"}
    assert all(path.read_text() == "foreign" for path in foreign)
    assert sog.read(folder).sh_degree == 0


@pytest.mark.parametrize("content", [b"not JSON", b"[1]", b'{"means": {"files": "l.png"}, "quats": 3}'])
def test_a_damaged_meta_json_does_not_keep_a_folder_from_being_replaced(
    tmp_path: Path, make_scene: MakeScene, content: bytes
) -> None:
    (tmp_path / "meta.json").write_bytes(content)
    (tmp_path / "l.png").write_bytes(b"kept")
    sog.write(make_scene(5), tmp_path)
    assert len(sog.read(tmp_path)) == 5 and (tmp_path / "l.png").read_bytes() == b"kept"


def test_matches(tmp_path: Path, make_scene: MakeScene) -> None:
    sog.write(make_scene(5), tmp_path / "folder")
    sog.write(make_scene(5), tmp_path / "scene.sog")
    assert sog.matches(tmp_path / "folder", b"") and sog.matches(tmp_path / "folder" / "meta.json", b'{"version":2')
    assert sog.matches(tmp_path / "scene.sog", (tmp_path / "scene.sog").read_bytes()[:64])
    assert not sog.matches(tmp_path, b"") and not sog.matches(tmp_path / "lod-meta.json", b"{")


@pytest.mark.parametrize("lod", ["3_0", "2_0"])
def test_a_real_scene_comes_back_as_it_was(tmp_path: Path, shared_data: Path, lod: str) -> None:
    """Its scales, colours and harmonics are codes already, and so must come back exactly."""
    folder = shared_data / "splats" / "playbot" / lod
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    scene = sog.read(folder)
    sog.write(scene, tmp_path / "scene.sog")
    back = sog.read(tmp_path / "scene.sog")
    order = torch.from_numpy(morton_order(scene.means.numpy()))
    for name in ("scales", "opacities", "sh0", "shN"):
        assert torch.equal(back.tensors()[name], scene.tensors()[name][order]), name
    torch.testing.assert_close(back.means, scene.means[order], rtol=0, atol=1e-6)
    assert (tmp_path / "scene.sog").stat().st_size < 1.01 * sum(f.stat().st_size for f in folder.iterdir())
