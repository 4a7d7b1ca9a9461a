"""Growing and pruning: where gradients are, how far up, and with the optimiser's state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.optim import Adam

from compress3d.splats.anchors import AnchorGrower, ForestGrower, GrowthSchedule
from compress3d.splats.anchors.field import rasterize
from compress3d.splats.anchors.rows import Sightings, change_rows
from compress3d.splats.anchors.scaffold import cells
from tests.compress3d.splats.anchors.captures import forest, ring, scaffold
from tests.contracts import assert_deterministic, assert_same

SCHEDULE = GrowthSchedule(0, 10, 100, 10)


def grower(pulls: Tensor | None = None) -> tuple[AnchorGrower, Adam]:
    """A grower that has seen each Gaussian in all steps, pulled as given."""
    one = AnchorGrower(scaffold(), SCHEDULE)
    one.sightings.visits[:] = 10
    if pulls is not None:
        one.sightings.pulls = 10 * pulls
    return one, Adam(one.field.parameters())


def pulled(count: int, which: Tensor, strength: float) -> Tensor:
    pulls = torch.zeros(count)
    pulls[which] = strength
    return pulls


def test_the_schedule_says_when() -> None:
    schedule = GrowthSchedule(observe_from=5, start=20, stop=40, every=10)
    assert [done for done in range(60) if schedule.due(done)] == [20, 30, 40]
    assert [step for step in range(60) if schedule.observes(step)] == list(range(5, 40))
    assert GrowthSchedule.scaled(30_000) == GrowthSchedule()
    assert GrowthSchedule.scaled(3000) == GrowthSchedule(50, 150, 1500, 100)
    with pytest.raises(ValueError, match="schedule"):
        GrowthSchedule(observe_from=10, start=5)


def test_anchors_grow_where_gaussians_are_pulled_and_only_there() -> None:
    one, adam = grower()
    field, count = one.field, len(one.field)
    with torch.no_grad():
        field.offsets.normal_(generator=torch.Generator().manual_seed(0)).mul_(4)
    means = field.means().reshape(-1, 3).detach()
    strong = torch.arange(0, len(means), 7)
    one.sightings.pulls = 10 * pulled(len(means), strong, 1e-2)
    before = field.anchors.clone()
    added = one.grow(adam, step=3)
    assert added == len(field) - count > 0
    assert torch.equal(field.anchors[:count], before)
    sizes = [0.1 * 16 / 4**level for level in range(3)]
    new = field.anchors[count:]
    size = field.scalings[count:, 0].exp()
    for edge in sizes:
        level = torch.isclose(size, torch.tensor(edge))
        hosts = {tuple(cell) for cell in cells(means[strong], edge).tolist()}
        taken = {tuple(cell) for cell in cells(before, edge).tolist()}
        born = {tuple(cell) for cell in cells(new[level], edge).tolist()}
        assert born <= hosts - taken
    assert bool((field.offsets[count:] == 0).all())
    assert len(torch.unique(cells(field.anchors, 0.1), dim=0)) == len(field)


def test_gentle_pulls_and_few_visits_grow_nothing() -> None:
    one, adam = grower(torch.full((60 * 4,), 1e-5)[: len(scaffold()) * 4])
    assert one.grow(adam, step=1) == 0
    one.sightings.pulls[:] = 1.0
    one.sightings.visits[:] = 4
    assert one.grow(adam, step=1) == 0


def test_a_new_anchor_takes_the_largest_features_of_those_it_comes_from() -> None:
    one, _ = grower()
    field = one.field
    with torch.no_grad():
        field.features.normal_(generator=torch.Generator().manual_seed(0))
    far = torch.tensor([[9.0, 9.0, 9.0], [9.02, 9.0, 9.0]])
    anchors, features = one._sprout(far, torch.tensor([3, 5]), 0.1)
    torch.testing.assert_close(anchors, torch.tensor([[9.0, 9.0, 9.0]]))
    torch.testing.assert_close(features[0], torch.maximum(field.features[3], field.features[5]).detach())


def test_faint_anchors_are_pruned_without_a_change_of_the_image() -> None:
    one, adam = grower()
    field = one.field
    faint = torch.arange(0, len(field), 3)
    with torch.no_grad():
        into, out = (field.opacity_network.get_parameter(f"{layer}.weight") for layer in (0, 2))
        field.opacity_network.get_parameter("2.bias").fill_(-1.0)
        for weight in (into, out):
            weight.zero_()
        into[0, 0], out[:, 0] = 1.0, 4.0
        field.features[:, 0] = 1.0
        field.features[faint, 0] = -1.0
    camera = ring(1)
    units = field.units_in_view(camera)
    image, meta = rasterize(field.decode(camera), camera, torch.ones(3))
    meta["means2d"].retain_grad()
    for _ in range(10):
        one.observe(camera, units, field.decode(camera), meta)
    assert one.prune(adam) == len(torch.isin(units, faint).nonzero()) > 0
    assert bool((field.features[:, 0] > 0).all())
    assert_same(rasterize(field.decode(camera), camera, torch.ones(3))[0], image)


def test_anchors_that_were_hardly_seen_stay() -> None:
    one, adam = grower()
    one.views[:] = 7
    assert one.prune(adam) == 0
    one.views[:] = 9
    assert one.prune(adam) == len(scaffold()) - 1, "all but one go: a field has at least a unit"


def test_growth_is_the_same_for_the_same_seed_and_step() -> None:
    def grown() -> dict[str, Tensor]:
        one, adam = grower(torch.full((len(scaffold()) * 4,), 1e-2))
        with torch.no_grad():
            one.field.offsets.normal_(generator=torch.Generator().manual_seed(0)).mul_(3)
        one.grow(adam, step=2)
        return dict(one.field.state_dict())

    assert_deterministic(grown)


def test_moments_follow_their_rows() -> None:
    module = torch.nn.Module()
    module.rows = torch.nn.Parameter(torch.arange(5.0)[:, None])
    adam = Adam(module.parameters())
    module.rows.square().sum().backward()
    adam.step()
    before, moments = module.rows.detach().clone(), adam.state[module.rows]["exp_avg"].clone()
    alive = module.rows.square().sum()
    change_rows(adam, module, "rows", torch.tensor([4, 1]), torch.full((2, 1), 7.0))
    torch.testing.assert_close(module.rows.detach(), torch.cat([before[[4, 1]], torch.full((2, 1), 7.0)]))
    torch.testing.assert_close(adam.state[module.rows]["exp_avg"], torch.cat([moments[[4, 1]], torch.zeros(2, 1)]))
    module.rows.square().sum().backward()
    adam.step()
    assert bool((module.rows.detach()[2:] < 7.0).all())
    alive.backward()


def test_sightings_measure_pulls_in_halves_of_the_image() -> None:
    field, camera = forest(), ring(1)
    gaussians = field.decode(camera)
    image, meta = rasterize(gaussians, camera, torch.ones(3))
    meta["means2d"].retain_grad()
    image.square().sum().backward()
    sightings = Sightings(len(field))
    sightings.add(camera, gaussians, meta)
    sightings.add(camera, gaussians, meta)
    expected = meta["means2d"].grad[0].norm(dim=1) * 24
    torch.testing.assert_close(sightings.means()[gaussians.slots], expected)
    assert float(sightings.visits.max()) == 2


@pytest.mark.parametrize(("strength", "branches", "roots"), [(2.5e-4, 0, 0), (5e-4, 1, 0), (1e-3, 1, 1)])
def test_a_forest_grows_higher_up_the_steeper_the_gradient(strength: float, branches: int, roots: int) -> None:
    field = forest()
    leaves, inner, trees = len(field), len(field.inner_features), len(field.root_features)
    one = ForestGrower(field, SCHEDULE)
    one.sightings.visits[:] = 1
    one.sightings.pulls[17] = strength
    assert one.grow(Adam(field.parameters()), step=1) == 1
    assert len(field) == leaves + 1
    assert (len(field.inner_features) - inner, len(field.root_features) - trees) == (branches, roots)
    parent = int(field.parents[-1])
    assert parent == (inner if branches else int(field.parents[17]))
    assert int(field.roots[parent]) == (trees if roots else int(field.roots[field.parents[17]]))
    assert torch.equal(field.inner_features[parent], field.inner_features[field.parents[17]])
    assert torch.equal(field.opacities[-1], field.opacities[17])
    distance = (field.means[-1] - field.means[17]).detach().norm()
    assert 0 < float(distance) < 6 * float(field.shapes()[0].detach().max())


def test_a_forest_stops_at_its_limit_with_the_steepest() -> None:
    field = forest()
    leaves = len(field)
    one = ForestGrower(field, SCHEDULE, max_leaves=leaves + 2)
    one.sightings.visits[:] = 1
    one.sightings.pulls = torch.linspace(0, 1, leaves)
    one.grow(Adam(field.parameters()), step=1)
    assert len(field) == leaves + 2
    assert torch.equal(field.opacities[-2:], field.opacities[leaves - 2 : leaves])


def test_pruned_leaves_take_childless_branches_along() -> None:
    field = forest()
    expected = field.cut({"leaves": field.roots[field.parents] != 0})
    with torch.no_grad():
        field.opacities[field.roots[field.parents] == 0] = -9
    one = ForestGrower(field, SCHEDULE)
    one.prune(Adam(field.parameters()))
    assert_same(dict(expected.state_dict()), dict(field.state_dict()))
    assert len(one.sightings.visits) == len(field)
