"""What is loaded is whole: weights that do not fit, that are no safetensors, and configurations of nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffusion
from diffusion.models import find, load_model
from diffusion.pipeline import ClassToImage
from diffusion.saving import PLAIN_WEIGHTS, PrunedPipeline
from secateur.surgery.cost import count_params
from secateur.surgery.model_folder import MANIFEST, WEIGHTS
from tests.diffusion.models import diffusers, random_model
from tests.diffusion.recipes import save_dit
from tests.diffusion.test_saving import cut, without

Damage = Callable[[Path], object]


def config(**changes: Any) -> Damage:
    def damage(network: Path) -> None:
        path = network / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def tensors(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(network: Path) -> None:
        held = load_file(network / PLAIN_WEIGHTS)
        change(held)
        save_file(held, network / PLAIN_WEIGHTS)

    return damage


def pickled(network: Path) -> None:
    torch.save(load_file(network / PLAIN_WEIGHTS), network / "diffusion_pytorch_model.bin")
    (network / PLAIN_WEIGHTS).unlink()


def cut_short(network: Path) -> None:
    (network / PLAIN_WEIGHTS).write_bytes((network / PLAIN_WEIGHTS).read_bytes()[:-100])


def in_shards(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The weights in several files, of one of which the tensors are others than the index says."""

    def damage(network: Path) -> None:
        model = diffusers.DiTTransformer2DModel.from_pretrained(network)
        (network / PLAIN_WEIGHTS).unlink()
        model.save_pretrained(network, max_shard_size="20KB")
        shard = sorted(network.glob("*.safetensors"))[1]
        held = load_file(shard)
        change(held)
        save_file(held, shard)

    return damage


def first_shard_gone(network: Path) -> None:
    in_shards(lambda held: None)(network)
    next(iter(sorted(network.glob("*.safetensors")))).unlink()


NAME = "proj_out_2.weight"
DAMAGES: list[tuple[Damage, type[Exception], str]] = [
    (config(num_layers=1), ValueError, r"config.json: \d+ are unknown to it \(first: transformer_blocks\.1\."),
    (config(num_layers=3), ValueError, r"\d+ of its \d+ tensors are missing \(first: transformer_blocks\.2\."),
    (config(num_embeds_ada_norm=9), ValueError, r"2 have other shapes \(first: transf.* is \(11, 32\), not \(10, 32\)"),
    (tensors(lambda held: held.pop(NAME)), ValueError, rf"1 of its \d+ tensors are missing \(first: {NAME}\)$"),
    (tensors(lambda held: held.update(more=torch.ones(1))), ValueError, r"1 are unknown to it \(first: more\)$"),
    (in_shards(lambda held: held.popitem()), ValueError, r"1 of its \d+ tensors are missing"),
    (in_shards(lambda held: held.update(more=torch.ones(1))), ValueError, r"\(first: more\)$"),
    (first_shard_gone, FileNotFoundError, r"00001-of-.*no such file, which .*index\.json names"),
    (pickled, FileNotFoundError, "only safetensors are read"),
    (cut_short, ValueError, f"{PLAIN_WEIGHTS}: damaged"),
    (config(activation_fn="tanhh"), ValueError, r"config\.json: no DiTTransformer2DModel can be built from it \(.+\)"),
]


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in a pipeline"])
@pytest.mark.parametrize(("damage", "error", "says"), DAMAGES, ids=range(len(DAMAGES)))
def test_weights_that_do_not_fit_are_refused(
    damage: Damage, error: type[Exception], says: str, alone: bool, tmp_path: Path
) -> None:
    folder = save_dit(tmp_path / "dit")
    damage(folder / "transformer")
    folder = folder / "transformer" if alone else folder
    with pytest.raises(error, match=says) as raised:
        diffusion.load(folder)
    assert "\n" not in str(raised.value) and "ignore_mismatched_sizes" not in str(raised.value)
    with pytest.raises(ValueError, match=f"cannot be loaded: .*{says}"):
        load_model(str(folder))


def test_a_pruned_folder_without_its_manifest_is_refused(tmp_path: Path) -> None:
    diffusion.save(cut("dit", ("heads",)), tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {MANIFEST}, without which"):
        diffusion.load(tmp_path)


def test_damaged_weights_of_a_pruned_network_are_called_so(tmp_path: Path) -> None:
    diffusion.save(cut("dit", ("heads",)), tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{WEIGHTS}: damaged"):
        diffusion.load(tmp_path)


def test_weights_of_a_repository_are_checked_where_they_were_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_dit(tmp_path / "dit")
    found = find(str(folder))
    monkeypatch.setattr("diffusion.models.find", lambda *where: replace(found, id="some/dit", folder=None))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda id, **options: folder)
    tensors(lambda held: held.pop(NAME))(folder / "transformer")
    with pytest.raises(ValueError, match=rf"some/dit: cannot be loaded: .*missing \(first: {NAME}\)"):
        load_model("some/dit")


def test_pickles_of_other_parts_are_not_read_either(tmp_path: Path) -> None:
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    pipeline = diffusers.DiTPipeline(random_model("dit"), vae, diffusers.DDIMScheduler())
    pipeline.save_pretrained(tmp_path)
    assert isinstance(diffusion.load(tmp_path, use_safetensors=False), diffusers.DiTPipeline)
    pickled(tmp_path / "vae")
    for options in ({}, {"use_safetensors": False}, {"use_safetensors": None}):
        with pytest.raises(FileNotFoundError, match="only safetensors are"):
            PrunedPipeline.from_pretrained(tmp_path, **options)
    (tmp_path / "vae" / PLAIN_WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=f"vae.{PLAIN_WEIGHTS}: damaged"):
        diffusion.load(tmp_path)


def test_own_pipelines_read_no_pickles(tmp_path: Path) -> None:
    folder = save_dit(tmp_path / "dit")
    pickled(folder / "transformer")
    with pytest.raises(OSError, match=PLAIN_WEIGHTS):
        ClassToImage.from_pretrained(folder)


def test_old_names_that_diffusers_changes_fit(tmp_path: Path) -> None:
    model = random_model("unet2d")
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(held: dict[str, Any]) -> None:
        for name in list(held):
            new = name
            for now, before in old.items():
                new = new.replace(f".{now}.", f".{before}.")
            held[new] = held.pop(name)

    tensors(rename)(tmp_path)
    assert any(".query." in name for name in load_file(tmp_path / PLAIN_WEIGHTS))
    loaded = diffusion.load(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("shards", [False, True])
def test_a_variant_is_taken_if_it_is_there(shards: bool, tmp_path: Path) -> None:
    folder = save_dit(tmp_path / "dit")
    other = random_model("dit", out_channels=1).double()
    options = {"max_shard_size": "20KB"} if shards else {}
    other.save_pretrained(folder / "transformer", variant="wide", **options)  # type: ignore[operator]
    plain = load_file(folder / "transformer" / PLAIN_WEIGHTS)[NAME]
    for at in (folder, folder / "transformer"):
        network = load_model(str(at), variant="wide", dtype=torch.float64).network
        assert torch.equal(network.state_dict()[NAME], other.state_dict()[NAME])
        assert torch.equal(load_model(str(at)).network.state_dict()[NAME], plain)
        with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bf16\.safetensors: no such file"):
            load_model(str(at), variant="bf16")


def test_keys_of_other_versions_of_diffusers_are_passed_over(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save_dit(tmp_path / "dit")
    before = find(str(folder)).on_meta()
    config(key_of_tomorrow=3)(folder / "transformer")
    assert count_params(find(str(folder)).on_meta()) == count_params(before)
    load_model(str(folder))
    load_model(str(folder / "transformer" / "config.json"), random_weights=True)
    assert "key_of_tomorrow" not in capfd.readouterr().err


WRONG: list[dict[str, Any]] = [
    {"num_attention_heads": -2},
    {"num_attention_heads": "six"},
    {"patch_size": 0},
    {"activation_fn": "tanhh"},
    {"sample_size": None},
    {"num_layers": 1.5},
    {"_class_name": "AutoencoderKL"},
]


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_a_configuration_of_nothing_is_refused_in_a_line(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = save_dit(tmp_path / "dit")
    config(**changes)(folder / "transformer")
    path = folder / "transformer" / "config.json"
    for attempt in (
        lambda: find(str(folder)).on_meta(),
        lambda: load_model(str(folder)),
        lambda: load_model(str(path), random_weights=True),
    ):
        with pytest.raises(ValueError, match=r"config\.json: no .* can be built from it \(") as raised:
            attempt()
        assert "\n" not in str(raised.value)


def test_a_scheduler_of_nothing_is_refused_in_a_line(tmp_path: Path) -> None:
    folder = save_dit(tmp_path / "dit")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": "x"}))
    for load in (diffusion.load, lambda folder: load_model(str(folder))):
        with pytest.raises(ValueError, match=r"scheduler_config\.json: no DDIMScheduler can be built from it \("):
            load(folder)


def test_a_folder_that_plain_diffusers_loads_is_planned_as_it_is(tmp_path: Path) -> None:
    diffusion.save(without("dit", "transformer_blocks.1", num_layers=3), tmp_path)
    assert count_params(find(str(tmp_path)).on_meta()) == count_params(load_model(str(tmp_path)).network)
