"""Training of APTP's router: hard prompts get dear experts, easy ones cheap ones, at the cost that was asked for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.aptp.captions import Captioned
from diffusion.aptp.experts import Experts, FineTuning, harden
from diffusion.aptp.layout import layout_of
from diffusion.aptp.losses import LossWeights
from diffusion.aptp.report import describe, write_record
from diffusion.aptp.router import Router
from diffusion.aptp.train import Aptp, RouterTraining
from diffusion.noising import Noising
from diffusion.train import DenoisingTask
from secateur.surgery import Network
from secateur.training.seeding import seeded
from tests.contracts import assert_deterministic, assert_same
from tests.diffusion.routing import EASY, HIDDEN, captioned, reaching, task

PLANTED = Aptp(
    share=0.55,
    codes=2,
    steps=200,
    warmup=20,
    batch_size=16,
    rate=0.1,
    network_rate=0,
    weights=LossWeights(output=50, blocks=0),
)
SHORT: dict[str, Any] = {"codes": 2, "steps": 4, "warmup": 2, "batch_size": 4, "weights": LossWeights(blocks=0)}

Planted = tuple[Network, Captioned, Router, Experts]


@pytest.fixture(scope="module")
def planted() -> Planted:
    network, data = reaching(), captioned()
    router, _ = PLANTED.fit(network, data, task())
    return network, data, router, harden(router, network, data.embeddings)


def error(network: Network, dense: Network, data: Captioned, rows: Tensor) -> float:
    """Mean squared difference of outputs from the whole network's, over their mean square."""
    difficulty = data.conditions["difficulty"][data.prompts[rows]]
    arguments = (data.latents[rows], torch.zeros(len(rows)), difficulty)
    with torch.no_grad():
        small, whole = network(*arguments)[0], dense(*arguments)[0]
    return float((small - whole).square().mean() / whole.square().mean())


def test_hard_prompts_get_more_capacity_than_easy_ones(planted: Planted) -> None:
    _, data, _, experts = planted
    codes = experts.router.route(data.embeddings)
    hard, easy = codes[:4].unique().tolist(), codes[4:].unique().tolist()
    assert len(hard) == len(easy) == 1 and hard != easy
    sizes = [expert.groups()[0].size for expert in experts.networks]
    assert sizes[hard[0]] >= 0.8 * HIDDEN
    assert EASY <= sizes[easy[0]] <= HIDDEN // 2


def test_the_mean_cost_is_near_the_goal_and_the_report_says_who_goes_where(planted: Planted, tmp_path: Path) -> None:
    network, data, _, experts = planted
    record = describe(experts, network, data)
    assert record.share == pytest.approx(PLANTED.share, abs=0.12)
    assert record.even == pytest.approx(1) and sum(one.used for one in record.experts) == pytest.approx(1)
    dear, cheap = sorted(record.experts, key=lambda one: -one.macs)
    assert dear.prompts == tuple(f"hard {n}" for n in range(4)) and cheap.prompts == tuple(
        f"easy {n}" for n in range(4)
    )
    assert cheap.share < 0.6 < dear.share <= 1 and cheap.params < dear.params <= record.dense_params
    write_record(record, tmp_path, seconds=1.5)
    assert '"seconds": 1.5' in (tmp_path / "router.json").read_text()
    assert len((tmp_path / "router.md").read_text().splitlines()) == 4


def test_experts_serve_their_own_prompts_better(planted: Planted) -> None:
    network, data, _, experts = planted
    codes = experts.router.route(data.embeddings)[data.prompts]
    for code, expert in enumerate(experts.networks):
        own = error(expert, network, data, (codes == code).nonzero()[:, 0])
        assert own < 0.1
    hard = (data.prompts < 4).nonzero()[:, 0]
    cheap = min(experts.networks, key=lambda expert: expert.groups()[0].size)
    assert error(cheap, network, data, hard) > 0.2


def test_fine_tuning_brings_each_expert_nearer(planted: Planted) -> None:
    network, data, router, _ = planted
    with torch.no_grad():
        crippled = router.only([0, 1])
        crippled.codes[:, HIDDEN // 4 :] = -20
    experts = harden(crippled, network, data.embeddings)
    codes = experts.router.route(data.embeddings)[data.prompts]

    def errors() -> list[float]:
        rows = [(codes == code).nonzero()[:, 0] for code in range(len(experts.networks))]
        return [error(*each) for each in zip(experts.networks, [network] * 2, [data] * 2, rows, strict=False)]

    before, dense = errors(), {name: tensor.clone() for name, tensor in network.tensors().items()}
    tuning = FineTuning(steps=60, batch_size=16, rate=0.02, output=10, blocks=0)
    records = tuning.fit(experts, network, data, task())
    assert [record.steps for record in records] == [60] * len(experts.networks)
    assert all(after < 0.9 * first for after, first in zip(errors(), before, strict=True) if first > 0.02)
    assert_same(dense, {name: tensor.detach() for name, tensor in network.tensors().items()})


def fitted(network_rate: float, **options: Any) -> dict[str, Tensor]:
    network = reaching()
    router, _ = Aptp(**SHORT, network_rate=network_rate).fit(network, captioned(), task(), **options)
    return {**router.state_dict(), **{name: tensor.detach() for name, tensor in network.tensors().items()}}


def test_the_same_seed_trains_the_same_router() -> None:
    assert_deterministic(partial(fitted, 1e-3))


def test_weights_move_if_they_have_a_rate_and_only_then() -> None:
    before = {name: tensor.detach() for name, tensor in reaching().tensors().items()}
    still, moved = fitted(0.0), fitted(1e-3)
    assert_same(before, {name: still[name] for name in before})
    assert not torch.equal(before["down.weight"], moved["down.weight"])
    network = reaching()
    Aptp(**SHORT, network_rate=0).fit(network, captioned(), task())
    assert all(tensor.requires_grad for tensor in network.tensors().values())


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    checkpoint = tmp_path / "router.ckpt"
    first = fitted(1e-3, checkpoint=checkpoint)
    assert_same(first, fitted(1e-3, checkpoint=checkpoint, resume=True))


def training(**options: Any) -> RouterTraining:
    network, data = reaching(), captioned()
    router = Router(layout_of(network), data.embeddings.shape[1], 2)
    example = data.batches(8).batch_at(0)
    return RouterTraining(network, router, example, task(), weights=LossWeights(blocks=0), **options)


def test_under_open_gates_the_loss_is_the_networks_own() -> None:
    module, batch = training(), captioned().batches(8).batch_at(0)
    with torch.no_grad():
        module.router.codes.fill_(99)
    with torch.no_grad():
        parts = module.routed_losses(batch)
    assert set(parts) == {"0.OutputError", "task", "resource", "contrastive", "spread", "headroom"}
    assert float(parts["0.OutputError"]) == 0 and float(parts["headroom"]) == pytest.approx(0)
    assert float(parts["resource"]) == pytest.approx(2 * abs(torch.tensor(0.6).log().item()), rel=1e-5)


def test_codes_learn_from_denoising_and_the_predictor_in_the_first_steps() -> None:
    module, batch = training(), captioned().batches(8).batch_at(0)
    for warming, trained, not_trained in ((True, "heads", "codes"), (False, "codes", "heads")):
        module.zero_grad()
        parts = module.routed_losses(batch, warming=warming)
        (parts["0.OutputError"] + parts["task"] + parts["resource"]).backward()
        moved = {name.split(".")[0] for name, p in module.router.named_parameters() if p.grad is not None}
        assert trained in moved and not_trained not in moved
    module.zero_grad()
    module.routed_losses(batch)["contrastive"].backward()
    moved = {name.split(".")[0] for name, p in module.router.named_parameters() if p.grad is not None}
    assert moved == {"heads"}


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_micro_batches_run_one_after_the_other(micro_batch: int) -> None:
    """With the whole batch's gradients, but where gates are drawn behind them; here latents have hardly any noise."""
    without_noise = Noising(torch.ones(2).double(), torch.full((2,), 1e-9).double(), torch.arange(2), "sample")
    found, seen = [], []
    for size in (None, micro_batch):
        module, batch = training(micro_batch=size), captioned().batches(8).batch_at(0)
        module.denoising = DenoisingTask(without_noise)
        module.student.network.register_forward_pre_hook(
            lambda _, args, kwargs, into=seen if size else []: into.append(len(kwargs["sample"])), with_kwargs=True
        )
        with seeded(0, torch.device("cpu")):
            module.training_step(batch, step=10_000).backward()
        found.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert max(seen) <= micro_batch and sum(seen) == 2 * 8, "once forward, and once more in the backward"
    assert found[0].keys() == found[1].keys() and any("codes" in name for name in found[0])
    assert any("down.weight" in name for name in found[0])
    for name, gradient in found[0].items():
        if micro_batch == 8 or "heads" not in name:
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_experts_train_in_parts_of_a_batch(planted: Planted) -> None:
    network, data, router, _ = planted
    experts, seen = harden(router, network, data.embeddings), []
    for expert in experts.networks:
        expert.module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(len(kwargs["sample"])), with_kwargs=True
        )
    FineTuning(steps=2, batch_size=16, accumulate=4, blocks=0).fit(experts, network, data, task())
    assert max(seen) == 4 and seen.count(4) >= 2 * 4 * len(experts.networks)
    with pytest.raises(ValueError, match="does not divide into 3 equal parts"):
        FineTuning(batch_size=16, accumulate=3)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="share must be above 0"):
        training(share=0.0)
    with pytest.raises(ValueError, match="'embeddings' in each batch"):
        training().routed_losses({"latents": torch.zeros(2, 4)})
    network, data = reaching(), captioned()
    router = Router(layout_of(network), data.embeddings.shape[1] + 1, 2)
    with pytest.raises(ValueError, match="another encoder"):
        harden(router, network, data.embeddings)
    small = network.cut({"hidden": torch.arange(HIDDEN) < 4})
    with pytest.raises(ValueError, match="gates 16 units of 'hidden', the network has 4"):
        harden(Router(layout_of(network), 8, 2), small, data.embeddings)
    with pytest.raises(ValueError, match="give the whole network example inputs"):
        describe(Experts(router.only([0]), (small,)), Network(small.module, ()), data)


def test_a_run_that_fails_leaves_the_network_as_it_was() -> None:
    network, data = reaching(), captioned()
    broken = replace(data, latents=torch.full_like(data.latents, float("nan")))
    with pytest.raises(ValueError, match="became nan"):
        Aptp(**SHORT, network_rate=0).fit(network, broken, task())
    assert all(tensor.requires_grad for tensor in network.tensors().values())
