import pytest
import torch
import torch.nn.functional as F

from tests.contracts import assert_deterministic
from tests.vit.tokens.models import MODELS, PREFIX, images, vit
from vit.tokens import Counts, Cropr, KeepRates, LinearScorer, PerLayer, reduce_tokens
from vit.tokens.cropr import CroprStage
from vit.tokens.pruner import Tokens

AT = (1, 2, 3)


def test_scores_are_sums_of_logits_without_a_softmax():
    cropr = Cropr(8, 3, AT, queries=5)
    hidden = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
    for prefix in (0, 1, 2, 5):
        scores = cropr.scores(Tokens(hidden, prefix, layer=2))
        logits = torch.einsum("qd,bnd->bqn", cropr.stages["2"].queries, hidden[:, prefix:]) / 8**0.5
        torch.testing.assert_close(scores, logits.sum(1))


def test_the_aggregator_is_cross_attention():
    stage = CroprStage(8, 3, queries=2)
    hidden = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    mixed = F.scaled_dot_product_attention(stage.queries.expand(2, -1, -1), hidden, hidden)
    torch.testing.assert_close(stage.predict(hidden), stage.head(mixed + stage.mlp(mixed)))
    valid = torch.tensor([[True] * 4 + [False] * 2] * 2)
    torch.testing.assert_close(stage.predict(hidden, valid), stage.predict(hidden[:, :4]))


@pytest.mark.parametrize("name", ["vit", "deit", "dinov2_with_registers", "plain"])
def test_training_predicts_and_evaluation_does_not(name):
    model, cropr = MODELS[name]().train(), Cropr(32, 5, AT)
    with reduce_tokens(model, cropr, PerLayer(3)) as reduction:
        model(images())
        assert {layer: tuple(p.shape) for layer, p in reduction.predictions.items()} == dict.fromkeys(AT, (3, 5))
        for map_ in reduction.reductions.values():
            assert bool((map_.kept[:, : PREFIX.get(name, 0)] == torch.arange(PREFIX.get(name, 0))).all())
        cropr.eval()
        model(images())
        assert not reduction.predictions
        assert float(reduction.auxiliary_loss()) == 0


def test_auxiliary_losses_do_not_reach_the_model():
    model, cropr = vit().train(), Cropr(32, 5, AT)
    labels = torch.tensor([0, 1, 2])
    with reduce_tokens(model, cropr, PerLayer(3)) as reduction:
        loss = model(images(), labels=labels).loss
        loss.backward()
        assert all(parameter.grad is None for parameter in cropr.parameters()), "selection has no gradient"
        by_task = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model(images())
        reduction.auxiliary_loss(lambda prediction: F.cross_entropy(prediction, labels)).backward()
    assert all(torch.equal(p.grad, by_task[name]) for name, p in model.named_parameters() if p.grad is not None)
    assert all(parameter.grad is not None for parameter in cropr.parameters())


def test_auxiliary_losses_are_a_plain_sum():
    model, cropr = vit().train(), Cropr(32, 5, AT)
    with torch.no_grad(), reduce_tokens(model, cropr, PerLayer(3)) as reduction:
        model(images())
        total = reduction.auxiliary_loss(lambda prediction: prediction.sum())
        torch.testing.assert_close(total, sum(prediction.sum() for prediction in reduction.predictions.values()))
        with pytest.raises(ValueError, match="layers \\[1, 2, 3\\] need the task's loss"):
            reduction.auxiliary_loss()


def test_dense_tasks_have_a_query_for_each_place():
    model, cropr = vit().train(), Cropr(32, 2, (1, 2), queries=16)
    with reduce_tokens(model, cropr, Counts((16, 10, 5, 5)), last_layer_fusion=True) as reduction:
        last = model.vit(images()).last_hidden_state
    assert last.shape == (3, 17, 32)
    assert [tuple(p.shape) for p in reduction.predictions.values()] == [(3, 16, 2)] * 2


def test_the_inference_form_chooses_the_same_patches():
    model, cropr = vit(), Cropr(32, 5, AT, queries=3).eval()
    scorer = cropr.inference()
    assert isinstance(scorer, LinearScorer) and sum(p.numel() for p in scorer.parameters()) == 3 * 32
    outputs = []
    with torch.no_grad():
        for pruner in (cropr, scorer):
            with reduce_tokens(model, pruner, PerLayer(3)) as reduction:
                outputs.append(model(images()).logits)
                kept = reduction.composed().kept
        assert torch.equal(*outputs) and kept.shape == (3, 8)


def test_weights_are_seeded():
    assert_deterministic(lambda: dict(Cropr(8, 2, AT, seed=3).state_dict()))


def test_a_schedule_for_other_layers_is_refused():
    model = vit()
    for pruner in (Cropr(32, 5, (1,)), LinearScorer(32, (1,))):
        with pytest.raises(ValueError, match="at layer 2, but"), reduce_tokens(model, pruner, KeepRates({2: 0.5})):
            model(images())


def _marked_scenes(count, generator):
    """Images of noise, one patch of which is marked by a stripe, whose direction is the class; and that patch."""
    pixels = torch.randn(count, 1, 24, 24, generator=generator) * 0.5
    labels = torch.randint(4, (count,), generator=generator)
    places = torch.randint(36, (count,), generator=generator)
    line = torch.arange(4)
    down, across = (line[:, None] % 2).expand(4, 4), (line[None] % 2).expand(4, 4)
    stripes = torch.stack([down, across, (down + across) % 2, line[:, None].expand(4, 4) // 2]).float()
    patches = pixels.view(count, 6, 4, 6, 4).permute(0, 1, 3, 2, 4)
    patches[torch.arange(count), places // 6, places % 6] += 3 * stripes[labels]
    return pixels, labels, places


def test_it_finds_the_marked_patch():
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        from transformers import ViTConfig, ViTForImageClassification

        model = ViTForImageClassification(
            ViTConfig(
                hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=24,
                patch_size=4, num_channels=1, num_labels=4,
            )
        ).train()  # fmt: skip
        # Before any attention: behind it, every patch knows of the mark.
        cropr = Cropr(32, 4, (0,))
        optimiser = torch.optim.AdamW([*model.parameters(), *cropr.parameters()], 3e-3)
        schedule = Counts((6, 6, 6))
        with reduce_tokens(model, cropr, schedule) as reduction:
            for _ in range(120):
                pixels, labels, _ = _marked_scenes(48, generator)
                task = model(pixels, labels=labels).loss
                loss = task + reduction.auxiliary_loss(lambda p, labels=labels: F.cross_entropy(p, labels))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            model.eval(), cropr.eval()
            pixels, labels, places = _marked_scenes(200, generator)
            with torch.no_grad():
                right = model(pixels).logits.argmax(1) == labels
            owners = reduction.composed().owners[:, 1:]
    found = (owners.gather(1, places[:, None]) >= 0).float().mean()
    assert float(found) >= 0.9, f"{float(found):.3f} of the marked patches are kept among 6 of 36"
    assert float(right.float().mean()) > 0.9
