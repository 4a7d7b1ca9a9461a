import json

import pytest
import torch

from secateur.tensor_files import TensorFormat
from tests.contracts import assert_same
from tests.vit.tokens.models import PlainViT, images, logits, plain, vit
from vit.tokens import (
    ClsAttention,
    Counts,
    Cropr,
    DynamicViT,
    KeepRates,
    PerLayer,
    RandomDropping,
    ReducedModel,
    Target,
    TokenMerging,
    TokenNorm,
)
from vit.tokens.reduced_model import TOKENS, load, save

WITHIN = "between attention and mlp"
CASES = {
    "random": (RandomDropping(3), PerLayer(2.5, -1.0), {}),
    "class attention": (ClsAttention("mean"), KeepRates({1: 0.7, 3: 0.5}), {"place": WITHIN}),
    "merging": (TokenMerging(proportional=False), Target(0.7), {}),
    "Cropr": (Cropr(32, 5, (1, 2), queries=2), Counts((16, 9, 5, 5)), {"last_layer_fusion": True}),
    "scorer": (Cropr(32, 5, (1, 2)).inference(), KeepRates({1: 0.5, 2: 0.5}), {}),
    "DynamicViT": (DynamicViT(32, (2,)), KeepRates({2: 0.5}), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_loads_bit_for_bit(case, tmp_path):
    pruner, schedule, options = CASES[case]
    reduced = ReducedModel(vit(), pruner, schedule, **options).eval()
    save(reduced, tmp_path)
    again = load(tmp_path)
    with torch.no_grad():
        assert_same(logits(again(images())), logits(reduced(images())))
    assert again.reduction.counts(16) == reduced.reduction.counts(16)
    assert type(again.pruner) is type(pruner) and again.pruner.arguments() == pruner.arguments()
    before = (tmp_path / TOKENS).read_bytes()
    save(again, tmp_path)
    assert (tmp_path / TOKENS).read_bytes() == before


def test_models_of_torch_load_with_their_code(tmp_path):
    reduced = ReducedModel(plain(), TokenMerging(), PerLayer(3)).eval()
    save(reduced, tmp_path)
    with torch.no_grad():
        assert_same(load(tmp_path, PlainViT)(images()), reduced(images()))


def test_files_that_do_not_fit_are_refused(tmp_path):
    save(ReducedModel(vit(), TokenNorm(), PerLayer(3)), tmp_path)
    file = TensorFormat("secateur token reduction", 1)

    def with_header(**changes):
        headers = []
        file.load(tmp_path / "original", lambda header: None, lambda header, tensors: headers.append(header))
        fields = {name: value for name, value in headers[0].items() if name not in ("format", "version")}
        file.save(tmp_path / TOKENS, {}, json.loads(json.dumps(fields)) | changes)

    (tmp_path / "original").write_bytes((tmp_path / TOKENS).read_bytes())
    for changes, message in [
        ({"place": "after"}, "place must be one of"),
        ({"prefix": -1}, "no counts and flag"),
        ({"pruner": {"name": "os.system", "arguments": {}}}, "pruner must be one of ClsAttention"),
        ({"pruner": {"name": "TokenNorm", "arguments": {"power": 2}}}, "unexpected keyword argument"),
        ({"schedule": {"name": "PerLayer", "arguments": {"removed": -1}}}, "removed >= 0"),
        ({"weights_sha256": "0"}, "reduced in another model"),
        ({"layers": 12}, "the model has 4 layers, the schedule 12"),
    ]:
        with_header(**changes)
        with pytest.raises(ValueError, match=f"{TOKENS}.*{message}"):
            load(tmp_path)
    (tmp_path / TOKENS).unlink()
    with pytest.raises(FileNotFoundError, match=TOKENS):
        load(tmp_path)


def test_only_pruners_of_this_package_are_saved(tmp_path):
    class Own(TokenNorm):
        pass

    with pytest.raises(ValueError, match="a pruner of this package can be saved, not Own"):
        save(ReducedModel(vit(), Own(), PerLayer(3)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_pruner_is_part_of_the_model():
    reduced = ReducedModel(vit(), Cropr(32, 5, (1, 2)), KeepRates({1: 0.5})).train()
    assert reduced.pruner.training and any(name.startswith("pruner.stages.1") for name, _ in reduced.named_parameters())
    reduced.eval()
    reduced(images())
    assert not reduced.reduction.predictions
    model = reduced.release()
    with torch.no_grad():
        assert_same(model(images()).logits, vit()(images()).logits)


@pytest.mark.parametrize(
    "make,pruner,place",
    [
        (vit, TokenMerging(), WITHIN),
        (plain, ClsAttention("sum"), "before layer"),
        (vit, Cropr(32, 5, (1, 2, 3)).inference(), "before layer"),
    ],
    ids=["merging", "class attention", "scorer"],
)
def test_exported_models_agree_at_any_batch_size(make, pruner, place):
    options = {} if make is vit else {"prefix": 1}
    reduced = ReducedModel(make(), pruner, PerLayer(3), place=place, **options).eval()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    with torch.no_grad():
        program = torch.export.export(reduced, (images(3),), dynamic_shapes={"args": (batch,)})
        for count in (1, 5):
            exported = logits(program.module()(images(count)))
            torch.testing.assert_close(exported, logits(reduced(images(count))), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "pruner,backend", [(TokenMerging(), "eager"), (RandomDropping(), "aot_eager")], ids=["merging", "random"]
)
def test_compiled_models_agree(pruner, backend):
    reduced = ReducedModel(vit(), pruner, PerLayer(3)).eval()
    with torch.no_grad():
        compiled = torch.compile(reduced, backend=backend, fullgraph=True)
        for seed in (0, 1):
            expected = logits(reduced(images(seed=seed)))
            torch.testing.assert_close(logits(compiled(images(seed=seed))), expected, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_training_has_the_same_gradients():
    gradients = []
    for compiling in (False, True):
        reduced = ReducedModel(vit(), Cropr(32, 5, (1, 2)), KeepRates({1: 0.5, 2: 0.5})).train()
        run = torch.compile(reduced, backend="aot_eager") if compiling else reduced
        loss = logits(run(images())).square().sum()
        (loss + reduced.reduction.auxiliary_loss(lambda p: p.square().sum())).backward()
        gradients.append({name: p.grad for name, p in reduced.named_parameters() if p.grad is not None})
    torch._dynamo.reset()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-4)
