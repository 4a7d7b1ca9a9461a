"""Section `experts`: APTP's router and its networks, against one network of as many multiply-adds for all prompts."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

from parts import Job

from denoisers.settings import Settings
from denoisers.subjects import Subject, subject
from diffusion.aptp.captions import Captioned
from diffusion.aptp.experts import Experts, FineTuning, harden
from diffusion.aptp.report import describe
from diffusion.aptp.run import RoutedNetwork, RoutedSource
from diffusion.aptp.serving import sentence_embeddings
from diffusion.aptp.train import Aptp
from diffusion.data import DemoData
from diffusion.models import load_model
from diffusion.noising import MinSnr, Noising
from diffusion.train import DenoisingTask
from diffusion.trajectory import Trajectories
from diffusion.units import Kind, prunable
from secateur.console import Report, stretch

HOW = (
    "APTP: a router is trained with the network that it gates (200 steps of 32 pictures), each of its codes is cut out "
    "and trained on the prompts that are routed to it (32 pictures a step, rate 0.0003, averaged weights), with the "
    "dense network as the teacher. 'codes 1' is one network for all prompts, made in the same way, and trained for as "
    "many steps as all experts together. 'share' is that of the dense network's multiply-adds which a sample costs in "
    "the mean, 'even' how evenly experts are used (1: alike). Samples are drawn from the plain prompt of each class."
)

PROMPTED = ("fashion-unet",)
KINDS: tuple[Kind, ...] = ("heads", "neurons", "channels", "resnets", "stacks")
SHARE, CODES = 0.6, (1, 4)


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a model of prompts, number of codes, and seed."""
    return {
        f"{name}: codes {codes}: seed {seed}": partial(_routed, name, codes, seed, settings)
        for name in settings.models
        if name in PROMPTED
        for seed in settings.seeds
        for codes in CODES
    }


def _routed(name: str, codes: int, seed: int, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    of = subject(name)
    report(0.0, f"{name}: {codes} codes, seed {seed}")
    samples = DemoData("fashion", 64 if settings.quick else 20_000, seed).gather(load_model(name), _undrawn)
    data = Captioned.of(samples, sentence_embeddings)
    task = DenoisingTask(Noising.of(of.pipeline.scheduler), MinSnr())
    gated = prunable(copy.deepcopy(of.dense), KINDS, of.inputs())
    steps, each = (3, 2) if settings.quick else (200, 100)
    pruning = Aptp(SHARE, codes, steps=steps, warmup=max(1, steps // 15), batch_size=32, rate=0.03, seed=seed)
    router, _ = pruning.fit(gated, data, task, report=stretch(report, 0.0, 0.4))
    cut = harden(router, gated, data.embeddings)
    trained = copy.deepcopy(cut)
    each = each * max(CODES) // len(trained.networks)
    tuning = FineTuning(each, batch_size=32, rate=3e-4, ema=0.98, seed=seed)
    tuning.fit(trained, of.network(KINDS), data, task, report=stretch(report, 0.4, 0.9))
    record = describe(trained, of.network(KINDS), data)
    dense, figures = _judged(of, {"cut": cut, "trained": trained}, seed, settings)
    facts = {"codes": codes, "seed": seed, "share": record.share, "even": record.even, "steps": each}
    rows = [facts | {"state": state} | found for state, found in figures.items()]
    experts = [{"share": one.share, "params": one.params, "used": one.used} for one in record.experts]
    return {"how": HOW, "dense": dense, "experts": experts, "rows": rows}


def _undrawn(count: int) -> Trajectories:
    raise ValueError("pictures of the data set need no trajectories")


def _judged(of: Subject, states: dict[str, Experts], seed: int, settings: Settings) -> tuple[dict[str, Any], Any]:
    """Each prompt drawn by its own expert."""
    codes = states["cut"].router.route(sentence_embeddings(of.asked)).tolist()
    sampling = of.sampling(seed, settings.samples(of), settings.steps(of))
    assert sampling.labels is not None
    of_seed = {each: codes[label] for each, label in zip(sampling.seeds, sampling.labels, strict=True)}
    models = {state: RoutedNetwork(experts).eval() for state, experts in states.items()}
    return settings.judged(of, models, seed, lambda plain: RoutedSource(plain, of_seed))
