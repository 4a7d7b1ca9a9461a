from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffusion
from diffusion.saving import PLAIN_WEIGHTS, load_network, read_manifest
from diffusion.units import Kind, prunable
from secateur.surgery import Network
from secateur.surgery.model_folder import MANIFEST, WEIGHTS
from secateur.units import Keep
from tests.diffusion.models import FAMILIES, diffusers, random_model, run

KINDS: dict[str, tuple[Kind, ...]] = {
    "unet2d": ("heads", "channels", "resnets"),
    "unet": ("heads", "neurons", "channels", "transformer_blocks"),
    "sdxl": ("heads", "neurons", "operators"),
    "dit": ("heads", "neurons", "modulation", "transformer_blocks"),
    "pixart": ("heads", "neurons"),
    "sd3": ("heads", "neurons", "modulation", "feed_forwards"),
    "flux": ("heads", "neurons", "modulation", "transformer_blocks"),
}


def cut(family: str, kinds: tuple[Kind, ...], seed: int = 0, share: float = 0.6) -> Network:
    target = prunable(random_model(family), kinds, min_keep=0)
    generator = torch.Generator().manual_seed(seed)
    keep: Keep = {group.name: torch.rand(group.size, generator=generator) < share for group in target.groups()}
    for index, group in enumerate(target.groups()):
        if index % 3 == 0 and group.size > 1:
            keep[group.name][:] = False
    return target.cut(keep)


def without(family: str, *names: str, **changes: Any) -> Network:
    """A network that lost these whole transformer blocks."""
    target = prunable(random_model(family, **changes), ("transformer_blocks",))
    keep = {group.name: torch.tensor([group.name not in names]) for group in target.groups()}
    assert sum(not bool(mask) for mask in keep.values()) == len(names)
    return target.cut(keep)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_loads_bit_for_bit(family: str, tmp_path: Path) -> None:
    network = cut(family, KINDS[family])
    diffusion.save(network, tmp_path / "pruned", recipe={"keep": 0.6}, metrics={"fd": 1.5})
    loaded = load_network(tmp_path / "pruned")
    assert torch.equal(run(family)(loaded), run(family)(network))
    assert not any(tensor.is_meta for tensor in [*loaded.module.parameters(), *loaded.module.buffers()])
    manifest = read_manifest(tmp_path / "pruned")
    assert manifest["recipe"] == {"keep": 0.6} and manifest["metrics"] == {"fd": 1.5}
    again = prunable(loaded.module, KINDS[family][:1], min_keep=0, cuts=loaded.cuts)
    keep = {group.name: torch.arange(group.size) == 0 for group in again.groups()}
    diffusion.save(again.cut(keep), tmp_path / "twice")
    assert torch.equal(run(family)(diffusion.load(tmp_path / "twice")), run(family)(again.cut(keep)))


@pytest.mark.parametrize(
    ("family", "names", "changes"),
    [
        ("dit", ("transformer_blocks.1",), {"num_layers": 3}),
        ("pixart", ("transformer_blocks.0",), {}),
        ("sd3", ("transformer_blocks.0",), {}),
        ("flux", ("transformer_blocks.0", "single_transformer_blocks.1"), {}),
        (
            "sdxl",
            (
                "down_blocks.1.attentions.0.transformer_blocks.0",
                "mid_block.attentions.0.transformer_blocks.1",
                "up_blocks.0.attentions.0.transformer_blocks.1",
                "up_blocks.0.attentions.1.transformer_blocks.0",
            ),
            {},
        ),
    ],
)
def test_whole_blocks_load_in_plain_diffusers(
    family: str, names: tuple[str, ...], changes: dict[str, Any], tmp_path: Path
) -> None:
    network = without(family, *names, **changes)
    diffusion.save(network, tmp_path)
    assert not (tmp_path / WEIGHTS).exists()
    plain = type(network.module).from_pretrained(tmp_path).eval()  # type: ignore[attr-defined]
    assert torch.equal(run(family)(plain), run(family)(network))
    assert torch.equal(run(family)(diffusion.load(tmp_path)), run(family)(network))


def test_blocks_that_a_configuration_cannot_leave_out_are_written_with_a_manifest(tmp_path: Path) -> None:
    cases = {
        "dit": ("transformer_blocks.0",),
        "sd3": ("transformer_blocks.1",),
        "sdxl": ("mid_block.attentions.0.transformer_blocks.0",),
    }
    for family, names in cases.items():
        network = without(family, *names)
        diffusion.save(network, tmp_path / family)
        assert (tmp_path / family / WEIGHTS).exists(), family
        assert torch.equal(run(family)(diffusion.load(tmp_path / family)), run(family)(network))


def test_plain_diffusers_never_fills_a_pruned_folder_with_random_weights(tmp_path: Path) -> None:
    network = cut("dit", ("heads", "neurons"))
    diffusion.save(network, tmp_path)
    with pytest.raises(OSError, match=PLAIN_WEIGHTS.split(".")[0]):
        diffusers.DiTTransformer2DModel.from_pretrained(
            tmp_path, ignore_mismatched_sizes=True, low_cpu_mem_usage=False, local_files_only=True
        )
    with pytest.raises(ValueError, match="ignore_mismatched_sizes"):
        diffusion.load(tmp_path, ignore_mismatched_sizes=True)


def test_saving_again_leaves_no_weights_of_the_former_version(tmp_path: Path) -> None:
    diffusion.save(without("flux", "transformer_blocks.0"), tmp_path)
    network = cut("flux", ("heads",))
    diffusion.save(network, tmp_path)
    assert (tmp_path / WEIGHTS).exists() and not (tmp_path / PLAIN_WEIGHTS).exists()
    assert torch.equal(run("flux")(diffusion.load(tmp_path)), run("flux")(network))


def test_a_pipeline_with_a_pruned_network(tmp_path: Path) -> None:
    network = cut("unet2d", ("heads", "channels"))
    pipeline = diffusers.DDPMPipeline(random_model("unet2d"), diffusers.DDPMScheduler(num_train_timesteps=10))
    diffusion.save_pipeline(pipeline, {"unet": network}, tmp_path, recipe={"seed": 1})
    assert pipeline.unet is not None
    loaded = diffusion.load(tmp_path)
    assert isinstance(loaded, diffusers.DDPMPipeline)
    assert torch.equal(run("unet2d")(loaded.unet), run("unet2d")(network))
    with pytest.raises(ValueError, match="no component 'transformer'"):
        diffusion.save_pipeline(pipeline, {"transformer": network}, tmp_path)


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
        (_damage_json("config.json", num_attention_heads=2), "config|had 32 rows|heads was 4"),
        (_damage_json("config.json", _class_name="UNet2DModel"), "is of a DiTTransformer2DModel"),
        (_damage_json("config.json", _class_name="Popen"), "'Popen' is no model of diffusers"),
        (_damage_json(MANIFEST, format="other"), "not a manifest"),
        (_damage_json(MANIFEST, version=9), "version 9 is unknown"),
        (_damage_json(MANIFEST, scattered=["transformer_blocks"]), "no linear layer"),
        (_other_weights, "not the weights"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must hold an object"),
    ],
)
def test_what_does_not_fit_is_refused(damage: Any, message: str, tmp_path: Path) -> None:
    diffusion.save(cut("dit", ("heads", "neurons")), tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        diffusion.load(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a pipeline"):
        diffusion.load(tmp_path)
    diffusion.save(cut("dit", ("heads",)), tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=WEIGHTS):
        diffusion.load(tmp_path)
    with pytest.raises(ValueError, match="no JSON"):
        diffusion.save(cut("dit", ("heads",)), tmp_path, recipe={"what": object()})
    with pytest.raises(ValueError, match="no model of diffusers"):
        diffusion.save(Network(torch.nn.Linear(2, 2), ()), tmp_path)
