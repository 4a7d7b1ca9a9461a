"""Train a prompt router and its experts: python scripts/train_aptp.py out/aptp

APTP on the demo UNet that draws Fashion-MNIST from prompts (another pipeline of that kind: --model FOLDER): the router
learns which prompts need how much of the network, each of its codes becomes a smaller network, and each of these is
trained on its own prompts. Writes a folder that `diffusion.aptp.serving.Routed.from_pretrained` opens, with what goes
where and what it costs in router.json and router.md. Ctrl-C stops after the step; the same command goes on from there.
Needs Fashion-MNIST and the sentence encoder; --quick checks in a minute or two that all of it runs.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion.aptp.captions import Captioned
from diffusion.aptp.experts import Experts, FineTuning, harden, save_experts
from diffusion.aptp.report import describe, write_record
from diffusion.aptp.serving import Routed, sentence_embeddings
from diffusion.aptp.train import Aptp
from diffusion.demo import MODELS
from diffusion.demo.prompts import training_prompts, unseen_prompts
from diffusion.inputs import example_inputs
from diffusion.noising import MinSnr, Noising
from diffusion.pipeline import TextToImage
from diffusion.text import sentence_encoder
from diffusion.train import DenoisingTask
from diffusion.units import prunable
from secateur.console import console, progress_bar, stretch
from secateur.datasets import Labelled, fashion_mnist
from secateur.metrics.distribution import DistributionJudge
from secateur.metrics.features import fashion_features
from secateur.surgery.network import Network
from secateur.training import generator_at


@dataclass(frozen=True)
class Run:
    """How long everything takes.

    Args:
        pruning: of the router.
        tuning: of the experts.
        samples: pictures that are judged.
        sampler_steps: of each.
        training_pictures: how many are trained on; None: all.
    """

    pruning: Aptp
    tuning: FineTuning
    samples: int
    sampler_steps: int
    training_pictures: int | None = None


# At 28 pixels and a few hundred steps, rates are those of small networks; the losses' weights are the paper's.
FULL = Run(
    Aptp(share=0.6, codes=4, steps=500, warmup=30, batch_size=32, rate=0.03, network_rate=5e-5),
    FineTuning(steps=400, batch_size=64, rate=3e-4, ema=0.98),
    samples=500,
    sampler_steps=20,
)
QUICK = Run(
    Aptp(share=0.6, codes=2, steps=6, warmup=1, batch_size=4, rate=0.3, network_rate=5e-5),
    FineTuning(steps=2, batch_size=4, rate=3e-4),
    samples=10,
    sampler_steps=2,
    training_pictures=400,
)


def captioned(data: Labelled, count: int | None) -> Captioned:
    """Pictures, each with one of its class's prompts, drawn at random."""
    generator = generator_at(0, 0)
    chosen = data.subset(torch.randperm(len(data), generator=generator)[:count])
    of_class = [training_prompts(name) for name in data.classes]
    texts = tuple(text for prompts in of_class for text in prompts)
    starts = torch.tensor([0, *map(len, of_class)]).cumsum(0)
    sizes = starts.diff()[chosen.labels]
    drawn = torch.rand(len(chosen), generator=generator, dtype=torch.float64)
    encoded = sentence_encoder()(["", *texts])
    return Captioned(
        chosen.pixels(-1, 1),
        starts[chosen.labels] + (drawn * sizes).long(),
        texts,
        encoded.embeddings[1:],
        {"encoder_hidden_states": encoded.states[1:]},
        {"encoder_hidden_states": encoded.states[:1]},
    )


def with_units(network: torch.nn.Module) -> Network:
    """The units that APTP gates."""
    kinds: Any = ("heads", "neurons", "channels", "resnets", "stacks")
    return prunable(network, kinds, example_inputs(network, text_tokens=sentence_encoder().length))


class Judge:
    """Says of pictures how many show what was asked for, and how far they are from real ones."""

    def __init__(self, samples: int, steps: int) -> None:
        self.steps, unseen = steps, fashion_mnist("test")
        self.features = fashion_features()
        self.judge = DistributionJudge.of(self.features, unseen.pixels())
        self.labels = torch.arange(samples) % len(unseen.classes)
        asked = unseen_prompts(unseen.classes)
        self.prompts = [asked[label] for label in self.labels.tolist()]

    def __call__(self, pipeline: Any) -> dict[str, float | str]:
        images = torch.cat([self._pictures(pipeline, start) for start in range(0, len(self.prompts), 50)])
        distances = self.judge.distances(self.features(images).cpu())
        right = (self.features.classify(images).cpu() == self.labels).double().mean()
        return {"right class": float(right), "distance": distances.name, "frechet": distances.frechet}

    def _pictures(self, pipeline: Any, start: int) -> Float[Tensor, "N 1 28 28"]:
        prompts = self.prompts[start : start + 50]
        options = {"num_inference_steps": self.steps, "guidance_scale": 2.0, "output_type": "pt"}
        made: Tensor = pipeline(prompts, seeds=range(start, start + len(prompts)), **options)
        return made


def train(run: Run, pipeline: TextToImage, data: Captioned, work: Path) -> tuple[Experts, Experts]:
    """The experts as they were cut, and as they are after their training; the pipeline's network stays as it is."""
    task = DenoisingTask(Noising.of(pipeline.scheduler), MinSnr())
    gated, teacher = (with_units(copy.deepcopy(pipeline.network)) for _ in range(2))
    with progress_bar() as report:
        first, second = stretch(report, 0, 0.5), stretch(report, 0.5, 1)
        router, _ = run.pruning.fit(gated, data, task, checkpoint=work / "router.ckpt", resume=True, report=first)
        experts = harden(router, gated, data.embeddings)
        at_once = copy.deepcopy(experts)
        run.tuning.fit(experts, teacher, data, task, checkpoints=work, resume=True, report=second)
    return at_once, experts


def main(options: argparse.Namespace) -> dict[str, Any]:
    run = QUICK if options.quick else FULL
    run = replace(run, pruning=replace(run.pruning, codes=options.codes or run.pruning.codes, share=options.share))
    if not (options.model / "model_index.json").is_file():
        raise SystemExit(f"{options.model}: no pipeline; scripts/train_demo_diffusion.py fashion-unet trains one")
    pipeline = TextToImage.from_pretrained(options.model)
    pipeline.network.eval()
    data = captioned(fashion_mnist("train"), run.training_pictures)
    at_once, experts = train(run, pipeline, data, options.output / "checkpoints")

    judge = Judge(run.samples, run.sampler_steps)
    quality = {"dense": judge(pipeline)}
    for name, each in (("cut", at_once), ("trained", experts)):
        shell = TextToImage(each.networks[0].module, pipeline.scheduler)
        quality[name] = judge(Routed(each, shell))
    record = describe(experts, with_units(pipeline.network), data)
    asked = unseen_prompts(fashion_mnist("test").classes)
    new = dict(zip(asked, experts.router.route(sentence_embeddings(asked)).tolist(), strict=True))
    shell = TextToImage(experts.networks[0].module, pipeline.scheduler)
    save_experts(experts, shell, options.output, dense=pipeline.network, recipe={"method": repr(run)})
    write_record(record, options.output, quality=quality, unseen_prompts=new, run=repr(run))
    console.print("\n".join(record.lines()), markup=False, highlight=False, soft_wrap=True)
    for name, found in quality.items():
        console.print(f"{name}: {found}", markup=False, highlight=False, soft_wrap=True)
    return {"record": record, "quality": quality, "unseen_prompts": new}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for router, experts and records")
    parser.add_argument("--model", type=Path, default=MODELS / "fashion-unet", help="folder of a TextToImage pipeline")
    parser.add_argument("--codes", type=int, help="experts at most; 1: one network for all prompts")
    parser.add_argument("--share", type=float, default=0.6, help="of the multiply-adds that a prompt costs in the mean")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    main(parser.parse_args())
