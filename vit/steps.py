"""The steps of a recipe for vision transformers: units, blocks, weights or tokens go, what is left is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

from secateur.allocation import Allocator, allocate
from secateur.distortion import Solver
from secateur.granularity import Granularity, Unstructured
from secateur.importance import Magnitude
from secateur.units import Criterion
from vit.dimap import Dimap
from vit.lpvit import LPViT
from vit.slimsam import SlimSam
from vit.tokens.costs import Place
from vit.tokens.cropr import Cropr
from vit.tokens.dynamic_vit import DynamicViT
from vit.tokens.pruner import TokenPruner
from vit.tokens.schedule import TokenSchedule
from vit.train import FineTune
from vit.units import Kind

Cost = Literal["params", "macs", "bytes"]


@dataclass(frozen=True)
class Budget:
    """How much goes, of the model as it is when the step begins.

    Args:
        remove: share, 0 to 1, of the cost that goes.
        limit: the most that the model may cost afterwards; multiply-adds are those of one image, on all its tokens.
        cost: "macs" (attention counted), "params" or "bytes".

    Raises:
        ValueError: not exactly one of `remove` and `limit` is given, or it is out of range.
    """

    remove: float | None = None
    limit: float | None = None
    cost: Cost = "macs"

    def __post_init__(self) -> None:
        if (self.remove is None) == (self.limit is None):
            raise ValueError("a budget is one of remove and limit")
        if self.remove is not None and not 0 <= self.remove < 1:
            raise ValueError(f"the share that goes must be at least 0 and below 1, got {self.remove}")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"limit must be above 0, got {self.limit}")


@dataclass(frozen=True)
class Distortion:
    """Counts by what each layer's loss of units does to the output (RD-Prune, arXiv 2308.10438).

    Args:
        levels: of each group's curve; each takes a forward of the calibration's images.
        solver: see `secateur.distortion.RateDistortion`.

    Raises:
        ValueError: there is no level.
    """

    levels: int = 10
    solver: Solver = "exact"

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1, got {self.levels}")


@dataclass(frozen=True)
class Static:
    """Units go for good, by their scores.

    Args:
        budget: how much.
        kinds: see `vit.units.Kind`.
        modules: patterns over names of modules; units below one that matches may go, others stay.
        min_keep: the fewest units of a layer that stay; 0 lets a layer lose all.
        criterion: scores units: a class of `secateur.importance`, `vit.dimap.Dimap`, or one of your own.
        allocator: which units, given scores: `allocate` (all compete), `allocate_per_group`, `allocate_knapsack`.
        distortion: split the budget over layers by measured curves, in place of an allocator; None: do not.

    Raises:
        ValueError: there are no kinds or patterns, the floor is negative, or there are two ways to split the budget.
    """

    budget: Budget
    kinds: tuple[Kind, ...] = ("heads", "neurons")
    modules: tuple[str, ...] = ("*",)
    min_keep: int = 1
    criterion: Criterion = field(default_factory=Magnitude)
    allocator: Allocator = allocate
    distortion: Distortion | None = None

    def __post_init__(self) -> None:
        if not self.kinds or not self.modules or self.min_keep < 0:
            raise ValueError("at least one kind, one module pattern and a min_keep of at least 0 are needed")
        if self.distortion is not None and self.allocator is not allocate:
            raise ValueError("distortion and allocator cannot be used together: either one splits the budget")


@dataclass(frozen=True)
class GreedyStage:
    """One dimension that is pruned until its part of the budget is gone.

    Args:
        kinds: of units.
        share: of all that goes.
        chunk: units of a layer that go together.

    Raises:
        ValueError: there is no kind, or a number is out of range.
    """

    kinds: tuple[Kind, ...]
    share: float
    chunk: int = 1

    def __post_init__(self) -> None:
        if not self.kinds or not 0 <= self.share <= 1 or self.chunk < 1:
            raise ValueError(
                f"kinds, a share in [0, 1] and a chunk of at least 1 are needed, got {self.kinds}, {self.share} and "
                f"{self.chunk}"
            )


_MULTI_PRUNER = (
    GreedyStage(("attentions", "feed_forwards"), 0.44),
    GreedyStage(("neurons",), 0.52, 64),
    GreedyStage(("heads",), 0.04),
)


@dataclass(frozen=True)
class Greedy:
    """What hurts the calibration's loss least goes first, depth before width (MultiPruner, arXiv 2501.09949).

    Forward passes only: one for each candidate of each step.

    Args:
        budget: how much goes; costs of units are added, each as if it went alone.
        stages: in their order; shares of the released code as default. Of what one stage takes too much the next one
            takes less.
        criterion: the order of the units within a layer; magnitude in the paper.

    Raises:
        ValueError: the stages' shares do not add up to 1.
    """

    budget: Budget
    stages: tuple[GreedyStage, ...] = _MULTI_PRUNER
    criterion: Criterion = field(default_factory=Magnitude)

    def __post_init__(self) -> None:
        total = sum(stage.share for stage in self.stages)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"shares of the stages must add up to 1, got {total:g}")


@dataclass(frozen=True)
class Blocks:
    """Linear layers lose blocks of weights, and multiply what is left (LPViT, arXiv 2407.02068).

    Args:
        remove: share of the cost of all blocks that goes.
        cost: "macs", "params", "power" or "units".
        method: how blocks are chosen.
        weigh: whether distortions are weighed by how much the calibration's loss minds each output.

    Raises:
        ValueError: the share is out of range.
    """

    remove: float
    cost: Literal["macs", "params", "power", "units"] = "macs"
    method: LPViT = field(default_factory=LPViT)
    weigh: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.remove < 1:
            raise ValueError(f"the share that goes must be at least 0 and below 1, got {self.remove}")


@dataclass(frozen=True)
class Sparse:
    """Weights of linear layers become 0, one by one or in patterns; shapes and times stay.

    Args:
        remove: share of these weights.
        criterion: scores weights; DIMAP (arXiv 2404.13648) needs no data.
        granularity: `secateur.granularity.Unstructured`, or `NofM`.

    Raises:
        ValueError: the share is out of range.
    """

    remove: float
    criterion: Criterion = field(default_factory=Dimap)
    granularity: Granularity = field(default_factory=Unstructured)

    def __post_init__(self) -> None:
        if not 0 <= self.remove < 1:
            raise ValueError(f"the share that goes must be at least 0 and below 1, got {self.remove}")


class LearnedPruner(Protocol):
    """Options of a token pruner with weights, which depend on the model."""

    def build(self, width: int, outputs: int, at: Sequence[int]) -> TokenPruner:
        """The pruner for tokens of that width, so many classes, and a schedule that drops at these layers."""
        ...


@dataclass(frozen=True)
class CroprStages:
    """`vit.tokens.Cropr`, sized for the model: see there for the arguments.

    Args:
        queries: of each stage.
        mlp_ratio: of the aggregators.
        aggregate_prefix: whether heads see class token and registers.
        seed: of the weights.
    """

    queries: int = 1
    mlp_ratio: int = 4
    aggregate_prefix: bool = False
    seed: int = 0

    def build(self, width: int, outputs: int, at: Sequence[int]) -> TokenPruner:
        """The pruner."""
        return Cropr(width, outputs, at, self.queries, self.mlp_ratio, self.aggregate_prefix, self.seed)


@dataclass(frozen=True)
class DynamicViTPredictors:
    """`vit.tokens.DynamicViT`, sized for the model: see there for the arguments.

    Args:
        ratio_weight: of the loss on the share that is kept.
        temperature: of the Gumbel-softmax.
        seed: of weights and draws.
    """

    ratio_weight: float = 2.0
    temperature: float = 1.0
    seed: int = 0

    def build(self, width: int, outputs: int, at: Sequence[int]) -> TokenPruner:
        """The pruner."""
        return DynamicViT(width, at, self.ratio_weight, self.temperature, self.seed)


@dataclass(frozen=True)
class Tokens:
    """Tokens go on their way through the layers.

    Args:
        schedule: how many at which layer.
        pruner: which: a class of `vit.tokens` without weights.
        learned: or one with weights, which a `recover` step behind this one trains.
        place: before the layers, or between attention and MLP.
        last_layer_fusion: whether the last layer gets all tokens back, for dense tasks.

    Raises:
        ValueError: not exactly one of `pruner` and `learned` is given.
    """

    schedule: TokenSchedule
    pruner: TokenPruner | None = None
    learned: LearnedPruner | None = None
    place: Place = "before layer"
    last_layer_fusion: bool = False

    def __post_init__(self) -> None:
        if (self.pruner is None) == (self.learned is None):
            raise ValueError("tokens need one of pruner and learned")


@dataclass(frozen=True)
class Distil:
    """What the dense model teaches.

    Args:
        outputs: weight of the divergence from its softened outputs.
        temperature: that softens them.
        hard: weight of the cross-entropy with its choices.
        features: weight of the difference of the streams behind each layer; not while tokens go.
        task: weight of the loss on labels.
    """

    outputs: float = 1.0
    temperature: float = 2.0
    hard: float = 0.0
    features: float = 0.0
    task: float = 1.0


@dataclass(frozen=True)
class Recovery(FineTune):
    """Training of what is left.

    Args:
        distil: what the dense model teaches; None: nothing.
        module: class or function `(network, teacher) -> LightningModule`, which trains the network in place on batches
            of "pixel_values" and "labels", in place of what this package does; rates, weight decay and distillation
            are its own matter then.
    """

    distil: Distil | None = None
    module: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not self.rate > 0 or self.warmup < 0:
            raise ValueError(
                "steps and batch_size of at least 1, a rate above 0 and a warmup of at least 0 are needed, got "
                f"{self.steps}, {self.batch_size}, {self.rate} and {self.warmup}"
            )


@dataclass(frozen=True)
class Step:
    """One thing that is done: exactly one of these.

    Args:
        static: units go.
        greedy: units go, what hurts least first.
        blocks: blocks of weights go.
        sparse: single weights go.
        slim: `vit.slimsam.SlimSam`, which recovers by itself, without labels.
        tokens: tokens go, from now on.
        recover: training.

    Raises:
        ValueError: none or several are given.
    """

    static: Static | None = None
    greedy: Greedy | None = None
    blocks: Blocks | None = None
    sparse: Sparse | None = None
    slim: SlimSam | None = None
    tokens: Tokens | None = None
    recover: Recovery | None = None

    def __post_init__(self) -> None:
        given = [each.name for each in fields(self) if getattr(self, each.name) is not None]
        if len(given) != 1:
            names = ", ".join(each.name for each in fields(self))
            raise ValueError(f"a step is one of {names}, got {' and '.join(given) or 'none'}")

    @property
    def name(self) -> str:
        """Which it is."""
        return next(each.name for each in fields(self) if getattr(self, each.name) is not None)
