"""Pruning while Lightning trains: counts, frozen zeros, and runs that are interrupted."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch.utils.data import DataLoader

from secateur.allocation import Budget
from secateur.dense_training import DifferentiablePruning, SoftMasking, SoftThreshold
from secateur.granularity import NofM, Rows, Weights
from secateur.importance import Magnitude, Random, Taylor
from secateur.masked_training import MovementPruning, StochasticAnnealing
from secateur.pruning_callback import PruningCallback
from secateur.schedules import Linear, OneShot, Polynomial, grow_prune
from secateur.training import fit
from tests.contracts import assert_same
from tests.secateur.networks import BATCHES, Regression, some_masks, trained
from tests.secateur.training.modules import DATA, Automatic, Manual, send

TENTH = Budget(share=0.25)


def test_follows_the_schedule_in_steps_of_every() -> None:
    callback = PruningCallback(Magnitude(), Polynomial(), TENTH, first_step=4, last_step=16, every=3)
    _, watch = trained(callback)
    expected, now = [], 48
    for step in range(1, 21):
        if 4 <= step <= 16 and (step - 4) % 3 == 0:
            now = int(48 * (1 - 0.75 * Polynomial()((step - 4) / 12)) * (1 + 1e-9))
        expected.append(now)
    assert watch.counts() == expected
    assert expected[-1] == 12
    for before, after in zip(watch.kept, watch.kept[1:], strict=False):
        assert all(bool((before[name] | ~after[name]).all()) for name in before), "masks are nested"
    assert_same(watch.kept[-1], watch.kept[15])


def test_one_shot_before_the_first_step() -> None:
    callback = PruningCallback(Magnitude(), OneShot(), TENTH, last_step=0)
    start = Weights(Regression())
    expected = start.granularity.allocate(Magnitude().score(start), start.groups(), TENTH)
    _, watch = trained(callback, steps=3)
    assert_same(watch.kept[0], dict(expected))
    assert callback.keep.keys() == expected.keys()


def test_a_full_budget_changes_nothing() -> None:
    module, _ = trained(PruningCallback(Magnitude(), Linear(), Budget(share=1.0), every=2))
    assert_same(dict(module.state_dict()), dict(trained(None)[0].state_dict()))


def test_by_default_half_of_the_training_prunes() -> None:
    callback = PruningCallback(Magnitude(), Linear(), TENTH, every=1)
    _, watch = trained(callback)
    assert callback.last_step == 10
    assert watch.counts()[8] > 12 and watch.counts()[9:] == [12] * 11


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_removed_weights_get_no_update_by_any_optimiser(optimizer: type[torch.optim.Optimizer]) -> None:
    _, watch = trained(PruningCallback(Magnitude(), Linear(), TENTH, last_step=5, every=1), optimizer=optimizer)
    assert watch.counts()[4:] == [12] * 16
    assert any(bool((a != b).any()) for a, b in zip(*(w.values() for w in watch.weights[-2:]), strict=True))


def test_manual_optimisation_and_biases() -> None:
    module = Manual()
    callback = PruningCallback(
        Magnitude(), Linear(), Budget(share=0.5), last_step=5, every=1, params=lambda name, tensor: True
    )
    fit(module, DATA, steps=9, callbacks=[callback])
    assert sum(int((parameter != 0).sum()) for parameter in module.parameters()) == 3


@pytest.mark.parametrize("granularity", [NofM(1, 4), Rows()], ids=repr)
def test_other_granularities(granularity: Any) -> None:
    module, _ = trained(PruningCallback(Magnitude(), Linear(), Budget(share=0.25), granularity, last_step=8, every=1))
    if isinstance(granularity, NofM):
        assert all(bool(((w.view(-1, 4) != 0).sum(dim=1) == 1).all()) for w in Weights(module).weights().values())
    else:
        alive = [int((w != 0).any(dim=1).sum()) for w in Weights(module).weights().values()]
        assert sum(alive) == 2


def test_gradient_criteria_look_through_an_objective() -> None:
    module, _ = trained(None, steps=1)
    callback = PruningCallback(Taylor(), Linear(), TENTH, calibration=module.data, last_step=8, every=2)
    _, watch = trained(callback)
    assert watch.counts()[-1] == 12


def test_a_plain_lightning_trainer_takes_it(tmp_path: Path) -> None:
    module = Regression()
    callback = PruningCallback(Magnitude(), Polynomial(), TENTH, every=1)
    trainer = lightning.Trainer(
        max_epochs=5, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.arange(32), batch_size=8))  # type: ignore[arg-type]
    assert callback.last_step == 10
    assert sum(int((w != 0).sum()) for w in Weights(module).weights().values()) == 12


CALLBACKS: list[Any] = [
    lambda: PruningCallback(Magnitude(), Polynomial(), TENTH, last_step=14, every=3),
    lambda: PruningCallback(Magnitude(), Polynomial(), TENTH, last_step=14, every=3, regrow=0.5),
    lambda: PruningCallback(Random(3), Linear(), TENTH, last_step=14, every=2),
    lambda: StochasticAnnealing(some_masks(), last_step=14, seed=4),
    lambda: MovementPruning(Polynomial(), TENTH, last_step=14, first_step=2),
    lambda: SoftMasking(Polynomial(), Budget(share=0.5), last_step=14, first_step=2, every=4),
    lambda: SoftThreshold(Polynomial(), TENTH, last_step=14),
    lambda: DifferentiablePruning(Polynomial(), TENTH, last_step=14, first_step=2),
]


class Struck(Regression):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.strike = send(signal.SIGTERM, at)

    def training_step(self, batch: Any, step: int) -> Any:
        self.strike(step)
        return super().training_step(batch, step)


@pytest.mark.parametrize("make", CALLBACKS)
def test_goes_on_from_a_checkpoint_as_if_nothing_had_been(make: Any, tmp_path: Path) -> None:
    whole = make()
    module, _ = trained(whole)
    path = tmp_path / "run.ckpt"
    for at in (0, 6, 9):
        with pytest.raises(KeyboardInterrupt):
            fit(Struck(at), BATCHES, steps=20, callbacks=[make()], checkpoint=path, resume=True)
    resumed, callback = Struck(-1), make()
    fit(resumed, BATCHES, steps=20, callbacks=[callback], checkpoint=path, resume=True)
    assert_same(dict(module.state_dict()), dict(resumed.state_dict()))
    assert_same(whole.state_dict(), callback.state_dict())


def test_granet_without_growth_is_gradual_magnitude_pruning() -> None:
    options: dict[str, Any] = {"last_step": 14, "every": 3}
    first, _ = trained(PruningCallback(Magnitude(), Polynomial(), TENTH, **options))
    second, _ = trained(PruningCallback(Magnitude(), Polynomial(), TENTH, regrow=0.0, **options))
    third, _ = trained(PruningCallback(Magnitude(), Polynomial(), TENTH, regrow=0.5, **options))
    assert_same(dict(first.state_dict()), dict(second.state_dict()))
    assert not torch.equal(first.network[0].weight, third.network[0].weight)  # type: ignore[union-attr,arg-type]


class Growth(lightning.Callback):
    """RigL's update by hand: what the masks must be, from the gradients and weights at the update."""

    def __init__(self, callback: PruningCallback) -> None:
        self.callback, self.before, self.gradients, self.weights = callback, {}, {}, {}  # type: ignore[var-annotated]
        self.checked, self.expected = 0, {}  # type: ignore[var-annotated]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients = {n: w.grad.flatten().clone() for n, w in Weights(pl_module).weights().items()}  # type: ignore[union-attr]
        self.before = {name: mask.clone() for name, mask in self.callback.keep.items()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = batch_idx + 1
        if step % 3 or step >= 14:
            return
        fraction = 0.5 * 0.5 * (1 + torch.tensor(torch.pi * step / 14).cos().item())
        for name, weight in Weights(pl_module).tensors().items():
            mask = grow_prune(self.before[name], weight.abs(), self.gradients[name].abs(), fraction)
            grown = mask & ~self.before[name]
            assert not weight[grown].any(), "what grows starts at 0"
            self.expected[name] = mask
        self.checked += 1


class After(lightning.Callback):
    def __init__(self, growth: Growth) -> None:
        self.growth = growth

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.growth.expected:
            assert_same(dict(self.growth.callback.keep), self.growth.expected)
            for name, weight in Weights(pl_module).weights().items():
                state = trainer.optimizers[0].state[weight]["exp_avg"].flatten()
                grown = self.growth.expected[name] & ~self.growth.before[name]
                assert not state[grown].any(), "no momentum from the time before"
            self.growth.expected.clear()


def test_constant_sparsity_with_growth_is_rigl() -> None:
    callback = PruningCallback(Magnitude(), OneShot(), TENTH, last_step=14, every=3, regrow=0.5)
    growth = Growth(callback)
    module = Regression()
    fit(module, BATCHES, steps=20, callbacks=[growth, callback, After(growth)])
    assert growth.checked == 4
    assert sum(int(mask.sum()) for mask in callback.keep.values()) == 12


class Mean(Automatic):
    """Its bias is frozen."""

    def on_fit_start(self) -> None:
        self.line.bias.requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PruningCallback(Magnitude(), Linear(), TENTH, every=0), "every >= 1"),
        (lambda: PruningCallback(Magnitude(), Linear(), TENTH, regrow=2.0), "regrow"),
        (lambda: PruningCallback(Magnitude(), Linear(), TENTH, first_step=5, last_step=4), "before first_step 5"),
        (lambda: trained(PruningCallback.fixed({"x": torch.ones(3, dtype=torch.bool)})), "masks are for other weights"),
        (lambda: PruningCallback(Magnitude(), Linear(), TENTH).target, "has not started"),
    ],
)
def test_wrong_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_growth_needs_gradients() -> None:
    callback = PruningCallback(
        Magnitude(), Linear(), TENTH, regrow=0.5, every=1, params=lambda name, tensor: True, last_step=5
    )
    with pytest.raises(ValueError, match=r"\['line.bias'\] have no gradients"):
        fit(Mean(), DATA, steps=5, callbacks=[callback])
