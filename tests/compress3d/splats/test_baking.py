"""Baking: nothing dropped, exact at texels, no bleeding between them; sampling by error; files, also hostile ones."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from compress3d.splats.baking import (
    BakedScene,
    MeshSurface,
    Sphere,
    Surface,
    bake,
    read_baked,
    resample,
    write_baked,
)
from compress3d.splats.formats.sog import lossless_webp
from tests.compress3d.splats.formats.conftest import random_scene
from tests.contracts import assert_deterministic, assert_same

UNIT = Sphere((0.0, 0.0, 0.0), 1.0)
ATTRIBUTES = ("quats", "scales", "opacities", "sh0", "shN")


def roof(tilt: float = 0.5) -> MeshSurface:
    """Two slopes over the unit square, four triangles, their UV two charts with a gap between."""
    vertices = [(x, tilt * (1 - abs(2 * x - 1)), z) for x in (0.0, 0.5, 1.0) for z in (0.0, 1.0)]
    faces = [(0, 1, 2), (1, 3, 2), (2, 3, 4), (3, 5, 4)]
    corners = torch.tensor(vertices)[:, [0, 2]] * torch.tensor([0.8, 1.0])
    charts = corners[torch.tensor(faces)]
    charts[2:, :, 0] += 0.2
    return MeshSurface(torch.tensor(vertices), torch.tensor(faces), charts)


SURFACES: dict[str, Surface] = {"sphere": Sphere((0.1, -0.2, 0.3), 1.5), "mesh": roof()}
every_surface = pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)


def grid_of(height: int, width: int, mask: torch.Tensor | None = None, degree: int = 1) -> BakedScene:
    """One layer of random attributes on the unit sphere, in the texels of the (H, W) mask; all where None."""
    filled = torch.ones(height, width, dtype=torch.bool) if mask is None else mask
    return BakedScene(UNIT, filled[None], random_scene(int(filled.sum()), degree))


def layer0(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


def random_uvs(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_surface
def test_frames_are_orthonormal_and_follow_u(surface):
    uvs = random_uvs(50) * torch.tensor([0.38, 0.9]) + torch.tensor([0.005, 0.05])
    points, axes = surface.frames(uvs)
    assert torch.allclose(axes @ axes.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand(50, 3, 3), atol=1e-12)
    assert torch.allclose(surface.uvs(points + 0.001 * axes[:, 2]), uvs, atol=1e-9)
    step = surface.frames(uvs + torch.tensor([1e-6, 0]))[0] - points
    assert torch.allclose(torch.nn.functional.normalize(step), axes[:, 0], atol=1e-5)


@every_surface
@pytest.mark.parametrize("layers", [1, 3])
def test_nothing_is_dropped_and_what_is_alone_stays_as_it_is(surface, layers):
    scene = random_scene(300, 2)
    baked = bake(scene, surface, (16, 20), layers)
    decoded = baked.decode()
    assert len(decoded) + baked.merged == len(scene)
    assert baked.merged > 0
    assert int(baked.mask.sum(dim=0).max()) == layers
    # A Gaussian that was not merged is still there, at its place and with its own numbers.
    originals = {tuple(row.tolist()): index for index, row in enumerate(scene.scales)}
    found = [(row, originals.get(tuple(scales.tolist()))) for row, scales in enumerate(decoded.scales)]
    rows, indices = (torch.tensor(each) for each in zip(*[pair for pair in found if pair[1] is not None], strict=True))
    assert len(rows) >= len(scene) - 2 * baked.merged and len(rows) > 10
    assert torch.allclose(decoded.means[rows], scene.means[indices], atol=1e-6)
    for name in ("opacities", "sh0", "shN"):
        assert_same(decoded.tensors()[name][rows], scene.tensors()[name][indices], name)
    cosines = (decoded.quats[rows] * torch.nn.functional.normalize(scene.quats[indices])).sum(dim=1)
    assert torch.allclose(cosines.abs(), torch.ones(len(rows)))


def test_the_rest_of_a_texel_is_merged_by_its_moments():
    scene = random_scene(40, 1)
    scene = scene.with_tensors(means=0.05 * scene.means + torch.tensor([1.0, 0.3, 0.2]))
    weights = torch.rand(40, generator=torch.Generator().manual_seed(1)) + 0.1
    baked = bake(scene, UNIT, (1, 1), 1, weights)
    one = baked.decode()
    assert (len(one), baked.merged) == (1, 39)
    shares = (weights / weights.sum())[:, None]
    assert torch.allclose(one.means[0], (shares * scene.means).sum(dim=0), atol=1e-5)
    assert torch.allclose(one.sh0[0, 0], (shares * scene.sh0[:, 0]).sum(dim=0), atol=1e-5)


def test_neighbours_along_the_ray_are_merged():
    scene = random_scene(5)
    depths = torch.tensor([2.0, 1.0, 2.1, 1.1, 3.0])
    means = torch.stack([torch.zeros(5), torch.zeros(5), depths], dim=1)
    baked = bake(scene.with_tensors(means=means), UNIT, (8, 8), 3, torch.tensor([9.0, 7.0, 1.0, 1.0, 1.0]))
    assert baked.merged == 2
    # The heaviest first.
    assert torch.allclose(baked.decode().means[:, 2], torch.tensor([2.01, 1 + 0.1 / 8, 3.0]), atol=1e-5)


def test_layers_are_ordered_by_weight():
    scene = random_scene(200)
    weights = torch.arange(200.0)
    baked = bake(scene.with_tensors(opacities=weights / 100), UNIT, (6, 6), 200, weights)
    maps = baked.map("opacities")
    both = baked.mask[1:] & baked.mask[:-1]
    assert baked.merged == 0 and both.any()
    assert bool((maps[:-1][both] >= maps[1:][both]).all())
    assert bool((baked.mask[:-1] >= baked.mask[1:]).all())


def test_baking_does_not_hang_on_the_order_of_gaussians():
    scene = random_scene(150, 1)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    assert_same(
        bake(scene, UNIT, (8, 8), 400).texels.tensors(), bake(scene.select(order), UNIT, (8, 8), 400).texels.tensors()
    )


def test_baking_is_deterministic():
    scene = random_scene(150, 1)
    assert_deterministic(lambda: bake(scene, None, (8, 8), 2).texels.tensors())


@every_surface
def test_texel_centers_give_back_the_attributes_bit_for_bit(surface):
    baked = bake(random_scene(400, 3), surface, (48, 64), 2)
    sampled, covered = baked.sample(baked.centers(), baked.mask.nonzero()[:, 0])
    assert bool(covered.all())
    assert_same(sampled.tensors(), baked.decode().tensors())


def test_constant_attributes_are_exact_everywhere():
    one = random_scene(1, 3)
    scattered = random_uvs(6 * 9).reshape(6, 9, 2)[..., 0] < 0.6
    baked = grid_of(6, 9, scattered, degree=3)
    baked = BakedScene(UNIT, baked.mask, one.select(layer0(len(baked.texels))))
    sampled, covered = baked.sample(random_uvs(500), layer0(500))
    assert 0 < int(covered.sum()) < 500
    for name in ATTRIBUTES:
        assert_same(
            sampled.tensors()[name],
            one.tensors()[name].expand(int(covered.sum()), *[-1] * (one.tensors()[name].ndim - 1)).contiguous(),
        )


def test_between_centers_look_up_is_bilinear():
    baked = grid_of(12, 16)
    u, v = baked.centers().float().unbind(dim=1)
    baked = BakedScene(UNIT, baked.mask, baked.texels.with_tensors(opacities=2 * u - 3 * v + 1))
    uvs = random_uvs(300) * 0.8 + 0.1
    sampled, _ = baked.sample(uvs, layer0(300))
    assert torch.allclose(sampled.opacities.double(), 2 * uvs[:, 0] - 3 * uvs[:, 1] + 1, atol=1e-5)


def test_interpolation_error_falls_with_the_square_of_the_resolution():
    def error(height: int) -> float:
        baked = grid_of(height, 2 * height)
        u, v = baked.centers().unbind(dim=1)
        baked = BakedScene(UNIT, baked.mask, baked.texels.with_tensors(opacities=_wave(u, v).float()))
        uvs = random_uvs(2000) * torch.tensor([1.0, 0.8]) + torch.tensor([0.0, 0.1])
        return float((baked.sample(uvs, layer0(2000))[0].opacities - _wave(*uvs.unbind(dim=1))).abs().max())

    assert error(64) < error(32) / 3 < error(16) / 9


def _wave(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.sin(4 * torch.pi * u) * torch.cos(torch.pi * v)


def test_empty_texels_do_not_bleed():
    mask = torch.zeros(5, 8, dtype=torch.bool)
    mask[2, 3] = True
    baked = grid_of(5, 8, mask)
    uvs = random_uvs(400)
    sampled, covered = baked.sample(uvs, layer0(400))
    inside = ((uvs * torch.tensor([8, 5])).long() == torch.tensor([3, 2])).all(dim=1)
    assert bool((covered == inside).all()) and bool(inside.any())
    for name in ATTRIBUTES:
        assert_same(sampled.tensors()[name], baked.texels.tensors()[name][layer0(int(inside.sum()))], name)


def test_the_sphere_closes_and_a_mesh_does_not():
    around, flat = grid_of(4, 8), BakedScene(roof(), torch.ones(1, 4, 8, dtype=torch.bool), random_scene(32))
    edge = torch.tensor([[0.0, 0.375], [1.0, 0.375]], dtype=torch.float64)
    closed = around.sample(edge, layer0(2))[0].opacities
    row = around.map("opacities")[0, 1]
    assert torch.allclose(closed, (row[0] + row[-1]).expand(2) / 2, atol=1e-6)
    row = flat.map("opacities")[0, 1]
    assert_same(flat.sample(edge, layer0(2))[0].opacities, row[[0, -1]])


def test_rotations_of_opposite_sign_do_not_cancel():
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[0, 1:3] = True
    baked = grid_of(2, 4, mask)
    quats = torch.nn.functional.normalize(torch.tensor([[0.02, 1.0, 0, 0], [0.02, -1.0, 0, 0]]))
    baked = BakedScene(UNIT, baked.mask, baked.texels.with_tensors(quats=quats))
    middle = torch.tensor([[0.5, 0.25]], dtype=torch.float64)
    assert baked.sample(middle, layer0(1))[0].quats.norm() > 0.99


def test_new_places_are_drawn_in_proportion_to_the_density():
    mask = random_uvs(48)[:, 0].reshape(6, 8) < 0.8
    baked = grid_of(6, 8, mask)
    # Without offsets, where a Gaussian is tells where it was drawn.
    baked = BakedScene(UNIT, baked.mask, baked.texels.with_tensors(means=torch.zeros(len(baked.texels), 3)))
    density = random_uvs(48, seed=3)[:, 0].reshape(6, 8)
    density[1] = 0
    drawn = resample(baked, density, 6000, seed=2)
    assert len(drawn) == 6000
    places = (UNIT.uvs(drawn.means) * torch.tensor([8, 6])).long()
    counts = torch.bincount(places[:, 1] * 8 + places[:, 0], minlength=48).numpy()
    wanted = (density * mask).flatten().numpy()
    assert not counts[wanted == 0].any()
    assert chisquare(counts[wanted > 0], 6000 * wanted[wanted > 0] / wanted.sum()).pvalue > 0.01


def test_resampling_is_deterministic_and_looks_attributes_up():
    baked = bake(random_scene(300, 1), UNIT, (16, 16), 2)
    density = torch.ones(16, 16)
    assert_deterministic(lambda: resample(baked, density, 50, seed=1).tensors())
    assert not torch.equal(resample(baked, density, 50, seed=1).means, resample(baked, density, 50, seed=2).means)
    second = baked.mask.clone()
    second[0] = False
    alone = resample(baked, second.float(), 50)
    assert float(alone.opacities.min()) >= float(baked.texels.opacities.min())
    layer1 = baked.texels.opacities[baked.mask.nonzero()[:, 0] == 1]
    assert float(layer1.min()) <= float(alone.opacities.min()) <= float(alone.opacities.max()) <= float(layer1.max())


@pytest.mark.parametrize(
    "call",
    [
        lambda scene, baked: bake(scene.select(torch.zeros(0, dtype=torch.int64)), UNIT),
        lambda scene, baked: bake(scene, UNIT, (0, 4)),
        lambda scene, baked: bake(scene, UNIT, (4, 4), 0),
        lambda scene, baked: bake(scene, UNIT, (4, 4), 1, torch.ones(3)),
        lambda scene, baked: bake(scene, UNIT, (4, 4), 1, -torch.ones(20)),
        lambda scene, baked: bake(scene.with_tensors(means=scene.means * torch.nan), UNIT),
        lambda scene, baked: baked.sample(torch.tensor([[1.5, 0.5]]), layer0(1)),
        lambda scene, baked: baked.sample(torch.tensor([[0.5, 0.5]]), layer0(1) + 9),
        lambda scene, baked: resample(baked, torch.ones(3, 3), 5),
        lambda scene, baked: resample(baked, torch.zeros(4, 4), 5),
        lambda scene, baked: resample(baked, -torch.ones(4, 4), 5),
        lambda scene, baked: resample(baked, torch.full((4, 4), torch.inf), 5),
        lambda scene, baked: resample(baked, torch.ones(4, 4), 0),
        lambda scene, baked: BakedScene(UNIT, baked.mask[0], baked.texels),
        lambda scene, baked: Sphere((0.0, 0.0, 0.0), 0.0),
        lambda scene, baked: MeshSurface(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]), torch.zeros(1, 3, 2)),
        lambda scene, baked: MeshSurface(torch.eye(3), torch.tensor([[0, 1, 3]]), torch.eye(3)[None, :, :2]),
        lambda scene, baked: MeshSurface(torch.eye(3), torch.tensor([[0, 1, 2]]), 2 * torch.eye(3)[None, :, :2]),
    ],
)
def test_what_does_not_fit_is_refused(call):
    scene = random_scene(20)
    with pytest.raises(ValueError, match=r"\w"):
        call(scene, bake(scene, UNIT, (4, 4), 2))


@every_surface
@pytest.mark.parametrize("degree", [0, 2])
def test_files_give_back_what_their_bits_hold(tmp_path, surface, degree):
    baked = bake(random_scene(400, degree), surface, (20, 30), 2)
    size = write_baked(baked, tmp_path / "a.baked")
    again = read_baked(tmp_path / "a.baked")
    assert size == (tmp_path / "a.baked").stat().st_size
    assert (again.merged, again.texels.antialiased) == (baked.merged, False)
    assert_same(again.mask, baked.mask)
    span = baked.texels.means.amax(dim=0) - baked.texels.means.amin(dim=0)
    steps = torch.tensor([255, 255, 65535])
    assert bool(((again.texels.means - baked.texels.means).abs() <= 0.51 * span / steps + 1e-6).all())
    assert float((again.texels.scales - baked.texels.scales).abs().max()) < 0.1
    assert float((again.texels.sh0 - baked.texels.sh0).abs().max()) < 0.1
    assert float((torch.sigmoid(again.texels.opacities) - torch.sigmoid(baked.texels.opacities)).abs().max()) < 0.003
    assert bool(((again.texels.quats * baked.texels.quats).sum(dim=1).abs() > 0.9999).all())
    # 400 rows have a palette of their own each; only its numbers are rounded.
    assert degree == 0 or float((again.texels.shN - baked.texels.shN).abs().max()) < 0.05
    write_baked(again, tmp_path / "b.baked")
    assert_same(read_baked(tmp_path / "b.baked").mask, again.mask)


def test_equal_scenes_are_equal_files_and_a_failure_leaves_the_old_one(tmp_path, monkeypatch):
    baked = bake(random_scene(50, 1), roof(), (12, 12), 1)
    for name in ("a.baked", "b.baked"):
        write_baked(baked, tmp_path / name)
    content = (tmp_path / "a.baked").read_bytes()
    assert content == (tmp_path / "b.baked").read_bytes()
    with pytest.raises(ValueError, match="too many for 50 Gaussians"):
        write_baked(bake(random_scene(50), UNIT, (900, 900), 1), tmp_path / "a.baked")
    with pytest.raises(ValueError, match="high or wide"):
        write_baked(bake(random_scene(50), UNIT, (2, 20_000), 1), tmp_path / "a.baked")
    assert (tmp_path / "a.baked").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.baked", "b.baked"]


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files inside of a small baked scene on a mesh."""
    path = tmp_path_factory.mktemp("baked") / "valid.baked"
    write_baked(bake(random_scene(60, 1), roof(), (12, 16), 2), path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def bundled(contents: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def refusal(path: Path) -> str:
    """The message by which a file is refused, which names it; reading it takes no memory to speak of."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=path.name) as caught:
            read_baked(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("format",), "other"),
        (("version",), 2),
        (("version",), None),
        (("count",), 3),
        (("count",), 10**12),
        (("count",), "60"),
        (("merged",), -1),
        (("resolution",), [2, 12]),
        (("resolution",), [2, 16380, 16380]),
        (("resolution",), [2, 10**9, 16]),
        (("resolution",), [2, 16, 12]),
        (("resolution",), [1, 12, 16]),
        (("surface",), {}),
        (("surface",), {"center": [0, 0, 0], "radius": 0}),
        (("surface",), {"center": [0, 0], "radius": 1}),
        (("surface", "vertices"), [0, 0, 0, 1]),
        (("surface", "vertices"), "text"),
        (("surface", "faces"), [0, 1, 99]),
        (("surface", "faces"), []),
        (("surface", "face_uvs"), [0.5] * 24),
        (("offsets", "mins"), [0, 0]),
        (("offsets", "maxs"), [0, 0, "1"]),
        (("offsets", "file"), "../offsets.webp"),
        (("offsets", "file"), "absent.webp"),
        (("quats", "file"), 7),
        (("scales", "codebook"), []),
        (("sh0", "codebook"), [0.5]),
        (("shN", "count"), 10**9),
        (("shN", "bands"), 9),
    ],
)
def test_headers_that_lie_are_refused(contents, tmp_path, keys, value):
    meta: Any = json.loads(contents["meta.json"])
    field = meta
    for key in keys[:-1]:
        field = field[key]
    field[keys[-1]] = value
    refusal(bundled(contents | {"meta.json": json.dumps(meta).encode()}, tmp_path / "lying.baked"))


@pytest.mark.parametrize("size", [(24, 15), (25, 16), (4000, 4000)])
@pytest.mark.parametrize("name", ["offsets.webp", "quats.webp", "scales.webp", "sh0.webp"])
def test_maps_of_another_size_are_refused(contents, tmp_path, name, size):
    image = lossless_webp(np.full((*size, 4), 255, np.uint8))
    assert name in refusal(bundled(contents | {name: image}, tmp_path / "size.baked"))


@pytest.mark.parametrize("name", ["meta.json", "quats.webp", "shN_labels.webp"])
def test_zip_bombs_are_refused(contents, tmp_path, name):
    refusal(bundled(contents | {name: bytes(50 << 20)}, tmp_path / "bomb.baked"))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_baked(tmp_path / "absent.baked")
    (tmp_path / "text.baked").write_bytes(b"not a zip")
    refusal(tmp_path / "text.baked")


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data())
def test_damage_never_escapes_as_another_error(contents, tmp_path, data):
    content = bytearray(bundled(contents, tmp_path / "valid.baked").read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(1, 4)) if content else 0):
        position = data.draw(st.integers(0, len(content) - 1) | st.integers(1, min(60, len(content))).map(lambda i: -i))
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "damaged.baked"
    path.write_bytes(content)
    try:
        assert isinstance(read_baked(path), BakedScene)
    except ValueError as error:
        assert path.name in str(error)
