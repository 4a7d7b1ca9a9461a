"""The experts: each code's network, cut out, trained on its prompts, and kept in one folder with the router."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffusion.aptp.captions import EMBEDDINGS, Captioned
from diffusion.aptp.layout import Layout
from diffusion.aptp.router import Router
from diffusion.data import to_device
from diffusion.saving import PrunedPipeline, load_network, read_manifest, save, save_pipeline
from diffusion.train import DenoisingTask, DiffusionDistillation, block_features
from secateur.console import Report, silent, stretch
from secateur.recovery.distill import OutputError, Term
from secateur.surgery.network import Network
from secateur.tensor_files import TensorFormat
from secateur.training import FitRecord, fit

ROUTER = "router.safetensors"
EXPERTS = "experts"
_FORMAT = TensorFormat("secateur prompt router", 1)


@dataclass(frozen=True, eq=False)
class Experts:
    """A router, and the pruned network of each of its codes.

    Raises:
        ValueError: there are not as many experts as codes.
    """

    router: Router
    networks: tuple[Network, ...]

    def __post_init__(self) -> None:
        if len(self.networks) != len(self.router.codes):
            raise ValueError(
                f"the router has {len(self.router.codes)} codes, but there are {len(self.networks)} experts"
            )


def harden(router: Router, network: Network, embeddings: Float[Tensor, "P width"]) -> Experts:
    """Cut the expert of every code that one of the prompts is routed to; codes of no prompt are left out.

    Args:
        router: trained.
        network: that it was trained with; it is not changed.
        embeddings: of the training prompts.

    Raises:
        ValueError: the router gates another network; there are no prompts, or they come from another encoder.
    """
    router.layout.check_fits(network)
    used = router.route(embeddings).unique().tolist()
    return Experts(router.only(used).eval(), tuple(network.cut(router.keep(code)) for code in used))


@dataclass(frozen=True)
class FineTuning:
    """How each expert is trained on the prompts that are routed to it, with the whole network as its teacher.

    Args:
        steps: a pass of each expert; 30,000 in APTP (arXiv 2406.12042).
        batch_size: 128 in APTP.
        accumulate: parts that a step's samples go through the network in, one after another: memory is that of one.
        rate: of AdamW.
        output: weight of the difference of outputs from the teacher's.
        blocks: weight of that of the blocks' outputs; 0 for networks without blocks.
        ema: decay of the averaged weights that are kept; None: the last are.
        seed: of batches and noise.

    Raises:
        ValueError: a number is out of range, or a step's samples do not divide into equal parts.
    """

    steps: int = 30_000
    batch_size: int = 128
    accumulate: int = 1
    rate: float = 1e-5
    output: float = 0.2
    blocks: float = 0.2
    ema: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.seed) < 0 or self.batch_size < 1 or not self.rate > 0:
            raise ValueError(
                "steps and seed of at least 0, batch_size of at least 1 and a rate above 0 are needed, got "
                f"{self.steps}, {self.seed}, {self.batch_size} and {self.rate}"
            )
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(f"a batch of {self.batch_size} does not divide into {self.accumulate} equal parts")
        if not min(self.output, self.blocks) >= 0:
            raise ValueError(f"weights must not be negative, got {self.output} and {self.blocks}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"ema, a decay, must be at least 0 and below 1, got {self.ema}")

    @property
    def micro_batch(self) -> int:
        """Samples that go through the network at a time."""
        return self.batch_size // self.accumulate

    def fit(
        self,
        experts: Experts,
        teacher: Network,
        data: Captioned,
        task: DenoisingTask,
        *,
        checkpoints: Path | None = None,
        resume: bool = False,
        report: Report = silent,
    ) -> list[FitRecord]:
        """Train the experts in place, one after another; a record each.

        Args:
            experts: of `harden`.
            teacher: the whole network; it is not changed.
            data: samples with the prompts that the experts were hardened with.
            task: the denoising loss.
            checkpoints: folder for a checkpoint each.
            resume, report: as `secateur.training.fit`.

        Raises:
            ValueError: no sample's prompt is routed to an expert.
        """
        codes, records = experts.router.route(data.embeddings).cpu(), []
        count = len(experts.networks)
        for code, expert in enumerate(experts.networks):
            own = data.with_prompts((codes == code).nonzero()[:, 0])
            batches = own.batches(min(self.micro_batch, len(own)), self.seed)
            first = to_device(batches.batch_at(0), next(expert.module.parameters()).device)
            example = {name: value for name, value in first.items() if name != EMBEDDINGS}
            terms: list[Term] = [OutputError(self.output)]
            if self.blocks:
                terms.append(block_features(expert.module, self.blocks))
            records.append(
                fit(
                    _Expert(expert.module, teacher.module, terms, example, task, rate=self.rate),
                    batches,
                    steps=self.steps,
                    accumulate=self.accumulate,
                    seed=self.seed,
                    ema=self.ema,
                    checkpoint=None if checkpoints is None else checkpoints / f"expert-{code}.ckpt",
                    resume=resume,
                    identity={"expert": code, "options": repr(self), "samples": len(own)},
                    report=stretch(report, code / count, (code + 1) / count),
                )
            )
        return records


class _Expert(DiffusionDistillation):
    """Its batches hold embeddings, too, which only the router reads."""

    def losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return super().losses({name: value for name, value in batch.items() if name != EMBEDDINGS})


def save_experts(
    experts: Experts,
    pipeline: Any,
    folder: str | os.PathLike[str],
    *,
    component: str = "unet",
    **options: Any,
) -> None:
    """Write router and experts as one folder, which `load_experts` reads.

    The folder is a pipeline's, with the first expert in it, so that it loads as one; the others lie in `experts/1` and
    so on. The router comes last, with the hashes of the experts that it belongs to.

    Args:
        experts: to write.
        pipeline: of diffusers; it is not changed.
        folder: where to.
        component: what the pipeline calls its network.
        options: `dense`, `recipe`, `metrics` of `diffusion.saving.save`, the same for each expert.

    Raises:
        ValueError: the pipeline has no such component; or as for `diffusion.saving.save`.
    """
    folder = Path(folder)
    first, *others = experts.networks
    save_pipeline(pipeline, {component: first}, folder, **options)
    for code, network in enumerate(others, 1):
        save(network, _place(folder, component, code), **options)
    save_router(experts.router, folder / ROUTER, component, _hashes(folder, component, len(experts.networks)))


def load_experts(folder: str | os.PathLike[str]) -> tuple[Experts, Any, str]:
    """What `save_experts` wrote: the experts in evaluation mode, the pipeline, and what it calls its network.

    Raises:
        FileNotFoundError: the router or an expert is missing.
        ValueError: a file is damaged, or the experts are not those that the router was written with.
    """
    folder = Path(folder)
    router, component, hashes = load_router(folder / ROUTER)
    found = _hashes(folder, component, len(hashes))
    wrong = [code for code, pair in enumerate(zip(hashes, found, strict=True)) if pair[0] != pair[1]]
    if wrong:
        raise ValueError(
            f"{_place(folder, component, wrong[0])}: not the expert that {folder / ROUTER} was written with "
            "(weights_sha256)"
        )
    networks = tuple(load_network(_place(folder, component, code)) for code in range(len(hashes)))
    pipeline = PrunedPipeline.from_pretrained(folder, **{component: networks[0].module})
    return Experts(router, networks), pipeline, component


def save_router(router: Router, path: str | os.PathLike[str], component: str, hashes: Sequence[str]) -> None:
    """Write a router alone, with what belongs to it: the component and the weights' hash of each expert."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in router.state_dict().items()}
    fields: dict[str, Any] = {"layout": router.layout.to_fields(), "width": router.width}
    fields |= {"temperature": router.temperature, "offset": router.offset}
    _FORMAT.save(path, tensors, fields | {"component": component, "experts": list(hashes)})


def load_router(path: str | os.PathLike[str]) -> tuple[Router, str, list[str]]:
    """A router, the component that it routes to, and the weights' hashes of its experts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no router, of another version, or damaged.
    """
    return _FORMAT.load(path, _check, _restored)


def _check(header: dict[str, Any]) -> None:
    hashes = header["experts"]
    if not isinstance(hashes, list) or not hashes or not all(isinstance(each, str) for each in hashes):
        raise ValueError("the router names no experts")
    if not isinstance(header["component"], str) or Path(header["component"]).name != header["component"]:
        raise ValueError(f"component {header['component']!r} is no name of a folder")


def _restored(header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Router, str, list[str]]:
    layout, hashes = Layout.from_fields(header["layout"]), header["experts"]
    router = Router(layout, header["width"], len(hashes), temperature=header["temperature"], offset=header["offset"])
    router.load_state_dict(tensors)
    return router.eval(), header["component"], hashes


def _place(folder: Path, component: str, code: int) -> Path:
    return folder / component if code == 0 else folder / EXPERTS / str(code)


def _hashes(folder: Path, component: str, count: int) -> list[str]:
    return [str(read_manifest(_place(folder, component, code))["weights_sha256"]) for code in range(count)]
