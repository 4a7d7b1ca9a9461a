"""Diffusion networks of every family train, distil and take adapters; what they see is the same noise."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed import is_gloo_available
from torch.utils.data import DataLoader

from diffusion.conditions import ClassLabels, LatentBatches
from diffusion.denoiser import Denoiser
from diffusion.noising import LatentLoss, MinSnr, NoiseLoss, Noising, Prediction, VelocityLoss, Weighting
from diffusion.train import DenoisingTask, DiffusionDistillation, DiffusionTraining, Target, block_features
from diffusion.units import prunable
from secateur.recovery.distill import OutputError
from secateur.recovery.lora import Lora, Perp
from secateur.training import Ema, cosine, fit
from tests.contracts import assert_deterministic, assert_same
from tests.diffusion.ddp_workers import distillation, train
from tests.diffusion.models import FAMILIES, diffusers, inputs, random_model, run


def scheduler(prediction: Prediction = "v_prediction") -> Any:
    return diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction)


def task(prediction: Prediction = "v_prediction", weighting: Weighting | None = None) -> DenoisingTask:
    return DenoisingTask(Noising.of(scheduler(prediction)), weighting)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_dit() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=1,
            out_channels=1,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=10,
        ).eval()


LABELS = torch.arange(32) % 10
BATCHES = LatentBatches(0.5 * normal(32, 1, 8, 8).sign(), ClassLabels(LABELS, null=10), batch_size=16)
UNET_BATCH = {"latents": normal(4, 4, 8, 8), "encoder_hidden_states": normal(4, 5, 12, seed=1)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_under_one_call(family: str) -> None:
    model, arguments = random_model(family), inputs(family)
    expected = run(family)(model)
    arguments = dict(arguments)
    latents = arguments.pop("sample" if "sample" in arguments else "hidden_states")
    with torch.no_grad():
        assert_same(Denoiser(model)(latents, arguments.pop("timestep"), **arguments), expected)


def test_a_module_that_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear\.forward has no argument 'timestep'"):
        Denoiser(nn.Linear(2, 2))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("weighting", [None, MinSnr()])
def test_training_lowers_the_loss(prediction: Prediction, weighting: Weighting | None) -> None:
    module = DiffusionTraining(
        small_dit(), task(prediction, weighting), rate=3e-3, held_out=[BATCHES.batch_at(step) for step in range(3)]
    )
    record = fit(module, BATCHES, steps=30, validate_every=30, ema=0.9, clip_norm=1.0)
    (_, before), (_, after) = record.validations
    assert after > before and record.best_step == 30


def test_losses_are_the_weighted_errors_of_their_space() -> None:
    drawn = task("epsilon", LatentLoss())
    inputs_, target = with_seed(lambda: drawn.draw({"latents": normal(6, 1, 4, 4).double()}))
    predicted = normal(6, 1, 4, 4, seed=3).double()
    indices = inputs_["timesteps"]
    noising = drawn.noising
    clean = [noising.latents(values, inputs_["latents"], indices) for values in (predicted, target.values)]
    expected = (clean[0] - clean[1]).square().mean()
    torch.testing.assert_close(drawn.loss(predicted, target).double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("weighting", [NoiseLoss(), VelocityLoss(), LatentLoss(), MinSnr()])
def test_a_perfect_network_has_no_loss(weighting: Weighting) -> None:
    drawn = task(weighting=weighting)
    _, target = with_seed(lambda: drawn.draw({"latents": normal(6, 1, 4, 4)}))
    assert drawn.loss(target.values, target) == 0


def test_fits_repeat_and_touch_no_global_state() -> None:
    def trained() -> dict[str, Tensor]:
        network = small_dit()
        fit(DiffusionTraining(network, task(), schedule=cosine(1, 3)), BATCHES, steps=3, ema=0.9)
        return dict(network.state_dict())

    assert_deterministic(trained)


def test_it_trains_under_a_trainer_of_lightning() -> None:
    network, ema = small_dit(), Ema(0.9)
    before = copy.deepcopy(network.state_dict())
    module = DiffusionTraining(network, task(), rate=1e-2, schedule=cosine(1, 4))
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
    with torch.random.fork_rng():
        trainer.fit(module, DataLoader([BATCHES.batch_at(step) for step in range(4)], batch_size=None))
    assert ema.updates == 4 and set(ema.averages) == {name for name, _ in module.named_parameters()}
    assert rates[0] > rates[1] > rates[2] > rates[3] == 0
    assert any(not torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_network_learns_nothing_from_its_equal() -> None:
    teacher = random_model("unet")
    student = copy.deepcopy(teacher)
    module = DiffusionDistillation(
        student, teacher, [OutputError(), block_features(student)], UNET_BATCH, task(), task_weight=0.0
    )
    parts = with_seed(lambda: module.losses(UNET_BATCH))
    assert {name: part.item() for name, part in parts.items()} == {
        "0.OutputError": 0.0,
        "1.Features": 0.0,
        "task": 0.0,
    }
    assert not any(name.startswith("_teacher") or "teacher" in name for name in module.state_dict())


def test_a_cut_network_comes_closer_to_the_dense_one() -> None:
    dense = random_model("dit", out_channels=1)
    network = prunable(copy.deepcopy(dense))
    keep = {group.name: torch.arange(group.size) % 2 == 0 for group in network.groups()}
    student = network.cut(keep).module
    module = DiffusionDistillation(
        student,
        dense,
        [OutputError(), block_features(student)],
        BATCHES.batch_at(0),
        task(),
        task_weight=0.1,
        rate=1e-3,
        held_out=[BATCHES.batch_at(100)],
    )
    record = fit(module, BATCHES, steps=20, validate_every=20)
    assert record.validations[-1][1] > record.validations[0][1]
    assert not list(module.maps.parameters())  # the residual stream has the width that it had


@pytest.mark.skipif(not is_gloo_available(), reason="torch has no gloo")
def test_ranks_of_a_strategy_learn_what_one_process_learns(tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in distillation().state_dict().items()}
    train(tmp_path, 1, "auto")
    train(tmp_path, 2, "ddp_spawn")
    alone, *ranks = (load_file(tmp_path / f"{name}.safetensors") for name in ("0-of-1", "0-of-2", "1-of-2"))
    for name, value in alone.items():
        assert_same(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, rtol=0, atol=1e-5)
    assert max(float((value - before[name]).abs().max()) for name, value in alone.items()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_block_features_are_modules_that_return_tensors(family: str) -> None:
    model, seen = random_model(family), {}
    names = block_features(model).names
    parts = dict(Denoiser(model).named_modules())
    for name in names:
        parts[name].register_forward_hook(lambda _part, _inputs, output, name=name: seen.update({name: output}))
    run(family)(model)
    first = [output[0] if isinstance(output, tuple) else output for output in seen.values()]
    assert len(seen) == len(names) >= 2 and all(isinstance(output, Tensor) for output in first)


def test_a_unet_is_compared_after_all_its_blocks() -> None:
    names = block_features(random_model("unet")).names
    ends = ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")
    assert names == tuple(f"network.{name}" for name in ends)
    with pytest.raises(ValueError, match="no down_blocks"):
        block_features(nn.Linear(2, 2))


def test_adapters_of_ours_train_alone() -> None:
    network = small_dit()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prepared = Perp(Lora(rank=2, alpha=2.0), biases=False, norms=False).prepare(network)
    fit(DiffusionTraining(network, task(), rate=1e-2), BATCHES, steps=3)
    weight = network.transformer_blocks[0].ff.net[2].parametrizations.weight.original
    assert torch.equal(weight, before["transformer_blocks.0.ff.net.2.weight"])
    prepared.merge()
    change = (
        network.state_dict()["transformer_blocks.0.ff.net.2.weight"] - before["transformer_blocks.0.ff.net.2.weight"]
    )
    assert torch.linalg.matrix_rank(change) == 2


def test_adapters_of_peft_train_alone() -> None:
    peft = pytest.importorskip("peft")
    network = random_model("unet")
    network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"]))  # type: ignore[operator]
    before = {name: value.clone() for name, value in network.state_dict().items()}

    class Once:
        def batch_at(self, step: int, /) -> dict[str, Tensor]:
            return UNET_BATCH

    fit(DiffusionTraining(network, task(), rate=1e-2), Once(), steps=2)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("lora_" in name for name in changed)


def test_variances_have_no_part_in_the_loss() -> None:
    values = normal(2, 3, 4, 4)
    target = Target(values, torch.ones(2))
    with_variances = torch.cat([values, normal(2, 3, 4, 4, seed=1)], dim=1)
    assert task().loss(with_variances, target) == 0


def test_half_precision_is_measured_in_float32() -> None:
    values = torch.full((1, 1, 2, 2), 300.0, dtype=torch.float16)
    loss = task().loss(-values, Target(values, torch.ones(1)))
    assert loss.dtype == torch.float32 and loss == 360_000


def test_what_cannot_train_is_refused() -> None:
    network = small_dit()
    with pytest.raises(ValueError, match="needs 'latents'"):
        task().draw({"images": normal(1, 1, 2, 2)})
    with pytest.raises(ValueError, match="predicts"):
        task().loss(normal(2, 1, 4, 4), Target(normal(2, 1, 8, 8), torch.ones(2)))
    with pytest.raises(ValueError, match="give a copy"):
        DiffusionDistillation(network, network, [OutputError()], BATCHES.batch_at(0), task())
    with pytest.raises(ValueError, match="held out"):
        DiffusionTraining(network, task()).validation_score()
    with pytest.raises(ValueError, match="nothing requires gradients"):
        DiffusionTraining(network.requires_grad_(False), task()).configure_optimizers()


def with_seed(make: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()
