import pytest
import torch

from tests.contracts import assert_deterministic
from tests.vit.tokens.models import images, plain, vit
from vit.tokens import Counts, DynamicViT, KeepRates, reduce_tokens
from vit.tokens.pruner import Choice, TokenPruner
from vit.tokens.reduction import Reduction

AT = (1, 2)
RATES = KeepRates({1: 0.5, 2: 0.5})


class _Masks(TokenPruner):
    """Masks all but some patches instead of dropping them."""

    def __init__(self, kept):
        self.kept = kept

    def choose(self, tokens, keep):
        return Choice(None, policy=torch.zeros(tokens.hidden_states.shape[:2]).scatter(1, self.kept[tokens.layer], 1.0))


class _Drops(TokenPruner):
    """Drops all but some patches, given by their places in the image."""

    def __init__(self, kept):
        self.kept = kept
        self.now = None

    def begin(self):
        self.now = None

    def choose(self, tokens, keep):
        kept = self.kept[tokens.layer]
        self.now, places = kept, kept if self.now is None else torch.searchsorted(self.now, kept)
        return Choice(Reduction(tokens.hidden_states.shape[1], places))


@pytest.mark.parametrize("name,make,prefix", [("vit", vit, 1), ("plain", plain, 0)])
def test_masked_attention_is_removal(name, make, prefix):
    model = make()
    generator = torch.Generator().manual_seed(0)
    first = torch.stack([torch.randperm(15, generator=generator)[:8].sort().values + prefix + 1 for _ in range(3)])
    front = torch.arange(prefix + 1).expand(3, -1)
    kept = {1: torch.cat([front, first], 1), 2: torch.cat([front, first[:, ::2]], 1)}
    counts = Counts((16, 9, 5, 5))
    outputs = []
    with torch.no_grad():
        for pruner in (_Masks(kept), _Drops(kept)):
            with reduce_tokens(model, pruner, counts):
                output = model(images())
                outputs.append(output if isinstance(output, torch.Tensor) else output.logits)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_training_masks_and_evaluation_drops():
    model, pruner = vit().train(), DynamicViT(32, AT)
    with reduce_tokens(model, pruner, RATES) as reduction:
        last = model.vit(images()).last_hidden_state
        assert last.shape[1] == 17 and sorted(reduction.losses) == [1, 2]
        policy = reduction.policy
        assert set(policy.unique().tolist()) <= {0.0, 1.0} and bool((policy[:, 0] == 1).all())
        pruner.eval()
        assert model.vit(images()).last_hidden_state.shape[1] == 5 and not reduction.losses


def test_predictors_learn_through_the_mask_and_the_ratio():
    model, pruner = vit().train(), DynamicViT(32, AT)
    with reduce_tokens(model, pruner, RATES) as reduction:
        model(images()).logits.square().sum().backward()
        by_task = pruner.predictors["1"].decide[0].weight.grad.clone()
        pruner.zero_grad()
        model(images())
        reduction.auxiliary_loss().backward()
        by_ratio = pruner.predictors["1"].decide[0].weight.grad
    assert float(by_task.abs().sum()) > 0 and bool(torch.isfinite(by_task).all())
    assert float(by_ratio.abs().sum()) > 0 and bool(torch.isfinite(by_ratio).all())


def test_the_loss_is_the_squared_difference_of_shares():
    model, pruner = vit().train(), DynamicViT(32, AT, ratio_weight=3.0)
    with torch.no_grad(), reduce_tokens(model, pruner, RATES) as reduction:
        model(images())
        share = reduction.policy[:, 1:].mean(1)
        torch.testing.assert_close(reduction.losses[2], 3 * (share - 0.25).square().mean() / 2)


def test_the_ratio_is_learnt():
    model, pruner = vit().train().requires_grad_(False), DynamicViT(32, (1,))
    optimiser = torch.optim.Adam(pruner.parameters(), 0.01)
    with reduce_tokens(model, pruner, KeepRates({1: 0.25})) as reduction:
        shares = []
        for _ in range(60):
            model(images(8))
            shares.append(float(reduction.policy[:, 1:].detach().mean()))
            optimiser.zero_grad()
            reduction.auxiliary_loss().backward()
            optimiser.step()
    assert abs(sum(shares[-10:]) / 10 - 0.25) < 0.1 < abs(shares[0] - 0.25)


def test_draws_and_weights_are_seeded():
    def losses():
        model, pruner = vit().train(), DynamicViT(32, AT, seed=4)
        with torch.no_grad(), reduce_tokens(model, pruner, RATES) as reduction:
            return [(model(images()).logits, dict(reduction.losses)) for _ in range(2)]

    (first, _), (second, _) = assert_deterministic(losses)
    assert not torch.equal(first, second), "each step draws anew"


def test_a_layer_without_predictor_is_refused():
    model = vit()
    with (
        pytest.raises(ValueError, match="at layer 2, but the pruner was made for 1"),
        reduce_tokens(model, DynamicViT(32, (1,)).eval(), RATES),
    ):
        model(images())
    with pytest.raises(ValueError, match="multiple of 4"):
        DynamicViT(30, AT)
