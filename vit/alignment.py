"""A network learns the features of several teachers, in shares that change as it learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as lightning
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from secateur.recovery.distill import Seen, Term, see
from secateur.training.weights import evaluating


def embedding_of(output: Any) -> Tensor:
    """The tensor that a network is for, in what it returns: itself, its logits, or its last state.

    Raises:
        ValueError: there is none.
    """
    for found in (output, getattr(output, "logits", None), getattr(output, "last_hidden_state", None)):
        if isinstance(found, Tensor):
            return found
    raise ValueError(f"the network returns a {type(output).__name__} without logits or last_hidden_state")


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is learned from one teacher.

    Args:
        teacher: a network of the same layers.
        terms: what is compared; names of modules are the networks' own.
        weight: progress, 0 to 1 -> of the terms' sum in the loss; where it is 0 the teacher is not asked.
    """

    teacher: nn.Module
    terms: tuple[Term, ...]
    weight: Callable[[float], float]


class Alignment(lightning.LightningModule):
    """Trains `student` on lessons, for `secateur.training.fit`; images need no labels.

    It is validated by its embedding: minus the mean squared error to that of `reference`. Teachers run in evaluation
    mode, without gradients, and are no part of the state that is saved.

    Args:
        student: what is trained.
        reference: the network whose embedding is to be kept.
        lessons: the loss is the sum of weight * terms.
        held_out: batches of images (N, C, H, W) to validate on.
        steps: how many there will be, so that there is a progress.
        rate: learning rate of Adam.

    Raises:
        ValueError: networks lack a module, or their shapes do not agree.
    """

    score_name = "-error"

    def __init__(
        self,
        student: nn.Module,
        reference: nn.Module,
        lessons: Sequence[Lesson],
        held_out: Sequence[Float[Tensor, "N C H W"]],
        *,
        steps: int,
        rate: float = 1e-4,
    ) -> None:
        super().__init__()
        self.student, self.lessons = student, tuple(lessons)
        self.held_out, self.steps, self.rate = held_out, steps, rate
        self._wanted = [_taught(reference, images, ()).output for images in held_out]
        with evaluating(student):
            seen = _seen(student, held_out[0], _names(self.lessons), "student")
            _check(seen.output, self._wanted[0])
        self.maps = nn.ModuleList([_maps(lesson, seen, held_out[0]) for lesson in self.lessons])

    def loss(self, images: Float[Tensor, "N C H W"], progress: float) -> Float[Tensor, ""]:
        """The loss of a batch at a progress from 0 to 1."""
        weights = [lesson.weight(progress) for lesson in self.lessons]
        active = [index for index, weight in enumerate(weights) if weight > 0]
        names = _names([self.lessons[index] for index in active])
        student = _seen(self.student, images, names, "student")
        taught: dict[int, Seen] = {}
        total = torch.zeros((), device=images.device)
        for index in active:
            teacher, terms = self.lessons[index].teacher, self.lessons[index].terms
            if id(teacher) not in taught:
                taught[id(teacher)] = _taught(teacher, images, names)
            maps = self.maps[index]
            assert isinstance(maps, nn.ModuleList)
            for term, own in zip(terms, maps, strict=True):
                total = total + weights[index] * term.weight * term.loss(student, taught[id(teacher)], own)
        return total

    def training_step(self, batch: Any, step: int) -> Float[Tensor, ""]:
        """The loss of a batch: images, or a mapping with "pixel_values"."""
        images = batch["pixel_values"] if isinstance(batch, Mapping) else batch
        return self.loss(images, step / self.steps)

    def validation_score(self) -> float:
        """Minus the mean squared error of the embedding, on the images held out."""
        errors = [
            functional.mse_loss(embedding_of(self.student(images)), wanted)
            for images, wanted in zip(self.held_out, self._wanted, strict=True)
        ]
        return -float(torch.stack(errors).mean().detach())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over what requires gradients."""
        return torch.optim.Adam([weight for weight in self.parameters() if weight.requires_grad], lr=self.rate)


def _names(lessons: Sequence[Lesson]) -> tuple[str, ...]:
    """Modules whose outputs the lessons compare."""
    return tuple(dict.fromkeys(name for lesson in lessons for term in lesson.terms for name in term.layers()))


def _seen(network: nn.Module, images: Tensor, names: Sequence[str], who: str) -> Seen:
    seen = see(network, images, names, who)
    return Seen(embedding_of(seen.output), seen.features)


def _taught(teacher: nn.Module, images: Tensor, names: Sequence[str]) -> Seen:
    with evaluating(teacher):
        return _seen(teacher, images, names, "teacher")


def _maps(lesson: Lesson, student: Seen, images: Tensor) -> nn.ModuleList:
    teacher = _taught(lesson.teacher, images, _names([lesson]))
    return nn.ModuleList([term.maps(student, teacher) or nn.ModuleDict() for term in lesson.terms])


def _check(embedding: Tensor, wanted: Tensor) -> None:
    if embedding.shape != wanted.shape:
        raise ValueError(
            f"the student's embedding is {tuple(embedding.shape)}, that of the reference {tuple(wanted.shape)}"
        )
