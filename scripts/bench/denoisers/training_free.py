"""Section `training_free`: what makes the dense model faster without pruning it: DeepCache and token merging."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job
from torch import Tensor, nn

from denoisers.settings import LATENCY_BATCH, Settings
from denoisers.subjects import subject
from diffusion.caching import deep_cache
from diffusion.token_merging import token_merging
from secateur.console import Report

HOW = (
    "DeepCache runs the whole UNet at every second, third or fifth step, and its outermost layers between; token "
    "merging halves the tokens of self-attention, or takes three quarters away. Milliseconds are those of a trajectory "
    "of 8 samples, in processor time of one thread, the least of 12. Nothing is calibrated."
)

Open = Callable[[nn.Module], AbstractContextManager[None]]

CACHES: Mapping[str, Open] = {
    f"DeepCache {interval}": partial(deep_cache, interval=interval, branch=0) for interval in (2, 3, 5)
}
MERGES: Mapping[str, Open] = {
    f"token merging {ratio:.0%}": partial(token_merging, ratio=ratio) for ratio in (0.5, 0.75)
}


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a model and seed."""
    return {
        f"{name}: seed {seed}": partial(_peers, name, seed, settings)
        for name in settings.models
        for seed in settings.seeds
    }


class _Within(nn.Module):
    """The dense model, sampled while a context is open."""

    def __init__(self, network: nn.Module, enter: Open) -> None:
        super().__init__()
        self.network, self.enter = network, enter


@dataclass(frozen=True)
class _Sampler:
    plain: Any

    def __call__(self, target: nn.Module, seeds: Sequence[int]) -> Tensor:
        if not isinstance(target, _Within):
            return self.plain(target, seeds)
        with target.enter(target.network):
            return self.plain(target.network, seeds)


def _peers(name: str, seed: int, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of = subject(name)
    methods = (CACHES if "unet" in name else {}) | (MERGES if _merges(of.dense) else {})
    models: dict[str, nn.Module] = {method: _Within(of.dense, enter) for method, enter in methods.items()}
    report(0.0, f"{name}: training-free peers, seed {seed}")
    dense, figures = settings.judged(of, models, seed, _Sampler)
    sampling = of.sampling(seed, LATENCY_BATCH, settings.steps(of))
    sample = _Sampler(sampling.sample)
    rows = []
    for method, model in models.items():
        report(0.8, f"{name}: {method}: timing")
        times = settings.latencies(partial(sample, model, sampling.seeds), partial(sample, of.dense, sampling.seeds))
        rows.append({"method": method, "seed": seed} | times | figures[method])
    return {"how": HOW, "dense": dense, "rows": rows}


def _merges(network: nn.Module) -> bool:
    return any(name.endswith("attn1") for name, _ in network.named_modules())
