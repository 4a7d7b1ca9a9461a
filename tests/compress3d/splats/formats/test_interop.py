"""What splat-transform 3.7.0 reads of ours, and we of its, in every format that both write.

splat-transform copies SPZ coordinates as they are, both ways, although the format's default frame is not that of a PLY:
`turned` makes up for it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.spatial import cKDTree

from compress3d.splats.formats import read_scene, write_scene
from compress3d.splats.formats.axes import reframe
from compress3d.splats.scene import SplatScene
from tests.compress3d.splats.formats.test_ksplat import tiny_file

pytestmark = pytest.mark.interop

NAMES = ["a.ply", "a.compressed.ply", "a.splat", "a.spz", "a.sog", "meta.json"]
EXACT = 1e-5

# Largest errors of positions, log-scales, alphas, colours and harmonics, for 95 of 100 values, against the original.
STEPS = {
    "a.ply": (EXACT, EXACT, EXACT, EXACT, EXACT),
    "a.compressed.ply": (0.02, 0.01, 0.6 / 255, 0.02, 0.02),
    "a.splat": (EXACT, 1e-4, 1.1 / 255, 1.1 / 255 / 0.28, None),
    "a.spz": (0.6 / 4096, 0.6 / 16, 1.1 / 255, 0.6 / 255 / 0.15, 0.07),
    "a.sog": (0.01, 0.2, 1.1 / 255, 0.1, 0.15),
    "meta.json": (0.01, 0.2, 1.1 / 255, 0.1, 0.15),
    "a.glb": (EXACT, EXACT, EXACT, EXACT, EXACT),
    "biker.spz": (0.005, 0.6 / 16, 1.6 / 255, 0.6 / 255 / 0.15, None),
}


@pytest.fixture(scope="module")
def playbot(shared_data: Path) -> Path:
    path = shared_data / "splats" / "playbot" / "3_0" / "meta.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return path


@pytest.fixture(scope="module")
def playbot_ply(playbot, splat_transform, tmp_path_factory) -> Path:
    """The scene as splat-transform decodes it."""
    path = tmp_path_factory.mktemp("playbot") / "playbot.ply"
    splat_transform(playbot, path)
    return path


def turned(scene: SplatScene, name: str) -> SplatScene:
    return reframe(scene, "RUB", "RDF") if name.endswith(".spz") else scene


def rotations(scene: SplatScene) -> torch.Tensor:
    """(N, 27) projections onto each Gaussian's axes: the same for q, -q, and half a turn about an axis of its own."""
    w, x, y, z = torch.nn.functional.normalize(scene.quats).unbind(dim=1)
    first = torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], dim=1)
    second = torch.stack([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)], dim=1)
    axes = torch.stack([first, second, torch.linalg.cross(first, second)], dim=1)
    return (axes[:, :, :, None] * axes[:, :, None, :]).flatten(1)


def largest_error(left: torch.Tensor, right: torch.Tensor, share: float = 1.0) -> float:
    errors = (left - right).abs().flatten()
    return float(errors.sort().values[int(share * (len(errors) - 1))]) if len(errors) else 0.0


def assert_equal(ours: SplatScene, theirs: SplatScene, name: str) -> None:
    """The same Gaussians in the same order, to rounding; alphas of 0 and 1 are made finite by less than half a step.

    Of a .splat's rotations splat-transform spreads the bytes over [-1, 1]; the format's own viewer, as we do, over
    [-1, 1): they are less than a step apart.
    """
    assert len(ours) == len(theirs)
    assert largest_error(ours.means, theirs.means) < 1e-5 * float(ours.means.abs().max())
    # An axis so short that its linear scale underflows has no one logarithm.
    assert largest_error(ours.scales.clamp(min=-13), theirs.scales.clamp(min=-13)) < 1e-4
    assert largest_error(torch.sigmoid(ours.opacities), torch.sigmoid(theirs.opacities)) < 0.3 / 255
    assert largest_error(ours.sh0, theirs.sh0) < 1e-4
    assert largest_error(rotations(ours), rotations(theirs)) < (2.5 / 128 if name.endswith(".splat") else 1e-3)
    assert ours.shN.shape == theirs.shN.shape
    assert largest_error(ours.shN, theirs.shN) < 1e-4


def assert_close(decoded: SplatScene, original: SplatScene, name: str) -> None:
    """Each Gaussian is near the original one at its position, within the format's steps."""
    position, scale, alpha, color, harmonic = STEPS[name]
    distances, nearest = cKDTree(original.means.numpy()).query(decoded.means.numpy())
    assert torch.from_numpy(distances).quantile(0.95) < 2 * position
    original = original.select(torch.from_numpy(nearest))
    assert largest_error(decoded.scales, original.scales, 0.95) < scale
    assert largest_error(torch.sigmoid(decoded.opacities), torch.sigmoid(original.opacities), 0.95) < alpha
    assert largest_error(decoded.sh0.clamp(-1.7, 1.7), original.sh0.clamp(-1.7, 1.7), 0.95) < color
    assert largest_error(rotations(decoded), rotations(original), 0.95) < 0.03
    if harmonic is not None:
        assert decoded.shN.shape == original.shN.shape
        assert largest_error(decoded.shN, original.shN, 0.95) < harmonic


@pytest.mark.parametrize("name", NAMES)
def test_splat_transform_reads_what_we_write(tmp_path, splat_transform, playbot_ply, name):
    original = read_scene(playbot_ply)
    write_scene(original, tmp_path / "ours" / name)
    splat_transform(tmp_path / "ours" / name, tmp_path / "theirs.ply")
    theirs = turned(read_scene(tmp_path / "theirs.ply"), name)
    assert_equal(read_scene(tmp_path / "ours" / name), theirs, name)
    assert_close(theirs, original, name)


# splat-transform writes no .splat, and takes a minute for a SOG on a processor.
@pytest.mark.parametrize("name", [*NAMES[:2], "a.spz", pytest.param("a.sog", marks=pytest.mark.slow)])
def test_we_read_what_splat_transform_writes(tmp_path, splat_transform, playbot_ply, name):
    (tmp_path / "theirs").mkdir()
    splat_transform(playbot_ply, tmp_path / "theirs" / name)
    splat_transform(tmp_path / "theirs" / name, tmp_path / "again.ply")
    ours = read_scene(tmp_path / "theirs" / name)
    assert_equal(ours, turned(read_scene(tmp_path / "again.ply"), name), name)
    assert_close(ours, turned(read_scene(playbot_ply), name), name)


def test_we_read_the_glb_that_splat_transform_writes(tmp_path, splat_transform, playbot_ply):
    splat_transform(playbot_ply, tmp_path / "a.glb")
    assert_close(read_scene(tmp_path / "a.glb"), read_scene(playbot_ply), "a.glb")


def test_we_decode_the_sog_that_splat_transform_decodes(playbot, playbot_ply):
    assert_equal(read_scene(playbot), read_scene(playbot_ply), "meta.json")


@pytest.mark.parametrize("name", ["biker.compressed.ply", "biker.spz", "plant.splat"])
def test_real_files_read_alike(tmp_path, splat_transform, shared_data, name):
    splat_transform(shared_data / "splats" / name, tmp_path / "theirs.ply")
    theirs = turned(read_scene(tmp_path / "theirs.ply"), name)
    assert_equal(read_scene(shared_data / "splats" / name), theirs, name)


@pytest.mark.parametrize("name", ["biker.compressed.ply", "plant.splat"])
def test_real_scenes_are_read_back_by_splat_transform_as_by_us(tmp_path, splat_transform, shared_data, name):
    write_scene(read_scene(shared_data / "splats" / name), tmp_path / f"ours-{name}")
    splat_transform(tmp_path / f"ours-{name}", tmp_path / "theirs.ply")
    assert_equal(read_scene(tmp_path / f"ours-{name}"), read_scene(tmp_path / "theirs.ply"), name)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_splat_transform_reads_the_ksplat_files_of_our_tests_as_we_do(tmp_path, splat_transform, level, degree):
    (tmp_path / "a.ksplat").write_bytes(tiny_file(level, degree))
    splat_transform(tmp_path / "a.ksplat", tmp_path / "theirs.ply")
    assert_equal(read_scene(tmp_path / "a.ksplat"), read_scene(tmp_path / "theirs.ply"), "a.ksplat")


@pytest.mark.parametrize("name", ["a.ply", "a.compressed.ply"])
def test_splat_transform_sees_that_a_scene_is_antialiased(tmp_path, splat_transform, make_scene, name):
    scene = make_scene(20)
    scene.antialiased = True
    write_scene(scene, tmp_path / name)
    splat_transform(tmp_path / name, tmp_path / "theirs.ply")
    assert read_scene(tmp_path / "theirs.ply").antialiased


def test_the_two_biker_files_are_the_same_scene(shared_data):
    ply, spz = (read_scene(shared_data / "splats" / name) for name in ("biker.compressed.ply", "biker.spz"))
    assert len(ply) == len(spz)
    assert_close(spz, ply, "biker.spz")
