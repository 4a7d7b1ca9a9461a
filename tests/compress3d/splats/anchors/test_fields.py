"""Fields: what they decode, their gradients, and their face as something prunable."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.anchors import ForestField, NeuralField, ScaffoldField, render_field
from compress3d.splats.anchors.field import rasterize
from compress3d.splats.anchors.scaffold import voxelize
from secateur.units import Prunable
from tests.compress3d.splats.anchors.captures import forest, points, ring, scaffold
from tests.contracts import (
    assert_deterministic,
    assert_full_keep_changes_nothing,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
)

BOTH = pytest.mark.parametrize("make", [scaffold, forest])
Make = Callable[[], NeuralField]
Field = TypeVar("Field", bound=NeuralField)


def images(field: NeuralField) -> Tensor:
    with torch.no_grad():
        return torch.stack(list(render_field(field, ring(2))))


def stirred(field: Field, amount: float = 0.2) -> Field:
    """The field with all its parameters off their starting values."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator).to(parameter))
    return field


@BOTH
def test_masks_and_cuts_keep_their_contracts(make: Make) -> None:
    field = stirred(make())
    target: Prunable = field
    keep = {field.group: torch.rand(len(field), generator=torch.Generator().manual_seed(1)) < 0.5}
    assert_full_keep_changes_nothing(target)
    assert_mask_of_ones_changes_nothing(target, images)
    assert_mask_equals_cut(target, keep, images)


@BOTH
def test_masks_are_differentiable_and_checked(make: Make) -> None:
    field = stirred(make())
    mask = torch.full((len(field),), 0.5, requires_grad=True)
    with field.masked({field.group: mask}):
        for image in render_field(field, ring(1)):
            image.square().sum().backward()
    assert mask.grad is not None and bool((mask.grad != 0).any())
    with pytest.raises(ValueError, match=field.group), field.masked({field.group: torch.ones(3)}):
        pass
    with pytest.raises(ValueError, match="keep"):
        field.cut({})


@BOTH
def test_fields_are_made_from_their_seed_alone(make: Make) -> None:
    state = assert_deterministic(lambda: dict(make().state_dict()))
    assert any(not torch.equal(state[name], other) for name, other in make(seed=1).state_dict().items())  # type: ignore[call-arg]


@BOTH
def test_gradients_of_the_decoding_agree_with_differences(make: Make) -> None:
    field = stirred(make())
    field = field.cut({field.group: torch.arange(len(field)) < 3}).double()
    names = [name for name, _ in field.named_parameters()]
    position = torch.tensor([1.0, -0.5, 3.0], dtype=torch.float64)

    def decode(*values: Tensor) -> tuple[Tensor, ...]:
        parameters = dict(zip(names, values, strict=True))
        own = {f"field.{name}": value for name, value in parameters.items()}
        return tuple(torch.func.functional_call(_Decoder(field), own, position))

    values = [parameter.detach().clone().requires_grad_() for _, parameter in field.named_parameters()]
    assert torch.autograd.gradcheck(decode, values, eps=1e-6, atol=1e-6)


class _Decoder(torch.nn.Module):
    def __init__(self, field: NeuralField) -> None:
        super().__init__()
        self.field = field

    def forward(self, position: Tensor) -> list[Tensor]:
        gaussians = self.field.gaussians(position)
        return [gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.colors]


@BOTH
def test_units_outside_the_frustum_would_not_be_drawn(make: Make) -> None:
    field = stirred(make())
    camera = ring(1)
    narrow = Cameras(camera.viewmats, camera.Ks * torch.tensor([3.0, 3.0, 1.0])[:, None], 48, 48)
    units = field.units_in_view(narrow)
    assert 0 < len(units) < len(field)
    everything = field.decode_units(narrow, torch.arange(len(field)))
    white = torch.ones(3)
    whole, part = rasterize(everything, narrow, white)[0], rasterize(field.decode(narrow), narrow, white)[0]
    torch.testing.assert_close(part, whole, rtol=0, atol=1e-6)


@BOTH
def test_a_field_is_decoded_for_one_camera(make: Make) -> None:
    with pytest.raises(ValueError, match="one camera"):
        make().decode(ring(2))


def test_anchors_are_the_voxels_that_hold_points() -> None:
    cloud = torch.tensor([[0.01, 0.0, 0.0], [0.04, -0.02, 0.0], [0.06, 0.0, 0.0], [1.0, 1.0, 1.0]])
    expected = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(voxelize(cloud, 0.1), expected)
    torch.testing.assert_close(ScaffoldField.from_points(cloud, voxel_size=0.1).anchors, expected)


def test_anchors_decode_k_gaussians_each_but_those_of_no_opacity() -> None:
    field = stirred(scaffold())
    camera = ring(1)
    every = field.gaussians(camera.positions[0])
    assert len(every) == len(field) * 4
    chosen = field.decode(camera)
    assert 0 < len(chosen) < len(every)
    assert bool((chosen.opacities > 0).all())
    torch.testing.assert_close(chosen.means, every.means[chosen.slots])
    bound = field.scalings.exp()[chosen.slots // 4, 3:]
    assert bool((chosen.scales <= bound).all())


def test_what_an_anchor_shows_depends_on_the_view() -> None:
    field = stirred(scaffold())
    with torch.no_grad():
        first, second = (field.gaussians(position) for position in ring(2).positions)
    torch.testing.assert_close(first.means, second.means)
    assert float((first.colors - second.colors).abs().max()) > 0.01


def test_leaves_of_a_branch_share_their_shape_and_nothing_else() -> None:
    field = stirred(forest())
    gaussians = field.gaussians(ring(1).positions[0])
    parent = int(torch.bincount(field.parents).argmax())
    siblings = (field.parents == parent).nonzero()[:, 0]
    assert len(siblings) > 1
    assert torch.equal(gaussians.scales[siblings[0]], gaussians.scales[siblings[1]])
    assert torch.equal(gaussians.quats[siblings[0]], gaussians.quats[siblings[1]])
    assert not torch.equal(gaussians.means[siblings[0]], gaussians.means[siblings[1]])
    assert not torch.equal(gaussians.opacities[siblings[0]], gaussians.opacities[siblings[1]])


def test_one_leaf_a_branch_is_a_plain_gaussian() -> None:
    field = ForestField.from_points(points(40), voxel_size=1e-4, branching=1.0)
    assert len(field) == len(field.inner_features) == len(field.root_features) == 40


def test_a_branch_goes_with_its_last_leaf_and_a_root_with_its_last_branch() -> None:
    field = forest()
    gone = field.roots[field.parents] == 0
    small = field.cut({"leaves": ~gone})
    assert len(small.root_features) == len(field.root_features) - 1
    assert len(small.inner_features) == len(field.inner_features) - int((field.roots == 0).sum())
    assert torch.equal(small.inner_features, field.inner_features[field.roots != 0])


def test_a_forest_needs_a_child_on_every_branch() -> None:
    field = forest()
    with pytest.raises(ValueError, match="parents"):
        ForestField(field.means, field.parents + 1, field.roots, field.spans, field.settings)
    with pytest.raises(ValueError, match="roots"):
        ForestField(field.means, field.parents, field.roots.float(), field.spans, field.settings)
    with pytest.raises(ValueError, match="spans must be above 0"):
        ForestField(field.means, field.parents, field.roots, 0 * field.spans, field.settings)
    with pytest.raises(ValueError, match="at least 4"):
        ForestField.from_points(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="on top of each other"):
        ScaffoldField.from_points(torch.zeros(9, 3))
