"""Patch parallelism, measured: python scripts/patch_parallel.py MODEL [--ranks 2] [--warmup 1 2 4 --context 0.5]

Samples with several processes on this machine (gloo), each with its rows of the latents, and prints JSON: how far the
result is from that of one process, and what a process received, for each number of synchronous steps at the start, with
all of the other patches' keys and values (DistriFusion) and with parts of the neighbours' (PCPP).
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from diffusion.demo.networks import digits_dit, digits_unet, scheduler
from diffusion.patch_parallel import Staleness, patch_parallel
from diffusion.trajectory import Sampler, Trajectories
from secateur.files import replacing_file

RANDOM = {"random-unet": digits_unet, "random-dit": digits_dit}


def main(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, args=(options, folder), nprocs=options.ranks)
        return {
            "model": Path(options.model).name,
            "ranks": options.ranks,
            "steps": options.steps,
            "samples": options.samples,
            "rows": json.loads(Path(folder, "rows.json").read_text()),
        }


def measure(rank: int, options: argparse.Namespace, folder: str) -> None:
    """One of the processes; the first one writes what it found."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=options.ranks)
    network = load(options.model)
    trajectories = calibration(network, options)
    everything = torch.arange(options.samples)
    whole = trajectories.sample(network, everything)
    rows = []
    for staleness in settings(options):
        with patch_parallel(network, staleness) as traffic:
            latents = trajectories.sample(network, everything)
        rows.append(
            {
                "warmup": staleness.warmup,
                "context": staleness.context,
                "largest_error": float((latents - whole).abs().max()),
                "relative_error": float((latents - whole).norm() / whole.norm()),
                "waited_bytes": sum(call.total() for call in traffic.waited),
                "overlapped_bytes": sum(call.total() for call in traffic.overlapped),
                "attention_bytes": traffic.total(["attention"]),
            }
        )
    if rank == 0:
        with replacing_file(Path(folder, "rows.json")) as path:
            path.write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


def settings(options: argparse.Namespace) -> list[Staleness]:
    """All steps synchronous, then each warm-up with all of the others, and with each share of the neighbours."""
    shares = [None, *options.context]
    return [Staleness(warmup=None), *(Staleness(warmup, share) for warmup in options.warmup for share in shares)]


def load(name: str) -> nn.Module:
    """The network: a folder that diffusers wrote, or a small one with random weights, the same in all processes."""
    if name not in RANDOM:
        return diffusers.AutoModel.from_pretrained(name, use_safetensors=True).eval()
    torch.manual_seed(0)
    network = RANDOM[name]()
    for parameter in network.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    return network.eval()


def calibration(network: Any, options: argparse.Namespace) -> Trajectories:
    """Trajectories with classes in turn, or with random embeddings as prompts."""
    config = network.config
    size = options.size or config.sample_size
    classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    conditions: dict[str, Tensor] = {}
    if classes:
        conditions["class_labels"] = torch.arange(options.samples) % classes
    if width := config.get("cross_attention_dim"):
        generator = torch.Generator().manual_seed(0)
        conditions["encoder_hidden_states"] = torch.randn(options.samples, 8, width, generator=generator)
    shape = (config.in_channels, size, size)
    return Trajectories(Sampler(scheduler(), options.steps), shape, options.samples, conditions)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a network that diffusers wrote; or random-unet, random-dit")
    parser.add_argument("--ranks", type=int, default=2, help="processes, which divide the rows of the latents")
    parser.add_argument("--steps", type=int, default=20, help="of DDIM")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--size", type=int, help="rows and columns of the latents; by default the model's own")
    parser.add_argument("--warmup", type=int, nargs="+", default=[1, 2, 4, 8], help="synchronous steps at the start")
    parser.add_argument("--context", type=float, nargs="*", default=[0.5], help="shares of the neighbours' tokens")
    print(json.dumps(main(parser.parse_args()), indent=2))
