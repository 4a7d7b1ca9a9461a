"""Means of sparse networks keep the mask, and greedy ones are never worse than the best that went in."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from secateur.recovery.normalise import RecalibrateBatchNorm
from secateur.recovery.soup import SparseModelSoup
from secateur.recovery.zeros import HoldZeros, zeros_of
from secateur.training import Shuffled, fit
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.networks import convolutional, perceptron
from tests.secateur.recovery.test_lora import Fitted
from tests.secateur.recovery.test_normalise import sparse
from tests.secateur.toys import generator


def varied(module: nn.Module, count: int, noise: float = 0.1) -> list[nn.Module]:
    """Copies with noise on what is not 0, growing with the index."""
    copies = []
    for index in range(count):
        other = copy.deepcopy(module)
        with torch.no_grad():
            for parameter in other.parameters():
                noisy = noise * (1 + index) * torch.randn(parameter.shape, generator=generator(index)).to(parameter)
                parameter.add_(noisy * (parameter != 0))
        copies.append(other)
    return copies


def state(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


@pytest.mark.parametrize("kind", ["uniform", "greedy"])
def test_a_soup_of_one_is_that_one(kind: str) -> None:
    module = sparse(convolutional(), 0.5)
    soup = SparseModelSoup(kind)([module], score=lambda _: 1.0)  # type: ignore[arg-type]
    assert_same(state(module), state(soup.module))
    assert soup.module is not module
    assert soup.ingredients == (0,)


def test_the_mean_keeps_the_mask_exactly_and_leaves_its_parts() -> None:
    modules = varied(sparse(perceptron(6, 9, 3), 0.7), 3)
    before = [copy.deepcopy(state(module)) for module in modules]
    mean = assert_deterministic(lambda: state(SparseModelSoup()(modules).module))
    for name, value in mean.items():
        torch.testing.assert_close(value, torch.stack([each[name] for each in before]).mean(0))
    assert_same(zeros_of(modules[0]), {name: mean[name] == 0 for name in zeros_of(modules[0])})
    assert_same(before, [state(module) for module in modules])


def test_copies_of_one_network_average_to_it_bit_for_bit() -> None:
    module = sparse(convolutional(), 0.5).float()
    assert_same(state(module), state(SparseModelSoup()([module] * 3).module))


def test_the_mean_of_linear_models_has_at_most_the_mean_loss() -> None:
    teacher = perceptron(6, 3)
    modules = []
    for seed in range(3):
        student = sparse(teacher, 0.5)
        fit(Fitted(student, teacher, rate=0.1), Shuffled(64, 4, seed=seed), steps=20, callbacks=[HoldZeros()])
        modules.append(student)
    losses = [Fitted(module, teacher).loss().item() for module in modules]
    soup = SparseModelSoup()(modules)
    assert Fitted(soup.module, teacher).loss().item() <= sum(losses) / 3
    assert_same(zeros_of(sparse(teacher, 0.5)), zeros_of(soup.module))


def test_a_greedy_soup_is_never_worse_than_its_best_and_leaves_out_what_harms() -> None:
    teacher = perceptron(6, 9, 3)
    modules = varied(teacher, 4)

    def score(module: nn.Module) -> float:
        return -Fitted(module, teacher).loss().item()

    alone = [score(module) for module in modules]
    soup = assert_deterministic(lambda: SparseModelSoup("greedy")(modules, score=score).ingredients)
    result = SparseModelSoup("greedy")(modules, score=score)
    assert soup[0] == alone.index(max(alone))
    assert result.score == score(result.module) >= max(alone)
    spoiled = [*modules, perceptron(6, 9, 3, seed=8)]
    assert 4 not in SparseModelSoup("greedy")(spoiled, score=score).ingredients


def test_batch_norms_of_the_mean_are_calibrated_again() -> None:
    images = torch.randn(12, 2, 6, 6, generator=generator(2), dtype=torch.float64)
    modules = varied(sparse(convolutional(), 0.5), 2)
    plain = SparseModelSoup()(modules).module
    calibrated = SparseModelSoup()(modules, calibration=images.split(5)).module
    assert_same(state(RecalibrateBatchNorm()(plain, images.split(5))), state(calibrated))


def test_other_masks_and_other_networks_are_refused() -> None:
    dense = perceptron(6, 9, 3)
    modules = [sparse(dense, 0.5), sparse(dense, 0.6)]
    with pytest.raises(ValueError, match=r"network 1 has another mask: '0.weight' differs in \d+ zeros"):
        SparseModelSoup()(modules)
    zeros = zeros_of(modules[0])
    assert zeros_of(SparseModelSoup()(modules, zeros=zeros).module).keys() == zeros.keys()
    with pytest.raises(ValueError, match="network 0 has another mask"):
        SparseModelSoup()(modules, zeros=zeros_of(modules[1]))
    with pytest.raises(ValueError, match=r"differ in \['0.bias'"):
        SparseModelSoup()([dense, perceptron(6, 8, 3)])
    with pytest.raises(ValueError, match="which the networks have not"):
        SparseModelSoup()(modules, zeros={"x": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(ValueError, match="at least one"):
        SparseModelSoup()([])
    with pytest.raises(ValueError, match="needs a score"):
        SparseModelSoup("greedy")([dense])
    with pytest.raises(ValueError, match="NaN"):
        SparseModelSoup("greedy")([dense], score=lambda _: float("nan"))
    with pytest.raises(ValueError, match="kind"):
        SparseModelSoup("thick")  # type: ignore[arg-type]
