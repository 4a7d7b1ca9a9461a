"""Second moments of inputs, streamed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.solvers.gram import Gram, input_grams
from tests.contracts import assert_same
from tests.secateur.toys import generator


def test_batches_of_any_size_give_the_mean_of_all_samples() -> None:
    inputs = torch.randn(30, 4, generator=generator(), dtype=torch.float64)
    gram = Gram(4, dtype=torch.float64)
    for part in (inputs[:1], inputs[1:8].reshape(7, 1, 4), inputs[8:8], inputs[8:]):
        gram.add(part)
    torch.testing.assert_close(gram.mean, inputs.T @ inputs / 30)
    assert gram.samples == 30


def test_damping_is_a_share_of_the_mean_diagonal() -> None:
    gram = Gram(2).add(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    torch.testing.assert_close(gram.damped(0.1), torch.tensor([[0.5 + 0.25, 0.0], [0.0, 4.5 + 0.25]]))


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="end in 3 features"):
        Gram(3).add(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="1 values among 6"):
        Gram(3).add(torch.tensor([[1.0, torch.nan, 0.0], [1.0, 1.0, 1.0]]))
    with pytest.raises(ValueError, match="empty"):
        Gram(3).damped()
    with pytest.raises(ValueError, match="all inputs 0"):
        Gram(3).add(torch.zeros(2, 3)).damped()


def test_grams_of_a_models_layers_are_those_of_their_outputs_squares() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=2, padding_mode="reflect", bias=False),
            nn.Flatten(),
            nn.Linear(12, 5, bias=False),
        )
    images = torch.randn(6, 2, 6, 6, generator=generator())
    plain = model(images)
    with torch.no_grad(), input_grams(model) as grams:
        hidden = model[0](images[:0])
        assert_same(plain.detach(), torch.cat([model(images[:2]), model(images[2:])]))
    assert set(grams) == {"0", "2"} and not hidden.numel()
    hidden = model[0](images)
    for name, outputs in (("0", hidden.transpose(0, 1).flatten(1)), ("2", plain.T)):
        weight = model.get_submodule(name).weight.flatten(1)
        expected = outputs.square().mean(1)
        torch.testing.assert_close(((weight @ grams[name].mean) * weight).sum(1), expected)


def test_a_layer_that_has_no_gram_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.ReLU())
    for name, message in (("0", "'0' has 2 groups"), ("1", "'1' must be nn.Linear")):
        with pytest.raises(ValueError, match=message), input_grams(model, {name: model.get_submodule(name)}):
            pass
