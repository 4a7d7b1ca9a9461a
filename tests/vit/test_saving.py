from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vit
from secateur.surgery import Network
from secateur.surgery.model_folder import MANIFEST, WEIGHTS
from secateur.units import Keep
from tests.vit.models import FAMILIES, TorchViT, inputs, random_model, run
from vit.saving import PLAIN_WEIGHTS, load_network, read_manifest
from vit.units import Kind, prunable

KINDS: tuple[Kind, ...] = ("heads", "neurons", "embedding", "attentions", "feed_forwards", "blocks")
OF_TRANSFORMERS = [family for family in FAMILIES if family not in ("torch", "fused")]


def random_keep(target: Network, seed: int = 0, share: float = 0.7) -> Keep:
    generator = torch.Generator().manual_seed(seed)
    keep: Keep = {group.name: torch.rand(group.size, generator=generator) < share for group in target.groups()}
    whole = [group.name for group in target.groups() if group.size == 1]
    for index, group in enumerate(target.groups()):
        if group.name in whole[:-1]:
            keep[group.name][:] = True
        elif index % 3 == 0 and group.min_keep == 0:
            keep[group.name][:] = False
        elif not bool(keep[group.name].any()):
            keep[group.name][: group.min_keep] = True
    return keep


def cut(family: str, kinds: tuple[Kind, ...] = KINDS, **options: Any) -> Network:
    target = prunable(random_model(family), kinds, min_keep=0)
    return target.cut(random_keep(target, **options))


def evenly(family: str, kinds: tuple[Kind, ...], lost: dict[str, int], without: str = "", **changes: Any) -> Network:
    """A network whose groups lost the same number of units each, by the last part of their names, and one block."""
    target = prunable(random_model(family, **changes), kinds)
    keep = {}
    for index, group in enumerate(target.groups()):
        order = torch.randperm(group.size, generator=torch.Generator().manual_seed(index))
        keep[group.name] = order >= lost.get(group.name.rpartition(".")[2], 0)
        if group.name == without:
            keep[group.name][:] = False
    return target.cut(keep)


@pytest.mark.parametrize("family", OF_TRANSFORMERS)
def test_what_is_saved_loads_bit_for_bit(family: str, tmp_path: Path) -> None:
    network = cut(family)
    vit.save(network, tmp_path / "pruned", recipe={"keep": 0.7}, metrics={"accuracy": 0.5})
    loaded = load_network(tmp_path / "pruned")
    assert torch.equal(run(family)(loaded), run(family)(network))
    assert not any(tensor.is_meta for tensor in [*loaded.module.parameters(), *loaded.module.buffers()])
    manifest = read_manifest(tmp_path / "pruned")
    assert manifest["recipe"] == {"keep": 0.7} and manifest["metrics"] == {"accuracy": 0.5}
    again = prunable(loaded.module, ("heads", "neurons"), min_keep=1, cuts=loaded.cuts)
    keep = {group.name: torch.arange(group.size) < max(1, group.min_keep) for group in again.groups()}
    vit.save(again.cut(keep), tmp_path / "twice")
    assert torch.equal(run(family)(vit.load(tmp_path / "twice")), run(family)(again.cut(keep)))


@pytest.mark.parametrize("family", ["vit", "dinov2", "swin"])
def test_dimensions_of_heads_keep_the_scale_that_they_were_trained_with(family: str, tmp_path: Path) -> None:
    network = evenly(family, ("head_dims",), {"head_dims": 2})
    vit.save(network, tmp_path)
    assert (tmp_path / WEIGHTS).exists(), "transformers would scale by the width that is left"
    assert torch.equal(run(family)(vit.load(tmp_path)), run(family)(network))


_EVEN = {"heads": 1, "neurons": 5, "embedding": 7}
PLAIN: list[tuple[str, tuple[Kind, ...], dict[str, int], str, dict[str, Any]]] = [
    ("vit", ("neurons",), _EVEN, "", {}),
    ("vit", ("heads", "neurons", "embedding"), _EVEN, "", {}),
    ("vit", ("heads", "neurons", "blocks"), _EVEN, "vit.layers.1", {}),
    ("deit", ("heads",), _EVEN, "", {}),
    ("deit_teacher", ("embedding", "blocks"), _EVEN, "deit.layers.0", {}),
    ("dinov2", ("heads",), _EVEN, "", {}),
    ("dinov2", ("neurons", "blocks"), {"neurons": 24}, "dinov2.encoder.layer.2", {}),
    ("dinov2_registers", ("blocks",), {}, "dinov2_with_registers.encoder.layer.0", {}),
    ("sam", ("neurons", "blocks"), _EVEN, "vision_encoder.layers.0", {}),
    ("sam", ("embedding", "heads"), {"embedding": 4, "heads": 1}, "", {}),
    ("swin", ("blocks",), {}, "swin.encoder.layers.1.blocks.1", {}),
]


@pytest.mark.parametrize(("family", "kinds", "lost", "without", "changes"), PLAIN)
def test_what_a_configuration_can_express_loads_in_plain_transformers(
    family: str,
    kinds: tuple[Kind, ...],
    lost: dict[str, int],
    without: str,
    changes: dict[str, Any],
    tmp_path: Path,
) -> None:
    network = evenly(family, kinds, lost, without, **changes)
    vit.save(network, tmp_path)
    assert not (tmp_path / WEIGHTS).exists()
    kind: Any = type(network.module)
    plain = kind.from_pretrained(tmp_path).eval()
    assert torch.equal(run(family)(plain), run(family)(network))
    assert torch.equal(run(family)(vit.load(tmp_path)), run(family)(network))


def test_uneven_cuts_never_load_in_plain_transformers(tmp_path: Path) -> None:
    for family, network in (
        ("vit", cut("vit", ("heads", "neurons"))),
        ("swin", evenly("swin", ("heads",), {"heads": 1})),
        ("swin", evenly("swin", ("blocks",), {}, "swin.encoder.layers.1.blocks.0")),
    ):
        vit.save(network, tmp_path)
        assert not (tmp_path / PLAIN_WEIGHTS).exists()
        kind: Any = type(network.module)
        with pytest.raises(OSError, match=PLAIN_WEIGHTS.split(".")[0]):
            kind.from_pretrained(tmp_path, ignore_mismatched_sizes=True, local_files_only=True)
        assert torch.equal(run(family)(vit.load(tmp_path)), run(family)(network))


def test_saving_again_leaves_no_weights_of_the_former_version(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}")
    vit.save(evenly("vit", ("neurons",), {"neurons": 2}), tmp_path)
    network = cut("vit", ("heads",))
    vit.save(network, tmp_path)
    assert (tmp_path / WEIGHTS).exists() and not (tmp_path / PLAIN_WEIGHTS).exists()
    assert (tmp_path / "preprocessor_config.json").exists()
    assert torch.equal(run("vit")(vit.load(tmp_path)), run("vit")(network))


def _damage_json(name: str, **changes: Any) -> Any:
    def damage(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(value | changes))

    return damage


def _other_weights(folder: Path) -> None:
    save_file({name: tensor + 1 for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_damage_json("config.json", num_hidden_layers=2), "the network has no module 'vit.layers.2"),
        (_damage_json("config.json", hidden_size=32), "had 24 rows along dim 0, but the network's has 32"),
        (_damage_json("config.json", architectures=["DeiTForImageClassification"]), "no module 'vit"),
        (_damage_json("config.json", architectures=["os.system"]), "transformers has no model 'os.system'"),
        (_damage_json("config.json", architectures=None), "no architectures"),
        (_damage_json("config.json", hidden_size=-1), "no ViTForImageClassification can be built"),
        (_damage_json(MANIFEST, version=9), "version 9 is unknown"),
        (_damage_json(MANIFEST, format="secateur pruned diffusion model"), "not a manifest of a pruned vision"),
        (_other_weights, "weights_sha256"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must hold an object"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(damage: Any, message: str, tmp_path: Path) -> None:
    vit.save(cut("vit", ("heads", "neurons", "embedding")), tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        vit.load(tmp_path)


def test_a_manifest_of_another_model_names_the_first_mismatch(tmp_path: Path) -> None:
    vit.save(cut("vit", ("heads", "neurons")), tmp_path / "vit")
    vit.save(cut("dinov2", ("heads", "neurons")), tmp_path / "dino")
    for name in (MANIFEST, WEIGHTS):
        (tmp_path / "dino" / name).write_bytes((tmp_path / "vit" / name).read_bytes())
    with pytest.raises(ValueError, match=r"cuts\[0\]: the network has no module 'vit.layers"):
        vit.load(tmp_path / "dino")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        vit.load(tmp_path)
    vit.save(cut("vit", ("heads",)), tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=WEIGHTS):
        vit.load(tmp_path)


def test_what_has_no_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TorchViT is no model of transformers"):
        vit.save(prunable(TorchViT()), tmp_path)
    with torch.device("meta"):
        model = FAMILIES["vit"]()
    with pytest.raises(ValueError, match="on the meta device"):
        vit.save(prunable(model), tmp_path)


class Logits(nn.Module):
    """A model of transformers as a function from pixels to a tensor."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values)[0]


@pytest.mark.parametrize("family", ["vit", "dinov2", "swin"])
def test_a_cut_model_is_exported(family: str) -> None:
    network = cut(family, ("heads", "neurons", "embedding"))
    exported = torch.export.export(Logits(network.module), tuple(inputs(family).values()))
    with torch.no_grad():
        output = exported.module()(*inputs(family).values())
    torch.testing.assert_close(output, run(family)(network), rtol=1e-5, atol=1e-5)


def test_an_onnx_file_of_a_cut_model_runs(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    network, path = cut("vit", ("heads", "neurons", "embedding")), tmp_path / "vit.onnx"
    pixels = inputs("vit")["pixel_values"]
    torch.onnx.export(Logits(network.module).eval(), (pixels,), path, dynamo=True, external_data=False, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), run("vit")(network), rtol=1e-4, atol=1e-5)
