"""Training of the router, with the network under the gates of its codes, for `secateur.training.fit`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion.aptp.captions import EMBEDDINGS, Captioned
from diffusion.aptp.layout import layout_of
from diffusion.aptp.losses import LossWeights, contrastive_loss, headroom_loss, resource_loss, spread_loss
from diffusion.aptp.router import Router
from diffusion.data import to_device
from diffusion.train import Batch, DenoisingTask, DiffusionDistillation, block_features
from secateur.console import Report, silent
from secateur.recovery.distill import OutputError, Term
from secateur.surgery.network import Network
from secateur.surgery.soft_cost import soft_macs
from secateur.training import FitRecord, fit


class RouterTraining(DiffusionDistillation):
    """Trains a router and, more slowly, the network that it gates, which keeps all its units.

    A batch's samples run in groups, one masked forward for each code. In the first steps there are no codes yet: each
    prompt runs under the gates of its own architecture vector, so that the predictor learns what prompts need. Then the
    denoising loss trains codes, and the predictor learns by the contrastive loss alone. As in the released code of APTP
    (arXiv 2406.12042).

    Batches are those of `diffusion.train`, with the prompts' embeddings as "embeddings".

    Args:
        network: with example inputs; its weights train in place.
        router: for this network.
        example: a batch, as in training.
        task: the loss on the data; the paper's has `MinSnr(5)` on a network that predicts v.
        share: of the network's multiply-adds that samples shall cost in the mean.
        weights: of the loss's parts.
        temperature: of the contrastive loss.
        warmup: steps without codes.
        rate: learning rate of the router.
        network_rate: of the network; 0: its weights stand still.
        micro_batch: samples that go through the network at a time; the backward runs them again, so that memory is that
            of so many. None: all that share a code, once.

    Raises:
        ValueError: `share` is not in (0, 1], the router gates another network, or there are no embeddings.
    """

    def __init__(
        self,
        network: Network,
        router: Router,
        example: Batch,
        task: DenoisingTask,
        *,
        share: float = 0.6,
        weights: LossWeights | None = None,
        temperature: float = 0.03,
        warmup: int = 500,
        rate: float = 2e-4,
        network_rate: float = 5e-5,
        micro_batch: int | None = None,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        router.layout.check_fits(network)
        weights = LossWeights() if weights is None else weights
        terms: list[Term] = [OutputError(weights.output)]
        if weights.blocks:
            terms.append(block_features(network.module, weights.blocks))
        _, rest = _parted(example)
        super().__init__(network.module, copy.deepcopy(network.module), terms, rest, task, rate=rate)
        self.router, self.weights, self.share = router, weights, share
        self.temperature, self.warmup, self.network_rate = temperature, warmup, network_rate
        self.micro_batch = micro_batch
        self._network = (network,)

    def training_step(self, batch: Batch, step: int) -> Float[Tensor, ""]:
        """The sum of the weighted parts."""
        return torch.stack(list(self.routed_losses(batch, warming=step < self.warmup).values())).sum()

    def routed_losses(self, batch: Batch, *, warming: bool = False) -> dict[str, Tensor]:
        """The weighted parts of a batch's loss by name.

        Args:
            batch: with embeddings.
            warming: whether each prompt has the gates of its own vector, instead of those of a code.

        Raises:
            ValueError: the batch has no embeddings, or those of another encoder.
        """
        embeddings, rest = _parted(batch)
        vectors, of_sample = self._architectures(embeddings, warming)
        gates = self.router.hard(self.router.gates(vectors, self.router.noise(len(vectors))))
        parts, ratios = dict[str, Tensor](), []
        for index, each in enumerate(gates):
            members = (of_sample == index).nonzero()[:, 0]
            masks = self.router.layout.masks(each)
            for some in members.split(self.micro_batch or len(members)):
                found = self._losses_under(masks, _rows(rest, some, len(of_sample)))
                for name, loss in found.items():
                    parts[name] = parts.get(name, loss.new_zeros(())) + loss * (len(some) / len(of_sample))
            ratios.append(self._ratio(masks))
        return parts | self._of_router(embeddings, torch.stack(ratios)[of_sample.cpu()])

    def _losses_under(self, masks: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The losses of samples that share an architecture."""

        def run() -> dict[str, Tensor]:
            with self._network[0].masked(masks):
                return self.losses(batch)

        # Its state of torch's global generators is kept: the noise is the same when it runs again.
        return run() if self.micro_batch is None else checkpoint(run, use_reentrant=False)

    def _architectures(self, embeddings: Tensor, warming: bool) -> tuple[Tensor, Int64[Tensor, " N"]]:
        """The vectors of a batch, each once, and which of them each sample has."""
        if warming:
            prompts, of_sample = embeddings.unique(dim=0, return_inverse=True)
            return self.router.vectors(prompts), of_sample
        used, of_sample = self.router.assign(embeddings).unique(return_inverse=True)
        return self.router.codes[used], of_sample

    def _ratio(self, masks: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        network = self._network[0]
        assert network.usage is not None
        return soft_macs(network, masks) / network.usage.macs

    def _of_router(self, embeddings: Tensor, ratios: Tensor) -> dict[str, Tensor]:
        """The parts that only the router sees to."""
        weights, router = self.weights, self.router
        vectors = router.vectors(embeddings)
        architectures = router.layout.features(router.gates(vectors, router.noise(len(vectors))))
        ratios = ratios.to(architectures)
        return {
            "resource": weights.resource * resource_loss(ratios, self.share),
            "contrastive": weights.contrastive * contrastive_loss(embeddings, architectures, self.temperature),
            "spread": weights.spread * spread_loss(ratios),
            "headroom": weights.headroom * headroom_loss(ratios),
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the router and, at a rate of its own, the network."""
        groups: list[dict[str, Any]] = [{"params": list(self.router.parameters()), "lr": self.rate}]
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        if self.network_rate and trained:
            groups.append({"params": trained, "lr": self.network_rate})
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Aptp:
    """Adaptive Prompt-Tailored Pruning: a router from prompts to pruned networks (APTP).

    Ganjdanesh et al.: Not All Prompts Are Made Equal (arXiv 2406.12042). Defaults are those of the shipped models,
    which prune Stable Diffusion 2.1.

    Args:
        share: of the multiply-adds that prompts shall cost in the mean.
        codes: experts at most; those that no prompt is routed to are left out.
        gates: the most gates of one layer.
        steps: of the whole training.
        warmup: of these, before there are codes.
        batch_size: samples in a batch.
        micro_batch: samples that go through the network at a time, as for `RouterTraining`; None: all of a code.
        rate: learning rate of the router.
        network_rate: of the network; 0: its weights stand still.
        weights: of the loss's parts.
        balanced: whether codes get prices in the end, so that prompts go where they went in training; the paper takes
            the greatest cosine.
        seed: of the router, the batches and all that is drawn.

    Raises:
        ValueError: a number is out of range.
    """

    share: float = 0.6
    codes: int = 8
    gates: int = 32
    steps: int = 5500
    warmup: int = 500
    batch_size: int = 64
    micro_batch: int | None = None
    rate: float = 2e-4
    network_rate: float = 5e-5
    weights: LossWeights = field(default_factory=LossWeights)
    balanced: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}")
        counts = (self.codes, self.gates, self.batch_size, 1 if self.micro_batch is None else self.micro_batch)
        if min(counts) < 1:
            raise ValueError(f"codes, gates, batch_size and micro_batch must be at least 1, got {counts}")
        if min(self.steps, self.warmup, self.seed) < 0 or not self.rate > 0 or not self.network_rate >= 0:
            raise ValueError(
                "steps, warmup, seed and network_rate of at least 0 and a rate above 0 are needed, got "
                f"{self.steps}, {self.warmup}, {self.seed}, {self.network_rate} and {self.rate}"
            )

    def fit(
        self,
        network: Network,
        data: Captioned,
        task: DenoisingTask,
        *,
        checkpoint: Path | None = None,
        resume: bool = False,
        report: Report = silent,
    ) -> tuple[Router, FitRecord]:
        """The trained router, and the record of the fit; `diffusion.aptp.experts.harden` cuts the experts.

        Args:
            network: with heads, neurons, channels or whole blocks as units, and example inputs; its weights train in
                place unless `network_rate` is 0.
            data: samples with prompts.
            task: the denoising loss.
            checkpoint, resume, report: as `secateur.training.fit`.

        Raises:
            ValueError: as for `layout_of` and `RouterTraining`.
        """
        router = Router(layout_of(network, self.gates), data.embeddings.shape[1], self.codes, seed=self.seed)
        batches = data.batches(min(self.batch_size, len(data)), self.seed)
        module = RouterTraining(
            network,
            router,
            to_device(batches.batch_at(0), next(network.module.parameters()).device),
            task,
            share=self.share,
            weights=self.weights,
            warmup=self.warmup,
            rate=self.rate,
            network_rate=self.network_rate,
            micro_batch=self.micro_batch,
        )
        identity = {"aptp": repr(self), "samples": len(data), "prompts": len(data.texts)}
        with nullcontext() if self.network_rate else _frozen(network.module):
            record = fit(
                module.to(next(network.module.parameters()).device),
                batches,
                steps=self.steps,
                seed=self.seed,
                checkpoint=checkpoint,
                resume=resume,
                identity=identity,
                report=report,
            )
        if self.balanced:
            router.balance(data.embeddings, data.counts())
        return router, record


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """While the context is open, no weight requires a gradient: none is computed that nobody uses."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _parted(batch: Batch) -> tuple[Tensor, dict[str, Any]]:
    """The embeddings of a batch, and what the network is told."""
    if EMBEDDINGS not in batch:
        raise ValueError(f"routing needs the prompts' {EMBEDDINGS!r} in each batch, which has {sorted(batch)}")
    return batch[EMBEDDINGS], {name: value for name, value in batch.items() if name != EMBEDDINGS}


def _rows(batch: Batch, members: Tensor, count: int) -> dict[str, Any]:
    """The samples of a batch at these places; what has no row a sample is the same for all."""
    return {
        name: value[members] if isinstance(value, Tensor) and value.dim() and len(value) == count else value
        for name, value in batch.items()
    }
