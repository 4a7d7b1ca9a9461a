"""A vision transformer that reads scikit-learn's digits, trained once for all tests that need one."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn

from secateur.datasets import digits
from vit.data import LabelledImages, split
from vit.demo.networks import digits_vit
from vit.tasks.classification import Classification
from vit.train import FineTune, recover


@cache
def pictures() -> tuple[LabelledImages, LabelledImages]:
    """(1,197 to train and calibrate on, 600 to judge by)."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    return split(LabelledImages.of(digits()), 600)


@cache
def _trained(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = digits_vit()
    recover(model, Classification(), pictures()[0], FineTune(steps=300, batch_size=32, rate=3e-3, warmup=30), seed=seed)
    return model


def trained(seed: int = 0) -> nn.Module:
    """A copy of the model, of 92 % accuracy or more, in evaluation mode."""
    return copy.deepcopy(_trained(seed))


def accuracy(model: nn.Module) -> float:
    """Share of the pictures to judge by that are read right."""
    return Classification().measure(model, pictures()[1]).top1
