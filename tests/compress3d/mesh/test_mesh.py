"""A mesh as something prunable: the house's contracts, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from compress3d.mesh.importance import SilhouetteCoverage, Silhouettes
from compress3d.mesh.mesh import FACES, Mesh
from compress3d.mesh.shapes import icosphere
from compress3d.mesh.silhouette import silhouettes, soft_silhouettes
from secateur.allocation import Budget, allocate
from secateur.importance import Magnitude, MaskTaylor, Random, Taylor
from secateur.importance.objective import Objective
from secateur.mask_fit import MaskFit
from secateur.masks import Sigmoid
from secateur.training import Collated, fit
from tests.compress3d.mesh.views import ring_of_cameras
from tests.contracts import (
    assert_deterministic,
    assert_exact_budget,
    assert_full_keep_changes_nothing,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
    assert_permutes,
    assert_same,
    assert_scores_fit,
)

CAMERAS = ring_of_cameras(3, size=32)


def lumpy() -> Mesh:
    sphere = icosphere(2)
    generator = torch.Generator().manual_seed(0)
    return sphere.with_vertices(sphere.vertices * (1 + 0.3 * torch.rand(len(sphere.vertices), 1, generator=generator)))


def permuted(mesh: Mesh, order: torch.Tensor) -> Mesh:
    return Mesh(mesh.vertices, mesh.faces[order])


def half_disc() -> Silhouettes:
    alphas = silhouettes(lumpy(), CAMERAS)
    alphas[:, :, :14] = 0
    return Silhouettes(CAMERAS, alphas)


def test_masks_and_cuts_agree_in_the_soft_silhouette() -> None:
    mesh = lumpy()
    keep = {FACES: torch.rand(len(mesh), generator=torch.Generator().manual_seed(1)) > 0.4}
    assert_full_keep_changes_nothing(mesh)
    assert_mask_of_ones_changes_nothing(mesh, lambda target: soft_silhouettes(target, CAMERAS))
    assert_mask_equals_cut(mesh, keep, lambda target: soft_silhouettes(target, CAMERAS))


def test_a_full_cut_keeps_even_vertices_that_no_face_names_and_a_real_one_drops_its_own() -> None:
    mesh = Mesh(torch.rand(6, 3), torch.tensor([[0, 1, 2], [1, 2, 3]]))
    assert_full_keep_changes_nothing(mesh)
    small = mesh.cut({FACES: torch.tensor([True, False])})
    assert_same(small.vertices, mesh.vertices[[0, 1, 2, 4, 5]])
    assert_same(small.faces, torch.tensor([[0, 1, 2]]))
    assert len(small.without_stray_vertices().vertices) == 3


def test_silhouette_coverage_keeps_the_contracts_of_criteria() -> None:
    mesh, criterion = lumpy(), SilhouetteCoverage()
    scores = assert_deterministic(lambda: criterion.score(mesh, half_disc()))
    assert_scores_fit(scores, mesh.groups())
    assert_permutes(lambda target: criterion.score(target, half_disc()), mesh, permuted, FACES)
    budget = Budget(share=0.4, cost="faces")
    assert_exact_budget(allocate(scores, mesh.groups(), budget), mesh.groups(), budget)


def shadow_loss(target: Mesh) -> torch.Tensor:
    return (soft_silhouettes(target, CAMERAS) - half_disc().alphas).square().mean()


class ShadowError(Objective):
    """The squared error of the soft silhouettes."""

    def losses(self, target: Mesh):  # type: ignore[no-untyped-def, override]
        yield shadow_loss(target)


def test_criteria_of_the_core_score_faces() -> None:
    mesh = lumpy()
    for criterion in (Magnitude(), Random(0)):
        assert_scores_fit(criterion.score(mesh), mesh.groups())
    mesh = mesh.with_vertices(mesh.vertices.clone().requires_grad_())
    for criterion in (Taylor(), MaskTaylor()):
        assert_scores_fit(criterion.score(mesh, ShadowError()), mesh.groups())


def test_a_trained_mask_fits_the_silhouettes_and_drops_what_sticks_out() -> None:
    mesh = lumpy()
    out = SilhouetteCoverage().score(mesh, half_disc())[FACES] < 0.01
    mask = Sigmoid(mesh.groups(), initial=2.0)
    fit(MaskFit(mesh, mask, lambda target, batch: shadow_loss(target), rate=0.5), Collated([0], 1), steps=25)
    keep = mask.keep()
    gone = ~keep[FACES]
    assert int(out.sum()) > 20
    # Half of the others may go too: two sides of a closed surface cover the same pixels.
    assert float(gone[out].float().mean()) > 0.7
    assert float(shadow_loss(mesh.cut(keep))) < 0.5 * float(shadow_loss(mesh))


@pytest.mark.parametrize(
    ("vertices", "faces", "words"),
    [
        ([[0.0, 0, 0], [float("nan"), 0, 0], [0, float("inf"), 0]], [[0, 1, 2]], "2 of 3 vertices are not finite"),
        ([[0.0, 0, 0]], [[0, 0, 1]], "1 of 1 faces name vertices beyond the 1"),
        ([[0.0, 0, 0]], [[0, 0, -1]], "1 of 1 faces name vertices"),
        ([[0.0, 0]], [[0, 0, 0]], r"vertices must be \(V, 3\)"),
    ],
)
def test_what_is_no_mesh_is_refused(vertices: list, faces: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Mesh(torch.tensor(vertices), torch.tensor(faces))
