from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
import torch

from compress3d.splats.formats import drop_invalid, is_spz, read_scene, write_scene
from compress3d.splats.formats.morton import morton_order
from compress3d.splats.formats.quantization import LARGEST_LOGIT, opacities_from_alphas, opacities_from_bytes
from compress3d.splats.formats.sanitize import require_valid
from compress3d.suffixes import splat_codec

WRITABLE = ["a.ply", "a.compressed.ply", "a.splat", "a.spz", "a.sog", "meta.json", "folder", "a.glb", "a.html"]


def centers(scene):
    return scene.means[torch.from_numpy(np.lexsort(scene.means.T.numpy()))]


@pytest.mark.parametrize("name", WRITABLE)
def test_every_format_is_picked_by_name_and_read_back(tmp_path, make_scene, name):
    scene = make_scene(40)
    write_scene(scene, tmp_path / name)
    torch.testing.assert_close(centers(read_scene(tmp_path / name)), centers(scene), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["A.PLY", "b.Compressed.Ply", "c.SPLAT", "d.SPZ", "e.SOG", "f.GLB", "g.HTML"])
def test_case_of_the_suffix_does_not_matter(tmp_path, make_scene, name):
    write_scene(make_scene(5), tmp_path / name)
    assert len(read_scene(tmp_path / name)) == 5


def test_a_compressed_ply_is_told_from_a_plain_one_by_content(tmp_path, make_scene):
    scene = make_scene(30)
    write_scene(scene, tmp_path / "a.compressed.ply")
    write_scene(scene, tmp_path / "b.ply")
    assert (tmp_path / "a.compressed.ply").stat().st_size < (tmp_path / "b.ply").stat().st_size / 2
    (tmp_path / "a.compressed.ply").rename(tmp_path / "c.ply")
    (tmp_path / "b.ply").rename(tmp_path / "d.compressed.ply")
    torch.testing.assert_close(centers(read_scene(tmp_path / "c.ply")), centers(scene), atol=0.02, rtol=0)
    assert torch.equal(read_scene(tmp_path / "d.compressed.ply").means, scene.means)


@pytest.mark.parametrize("name", ["a.ply", "a.spz", "a.sog", "a.glb", "a.html"])
def test_content_decides_over_a_name_that_says_nothing(tmp_path, make_scene, name):
    write_scene(make_scene(7), tmp_path / name)
    shutil.move(tmp_path / name, tmp_path / "download.bin")
    assert len(read_scene(tmp_path / "download.bin")) == 7


def test_an_unbundled_sog_is_read_by_folder_or_meta_json(tmp_path, make_scene):
    write_scene(make_scene(9), tmp_path / "folder")
    assert (tmp_path / "folder" / "meta.json").is_file()
    assert len(read_scene(tmp_path / "folder")) == len(read_scene(tmp_path / "folder" / "meta.json")) == 9


@pytest.mark.parametrize("name", ["a.obj", "lod-meta.json", "a.ply.bak"])
def test_unknown_suffixes_are_refused_with_the_known_ones(tmp_path, make_scene, name):
    with pytest.raises(ValueError, match=r"known are \.compressed\.ply, \.ply, .*\.glb") as caught:
        write_scene(make_scene(1), tmp_path / name)
    assert name in str(caught.value)
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match=name):
        read_scene(tmp_path / name)


def test_only_spz_can_be_told_its_axes_and_content_says_what_is_spz(tmp_path, make_scene):
    write_scene(make_scene(5), tmp_path / "a.spz", axes="RDF")
    shutil.move(tmp_path / "a.spz", tmp_path / "b.ply")
    write_scene(make_scene(5), tmp_path / "c.ply")
    (tmp_path / "d.spz").write_bytes(b"ply\n")
    assert [is_spz(tmp_path / name) for name in ("b.ply", "c.ply", "d.spz")] == [True, False, False]
    upright, turned = (read_scene(tmp_path / "b.ply", spz_axes=axes) for axes in (None, "RUB"))
    assert torch.equal(turned.means, upright.means * torch.tensor([1.0, -1.0, -1.0]))
    with pytest.raises(ValueError, match=r"c\.ply: not SPZ"):
        read_scene(tmp_path / "c.ply", spz_axes="RDF")
    assert not is_spz(tmp_path)
    with pytest.raises(FileNotFoundError):
        is_spz(tmp_path / "gone.spz")


@pytest.mark.parametrize(
    ("name", "module"), [("A.Compressed.PLY", "compressed_ply"), ("meta.json", "sog"), ("b.glb", "gltf")]
)
def test_names_ask_for_codecs(name, module):
    assert splat_codec(name) == module


@pytest.mark.parametrize("name", ["lod-meta.json", "ply", "a.obj", ""])
def test_other_names_ask_for_none(name):
    assert splat_codec(name) is None


def test_a_file_that_is_not_what_its_name_says_is_refused_as_that_format(tmp_path):
    (tmp_path / "a.ply").write_bytes(b"<html>404 not found</html>")
    with pytest.raises(ValueError, match=r"a\.ply: not a PLY file: it starts with b'<html>40'"):
        read_scene(tmp_path / "a.ply")


def test_missing_files(tmp_path):
    for name in ("a.ply", "a.compressed.ply", "a.splat", "a.ksplat", "a.spz", "a.sog", "meta.json", "a.glb", "folder"):
        with pytest.raises(FileNotFoundError, match=name):
            read_scene(tmp_path / name)


def test_an_empty_scene_is_not_written(tmp_path, make_scene):
    with pytest.raises(ValueError, match="nothing to write"):
        write_scene(make_scene(0), tmp_path / "a.spz")


def test_reading_drops_invalid_gaussians_unless_they_are_kept(tmp_path, make_scene):
    scene = make_scene(10)
    scene.means[3] = torch.nan
    write_scene(scene, tmp_path / "a.ply")
    assert len(read_scene(tmp_path / "a.ply")) == 9
    kept = read_scene(tmp_path / "a.ply", keep_invalid=True)
    assert len(kept) == 10 and kept.means[3].isnan().all()


def spoil(scene, name, row, value):
    scene.tensors()[name][row].view(-1)[-1] = value


INVALID = [
    ("means", torch.nan, "position"),
    ("means", torch.inf, "position"),
    ("quats", torch.nan, "rotation"),
    ("quats", -torch.inf, "rotation"),
    ("quats", 1e30, "norm"),
    ("scales", torch.nan, "non-finite scale"),
    ("scales", torch.inf, "non-finite scale"),
    ("scales", 89.0, "overflows"),
    ("opacities", torch.nan, "opacity"),
    ("sh0", torch.inf, "colour"),
    ("shN", torch.nan, "colour"),
]


@pytest.mark.parametrize(("name", "value", "reason"), INVALID)
def test_each_invalid_value_drops_its_gaussian_and_says_why(make_scene, caplog, name, value, reason):
    scene = make_scene(6, 1)
    good = scene.select(torch.tensor([0, 1, 3, 4, 5]))
    if scene.tensors()[name].ndim == 1:
        scene.tensors()[name][2] = value
    else:
        spoil(scene, name, 2, value)
    with caplog.at_level(logging.WARNING, "secateur"):
        dropped, counts = drop_invalid(scene)
    assert [*counts.values()] == [1] and reason in next(iter(counts))
    assert [record.message for record in caplog.records] == [f"dropped 1 of 6 Gaussians: 1 with {next(iter(counts))}"]
    for key, tensor in dropped.tensors().items():
        assert torch.equal(tensor, good.tensors()[key])
    with pytest.raises(ValueError, match="cannot be rendered"):
        require_valid(scene)


def test_a_zero_rotation_is_dropped(make_scene):
    scene = make_scene(4)
    scene.quats[1], scene.quats[2] = 0, 1e-30
    dropped, counts = drop_invalid(scene)
    assert len(dropped) == 2 and counts == {"a rotation of zero or overflowing norm": 2}


def test_each_gaussian_counts_once(make_scene):
    scene = make_scene(5, 1)
    scene.means[0] = scene.shN[0] = scene.scales[1] = torch.nan
    dropped, counts = drop_invalid(scene)
    assert len(dropped) == 3 and sum(counts.values()) == 2


def test_infinite_opacities_are_clamped_and_not_dropped(make_scene, caplog):
    scene = make_scene(5)
    scene.opacities[:2] = torch.tensor([torch.inf, -torch.inf])
    scene.antialiased = True
    clamped, counts = drop_invalid(scene)
    assert len(clamped) == 5 and not counts and not caplog.records and clamped.antialiased
    assert clamped.opacities[:2].tolist() == [LARGEST_LOGIT, -LARGEST_LOGIT]
    assert torch.equal(clamped.opacities[2:], scene.opacities[2:])
    require_valid(scene)


def test_the_largest_logit_can_still_be_trained():
    logits = torch.tensor([LARGEST_LOGIT, -LARGEST_LOGIT], requires_grad=True)
    alphas = torch.sigmoid(logits)
    alphas.sum().backward()
    assert 0 < alphas[1] < 1e-6 and 1 - 1e-6 < alphas[0] < 1
    assert (logits.grad > 0).all()


def test_a_valid_scene_is_handed_back_itself(make_scene):
    scene = make_scene(5, 3)
    assert drop_invalid(scene)[0] is scene


def test_opacity_bytes_are_exact():
    alphas = torch.sigmoid(torch.from_numpy(opacities_from_bytes(np.arange(256, dtype=np.uint8))))
    torch.testing.assert_close(alphas, torch.arange(256) / 255, atol=2e-7, rtol=1e-5)


@pytest.mark.parametrize("name", ["a.compressed.ply", "a.splat", "a.spz", "a.sog", "a.glb"])
def test_opacities_of_0_and_1_stand_for_the_same_logits_in_every_format_and_stay(tmp_path, make_scene, name):
    scene = make_scene(4).with_tensors(opacities=torch.tensor([torch.inf, -torch.inf, 30.0, -120.0]))
    for _ in range(2):
        write_scene(scene, tmp_path / name)
        scene = read_scene(tmp_path / name, keep_invalid=True)
        # A float32 opacity, as .glb has, cannot tell 16 from 15.94 near 1.
        wanted = [-LARGEST_LOGIT] * 2 + [LARGEST_LOGIT] * 2
        assert sorted(scene.opacities.tolist()) == pytest.approx(wanted, abs=0.06 if name == "a.glb" else 0)


def test_opacities_that_are_none_have_no_logit():
    logits = opacities_from_alphas(np.array([-0.1, 1.1, np.nan, 0.5], np.float32))
    assert np.isnan(logits[:3]).all() and logits[3] == 0


def test_morton_order_visits_octants_in_turn():
    octants = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)], np.float32)
    shuffled = np.random.default_rng(0).permutation(8)
    assert octants[shuffled][morton_order(octants[shuffled])].tolist() == octants.tolist()


def test_morton_order_is_a_stable_permutation():
    points = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    order = morton_order(np.concatenate([points, points]))
    assert sorted(order) == list(range(200))
    assert (order[::2] + 100 == order[1::2]).all()
    assert morton_order(np.zeros((4, 3), np.float32)).tolist() == [0, 1, 2, 3]
    assert morton_order(np.zeros((0, 3), np.float32)).tolist() == []
