"""Losses are what they are said to be, and networks of every kind train, distil, prune and resume."""

from __future__ import annotations

import copy
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from secateur.allocation import Budget
from secateur.importance.magnitude import Magnitude
from secateur.pruning_callback import PruningCallback
from secateur.recovery.distill import Features, HardTargets, OutputError, SoftTargets, Term
from secateur.schedules import Polynomial
from secateur.training import Ema, fit
from tests.contracts import assert_deterministic, assert_same
from tests.vit.images import digit_images, noise, seeded_network
from tests.vit.models import FAMILIES, random_model
from vit.augmentation import Augmentation
from vit.data import ImageBatches, split
from vit.demo.networks import digits_vit
from vit.tasks.classification import Classification
from vit.train import FineTune, TokenDistillation, VisionDistillation, VisionTraining, layer_features, recover
from vit.units import prunable

DATA = noise(24)
BATCHES = ImageBatches(DATA, 6)
BATCH = BATCHES.batch_at(0)
TASK = Classification(smoothing=0.1)
QUICK = FineTune(steps=6, batch_size=6, rate=1e-2, warmup=2)


def logits(network: nn.Module) -> Tensor:
    output = network(BATCH["pixel_values"])
    return getattr(output, "logits", output)


def test_the_loss_is_the_tasks_and_what_is_auxiliary() -> None:
    network = random_model("vit")
    expected = functional.cross_entropy(logits(network), BATCH["labels"], label_smoothing=0.1)
    torch.testing.assert_close(VisionTraining(network, TASK).training_step(BATCH, 0), expected)
    extra = VisionTraining(network, TASK, auxiliary=lambda: torch.tensor(0.25))
    torch.testing.assert_close(extra.training_step(BATCH, 0), expected + 0.25)


def test_what_is_auxiliary_has_gradients() -> None:
    network: Any = random_model("vit")
    head = nn.Linear(24, 5)
    seen: list[Tensor] = []
    network.vit.layers[0].register_forward_hook(lambda _part, _inputs, output: seen.append(output))
    network.add_module("scorer", head)  # what trains along belongs to the network

    def auxiliary() -> Tensor:
        return functional.cross_entropy(head(seen.pop()[:, 0].detach()), BATCH["labels"])

    module = VisionTraining(network, TASK, auxiliary=auxiliary)
    alone: Any = copy.deepcopy(network)
    module.training_step(BATCH, 0).backward()
    VisionTraining(alone, TASK).training_step(BATCH, 0).backward()
    assert head.weight.grad is not None and head.weight.grad.abs().sum() > 0
    for (name, one), other in zip(network.named_parameters(), alone.parameters(), strict=True):
        assert name.startswith("scorer") or torch.equal(one.grad, other.grad), name  # behind a stop, nothing else moves
    before = head.weight.clone()
    seen.clear()
    fit(module, BATCHES, steps=2)
    assert not torch.equal(before, head.weight)


def test_hard_and_soft_targets_by_hand() -> None:
    student, teacher = random_model("vit"), random_model("deit", seed=1)
    terms: list[Term] = [SoftTargets(weight=0.5, temperature=2.0, dim=1), HardTargets(weight=2.0, dim=1)]
    module = VisionDistillation(student, teacher, terms, BATCH, TASK, task_weight=0.3)
    own, taught = logits(student), logits(teacher)
    kl = functional.kl_div((own / 2).log_softmax(1), (taught / 2).softmax(1), reduction="batchmean")
    parts = module.losses(BATCH)
    torch.testing.assert_close(parts["0.SoftTargets"], 0.5 * 4 * kl)
    torch.testing.assert_close(parts["1.HardTargets"], 2 * functional.cross_entropy(own, taught.argmax(1)))
    torch.testing.assert_close(parts["task"], 0.3 * TASK.loss(own, BATCH["labels"]))
    torch.testing.assert_close(module.training_step(BATCH, 0), torch.stack(list(parts.values())).sum())


def test_mixed_labels_distil_too() -> None:
    batch = ImageBatches(DATA, 6, augmentation=Augmentation(mixup=1.0)).batch_at(0)
    module = VisionDistillation(random_model("vit"), random_model("deit"), [SoftTargets(dim=1)], batch, TASK)
    assert batch["labels"].shape == (6, 5) and torch.isfinite(module.training_step(batch, 0))


def test_a_network_learns_nothing_from_its_equal() -> None:
    teacher = random_model("vit")
    terms: list[Term] = [OutputError(), Features(("network.vit.layers.1",), dim=-1)]
    module = VisionDistillation(copy.deepcopy(teacher), teacher, terms, BATCH, TASK, task_weight=0.0)
    assert all(part.item() == 0.0 for part in module.losses(BATCH).values())
    assert all(name.startswith("student.network.") for name in module.state_dict())  # no teacher, nothing twice


def test_narrower_layers_are_mapped_to_the_teachers() -> None:
    student, teacher = random_model("vit", hidden_size=16), random_model("vit", seed=1)
    names = ("network.vit.layers.0", "network.vit.layers.2")
    module = VisionDistillation(student, teacher, [Features(names, dim=-1)], BATCH, TASK, task_weight=0.0, rate=1e-2)
    assert [tuple(one.shape) for one in module.maps.parameters()] == [(24, 16)] * 2
    before = [one.clone() for one in module.maps.parameters()]
    record = fit(module, BATCHES, steps=8)
    assert record.losses[-1][1] < record.losses[0][1]
    assert all(not torch.equal(old, new) for old, new in zip(before, module.maps.parameters(), strict=True))


def test_the_stream_is_compared_behind_each_layer() -> None:
    dense: Any = random_model("vit")
    network = prunable(dense, kinds=("embedding",))
    (group,) = network.groups()
    kept = torch.arange(group.size) % 2 == 0
    student: Any = network.cut({group.name: kept}).module
    rows = kept.nonzero().flatten()
    for term, maps in ((layer_features(student, kept=rows), 0), (layer_features(student, weight=2.0), 3)):
        assert term.names == tuple(f"network.vit.layers.{index}" for index in range(3))
        module = VisionDistillation(student, dense, [term], BATCH, TASK)
        assert len(list(module.maps.parameters())) == maps and module.losses(BATCH)["0.Features"] > 0
    seen: list[Tensor] = []
    for one in (dense.vit.layers[1], student.vit.layers[1]):
        one.register_forward_hook(lambda _part, _inputs, output: seen.append(output))
    module = VisionDistillation(
        student, dense, [Features(("network.vit.layers.1",), dim=-1, kept={"network.vit.layers.1": rows})], BATCH, TASK
    )
    seen.clear()
    found = module.losses(BATCH)["0.Features"]
    torch.testing.assert_close(found, (seen[1] - seen[0][..., rows]).square().mean())
    with pytest.raises(ValueError, match="Linear has no layers"):
        layer_features(nn.Linear(2, 2))


def test_a_cut_network_comes_closer_to_the_dense_one() -> None:
    dense = random_model("vit")
    network = prunable(copy.deepcopy(dense), kinds=("neurons",))
    student = network.cut({group.name: torch.arange(group.size) % 2 == 0 for group in network.groups()}).module
    module = VisionDistillation(student, dense, [OutputError()], BATCH, TASK, task_weight=0.0, rate=3e-3)
    with torch.no_grad():
        before = float(module.training_step(BATCH, 0))
    fit(module, BATCHES, steps=12)
    with torch.no_grad():
        assert float(module.training_step(BATCH, 0)) < before


@pytest.mark.parametrize("temperature", [None, 3.0])
def test_a_distillation_token_learns_from_the_teacher(temperature: float | None) -> None:
    network, teacher = random_model("deit_teacher"), random_model("torch", seed=1)
    module = TokenDistillation(network, teacher, TASK, share=0.25, temperature=temperature)
    output, taught = network(BATCH["pixel_values"]), logits(teacher)
    if temperature is None:
        wanted = functional.cross_entropy(output.distillation_logits, taught.argmax(1))
    else:
        own = (output.distillation_logits / 3).log_softmax(1)
        wanted = 9 * functional.kl_div(own, (taught / 3).softmax(1), reduction="batchmean")
    parts = module.losses(BATCH)
    torch.testing.assert_close(parts["task"], 0.75 * TASK.loss(output.cls_logits, BATCH["labels"]))
    torch.testing.assert_close(parts["teacher"], 0.25 * wanted)
    torch.testing.assert_close(logits(network), (output.cls_logits + output.distillation_logits) / 2)
    state = copy.deepcopy(teacher.state_dict())
    record = fit(TokenDistillation(network, teacher, TASK, rate=1e-2), BATCHES, steps=5)
    assert record.losses[-1][1] < record.losses[0][1] and not module._teacher[0].training
    assert_same(state, teacher.state_dict())
    for head in ("cls_classifier", "distillation_classifier"):
        assert not torch.equal(getattr(network, head).weight, getattr(random_model("deit_teacher"), head).weight)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "sam"])
def test_every_family_trains(family: str) -> None:
    size = 16 if family == "swin" else 8
    data, network = noise(24, size=size), random_model(family)
    before = copy.deepcopy(network.state_dict())
    record = recover(network, TASK, data, replace(QUICK, layer_decay=0.8, ema=0.5))
    assert record.steps == 6 and record.losses[-1][1] < record.losses[0][1] and not network.training
    assert any(not torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("taught", [False, True])
def test_recovery_repeats_and_touches_no_global_state(taught: bool) -> None:
    options = replace(QUICK, validate_every=3, ema=0.9, augmentation=Augmentation(shift=1, flip=0.5, cutmix=1.0))

    def run() -> Any:
        network = random_model("vit", hidden_dropout_prob=0.1)
        teacher = random_model("torch") if taught else None
        record = recover(network, TASK, DATA, options, held_out=noise(8, seed=1), teacher=teacher)
        return dict(network.state_dict()), record.losses, record.validations

    assert_deterministic(run)


def test_no_steps_change_nothing() -> None:
    network = random_model("vit")
    before = copy.deepcopy(network.state_dict())
    recover(network, TASK, DATA, replace(QUICK, steps=0), teacher=random_model("torch"))
    assert_same(before, network.state_dict())


def test_a_stopped_run_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    def run(checkpoint: Path | None, stop: bool = False) -> Any:
        network = random_model("vit", hidden_dropout_prob=0.1)
        strikes = iter([0, 0, 0, signal.SIGINT if stop else 0, *[0] * 9])

        def auxiliary() -> Tensor:
            number = next(strikes, 0)
            if number:
                os.kill(os.getpid(), number)
            return torch.zeros(())

        options = replace(QUICK, steps=8, ema=0.9)
        record = recover(network, TASK, DATA, options, auxiliary=auxiliary, checkpoint=checkpoint)
        return dict(network.state_dict()), record.losses

    whole = run(None)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 8"):
        run(tmp_path / "run.ckpt", stop=True)
    assert_same(run(tmp_path / "run.ckpt"), whole)


def test_pruning_goes_along_and_stays_exact() -> None:
    network = random_model("vit")
    callback = PruningCallback(Magnitude(), Polynomial(3), Budget(share=0.25), every=2, last_step=4)
    recover(network, TASK, DATA, QUICK, callbacks=[callback])
    matrices = [one for one in network.parameters() if one.dim() >= 2]
    kept = sum(int((one != 0).sum()) for one in matrices) / sum(one.numel() for one in matrices)
    assert 0.24 < kept <= 0.25


def test_early_stopping_keeps_the_best() -> None:
    network, held_out = random_model("vit"), noise(10, seed=3)
    options = replace(QUICK, steps=30, rate=0.05, validate_every=1, patience=2)
    record = recover(network, TASK, DATA, options, held_out=held_out)
    best = max(score for _, score in record.validations)
    assert record.stopped_early and record.steps < 30
    assert TASK.measure(network, held_out).top1 == best
    assert (record.best_step, best) in record.validations


def test_it_trains_under_a_trainer_of_lightning() -> None:
    network, ema = random_model("vit"), Ema(0.9)
    rates: list[float] = []

    class Rates(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *rest: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = lightning.Trainer(
        max_steps=4,
        accelerator="cpu",
        devices=1,
        callbacks=[ema, Rates()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = VisionTraining(network, TASK, rate=0.1, schedule=lambda step: 1 / (1 + step))
    with torch.random.fork_rng():
        trainer.fit(module, DataLoader([BATCHES.batch_at(step) for step in range(4)], batch_size=None))
    assert ema.updates == 4 and rates == pytest.approx([0.1 / 2, 0.1 / 3, 0.1 / 4, 0.1 / 5])


def test_a_users_own_module_is_as_good() -> None:
    class Own(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = random_model("vit")

        def training_step(self, batch: dict[str, Tensor], step: int) -> Tensor:
            return self.network(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Own()
    record = fit(module, BATCHES, steps=5)
    assert record.losses[-1][1] < record.losses[0][1]


def test_what_cannot_train_is_refused() -> None:
    network = random_model("vit")
    with pytest.raises(ValueError, match="give a copy"):
        VisionDistillation(network, network, [OutputError()], BATCH, TASK)
    with pytest.raises(ValueError, match="give a copy"):
        TokenDistillation(network, network, TASK)
    with pytest.raises(ValueError, match="share must be"):
        TokenDistillation(network, random_model("torch"), TASK, share=1.5)
    with pytest.raises(ValueError, match="ViTForImageClassification has no distillation token"):
        TokenDistillation(network, random_model("torch"), TASK).training_step(BATCH, 0)
    with pytest.raises(ValueError, match="the student's is"):
        TokenDistillation(random_model("deit_teacher", num_labels=3), network, TASK).losses(
            BATCH | {"labels": BATCH["labels"] % 3}
        )
    with pytest.raises(ValueError, match="held out"):
        VisionTraining(network, TASK).validation_score()
    with pytest.raises(ValueError, match="held out"):
        recover(network, TASK, DATA, replace(QUICK, validate_every=2))


def test_a_digits_vit_reads_nine_of_ten() -> None:
    training, held_out = split(digit_images(), 300)
    network = seeded_network(digits_vit)
    recover(network, Classification(), training, FineTune(steps=250, batch_size=32, rate=5e-3, warmup=40, ema=0.95))
    assert Classification().measure(network, held_out).top1 > 0.9
