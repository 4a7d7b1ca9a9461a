"""SlimSAM: a vision transformer loses width in two steps, and relearns its own features after each, without labels.

    slim = SlimSam(share=0.5).fit(model, batches, calibration, held_out)
    vit.save(slim.network, "slim", dense=model)

Chen et al. 2024: SlimSAM, 0.1 % Data Makes Segment Anything Slim (arXiv 2312.05284), section 3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from secateur.allocation import Budget, allocate, allocate_per_group
from secateur.console import Report, silent, stretch
from secateur.importance import Disturbed, Normalized, Taylor
from secateur.importance.objective import Objective, required
from secateur.recovery.distill import Features, OutputError, Term, kept_channels
from secateur.schedules import Dimension, alternate_dimensions
from secateur.stages import SCORES, Stages
from secateur.surgery.manifest import hash_weights
from secateur.surgery.network import Network
from secateur.training import Batches, FitRecord, fit
from secateur.training.plateau import FallOnPlateau
from secateur.units import Criterion, Scores, UnitGroup
from vit.alignment import Alignment, Lesson, embedding_of
from vit.inputs import check_pixels
from vit.units import Kind, prunable
from vit.units.layouts import Layer, layers

Attention = Literal["heads", "head_dims"]
Ranking = Literal["local", "global"]
_STEPS = ("first", "second")


@dataclass(frozen=True)
class Slim:
    """What SlimSAM made of a model.

    Args:
        network: the pruned network, in evaluation mode, with its history of cuts.
        records: of each distillation; validations are minus the mean squared error to the dense model's embedding.
    """

    network: Network
    records: tuple[FitRecord, ...]


@dataclass(frozen=True)
class SlimSam:
    """Alternate slimming with disturbed Taylor importance (SlimSAM, Chen et al. 2024, arXiv 2312.05284).

    First the stream that all layers share loses features, and what the network computes inside of its layers, whose
    widths are still the dense model's, is aligned with it: queries, keys, values and neurons, and the embedding at the
    end. Then attentions and feed-forwards lose width, and the layers' outputs are aligned with those of the first
    step's network, whose widths they have, and the embedding with both teachers'. Images need no labels.

    Args:
        share: of the features, of the attentions' width and of the neurons that stays: the same in both steps.
        attention: what attentions lose: whole heads, or the same dimensions in all heads of one. The latter is the
            paper's choice and hurts less where heads are few; SAM's attention has no units of it, as its tables of
            relative positions have the width of a head.
        ranking: "local": each layer loses the same share, so that plain transformers can load what is left; "global":
            units of all layers compete within their kind (the paper's second step).
        criterion: scores units on the disturbed objective. The released code takes absolutes of the gradient of all
            images together, whose mean is 0; the mean over batches of absolutes (`Taylor("elements")`), or of squares
            (`Fisher()`), does not depend on the noise that much. Small batches give more draws of it.
        sigma: standard deviation of the noise that disturbs the embedding.
        steps: of each distillation.
        alpha: weight of inner features in the first step's first half; that of the embedding is the rest.
        rate: learning rate of Adam.
        validate_every: steps between validations, of which the best one's weights are kept.
        patience: validations in vain after which the rate is halved.
        alternate: False cuts all at once and distils as long as both steps take together, with the layers' outputs
            aligned to those features of the dense model's that remain: the paper's comparison.

    Raises:
        ValueError: an option is out of range.
    """

    share: float = 0.5
    attention: Attention = "heads"
    ranking: Ranking = "local"
    criterion: Criterion = field(default_factory=lambda: Normalized(Taylor("elements")))
    sigma: float = 0.01
    steps: int = 1000
    alpha: float = 0.5
    rate: float = 1e-4
    validate_every: int = 50
    patience: int = 3
    alternate: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not 0 <= self.alpha <= 1:
            raise ValueError(f"share in (0, 1] and alpha in [0, 1] are needed, got {self.share} and {self.alpha}")
        if self.steps < 1 or not self.rate > 0:
            raise ValueError(f"steps >= 1 and rate > 0 are needed, got {self.steps} and {self.rate}")
        if self.attention not in ("heads", "head_dims") or self.ranking not in ("local", "global"):
            raise ValueError(
                f"attention must be 'heads' or 'head_dims' and ranking 'local' or 'global', "
                f"got {self.attention!r} and {self.ranking!r}"
            )

    def fit(
        self,
        model: nn.Module,
        batches: Batches,
        calibration: Sequence[Float[Tensor, "N C H W"]],
        held_out: Sequence[Float[Tensor, "N C H W"]],
        *,
        work: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        seed: int = 0,
        report: Report = silent,
    ) -> Slim:
        """Slim a model; it is left as it is.

        Args:
            model: a vision transformer; its embedding is the tensor that it returns, its logits or its last state.
            batches: images to distil with, (N, C, H, W) each, or mappings with "pixel_values"; labels are not read.
            calibration: batches of images to score with, on the model's device.
            held_out: batches of images to validate on, likewise.
            work: folder for scores and checkpoints, from which a stopped run goes on; None: nothing is kept.
            identity: plain values that name the images; a run does not go on from one of another identity.
            seed: of noise and training.
            report: told how far it is.

        Raises:
            ValueError: the model is no vision transformer, or has no units of a kind; images do not fit it, or are
                missing.
        """
        if not len(calibration) or not len(held_out):
            raise ValueError("images to score with and images to validate on are needed: one batch of each, at least")
        if hasattr(model, "config"):
            check_pixels(model, calibration[0])
        kinds: tuple[Kind, ...] = ("embedding", self.attention, "neurons")
        dense = prunable(model, kinds, {"pixel_values": calibration[0][:1]})
        stages = None if work is None else self._stages(work, model, seed, identity or {})
        run = _Run(self, dense, batches, held_out, stages, seed, report)
        phases = alternate_dimensions(
            dense,
            _Kept(self.criterion, stages),
            Budget(share=self.share),
            [_of_kind(kind) for kind in kinds],
            run.recover,
            calibration=Disturbed(calibration, self.sigma, seed, embedding_of),
            allocator=allocate_per_group if self.ranking == "local" else allocate,
        )
        return Slim(deque(phases, maxlen=1).pop(), tuple(run.records))

    def _stages(self, work: Path, model: nn.Module, seed: int, identity: Mapping[str, Any]) -> Stages:
        made_from = {"weights": hash_weights(model), "method": repr(self), "seed": seed, **identity}
        return Stages.within(work, dict.fromkeys([*_STEPS, *(f"scores-{phase}" for phase in range(3))], made_from))


def _of_kind(kind: Kind) -> Dimension:
    def belongs(group: UnitGroup) -> bool:
        return group.name.rpartition(".")[2] == kind

    return belongs


class _Kept:
    """A criterion whose scores are kept from run to run, in the order in which they are asked for."""

    def __init__(self, criterion: Criterion, stages: Stages | None) -> None:
        self.criterion, self.stages, self.asked = criterion, stages, 0

    def score(self, target: Network, calibration: Objective | None = None) -> Scores:
        objective, stage = required(calibration, self), f"scores-{self.asked}"
        self.asked += 1
        if self.stages is None:
            return self.criterion.score(target, objective)
        return self.stages.kept(stage, SCORES, lambda: self.criterion.score(target, objective))


class _Run:
    """What follows the cuts: nothing after the attentions', a distillation after the others."""

    def __init__(
        self,
        method: SlimSam,
        dense: Network,
        batches: Batches,
        held_out: Sequence[Tensor],
        stages: Stages | None,
        seed: int,
        report: Report,
    ) -> None:
        self.method, self.dense, self.batches, self.held_out = method, dense, batches, held_out
        self.stages, self.seed, self.report = stages, seed, report
        self.teacher = dense
        self.records: list[FitRecord] = []

    def recover(self, cut: Network, phase: int) -> Network:
        """The network after the distillation that its cut asks for."""
        method = self.method
        if phase == 0 and method.alternate:
            self._distil(cut, "first", self._first(), method.steps, stretch(self.report, 0, 0.5))
            self.teacher = cut
        elif phase == 2 and method.alternate:
            self._distil(cut, "second", self._second(), method.steps, stretch(self.report, 0.5, 1))
        elif phase == 2:
            self._distil(cut, "first", self._at_once(cut), 2 * method.steps, self.report)
        return cut

    def _first(self) -> list[Lesson]:
        """Inner features for half of the time, and the embedding."""
        dense, alpha = self.dense.module, self.method.alpha
        return [
            Lesson(dense, _inner(layers(dense)), lambda done: alpha if done < 0.5 else 0.0),
            Lesson(dense, (OutputError(),), lambda done: 1 - alpha if done < 0.5 else 1.0),
        ]

    def _second(self) -> list[Lesson]:
        """From the first step's network to the dense model, within half of the time."""
        first = self.teacher.module
        outputs = Features(tuple(layer.name for layer in layers(first)), dim=-1)
        return [
            Lesson(first, (outputs, OutputError()), lambda done: max(0.0, 1 - 2 * done)),
            Lesson(self.dense.module, (OutputError(),), lambda done: min(1.0, 2 * done)),
        ]

    def _at_once(self, cut: Network) -> list[Lesson]:
        """As the first step, with layers' outputs, of which some features remain, in place of inner features."""
        dense, alpha = self.dense.module, self.method.alpha
        writers = {layer.name: layer.feed_forward.down for layer in layers(dense) if layer.feed_forward}
        kept = kept_channels(cut.cuts, list(writers.values()))
        outputs = Features(
            tuple(writers), dim=-1, kept={name: kept[writer] for name, writer in writers.items() if writer in kept}
        )
        return [
            Lesson(dense, (outputs,), lambda done: alpha if done < 0.5 else 0.0),
            Lesson(dense, (OutputError(),), lambda done: 1 - alpha if done < 0.5 else 1.0),
        ]

    def _distil(self, cut: Network, stage: str, lessons: Sequence[Lesson], steps: int, report: Report) -> None:
        method = self.method
        module = Alignment(
            cut.module.train(),
            self.dense.module,
            lessons,
            self.held_out,
            steps=steps,
            rate=method.rate,
        )
        record = fit(
            module,
            self.batches,
            steps=steps,
            seed=self.seed,
            validate_every=method.validate_every,
            checkpoint=None if self.stages is None else self.stages.checkpoint(stage),
            resume=True,
            identity={"stage": stage},
            callbacks=[FallOnPlateau(method.patience)],
            report=report,
        )
        cut.module.eval()
        self.records.append(record)


def _inner(found: Sequence[Layer]) -> tuple[Term, ...]:
    """What is compared within layers: queries, keys and values, and neurons before their activation."""
    queries = [name for layer in found if layer.attention for name in layer.attention.inputs]
    neurons = [name for layer in found if layer.feed_forward for name in _widening(layer)]
    return tuple(Features(tuple(names), dim=-1) for names in (queries, neurons) if names)


def _widening(layer: Layer) -> list[str]:
    assert layer.feed_forward is not None
    return [name for name in (layer.feed_forward.up, layer.feed_forward.gate) if name is not None]
