"""Recovery: gradients win back quality, never lose it, and the rounding that is in the loop is the file's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress3d.splats.formats import read_scene, write_scene
from compress3d.splats.pictures import Renders
from compress3d.splats.rasterize import render
from compress3d.splats.recover import RECOVERY, Recover
from compress3d.splats.rounding import SogRounding, SpzRounding, has_rounding, rounding_for
from compress3d.splats.scene import SplatScene
from compress3d.splats.views import sample_views
from secateur.cli import main
from secateur.metrics.image import psnr
from tests.compress3d.splats.rasterize.clouds import rounded, scene_of
from tests.contracts import assert_deterministic, assert_same

CLOUD = rounded(150, size=0.25)
ORIGINAL = scene_of(CLOUD, degree=1)
VIEWS = sample_views(ORIGINAL, 8, 40, 40, layout="outside_in")


def disturbed(scene: SplatScene = ORIGINAL) -> SplatScene:
    random = torch.Generator().manual_seed(3)
    return scene.with_tensors(
        **{name: t + 0.15 * t.std() * torch.randn(t.shape, generator=random) for name, t in scene.tensors().items()}
    )


def quality(scene: SplatScene) -> float:
    with torch.no_grad():
        return float(psnr(render(scene, VIEWS), render(ORIGINAL, VIEWS)).mean())


def test_a_disturbed_scene_comes_back() -> None:
    teacher, held_out = Renders.of(ORIGINAL, VIEWS[:6]), Renders.of(ORIGINAL, VIEWS[6:])
    better, record = Recover(steps=120)(disturbed(), [teacher], held_out)
    assert quality(better) > quality(disturbed()) + 1.5
    assert record.steps == 120 and len(record.losses) > 10
    assert record.losses[-1][1] < record.losses[0][1]


def test_recovery_is_deterministic_and_leaves_its_scene_alone() -> None:
    scene = disturbed()
    before = {name: tensor.clone() for name, tensor in scene.tensors().items()}
    teacher = Renders.of(ORIGINAL, VIEWS)
    assert_deterministic(lambda: dict(Recover(steps=12)(scene, [teacher])[0].tensors()))
    assert_same(before, dict(scene.tensors()))


def test_it_never_ends_worse_than_it_began() -> None:
    """Rates that wreck the scene leave it as it was, and so does the original as its own start."""
    teacher = Renders.of(ORIGINAL, VIEWS)
    rates = Recover().finer(1).rates
    wild = Recover(steps=10, rates=type(rates)(means=1e3, quats=1, scales=10, opacities=30, sh0=30, shN=30))
    assert_same(dict(ORIGINAL.tensors()), dict(wild(ORIGINAL, [teacher], teacher)[0].tensors()))


def test_no_steps_change_nothing() -> None:
    scene = disturbed()
    same, _ = Recover(steps=0)(scene, [Renders.of(ORIGINAL, VIEWS)])
    assert_same(dict(scene.tensors()), dict(same.tensors()))


def test_no_pictures_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        Recover(steps=1)(ORIGINAL, [])


def test_a_stopped_recovery_goes_on_where_it_was(tmp_path: Path) -> None:
    teacher = Renders.of(ORIGINAL, VIEWS)
    recover, file = Recover(steps=8), tmp_path / "recovery.ckpt"
    whole, record = recover(disturbed(), [teacher], teacher)

    def strike(done: float, said: str) -> None:
        if done > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(disturbed(), [teacher], teacher, checkpoint=file, report=strike)
    resumed, again = recover(disturbed(), [teacher], teacher, checkpoint=file, resume=True)
    assert_same(dict(whole.tensors()), dict(resumed.tensors()))
    assert record.losses == again.losses


def test_transparency_is_learnt_and_not_white() -> None:
    pale = ORIGINAL.with_tensors(sh0=torch.full_like(ORIGINAL.sh0, 1.7), shN=torch.zeros_like(ORIGINAL.shN))
    nothing = Renders.of(ORIGINAL.select(torch.arange(0)), VIEWS)
    on_white, _ = Recover(steps=60, backgrounds=0.0)(pale, [nothing])
    on_any, _ = Recover(steps=60, backgrounds=1.0)(pale, [nothing])
    assert float(on_any.peak_opacities().mean()) < float(on_white.peak_opacities().mean())


@pytest.mark.parametrize("name", ["a.sog", "a.spz", "folder"])
def test_rounding_is_what_the_file_will_hold(name: str, tmp_path: Path) -> None:
    scene = disturbed(scene_of(rounded(400, seed=2), degree=2))
    assert has_rounding(tmp_path / name)
    stored = rounding_for(tmp_path / name, scene)(scene)
    write_scene(stored, tmp_path / name)
    read = read_scene(tmp_path / name)
    # Files are sorted along a curve.
    order, back = (torch.argsort(one.means @ torch.tensor([1.0, 0.1, 0.01])) for one in (stored, read))
    assert float((stored.means[order] - read.means[back]).abs().max()) < 2e-3
    for field in ("scales", "opacities", "sh0", "shN"):
        torch.testing.assert_close(read.tensors()[field][back], stored.tensors()[field][order], rtol=1e-5, atol=2e-5)
    ours, theirs = (torch.nn.functional.normalize(q, dim=1) for q in (stored.quats[order], read.quats[back]))
    assert float((ours * theirs).sum(dim=1).abs().min()) > 1 - 1e-6


@pytest.mark.parametrize("rounding", [SogRounding(ORIGINAL, palette_size=40), SpzRounding()], ids=["sog", "spz"])
def test_gradients_pass_straight_through(rounding: SogRounding | SpzRounding) -> None:
    scene = ORIGINAL.with_tensors(**{name: t.clone().requires_grad_() for name, t in ORIGINAL.tensors().items()})
    seen = rounding(scene)
    random = torch.Generator().manual_seed(0)
    for name, tensor in seen.tensors().items():
        toward = torch.randn(tensor.shape, generator=random)
        (gradient,) = torch.autograd.grad((tensor * toward).sum(), scene.tensors()[name])
        if name == "shN" and isinstance(rounding, SogRounding):
            assert rounding.groups is not None
            toward = rounding.groups.shared(toward)
        torch.testing.assert_close(gradient, toward)


def test_harmonics_share_their_palette() -> None:
    rounding = SogRounding(ORIGINAL, palette_size=40)
    assert len(rounding(ORIGINAL).shN.unique(dim=0)) <= 40


def test_tuning_through_the_rounding_beats_rounding_what_was_tuned() -> None:
    shiny = ORIGINAL.with_tensors(shN=4 * ORIGINAL.shN)
    teacher = Renders.of(shiny, VIEWS)
    rounding = SogRounding(shiny, palette_size=12)
    tuned, _ = Recover(steps=60)(shiny, [teacher])
    aware, _ = Recover(steps=60)(shiny, [teacher], rounding=rounding)
    with torch.no_grad():
        wanted = render(shiny, VIEWS)
        after, through = (float(psnr(render(rounding(s), VIEWS), wanted).mean()) for s in (tuned, aware))
    assert through > after + 0.5


def test_the_commands_help_names_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["splat", "compress", "--help"]) == 0
    assert f"(default: {RECOVERY}" in " ".join(capsys.readouterr().out.split())
