import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from compress3d.splats.densify import Adaptive, Densifier, DensityControl, MarkovChain, relocated
from compress3d.splats.parameters import LearningRates, TrainableScene
from compress3d.splats.rasterize import rasterization
from compress3d.splats.scene import SplatScene
from tests.compress3d.splats.photographed import around, blobs


class Run:
    """A scene that steps towards black, under density control."""

    def __init__(self, control: DensityControl, cap: int = 1000, scene: SplatScene | None = None) -> None:
        self.splats = TrainableScene(scene or blobs().with_sh_degree(1))
        self.optimizers: dict[str, Optimizer] = self.splats.optimizers(LearningRates(), 1.0)
        self.densifier = Densifier(control, 100, cap, extent=1.0)
        self.camera = around(1)

    def step(self, number: int) -> dict[str, Any]:
        scene = self.splats.scene()
        images, _, meta = rasterization(
            scene.means, scene.quats, scene.scales.exp(), scene.peak_opacities(),
            torch.cat([scene.sh0, scene.shN], dim=1), self.camera.viewmats, self.camera.Ks, self.camera.width,
            self.camera.height, sh_degree=scene.sh_degree, absgrad=self.densifier.absolute,
        )  # fmt: skip
        meta["means2d"].retain_grad()
        images.square().sum().backward()
        torch.manual_seed(number)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.densifier.after_step(self.splats, self.optimizers, number, meta)
        return meta

    def check_whole(self) -> None:
        """Scene, optimisers and their state are of one size, and go on together."""
        count = len(self.splats.scene())
        for name, optimizer in self.optimizers.items():
            parameter = self.splats.get_parameter(name)
            assert optimizer.param_groups[0]["params"] == [parameter] and len(parameter) == count
            assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


CONTROLS: list[DensityControl] = [
    Adaptive(start=0.0, stop=0.9, every=2, reset_every=40, gradient=1e-6),
    Adaptive(start=0.0, stop=0.9, every=2, reset_every=40, gradient=1e-6, absolute=False),
    MarkovChain(start=0.0, every=2),
]


@pytest.mark.parametrize("control", CONTROLS)
def test_grows_up_to_the_cap_and_no_further(control: DensityControl) -> None:
    run = Run(control, cap=15)
    for number in range(1, 31):
        run.step(number)
        assert len(run.splats.scene()) <= 15
    assert len(run.splats.scene()) == 15 if isinstance(control, Adaptive) else len(run.splats.scene()) >= 12
    run.check_whole()


def test_grows_the_largest_gradients_first() -> None:
    run = Run(Adaptive(start=0.0, stop=0.9, every=2, gradient=0.0, small=10.0), cap=13)
    run.step(1)
    meta = run.step(2)
    # The thirteenth is a clone of one of the twelve.
    means = run.splats.frozen().means
    source = int((means[:-1] == means[-1]).all(dim=1).nonzero()[0, 0])
    # Judged by the mean over two steps, of which this is the last.
    gradients = meta["means2d"].absgrad[0].norm(dim=1)
    assert len(means) == 13 and float(gradients[source]) >= 0.9 * float(gradients.max())


def test_lowers_opacities_and_removes_what_stays_faint() -> None:
    run = Run(Adaptive(start=0.0, stop=0.9, every=7, reset_every=5, gradient=math.inf, huge=9.0))
    for number in range(1, 6):
        run.step(number)
    assert float(run.splats.frozen().peak_opacities().max()) <= 0.01 + 1e-6
    with torch.no_grad():
        run.splats.get_parameter("opacities")[:4] = -7.0
    run.step(6), run.step(7)
    assert len(run.splats.scene()) == 8
    run.check_whole()


def test_does_nothing_after_the_last_share() -> None:
    run = Run(Adaptive(start=0.0, stop=0.03, every=2, gradient=0.0))
    assert run.densifier.watches(2) and not run.densifier.watches(3)
    for number in range(3, 9):
        run.step(number)
    assert len(run.splats.scene()) == 12


def test_degree_zero_has_a_tensor_without_elements() -> None:
    run = Run(CONTROLS[0], scene=blobs())
    for number in range(1, 5):
        run.step(number)
    assert len(run.splats.scene()) > 12 and run.splats.scene().sh_degree == 0


@pytest.mark.parametrize("control", CONTROLS)
def test_keeps_some_in_scene_optimisers_and_state(control: DensityControl) -> None:
    run = Run(control)
    run.step(1)
    means = run.splats.frozen().means
    keep = torch.arange(12) % 3 == 0
    run.densifier.keep(run.splats, run.optimizers, keep)
    assert torch.equal(run.splats.frozen().means, means[keep])
    run.check_whole()
    run.step(2)


@pytest.mark.parametrize("control", CONTROLS)
def test_goes_on_from_its_state(control: DensityControl) -> None:
    whole = Run(control, scene=blobs(40))
    for number in range(1, 4):
        whole.step(number)
    half = Run(control, scene=whole.splats.frozen())
    for name, optimizer in half.optimizers.items():
        optimizer.load_state_dict(deepcopy(whole.optimizers[name].state_dict()))
    half.densifier.load_state_dict(whole.densifier.state_dict(), torch.device("cpu"))
    for number in range(4, 7):
        whole.step(number), half.step(number)
    assert len(whole.splats.scene()) > 40
    assert torch.equal(whole.splats.frozen().means, half.splats.frozen().means)


BINOMS = torch.tensor([[math.comb(n, k) for k in range(51)] for n in range(51)], dtype=torch.float32)


@pytest.mark.parametrize("opacity", [0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("copies", [1, 2, 3, 7, 30])
def test_relocated_gaussians_look_as_one_did(opacity: float, copies: int) -> None:
    opacities, scales = relocated(
        torch.tensor([opacity]), torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([copies]), BINOMS
    )
    # Equation 9 of arXiv 2404.09591, with its double sum as it stands there.
    new = 1 - (1 - opacity) ** (1 / copies)
    total = sum(
        math.comb(i - 1, k) * (-1) ** k * new ** (k + 1) / math.sqrt(k + 1)
        for i in range(1, copies + 1)
        for k in range(i)
    )
    assert float(opacities) == pytest.approx(new, rel=1e-5)
    assert torch.allclose(scales, torch.tensor([[1.0, 2.0, 3.0]]) * opacity / total, rtol=1e-5)
    # What the equation is for: a ray through the middle of the copies takes up as much as before, in sum over x.
    x = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    before = opacity * torch.exp(-(x**2) / 2)
    after = 1 - (1 - float(opacities) * torch.exp(-(x**2) / (2 * float(scales[0, 0]) ** 2))) ** copies
    assert float(after.sum()) == pytest.approx(float(before.sum()), rel=1e-4)


def test_relocates_at_most_as_many_as_there_are_binomials() -> None:
    many = relocated(torch.tensor([0.999999]), torch.ones(1, 3), torch.tensor([500]), BINOMS)
    most = relocated(torch.tensor([0.999999]), torch.ones(1, 3), torch.tensor([50]), BINOMS)
    assert torch.equal(many[0], most[0]) and torch.equal(many[1], most[1]) and bool(torch.isfinite(many[1]).all())


def test_moves_the_dead_to_the_living() -> None:
    scene = blobs()
    scene.opacities[:5] = -9.0
    run = Run(MarkovChain(start=0.0, every=2), cap=12, scene=scene)
    run.step(1), run.step(2)
    assert len(run.splats.scene()) == 12 and float(run.splats.frozen().peak_opacities().min()) >= 0.0049
