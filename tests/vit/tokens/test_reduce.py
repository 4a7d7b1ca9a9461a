import copy

import pytest
import torch

from tests.contracts import assert_deterministic, assert_same
from tests.vit.tokens.models import MODELS, PREFIX, images, logits, plain, vit
from vit.tokens import (
    ClsAttention,
    Counts,
    PerLayer,
    RandomDropping,
    ReducedModel,
    TokenMerging,
    TokenNorm,
    reduce_tokens,
)
from vit.tokens.layers import count_prefix, find_layers

PLACES = ("before layer", "between attention and mlp")
pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor")


@pytest.fixture(autouse=True)
def _no_fast_path():
    """Torch's fused encoder layer rounds otherwise than its parts; hooks turn it off."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", MODELS)
def test_nothing_removed_is_nothing_changed(name, place):
    model = MODELS[name]()
    with torch.no_grad():
        dense = logits(model(images()))
        with reduce_tokens(model, TokenMerging(), PerLayer(0), place=place):
            assert_same(logits(model(images())), dense)
        with reduce_tokens(model, TokenMerging(), PerLayer(2), place=place):
            assert not torch.equal(logits(model(images())), dense)
        assert_same(logits(model(images())), dense)
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", MODELS)
def test_layers_see_as_many_tokens_as_the_schedule_says(name, place):
    model, counts = MODELS[name](), (16, 12, 7, 3)
    prefix = PREFIX.get(name, 0)
    seen = []
    with torch.no_grad(), reduce_tokens(model, TokenNorm(), Counts(counts), place=place) as reduction:
        layers = find_layers(model)
        hooks = [
            layer.module.register_forward_hook(lambda _m, _a, out, one=layer: seen.append(one.output(out).shape[1]))
            for layer in layers
        ]
        model(images())
        for hook in hooks:
            hook.remove()
    assert count_prefix(model) == prefix
    assert seen == [count + prefix for count in counts]
    for reduced in reduction.reductions.values():
        assert bool((reduced.kept[:, :prefix] == torch.arange(prefix)).all()), "the protected tokens stay in front"


class _First(TokenNorm):
    """Keeps the first patches: a choice that a whole model can be checked against."""

    def scores(self, tokens):
        return -torch.arange(tokens.patches, dtype=torch.float32).expand(len(tokens.hidden_states), -1)


@pytest.mark.parametrize("name", ["vit", "dinov2_with_registers", "plain, norm last"])
def test_dropped_tokens_are_as_if_they_had_been_padding(name):
    """A token that all later layers mask out is a token that is gone."""
    model = MODELS[name]()
    layers, prefix = find_layers(model), PREFIX.get(name, 0)

    def mask(_module, args, kwargs):
        bias = torch.zeros(3, 1, 1, 16 + prefix)
        bias[..., prefix + 6 :] = -1e9
        return layers[0].call(args, kwargs, layers[0].hidden_states(args, kwargs), bias)

    final = {}
    last = layers[-1].module
    last.register_forward_hook(lambda _m, _a, out: final.update(tokens=out))
    with torch.no_grad():
        with reduce_tokens(model, _First(), Counts((16, 6, 6, 6))):
            model(images())
            removed = final["tokens"]
        hooks = [layer.module.register_forward_pre_hook(mask, with_kwargs=True) for layer in layers[1:]]
        model(images())
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(removed, final["tokens"][:, : prefix + 6], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pruner", [TokenMerging(), ClsAttention("sum")], ids=["keys", "class attention"])
@pytest.mark.parametrize("place", PLACES)
def test_attention_implementations_agree(pruner, place):
    model = vit()
    with torch.no_grad(), reduce_tokens(model, pruner, PerLayer(3), place=place) as reduction:
        fused, chosen = logits(model(images())), dict(reduction.reductions)
        model.set_attn_implementation("eager")
        torch.testing.assert_close(logits(model(images())), fused, rtol=1e-5, atol=1e-5)
        for layer, map_ in reduction.reductions.items():
            assert torch.equal(map_.owners, chosen[layer].owners)


def test_class_attention_and_keys_are_those_of_the_model():
    model = vit(attn_implementation="eager")
    layers = find_layers(model)
    hooks = [hook for layer in layers for hook in layer.watch()]
    with torch.no_grad():
        attentions = model(images(), output_attentions=True).attentions
    for layer, attention in zip(layers, attentions, strict=True):
        torch.testing.assert_close(layer.cls_attention(None), attention.mean(1)[:, 0], rtol=1e-5, atol=1e-7)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("options", [{}, {"batch_first": False}], ids=["batch first", "tokens first"])
def test_class_attention_and_keys_of_torch_layers(options):
    model = plain(**options)
    layer = find_layers(model)[0]
    hooks = layer.watch()
    tokens = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention = layer.module.self_attn
        x = layer.output(tokens)
        attention(x, x, x)
        _, weights = attention(x, x, x, average_attn_weights=True)
        keys = torch.nn.functional.linear(
            tokens, *(p.chunk(3)[1] for p in (attention.in_proj_weight, attention.in_proj_bias))
        )
        torch.testing.assert_close(layer.cls_attention(None), weights[:, 0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.keys(), keys.unflatten(-1, (4, -1)).mean(2), rtol=1e-5, atol=1e-6)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    "pruner", [TokenNorm(), TokenMerging(), ClsAttention("mean")], ids=lambda one: type(one).__name__
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_goes_with_the_tokens(pruner, implementation):
    """What is in padded patches changes nothing, and padding is the first to go."""
    model = vit(attn_implementation=implementation)
    mask = torch.ones(2, 17, dtype=torch.int64)
    mask[:, 12:] = 0
    noisy = images(2)
    noisy[:, :, 12:, :] += 3
    noisy[:, :, 8:12, 12:] += 3
    outputs = []
    with torch.no_grad(), reduce_tokens(model, pruner, PerLayer(2)) as reduction:
        for pixels in (images(2), noisy):
            outputs.append(model(pixels, attention_mask=mask).logits)
            gone = reduction.composed(2).owners[:, 1:12]
            assert bool((gone >= 0).all()), "no patch goes before the padding has gone"
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


def test_padding_of_torch_encoders_goes_with_the_tokens():
    model = plain()
    padding = torch.zeros(2, 16, dtype=torch.bool)
    padding[:, 12:] = True
    noisy = images(2)
    noisy[:, :, 12:, :] += 3
    with torch.no_grad(), reduce_tokens(model, TokenMerging(), PerLayer(3)):
        first, second = model(images(2), padding), model(noisy, padding)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_masks_that_are_not_padding_are_refused():
    model = vit()
    mask = torch.ones(2, 1, 17, 17, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="padding mask only"), reduce_tokens(model, TokenNorm(), PerLayer(2)):
        model(images(2), attention_mask=mask)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(place, reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = vit().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with reduce_tokens(model, TokenMerging(), PerLayer(3), place=place):
            logits(model(images().requires_grad_())).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_the_last_layer_gets_all_tokens_back_in_order():
    model, given, counts = vit(), {}, Counts((16, 10, 5, 5))
    hooks = {0: None}
    layers = find_layers(model)
    with torch.no_grad(), reduce_tokens(model, TokenNorm(), counts, last_layer_fusion=True) as reduction:
        for index, layer in enumerate(layers):
            hooks[index] = layer.module.register_forward_hook(
                lambda _m, args, out, one=index: given.update({one: (args[0], out)})
            )
        last = model.vit(images()).last_hidden_state
    assert last.shape[1] == 17
    first, second = reduction.reductions[1], reduction.reductions[2]
    expected = first.restore(second.restore(given[2][1], given[1][1]), given[0][1])
    assert torch.equal(given[3][0], expected)
    assert reduction.composed() is None and reduction.composed(2).fewer == 6


def test_pruning_before_the_last_layer_is_refused_where_that_sees_all():
    model = vit()
    with (
        pytest.raises(ValueError, match="layers 0 to 2, not at 1 to 3"),
        reduce_tokens(model, TokenNorm(), PerLayer(2, last=3), last_layer_fusion=True),
    ):
        model(images())


def test_progress_lets_patches_go_by_and_by():
    model = vit()
    with torch.no_grad(), reduce_tokens(model, TokenNorm(), PerLayer(4)) as reduction:
        found = []
        for reduction.progress in (0.0, 0.5, 1.0):
            model(images())
            found.append([map_.fewer - 1 for map_ in reduction.reductions.values()])
    assert found == [[], [14, 12, 10], [12, 8, 4]]


def test_nested_reductions_are_refused():
    model = vit()
    with reduce_tokens(model, TokenNorm(), PerLayer(1)):
        with pytest.raises(ValueError, match="reduced already"), reduce_tokens(model, TokenNorm(), PerLayer(1)):
            pass
        with torch.no_grad():
            model(images())
    with reduce_tokens(model, TokenNorm(), PerLayer(1)):
        pass


def test_models_whose_tokens_cannot_go_are_refused():
    from transformers import SwinConfig, SwinForImageClassification

    swin = SwinForImageClassification(
        SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=(1, 1), num_heads=(2, 4), window_size=4)
    )
    with pytest.raises(ValueError, match=r"Swin.* within fixed windows"), reduce_tokens(swin, TokenNorm(), PerLayer(1)):
        pass
    with (
        pytest.raises(ValueError, match="no encoder layers"),
        reduce_tokens(torch.nn.Linear(2, 2), TokenNorm(), PerLayer(1)),
    ):
        pass
    two = torch.nn.ModuleList([vit(), vit()])
    with pytest.raises(ValueError, match="several encoders"), reduce_tokens(two, TokenNorm(), PerLayer(1)):
        pass
    with (
        pytest.raises(ValueError, match="place must be"),
        reduce_tokens(vit(), TokenNorm(), PerLayer(1), place="after"),
    ):
        pass


def test_there_is_no_attention_before_the_first_layer():
    model = vit()
    with (
        pytest.raises(ValueError, match="begin at layer 1"),
        reduce_tokens(model, TokenMerging(), PerLayer(2, first=0)),
    ):
        model(images())
    with torch.no_grad(), reduce_tokens(model, TokenMerging(), PerLayer(2, first=0), place=PLACES[1]) as reduction:
        model(images())
    assert sorted(reduction.reductions) == [0, 1, 2, 3]


def test_random_dropping_is_seeded_and_new_in_each_training_step():
    def kept(seed, training):
        model = vit().train(training)
        pruner = RandomDropping(seed).train(training)
        rounds = []
        with torch.no_grad(), reduce_tokens(model, pruner, PerLayer(4)) as reduction:
            for _ in range(2):
                model(images())
                rounds.append(reduction.composed().kept)
        return rounds

    trained = assert_deterministic(lambda: kept(0, True))
    evaluated = assert_deterministic(lambda: kept(0, False))
    assert not torch.equal(*trained) and torch.equal(*evaluated)
    assert not torch.equal(kept(1, False)[0], evaluated[0])
    assert not torch.equal(evaluated[0][0], evaluated[0][1]), "each image loses other patches"


def test_random_dropping_is_uniform():
    from vit.tokens.noise import Noise

    drawn = Noise(3).eval().uniform(2, torch.empty(2000, 16))
    assert abs(float(drawn.mean()) - 0.5) < 0.01 and abs(float(drawn.var()) - 1 / 12) < 0.005
    stays = torch.zeros(2000, 16).scatter(1, drawn.topk(8).indices, 1.0).mean(0)
    assert float((stays - 0.5).abs().max()) < 0.05
    assert float(torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max()) < 0.1


@pytest.mark.parametrize("pruner", [TokenNorm(), ClsAttention()], ids=["norm", "class attention"])
def test_permuted_patches_have_permuted_scores(pruner):
    from vit.tokens.pruner import Tokens

    generator = torch.Generator().manual_seed(0)
    hidden, attention = torch.randn(2, 9, 4, generator=generator), torch.rand(2, 9, generator=generator)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(8, generator=generator)])
    before = Tokens(hidden, 1, cls_attention=attention)
    after = Tokens(hidden[:, order], 1, cls_attention=attention[:, order])
    assert torch.equal(pruner.scores(after), pruner.scores(before)[:, order[1:] - 1])
    kept = [pruner.choose(tokens, 4).reduction.kept for tokens in (before, after)]
    assert torch.equal(order[kept[1]].sort(dim=1).values, kept[0])


def test_ties_go_to_the_first_patches():
    from vit.tokens.pruner import Tokens

    chosen = TokenNorm().choose(Tokens(torch.ones(1, 9, 4), 1), 3).reduction
    assert chosen.kept.tolist() == [[0, 1, 2, 3]]


def test_copies_are_reduced_on_their_own():
    reduced = ReducedModel(vit(), TokenMerging(), PerLayer(3), place=PLACES[1])
    twin = copy.deepcopy(reduced)
    with torch.no_grad():
        output = logits(reduced(images()))
        assert_same(logits(twin(images())), output)
        twin.reduction.progress = 0.0
        assert not torch.equal(logits(twin(images())), output)
        twin.release()
        assert_same(logits(reduced(images())), output)
        assert_same(logits(twin(images())), logits(vit()(images())))


def test_windows_of_sam_are_refused():
    from transformers import SamVisionConfig, SamVisionModel

    config = SamVisionConfig(
        hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=2,
        window_size=3, global_attn_indexes=(1,), mlp_dim=20,
    )  # fmt: skip
    with (
        pytest.raises(ValueError, match="SamVisionModel attends"),
        reduce_tokens(SamVisionModel(config), TokenNorm(), PerLayer(1)),
    ):
        pass


def test_rotary_positions_are_refused():
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = DINOv3ViTModel(DINOv3ViTConfig(**sizes, image_size=16, patch_size=4, num_channels=1)).eval()
    with (
        pytest.raises(ValueError, match="turns its keys by their positions"),
        reduce_tokens(model, TokenNorm(), PerLayer(3)),
    ):
        model(images())
