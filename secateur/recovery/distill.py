"""A pruned network learns from the one it was pruned from: outputs, features between, where it looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import lightning.pytorch as lightning
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from secateur.surgery.cost import run_example
from secateur.surgery.cut import Cuts
from secateur.surgery.layers import join_name
from secateur.training.seeding import generator_at
from secateur.training.weights import evaluating


@dataclass(frozen=True, slots=True)
class Seen:
    """What a network made of a batch.

    Args:
        output: what it returned.
        features: name of a watched module -> what that returned.
    """

    output: Any
    features: Mapping[str, Tensor]


class Term(Protocol):
    """One part of a distillation loss: 0 where student and teacher agree."""

    @property
    def weight(self) -> float:
        """Of the term in the sum."""
        ...

    def layers(self) -> Sequence[str]:
        """Names of the modules whose outputs are needed, of both networks."""
        ...

    def maps(self, student: Seen, teacher: Seen) -> nn.Module | None:
        """What trains along with the student, and is dropped afterwards, made from the shapes of a first batch."""
        ...

    def loss(self, student: Seen, teacher: Seen, maps: nn.Module | None) -> Float[Tensor, ""]:
        """The term without its weight."""
        ...


class _OfOutputs:
    """A term that compares outputs, which are tensors."""

    def layers(self) -> Sequence[str]:
        return ()

    def maps(self, student: Seen, teacher: Seen) -> nn.Module | None:
        _check_shapes("output", student.output, teacher.output)
        return None


@dataclass(frozen=True)
class SoftTargets(_OfOutputs):
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over samples.

    Hinton et al.: Distilling the Knowledge in a Neural Network (arXiv 1503.02531), section 2: T^2 keeps gradients the
    same size at any temperature; with respect to the student's logits they are T (softmax_s - softmax_t).

    Args:
        weight: of the term.
        temperature: T, above 0.
        dim: along which classes lie.
    """

    weight: float = 1.0
    temperature: float = 4.0
    dim: int = -1

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def loss(self, student: Seen, teacher: Seen, maps: nn.Module | None) -> Float[Tensor, ""]:
        """The term without its weight."""
        log_student = functional.log_softmax(student.output / self.temperature, self.dim)
        log_teacher = functional.log_softmax(teacher.output / self.temperature, self.dim)
        return self.temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(self.dim).mean()


@dataclass(frozen=True)
class HardTargets(_OfOutputs):
    """Cross-entropy with the teacher's first choice: labels for data that has none. Not 0 where the networks agree.

    Args:
        weight: of the term.
        dim: along which classes lie.
    """

    weight: float = 1.0
    dim: int = -1

    def loss(self, student: Seen, teacher: Seen, maps: nn.Module | None) -> Float[Tensor, ""]:
        """The term without its weight."""
        log_student = functional.log_softmax(student.output, self.dim)
        return -log_student.gather(self.dim, teacher.output.argmax(self.dim, keepdim=True)).mean()


@dataclass(frozen=True)
class OutputError(_OfOutputs):
    """The mean squared difference of the outputs: for regressions, denoisers, logits.

    Args:
        weight: of the term.
    """

    weight: float = 1.0

    def loss(self, student: Seen, teacher: Seen, maps: nn.Module | None) -> Float[Tensor, ""]:
        """The term without its weight."""
        return functional.mse_loss(student.output, teacher.output)


@dataclass(frozen=True)
class Features:
    """The mean squared difference of inner features, a mean over layers.

    Inner distillation of Aflalo et al.: Knapsack Pruning with Inner Distillation (arXiv 2002.08258): |T_b - S_b|^2
    after each block, as mean squares and a mean over blocks, as in its code. Hints of Romero et al. (FitNets, arXiv
    1412.6550) are the same of one layer.

    Where widths differ, `kept` compares the student's channels with those of the teacher that they were; otherwise a
    linear map without bias from the student's width to the teacher's (a 1x1 convolution over maps), as in that code,
    trains along, and is dropped afterwards.

    Args:
        names: modules whose outputs are compared, of the same name in both.
        weight: of the term.
        dim: along which channels lie: 1 in (batch, channels, ...), -1 in (batch, tokens, channels).
        kept: name -> (student's channels,) indices into the teacher's channels.
        seed: of the linear maps.
    """

    names: tuple[str, ...]
    weight: float = 1.0
    dim: int = 1
    kept: Mapping[str, Int64[Tensor, " channels"]] = field(default_factory=dict)
    seed: int = 0

    def layers(self) -> Sequence[str]:
        """Names of the modules that are compared."""
        return self.names

    def maps(self, student: Seen, teacher: Seen) -> nn.Module | None:
        """A linear map for each layer whose widths differ and which is not in `kept`."""
        maps = nn.ModuleDict()
        for index, name in enumerate(self.names):
            mine, theirs = (seen.features[name].movedim(self.dim, -1) for seen in (student, teacher))
            width = len(self.kept[name]) if name in self.kept else theirs.shape[-1]
            if mine.shape[:-1] != theirs.shape[:-1] or (name in self.kept and mine.shape[-1] != width):
                raise ValueError(
                    f"features of {name!r} have shapes {tuple(mine.shape)} and {tuple(theirs.shape)}, channels last, "
                    f"of which {width} are kept: they cannot be compared"
                )
            if mine.shape[-1] != width:
                maps[_key(name)] = self._map(mine.shape[-1], width, index, mine)
        return maps

    def loss(self, student: Seen, teacher: Seen, maps: nn.Module | None) -> Float[Tensor, ""]:
        """The term without its weight."""
        assert isinstance(maps, nn.ModuleDict)
        total = torch.zeros((), device=_device(student))
        for name in self.names:
            mine, theirs = (seen.features[name].movedim(self.dim, -1) for seen in (student, teacher))
            if name in self.kept:
                theirs = theirs[..., self.kept[name].to(theirs.device)]
            if _key(name) in maps:
                mine = maps[_key(name)](mine)
            total = total + functional.mse_loss(mine, theirs)
        return total / len(self.names)

    def _map(self, inputs: int, outputs: int, index: int, like: Tensor) -> nn.Linear:
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False, device=like.device, dtype=like.dtype)
        noise = torch.randn(outputs, inputs, generator=generator_at(self.seed, index), dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(noise / inputs**0.5)
        return linear


@dataclass(frozen=True)
class AttentionTransfer:
    """Where the networks look: the mean squared difference of normalised maps, a sum over layers.

    Zagoruyko and Komodakis: Paying More Attention to Attention (arXiv 1612.03928), eq. 2: Q = sum over channels of
    |A|^power, flattened and divided by its length; widths need not agree. The paper sums the norms of the differences
    and weighs them by beta / 2; the mean of their squares is what its code minimises. That is small, so the default
    weight is large.

    Args:
        names: modules whose outputs are compared, of the same name in both.
        weight: of the term.
        power: of the activations.
        dim: along which channels lie: 1 in (batch, channels, ...), -1 in (batch, tokens, channels).
    """

    names: tuple[str, ...]
    weight: float = 1000.0
    power: float = 2.0
    dim: int = 1

    def layers(self) -> Sequence[str]:
        """Names of the modules that are compared."""
        return self.names

    def maps(self, student: Seen, teacher: Seen) -> nn.Module | None:
        """None: nothing trains along."""
        for name in self.names:
            mine, theirs = (self._attention(seen.features[name]) for seen in (student, teacher))
            _check_shapes(f"attention of {name!r}", mine, theirs)
        return None

    def loss(self, student: Seen, teacher: Seen, maps: nn.Module | None) -> Float[Tensor, ""]:
        """The term without its weight."""
        pairs = [tuple(self._attention(seen.features[name]) for seen in (student, teacher)) for name in self.names]
        return torch.stack([functional.mse_loss(mine, theirs) for mine, theirs in pairs]).sum()

    def _attention(self, features: Tensor) -> Float[Tensor, "batch places"]:
        return functional.normalize(features.abs().pow(self.power).sum(self.dim).flatten(1), dim=1)


def kept_channels(cuts: Cuts, names: Sequence[str]) -> dict[str, Int64[Tensor, " channels"]]:
    """For `Features.kept`: which output channels of the dense layers (linear, convolution, norm) a cut network has."""
    rows = {name: cuts.rows.get((join_name(name, "weight"), 0)) for name in names}
    return {name: kept.rows for name, kept in rows.items() if kept is not None}


class Distillation(lightning.LightningModule):
    """Trains `student`, for `secateur.training.fit` or any Lightning trainer; the student is all that is left.

    Only parameters that require gradients train, so that `secateur.recovery.lora.Perp` composes with it; a sparse
    student keeps its zeros with `callbacks=[HoldZeros()]`. The teacher runs in evaluation mode, without gradients, and
    is no part of the state that is saved.

    Args:
        student: what is trained.
        teacher: what it learns from; another object, of the same kind of output.
        terms: the loss is the sum of weight * loss.
        example: a batch, as in training: both networks run on it once, to find shapes.
        task: (output, targets) -> loss, for batches that are pairs of inputs and targets; None: batches are inputs.
        task_weight: of the task's loss.
        rate: learning rate of AdamW.
        weight_decay: of AdamW.
        held_out: batches to validate on; what is kept is what agrees best there.

    Raises:
        ValueError: there are no terms, a weight is negative, networks lack a module, or their shapes do not agree.
    """

    score_name = "-loss"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: Sequence[Term],
        example: Any,
        *,
        task: Callable[[Any, Any], Tensor] | None = None,
        task_weight: float = 1.0,
        rate: float = 1e-3,
        weight_decay: float = 0.0,
        held_out: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        weights = [term.weight for term in terms] + [task_weight]
        if not terms or min(weights) < 0:
            raise ValueError(f"distillation needs terms, and weights of at least 0, got {weights[:-1]}")
        if teacher is student:
            raise ValueError("the teacher is the student: give a copy")
        self.student = student
        # In a tuple, it is no submodule: not saved, not trained, not put into training mode.
        self._teacher = (teacher,)
        self.terms, self.task, self.task_weight = tuple(terms), task, task_weight
        self.rate, self.weight_decay, self.held_out = rate, weight_decay, held_out
        self._layers = tuple(dict.fromkeys(name for term in terms for name in term.layers()))
        with evaluating(student):
            seen = self._see(self._inputs(example))
            self.maps = nn.ModuleList([term.maps(*seen) or nn.ModuleDict() for term in terms])

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The weighted parts of a batch's loss by name: the task's, and those of the terms."""
        student, teacher = self._see(self._inputs(batch))
        parts = {
            f"{index}.{type(term).__name__}": term.weight * term.loss(student, teacher, maps)
            for index, (term, maps) in enumerate(zip(self.terms, self.maps, strict=True))
        }
        if self.task is not None:
            parts["task"] = self.task_weight * self.task(student.output, batch[1])
        return parts

    def training_step(self, batch: Any, step: int) -> Tensor:
        """The sum of the parts."""
        return torch.stack(list(self.losses(batch).values())).sum()

    def validation_score(self) -> float:
        """Minus the mean loss on the batches held out.

        Raises:
            ValueError: there are none.
        """
        if not len(self.held_out):
            raise ValueError("validation needs batches that are held out: give held_out")
        return -sum(float(self.training_step(batch, 0)) for batch in self.held_out) / len(self.held_out)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what requires gradients."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.rate, weight_decay=self.weight_decay)

    def on_fit_start(self) -> None:
        """The teacher follows to the device where the student trains."""
        self._teacher[0].to(self.device)

    def _inputs(self, batch: Any) -> Any:
        return batch if self.task is None else batch[0]

    def _see(self, inputs: Any) -> tuple[Seen, Seen]:
        teacher = self._teacher[0]
        with evaluating(teacher):
            taught = see(teacher, inputs, self._layers, "teacher")
        return see(self.student, inputs, self._layers, "student"), taught


def see(module: nn.Module, inputs: Any, names: Sequence[str], who: str) -> Seen:
    """What a network makes of a batch.

    Args:
        module: the network.
        inputs: a tensor, or a tuple of arguments, or a dict of them by name.
        names: of the modules whose outputs are kept.
        who: the network's name in errors.

    Raises:
        ValueError: a module does not exist, did not run, or returns no tensor.
    """
    with _watching(module, names, who) as features:
        output = run_example(module, inputs)
    missing = [name for name in names if name not in features]
    if missing:
        raise ValueError(f"the {who} did not run {missing}")
    return Seen(output, features)


@contextmanager
def _watching(module: nn.Module, names: Sequence[str], who: str) -> Iterator[dict[str, Tensor]]:
    """Name -> what the module of that name returned last."""
    parts, features = dict(module.named_modules()), {}
    missing = [name for name in names if name not in parts]
    if missing:
        raise ValueError(f"the {who} has no modules {missing}")

    def keep(name: str, output: Any) -> None:
        if isinstance(output, tuple) and output:
            output = output[0]  # blocks of UNets return what they pass on before what they keep for later
        if not isinstance(output, Tensor):
            raise ValueError(f"module {name!r} of the {who} returns a {type(output).__name__}, not a tensor")
        features[name] = output

    handles = [
        parts[name].register_forward_hook(lambda _part, _args, output, name=name: keep(name, output)) for name in names
    ]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


def _check_shapes(what: str, student: Any, teacher: Any) -> None:
    for tensor in (student, teacher):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{what}: distillation compares tensors, got {type(tensor).__name__}")
    if student.shape != teacher.shape:
        raise ValueError(f"{what}: the student's is {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}")


def _device(seen: Seen) -> torch.device:
    return next(iter(seen.features.values())).device


def _key(name: str) -> str:
    return name.replace(".", "/")  # a dot would name a submodule
