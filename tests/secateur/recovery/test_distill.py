"""Distillation is 0 where networks agree, follows its equations, and leaves nothing but a better student."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import Tensor, nn

from secateur.recovery.distill import (
    AttentionTransfer,
    Distillation,
    Features,
    HardTargets,
    OutputError,
    Seen,
    SoftTargets,
    Term,
    kept_channels,
)
from secateur.recovery.lora import MaskLora, Perp
from secateur.recovery.low_rank import TrainedRankPruning, Truncation
from secateur.recovery.zeros import HoldZeros, zeros_of
from secateur.surgery import trace
from secateur.training import Shuffled, fit
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.networks import convolutional, perceptron
from tests.secateur.recovery.test_normalise import sparse
from tests.secateur.surgery.networks import Residual, pixels, seeded
from tests.secateur.toys import generator

TERMS: tuple[Term, ...] = (SoftTargets(), OutputError(), Features(("0", "1")), AttentionTransfer(("0", "1")))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@dataclass
class Inputs:
    """Rows of a tensor as batches."""

    inputs: Tensor
    order: Shuffled

    def batch_at(self, step: int, /) -> Tensor:
        return self.inputs[self.order.batch_at(step)]


INPUTS = normal(64, 6, seed=4)
BATCHES = Inputs(INPUTS, Shuffled(64, 16, seed=1))


@pytest.mark.parametrize("term", TERMS)
def test_loss_and_gradient_are_0_where_nothing_was_pruned(term: Term) -> None:
    teacher, images = convolutional(), normal(3, 2, 6, 6)
    module = Distillation(copy.deepcopy(teacher), teacher, [term], images)
    loss = module.training_step(images, 0)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.abs().gt(1e-12).any() for p in module.parameters())
    assert not list(module.maps.parameters())


def test_soft_targets_have_hintons_gradient() -> None:
    student, teacher = normal(4, 5).requires_grad_(), normal(4, 5, seed=1)
    term = SoftTargets(temperature=3.0)
    loss = term.loss(Seen(student, {}), Seen(teacher, {}), None)
    loss.backward()
    expected = 3.0 * ((student / 3).softmax(1) - (teacher / 3).softmax(1)) / 4
    torch.testing.assert_close(student.grad, expected.detach())
    divergence = torch.nn.functional.kl_div(
        (student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="batchmean"
    )
    torch.testing.assert_close(loss, 9 * divergence)


def test_hard_targets_are_the_teachers_first_choice() -> None:
    student, teacher = normal(4, 5, 2), normal(4, 5, 2, seed=1)
    loss = HardTargets(dim=1).loss(Seen(student, {}), Seen(teacher, {}), None)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(student, teacher.argmax(1)))


def test_attention_does_not_see_scale_signs_or_the_order_and_number_of_channels() -> None:
    term = AttentionTransfer(("x",))
    features = normal(2, 4, 3, 3)
    same = -5 * features[:, [2, 0, 3, 1]]
    split = torch.cat([features, features], 1) / 2**0.5
    for other in (same, split):
        seen = Seen(None, {"x": other}), Seen(None, {"x": features})
        assert term.maps(*seen) is None
        assert term.loss(*seen, None) < 1e-25
    assert term.loss(Seen(None, {"x": features.flip(2)}), Seen(None, {"x": features}), None) > 1e-3


def test_cut_features_are_compared_by_index_or_by_a_map_that_is_dropped() -> None:
    dense = seeded(Residual)
    network = trace(dense, pixels())
    keep = {group.name: torch.arange(group.size) % 3 != 0 for group in network.groups()}
    small = network.cut(keep)
    names = ("a1.0", "b1.0")
    kept = kept_channels(small.cuts, names)
    images = pixels(6)
    with torch.no_grad():
        for name in names:
            wide, thin = (net.get_submodule(name).weight for net in (dense, small.module))
            assert len(thin) == len(kept[name]) < len(wide)
    by_index = Distillation(small.module, dense, [Features(names, kept=kept)], images)
    by_map = Distillation(small.module, dense, [Features(names)], images)
    assert not list(by_index.maps.parameters())
    assert [tuple(p.shape) for p in by_map.maps.parameters()] == [(6, 4), (10, 6)]
    state = small.module.state_dict()
    shapes = {name: value.shape for name, value in state.items()}
    before = float(by_map.training_step(images, 0).detach())
    fit(by_map, Inputs(images, Shuffled(6, 6)), steps=20)
    assert float(by_map.training_step(images, 0).detach()) < before
    assert {name: value.shape for name, value in small.module.state_dict().items()} == shapes
    assert all(not name.startswith("teacher") for name in by_map.state_dict())


def test_a_sparse_student_comes_nearer_keeps_its_zeros_and_repeats() -> None:
    teacher = perceptron(6, 12, 4)
    frozen = copy.deepcopy(teacher.state_dict())
    zeros = zeros_of(sparse(teacher, 0.6))
    losses: list[float] = []

    def train() -> dict[str, Tensor]:
        student = sparse(teacher, 0.6)
        terms = [SoftTargets(), Features(("0",)), OutputError(0.1)]
        module = Distillation(student, teacher, terms, INPUTS, rate=0.01, held_out=[normal(32, 6, seed=8)])
        record = fit(module, BATCHES, steps=40, validate_every=20, callbacks=[HoldZeros()])
        assert record.steps == 40
        losses.extend(-score for _, score in record.validations)
        return dict(student.state_dict())

    trained = assert_deterministic(train)
    assert losses[2] < 0.9 * losses[0]
    assert_same(zeros, {name: trained[name] == 0 for name in zeros})
    assert_same(frozen, teacher.state_dict())
    assert teacher.training is False


class Struck(lightning.Callback):
    """An accident at the start of a step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 5:
            raise RuntimeError("struck")


@pytest.mark.parametrize("callback", [HoldZeros, lambda: TrainedRankPruning(Truncation(rank=3), every=2)])
def test_a_fit_that_was_struck_down_goes_on_bit_for_bit(callback: Any, tmp_path: Path) -> None:
    teacher = perceptron(6, 12, 4)

    def train(*accidents: Struck, **options: Any) -> dict[str, Tensor]:
        student = sparse(perceptron(6, 9, 4), 0.6)
        module = Distillation(student, teacher, [SoftTargets(), Features(("0",))], INPUTS, rate=0.01)
        fit(module, BATCHES, steps=9, callbacks=[*accidents, callback()], **options)
        return dict(module.state_dict())

    path = tmp_path / "run.ckpt"
    with pytest.raises(RuntimeError, match="struck"):
        train(Struck(), checkpoint=path, checkpoint_seconds=0)
    assert_same(train(), train(checkpoint=path, resume=True))


def test_adapters_and_biases_distil_alone() -> None:
    teacher = perceptron(6, 12, 4)
    student = sparse(teacher, 0.6)
    weights = {name: value.clone() for name, value in student.named_parameters() if value.dim() > 1}
    prepared = Perp(MaskLora(rank=2)).prepare(student)
    module = Distillation(student, teacher, [OutputError()], INPUTS, rate=0.01)
    before = module.training_step(INPUTS, 0).item()
    fit(module, BATCHES, steps=30, callbacks=[HoldZeros()])
    after = module.training_step(INPUTS, 0).item()
    merged = prepared.merge()
    assert after < before
    assert abs(module.training_step(INPUTS, 0).item() - after) < 1e-6
    for name, value in weights.items():
        assert_same(value == 0, merged.get_parameter(name) == 0)


def test_weights_of_0_change_nothing_and_the_task_has_its_limits() -> None:
    teacher = perceptron(6, 8, 4)
    student = sparse(teacher, 0.5)
    state = copy.deepcopy(student.state_dict())
    fit(Distillation(student, teacher, [SoftTargets(0), OutputError(0)], INPUTS), BATCHES, steps=3)
    assert_same(state, student.state_dict())

    def task(output: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(output, labels)

    labels = torch.arange(64) % 4
    pair = (INPUTS, labels)
    only_task = Distillation(student, teacher, [SoftTargets(0)], pair, task=task)
    torch.testing.assert_close(only_task.training_step(pair, 0), task(student(INPUTS), labels))
    only_teacher = Distillation(student, teacher, [SoftTargets()], pair, task=task, task_weight=0)
    alone = Distillation(student, teacher, [SoftTargets()], INPUTS)
    torch.testing.assert_close(only_teacher.training_step(pair, 0), alone.training_step(INPUTS, 0))
    assert set(only_task.losses(pair)) == {"0.SoftTargets", "task"}


def test_networks_that_cannot_be_compared_are_refused() -> None:
    teacher = perceptron(6, 8, 4)
    other = perceptron(6, 5, 3)

    def build(terms: Any, student: nn.Module = other, **options: Any) -> Distillation:
        return Distillation(student, teacher, terms, INPUTS, **options)

    with pytest.raises(ValueError, match=r"output: the student's is \(64, 3\)"):
        build([OutputError()])
    with pytest.raises(ValueError, match="has no modules"):
        build([Features(("9",))])
    with pytest.raises(ValueError, match="needs terms"):
        build([])
    with pytest.raises(ValueError, match="at least 0"):
        build([Features(("0",), weight=-1)])
    with pytest.raises(ValueError, match="give a copy"):
        build([OutputError()], teacher)
    with pytest.raises(ValueError, match="cannot be compared"):
        build([Features(("0",), kept={"0": torch.arange(3)})])
    with pytest.raises(ValueError, match="temperature"):
        SoftTargets(temperature=0)
    with pytest.raises(ValueError, match="held_out"):
        fit(build([Features(("0",))]), BATCHES, steps=1, validate_every=1)
