"""Cut networks as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.surgery import Network, trace
from secateur.surgery.attention import block_group
from secateur.surgery.manifest import MANIFEST, WEIGHTS, hash_weights, load, save
from tests.contracts import assert_same
from tests.secateur.surgery import networks
from tests.secateur.surgery.networks import pixels, seeded, tokens
from tests.secateur.surgery.test_trace import every_kind, half


@every_kind
def test_round_trip(kind: type[nn.Module], inputs: Tensor, tmp_path: Path) -> None:
    dense = seeded(kind)
    network = trace(dense, inputs)
    smaller = network.cut(half(network))
    save(smaller, tmp_path / "cut", dense=dense, recipe={"keep": 0.5})
    loaded = load(tmp_path / "cut", kind)
    loaded.module.eval()
    with torch.no_grad():
        assert_same(smaller(inputs), loaded(inputs), "outputs")
    assert_same(dict(smaller.module.state_dict()), dict(loaded.module.state_dict()))
    manifest = json.loads((tmp_path / "cut" / MANIFEST).read_text())
    assert manifest["recipe"] == {"keep": 0.5}
    assert manifest["dense_sha256"] == hash_weights(dense)
    assert (tmp_path / "cut" / WEIGHTS).stat().st_size < 1.1 * sum(
        tensor.numel() * tensor.element_size() for tensor in smaller.module.state_dict().values()
    ) + 10_000
    save(loaded, tmp_path / "again", dense=dense, recipe={"keep": 0.5})
    for name in (MANIFEST, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    traced = trace(loaded.module, inputs)
    retraced = Network(loaded.module, traced.groups(), counts=traced.counts, cuts=loaded.cuts)
    twice = retraced.cut(half(retraced, 1))
    save(twice, tmp_path / "twice")
    with torch.no_grad():
        assert_same(twice(inputs), load(tmp_path / "twice", lambda: kind().eval())(inputs), "outputs")


def test_blocks_and_attributes_round_trip(tmp_path: Path) -> None:
    dense = seeded(networks.Transformer)
    traced = trace(dense, tokens())
    group, blocks = block_group(dense, "depth", "encoder.layers.1", leaves="input")
    network = Network(dense, [*traced.groups(), group], tokens(), blocks=blocks, counts=traced.counts)
    smaller = network.cut(half(network) | {"depth": torch.tensor([False])})
    save(smaller, tmp_path)
    loaded = load(tmp_path, lambda: networks.Transformer().eval())
    with torch.no_grad():
        assert_same(smaller(tokens()), loaded(tokens()), "outputs")


class Buffered(nn.Module):
    """A buffer outside the state dict, and a weight with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 2)
        self.second.weight = self.first.weight
        self.register_buffer("offset", torch.linspace(0, 1, 12), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x + self.offset)))


def test_shared_weights_and_hidden_buffers_round_trip(tmp_path: Path) -> None:
    module = seeded(Buffered)
    save(Network(module, ()), tmp_path)
    loaded = load(tmp_path, Buffered)
    assert loaded.module.second.weight is loaded.module.first.weight
    with torch.no_grad():
        assert_same(module(tokens()), loaded(tokens()), "outputs")


def _saved(folder: Path) -> dict[str, Any]:
    network = trace(seeded(networks.Residual), pixels())
    save(network.cut(half(network)), folder)
    return json.loads((folder / MANIFEST).read_text())


def _set(index: int, name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["cuts"][index].__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(0, "size", 10**12), "had 1000000000000 rows along dim 0, but the network's has 8"),
        (_set(0, "kept", [[0, 10**12]]), "ranges within"),
        (_set(0, "kept", [[4, 2]]), "ranges within"),
        (_set(0, "kept", [[-2, 2]]), "ranges within"),
        (_set(0, "kept", [[0, 3], [2, 5]]), "ranges within"),
        (_set(0, "kept", [[0, 1]]), "shape"),
        (_set(0, "kept", "all"), "kept must be a list"),
        (_set(0, "dim", 9), "no dimension 9"),
        (_set(0, "dim", True), "dim must be a whole number"),
        (_set(0, "tensor", "scale"), "no tensor 'stem.0.scale'"),
        (_set(0, "module", "stem.7"), "no module 'stem.7'"),
        (_set(0, "kind", "Linear"), "module 'stem.0' was a 'Linear', but the network's is a 'Conv2d'"),
        (lambda m: m["cuts"].append(m["cuts"][0]), "is cut twice"),
        (lambda m: m.update(cuts={}), "cuts: must be a list"),
        (lambda m: m.update(version=2), "version 2 is unknown"),
        (lambda m: m.update(format="x"), "not a manifest"),
        (lambda m: m.update(weights_sha256="0"), "weights_sha256"),
        (lambda m: m["blocks"].append({"module": "", "kind": "Residual", "leaves": "input", "outputs": 1}), "whole"),
        (
            lambda m: m["attributes"].append({"module": "b1.0", "attribute": "groups", "original": 7, "now": 1}),
            "b1.0.groups was 7, but the network's is 1",
        ),
        (
            lambda m: m["attributes"].append({"module": "b1.0", "attribute": "training", "original": 1, "now": 0}),
            "b1.0.training was 1",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    manifest = _saved(tmp_path)
    change(manifest)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        load(tmp_path, networks.Residual)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="manifest"):
        load(tmp_path, networks.Residual)
    _saved(tmp_path)
    with pytest.raises(ValueError, match=r"no module|was a|no tensor"):
        load(tmp_path, networks.Dense)
    (tmp_path / MANIFEST).write_text("[" * 10_000)
    with pytest.raises(ValueError, match="not JSON"):
        load(tmp_path, networks.Residual)
    _saved(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        load(tmp_path, networks.Residual)


def test_meta_networks_and_unwritable_recipes_are_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = networks.Dense()
    with pytest.raises(ValueError, match="meta device"):
        save(Network(module, ()), tmp_path / "meta")
    with pytest.raises(ValueError, match="recipe is no JSON"):
        save(Network(seeded(networks.Dense), ()), tmp_path / "recipe", recipe={"when": object()})
    assert not (tmp_path / "recipe" / MANIFEST).exists()
