"""Patch parallelism measured with processes on this machine: how far it is from one process, and what travels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from diffusion.calibrate import Generator, sampling_recipe
from diffusion.models import find, load_model
from diffusion.patch_parallel.parallel import Staleness, patch_parallel
from diffusion.recipe import Calibration
from diffusion.trajectory import Trajectories
from secateur.files import replacing_file
from secateur.logs import only_errors
from secateur.recipe import recipe_of

_ROWS, _ERROR = "rows.json", "error.txt"


@dataclass(frozen=True, slots=True)
class PatchRow:
    """One way of sharing the work, and the latents that it ends with beside those of one process.

    Args:
        warmup: see `Staleness`.
        context: see `Staleness`.
        largest_error: of all latents, absolute.
        relative_error: norm of the difference over the norm of the latents.
        waited_bytes: that one rank received before it could go on, in the whole trajectory.
        overlapped_bytes: that it received while it worked.
        attention_bytes: of both, the keys and values of self-attention.
    """

    warmup: int | None
    context: float | None
    largest_error: float
    relative_error: float
    waited_bytes: int
    overlapped_bytes: int
    attention_bytes: int


@dataclass(frozen=True, slots=True)
class PatchMeasurement:
    """What was measured on a model.

    Args:
        model: its id.
        ranks: processes.
        steps: of the model's own scheduler.
        samples: sampled at once.
        rows: one for each way.
    """

    model: str
    ranks: int
    steps: int
    samples: int
    rows: tuple[PatchRow, ...]


def measure_patches(
    model: str, ways: Sequence[Staleness], calibration: Calibration, *, ranks: int = 2, samples: int = 4
) -> PatchMeasurement:
    """Sample with one process, then with several that share each call (gloo), in each of the ways.

    DistriFusion (Li et al. 2024, arXiv 2402.19481), PCPP (Zhang et al. 2024, arXiv 2412.02962).

    Args:
        model: a folder, a demo model or a repository, see `diffusion.models.find`.
        ways: of sharing.
        calibration: how samples are drawn: prompts, steps, guidance, size and seed.
        ranks: processes, which divide the rows of the latents; each has a copy of the model.
        samples: drawn at once, prompts in turn.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: there are fewer than two ranks; or the model cannot be loaded, has a layer that patches do not know,
            or rows that do not divide over the ranks.
    """
    if ranks < 2:
        raise ValueError(f"rows are shared among at least 2 processes, got ranks={ranks}")
    find(model)
    # Otherwise torch says which processes it ends after one of them has failed.
    with TemporaryDirectory() as folder, only_errors("torch.multiprocessing.spawn"):
        try:
            mp.spawn(_run, args=(Path(folder), model, tuple(ways), calibration, ranks, samples), nprocs=ranks)
        except mp.ProcessRaisedException:
            said = Path(folder, _ERROR)
            if not said.is_file():
                raise
            raise ValueError(said.read_text(encoding="utf-8")) from None
        rows = json.loads(Path(folder, _ROWS).read_text(encoding="utf-8"))
    return PatchMeasurement(model, ranks, calibration.steps, samples, tuple(PatchRow(**row) for row in rows))


def compare_ways(network: nn.Module, trajectories: Trajectories, ways: Sequence[Staleness]) -> list[PatchRow]:
    """What one of the ranks of a `torch.distributed` group measures; all ranks call it with the same arguments."""
    everything = torch.arange(trajectories.count)
    whole = trajectories.sample(network, everything)
    rows = []
    for staleness in ways:
        with patch_parallel(network, staleness) as traffic:
            difference = trajectories.sample(network, everything) - whole
        rows.append(
            PatchRow(
                staleness.warmup,
                staleness.context,
                float(difference.abs().max()),
                float(difference.norm() / whole.norm()),
                sum(call.total() for call in traffic.waited),
                sum(call.total() for call in traffic.overlapped),
                traffic.total(["attention"]),
            )
        )
    return rows


def _run(
    rank: int, folder: Path, model: str, ways: Sequence[Staleness], calibration: Calibration, ranks: int, samples: int
) -> None:
    """One of the processes; the first one writes what it found, and any of them why it could not."""
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    try:
        loaded = load_model(model)
        trajectories = Generator(loaded, recipe_of(sampling_recipe(model, calibration))).trajectories(samples)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
        rows = compare_ways(loaded.network, trajectories, ways)
    except (ValueError, OSError) as error:
        with replacing_file(folder / _ERROR) as path:
            path.write_text(str(error), encoding="utf-8")
        raise
    if rank == 0:
        with replacing_file(folder / _ROWS) as path:
            path.write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
