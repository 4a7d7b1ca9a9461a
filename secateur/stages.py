"""What a run has finished: each stage's result as a file that knows what it was made from, so that none is repeated.

    stages = Stages.within(output, {"scores": {"weights": hash_weights(network), "criterion": repr(criterion)}})
    scores = stages.scores(lambda: criterion.score(network, calibration))
    fit(module, batches, steps=1000, checkpoint=stages.checkpoint("recovery"), resume=True)
    stages.clear()

An identity names everything that the result depends on. A model's path is not enough, because another checkpoint may
lie there one day: `secateur.surgery.manifest.hash_weights` of the loaded network is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from secateur.evaluation.chunks import ChunkStore
from secateur.interrupts import is_interrupt
from secateur.tensor_files import TensorFormat
from secateur.units import Scores

_NAME = "stages"
_SCORES = "scores"

Made = TypeVar("Made")


@dataclass(frozen=True)
class StageKind(Generic[Made]):
    """How the results of a stage lie in a file.

    Args:
        format: of the file.
        flat: result -> its tensors by name, and what else JSON holds of it.
        restore: the same tensors and fields -> the result.
    """

    format: TensorFormat
    flat: Callable[[Made], tuple[Mapping[str, Tensor], Mapping[str, Any]]]
    restore: Callable[[dict[str, Tensor], Mapping[str, Any]], Made]


SCORES: StageKind[Scores] = StageKind(
    TensorFormat("secateur scores", 1, article=""), lambda scores: (scores, {}), lambda tensors, _: tensors
)


@dataclass(frozen=True)
class Stages:
    """The folder of a run's stages.

    Args:
        folder: `stages` within the folder of the result.
        identities: stage -> what it depends on, as plain values.
    """

    folder: Path
    identities: Mapping[str, Any]

    @classmethod
    def within(cls, output: Path, identities: Mapping[str, Any]) -> Stages:
        """The stages of the run whose result goes into `output`."""
        return cls(output / _NAME, identities)

    def identity(self, stage: str) -> str:
        """A hash of what the stage depends on."""
        text = json.dumps(self.identities[stage], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def checkpoint(self, stage: str) -> Path:
        """Where a fit keeps what it has done so far; one of another identity is never found."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{stage}-{self.identity(stage)[:12]}.ckpt"

    def scores(self, make: Callable[[], Scores]) -> Scores:
        """The scores of the run, made once."""
        return self.kept(_SCORES, SCORES, make)

    def kept(self, stage: str, kind: StageKind[Made], make: Callable[[], Made]) -> Made:
        """What the stage made when it last ran from the same things; otherwise what `make` gives, which is then kept.

        Raises:
            ValueError: the stage's file is damaged, or is another one: names the file.
        """
        path, identity = self.folder / f"{stage}.safetensors", self.identity(stage)
        if path.is_file():
            fields, tensors = kind.format.load(path, lambda header: None, lambda header, held: (header, held))
            if fields.get("identity") == identity:
                return kind.restore(tensors, fields["others"])
        made = make()
        flat, others = kind.flat(made)
        # A row that stands for many shares its memory, which safetensors refuses.
        tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in flat.items()}
        kind.format.save(path, tensors, {"identity": identity, "others": dict(others)})
        return made

    def chunks(self) -> ChunkStore:
        """Where the run's evaluation keeps what it has seen of each model; `clear` removes it."""
        return ChunkStore(self.folder)

    def clear(self) -> None:
        """Remove what only a run that was cut short needs; the scores stay."""
        for entry in self.folder.glob("*"):
            if entry.name != f"{_SCORES}.safetensors":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@contextmanager
def kept_when_stopped(output: Path | None) -> Iterator[None]:
    """Let Ctrl-C out of a run of stages as a KeyboardInterrupt that says that the same command goes on.

    Args:
        output: folder of the result; None: there is none.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemError) as stop:
        if output is None or not is_interrupt(stop) or not any((output / _NAME).glob("*")):
            raise
        told = str(stop) if isinstance(stop, KeyboardInterrupt) else ""
        told = told or f"what is finished is in {output / _NAME}"
        raise KeyboardInterrupt(f"{told}; the same command goes on") from None


def on_cpu(scores: Scores) -> Scores:
    """Scores in float64 on the CPU, where units are chosen."""
    return {name: score.detach().to("cpu", torch.float64) for name, score in scores.items()}
