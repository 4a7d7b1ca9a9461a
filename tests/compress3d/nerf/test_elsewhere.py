"""Fields on a device that is not the CPU, which every machine can stand in for: nothing of them is left behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress3d.captures import Capture
from compress3d.nerf import cli, evaluation
from compress3d.nerf import train as training_module
from compress3d.nerf.compress import keep_best
from compress3d.nerf.field import Field
from compress3d.nerf.files import load_field, save_field
from compress3d.nerf.hollow import HollowField, hollowed
from compress3d.nerf.hollow_training import Hollowing, HollowTraining, train_hollow
from compress3d.nerf.importance import VisitedMagnitude
from compress3d.nerf.objective import PhotographError
from compress3d.nerf.pixels import draw_pixels
from compress3d.nerf.points import surface_points
from compress3d.nerf.rays import Rays
from compress3d.nerf.recover import recover
from compress3d.nerf.render import orbit_of, render, trace
from compress3d.nerf.rounding import rounding_for
from compress3d.nerf.sharing import share
from compress3d.nerf.teacher import teacher_capture, views_around
from compress3d.nerf.train import Training, fit_field, train
from secateur.console import silent
from secateur.importance import Fisher, MaskTaylor, Taylor
from secateur.units import Scores
from tests.compress3d.nerf.elsewhere import DEVICE, Elsewhere, elsewhere
from tests.compress3d.nerf.fields import BOX, QUICK, some_field
from tests.compress3d.splats.photographed import photographed, write_capture

TINY = dataclasses.replace(
    QUICK, levels=2, log2_table=8, lowest_resolution=4, highest_resolution=8, samples=256, watch_every=1.0, box=BOX
)

SMALL = Hollowing(resolution=8, every=1)


@pytest.fixture(autouse=True)
def _few_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is computed elsewhere takes its time: each operation is looked at."""
    for name, fewer in (("_WATCHED_PIXELS", 16), ("_OCCUPANCY_EVERY", 2), ("_OCCUPANCY_SAMPLES", 64)):
        monkeypatch.setattr(training_module, name, fewer)


@pytest.fixture
def there() -> Iterator[torch.device]:
    with elsewhere() as device:
        yield device


@pytest.fixture(scope="module")
def capture() -> Capture:
    return photographed(8).resized(factor=0.5)


def tiny_field() -> Field:
    """Solid enough that rays end."""
    field = training_module.FieldTraining(photographed(8), TINY, 1).field
    with torch.no_grad():
        field.table.copy_(torch.randn(field.table.shape, generator=torch.Generator().manual_seed(1)))
        field.density[-1].weight[0] *= 9
    return field


def some_rays(field: Field) -> Rays:
    """Through 60 pixels, on the CPU."""
    return draw_pixels(photographed(4), torch.arange(4), 60, torch.Generator()).rays(field.box)


def scored(field: Field, capture: Capture, worth: str) -> Scores:
    """By few rays."""
    if worth == "visits":
        return VisitedMagnitude(rays=30, batches=1).score(field, capture)
    return Fisher().score(field, PhotographError(capture, rays=30, batches=1))


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
    assert isinstance(theirs, Elsewhere) and not isinstance(ours, Elsewhere)
    torch.testing.assert_close(theirs.cpu(), ours, rtol=tolerance, atol=tolerance * float(ours.detach().abs().max()))


def test_what_is_left_on_the_cpu_is_found(there: torch.device) -> None:
    away, left = torch.ones(2).to(there), torch.ones(2)
    assert (away * 2 + torch.tensor(1.0)).cpu().tolist() == [3.0, 3.0]
    with pytest.raises(RuntimeError, match="on the CPU"):
        away + left
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, generator=torch.Generator(), device=there)
    with pytest.raises(RuntimeError, match="indices"):
        left[torch.tensor([0]).to(there)]
    with pytest.raises(RuntimeError, match="numpy"):
        away.numpy()


def test_a_field_is_seen_as_on_the_cpu(there: torch.device) -> None:
    here, away = tiny_field(), tiny_field().to(there)
    cameras = orbit_of(here.box, 2, 10, 8)
    for ours, theirs in zip(render(here, cameras, 1), render(away, cameras, 1), strict=True):
        assert_near(ours, theirs)
    rays = some_rays(here)
    shift = torch.rand(60, generator=torch.Generator())
    seen = [trace(field, rays, shift) for field in (here, away)]
    assert seen[0][1] == seen[1][1]
    gradients = [
        torch.autograd.grad(pixels.colors.square().sum() + pixels.depths.sum(), list(field.parameters()))
        for field, (pixels, _) in zip((here, away), seen, strict=True)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize("changed", [{}, {"cone": 0.01, "random_background": False, "ema": 0.9}])
def test_training_goes_as_on_the_cpu(there: torch.device, capture: Capture, changed: dict[str, object]) -> None:
    training: Training = dataclasses.replace(TINY, **changed)  # type: ignore[arg-type]
    ours, theirs = (training_module.FieldTraining(capture, training, 4, device=device) for device in ("cpu", there))
    losses = [fit_field(module, 4, None, False, silent).losses[-1][1] for module in (ours, theirs)]
    assert theirs.field.device == DEVICE
    assert all(isinstance(tensor, Elsewhere) for tensor in theirs.field.state_dict().values())
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert theirs.watched[-1][2] == pytest.approx(ours.watched[-1][2], abs=0.1)
    assert theirs.total_samples == pytest.approx(ours.total_samples, rel=1e-2)


def test_a_trained_field_is_judged_there(there: torch.device, capture: Capture) -> None:
    field, record = train(capture, steps=1, training=TINY, device=there)
    assert field.device == DEVICE and record.options["device"] == "meta" and record.quality is not None


def test_a_field_becomes_hollow_there(there: torch.device, capture: Capture) -> None:
    field, record = train_hollow(capture, steps=4, training=TINY, hollowing=SMALL, device=there)
    assert field.device == DEVICE and len(record.residuals) == 3 and record.plain.steps == 1


def test_a_stopped_training_goes_on_there(there: torch.device, capture: Capture, tmp_path: Path) -> None:
    whole, stopped, resumed = (HollowTraining(capture, TINY, 4, SMALL, there) for _ in range(3))
    fit_field(whole, 4, None, False, silent)

    def stop(done: float, doing: str) -> None:
        if done >= 0.5:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        fit_field(stopped, 4, checkpoint, False, stop, seconds=0.0)
    fit_field(resumed, 4, checkpoint, True, silent)
    assert resumed.total_samples == whole.total_samples
    assert isinstance(resumed.split.z, Elsewhere) and torch.equal(resumed.split.z.cpu(), whole.split.z.cpu())
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name].cpu(), tensor.cpu()), name


@pytest.mark.parametrize("worth", ["fisher", "visits"])
def test_a_field_is_made_smaller_there(there: torch.device, capture: Capture, worth: str, tmp_path: Path) -> None:
    here, away = tiny_field(), tiny_field().to(there)
    scores = [scored(field, capture, worth) for field in (here, away)]
    assert_near(scores[0]["rows"], scores[1]["rows"], 1e-3)
    small = away.cut(keep_best(away, scores[1], 0.3))
    assert small.device == DEVICE and isinstance(small.slots, Elsewhere)
    rounding = rounding_for(small, 4)
    recover(small, capture, 2, rounding=rounding, training=TINY)
    save_field(small, tmp_path / "small.safetensors", rounding)
    read = load_field(tmp_path / "small.safetensors")
    torch.testing.assert_close(read.table, small.table.detach().cpu(), rtol=0, atol=0)
    with torch.no_grad():
        assert_near(*(trace(field, some_rays(field), 0.5)[0].colors for field in (read, small)))


def test_masks_shares_points_and_teachers(there: torch.device, capture: Capture) -> None:
    field = tiny_field().to(there)
    masks = {group.name: torch.ones(group.size) for group in field.groups()}
    scores = MaskTaylor().score(field, PhotographError(capture, rays=20, batches=1))
    assert set(scores) == set(masks)
    shared, sharing, _, _ = share(field, capture, 0.5, steps=1, training=TINY)
    assert shared.device == DEVICE and sharing.slots.device == DEVICE
    cameras = views_around(field.box, 2, 12)
    points = surface_points(field, cameras, 20)
    assert points.xyz.device.type == points.rgb.device.type == "cpu"
    assert teacher_capture(field, cameras).images.device.type == "cpu"


def test_a_field_comes_back(there: torch.device) -> None:
    field = some_field()
    before = {name: tensor.clone() for name, tensor in field.state_dict().items()}
    after = field.to(there).to("cpu").state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name].cpu(), tensor, rtol=0, atol=0)


def test_commands_work_there(there: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cli, evaluation):
        monkeypatch.setattr(module, "device_named", lambda name: there)
    for name, fewer in (("_SIZE", 12), ("_TIMED_VIEWS", 1), ("_TIMED_REPEATS", 1)):
        monkeypatch.setattr(evaluation, name, fewer)
    for name, fewer in (("_POINT_VIEWS", 2), ("_POINT_VIEW_SIZE", 12)):
        monkeypatch.setattr(cli, name, fewer)
    file, other = tmp_path / "field.safetensors", tmp_path / "other.safetensors"
    save_field(tiny_field(), file)
    save_field(tiny_field(), other)
    folder = write_capture(tmp_path / "blobs")
    (drawn,) = cli.render_file(file, tmp_path / "view.png", None, None, "-y", 8, 8)
    assert Path(drawn).exists()
    cli.points_file(file, tmp_path / "points.ply", 20, 0)
    record = cli.evaluate_file(file, folder, 12, None, False, tmp_path / "report")
    assert record.quality.mean_psnr > 0 and (tmp_path / "report" / "index.html").exists()
    evaluated = evaluation.evaluate_files(file, [other], tmp_path / "comparison", views=1)
    assert evaluated.record.candidates[0].measurements["rows"].value == len(tiny_field().table)


def test_voxels_are_cut_there(there: torch.device, capture: Capture) -> None:
    field = HollowField(tiny_field().to(there), 8)
    scores = Taylor().score(field, PhotographError(capture, rays=30, batches=1))["voxels"]
    stays = scores > scores.median()
    everything = {group.name: torch.ones(group.size, dtype=torch.bool, device=there) for group in field.groups()}
    small = field.cut(everything | {"voxels": stays})
    assert small.device == DEVICE and isinstance(small.voxels, Elsewhere)
    masks = {name: mask.float() for name, mask in everything.items()} | {"voxels": stays.float()}
    with torch.no_grad(), field.masked(masks):
        masked = trace(field, some_rays(field), 0.5)[0].colors.cpu()
    with torch.no_grad():
        assert_near(masked, trace(small, some_rays(small), 0.5)[0].colors)
    assert hollowed(small, small.present()).device == DEVICE
