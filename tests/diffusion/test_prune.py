"""Recipes carried out on tiny models: what is written loads back, budgets hold, and stages are not repeated."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")

import diffusion
from diffusion.block_removal import BlockRemoval
from diffusion.data import OwnSamples
from diffusion.inputs import example_inputs
from diffusion.masks import EcoDiff, ExpectedBudget
from diffusion.models import load_model
from diffusion.prune import prune
from diffusion.recipe import Adapters, Budget, Calibration, Distil, Model, Recovery, Units
from diffusion.saving import read_manifest
from diffusion.scores import LatentShift
from diffusion.taylor import DiffPruning
from secateur.evaluation.run import hash_path
from secateur.importance import Magnitude, Random, Wanda
from secateur.recipe import NAME
from secateur.recovery.refit import ObsRefit
from secateur.units import Scores
from tests.diffusion.models import random_model
from tests.diffusion.recipes import JUDGING, SHORT, recipe, save_dit
from tests.secateur.evaluation.runs import checked_run
from tests.secateur.evaluation.stops import count_chunks


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dit(tmp_path_factory.mktemp("dit"))


def outputs(network: Any) -> torch.Tensor:
    inputs = example_inputs(network, batch=2)
    inputs["hidden_states"] = torch.randn(inputs["hidden_states"].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network(**inputs, return_dict=False)[0]


def test_a_pruned_pipeline_loads_back_bit_for_bit(dit: Path, tmp_path: Path) -> None:
    made = recipe(dit, recovery=Recovery(steps=2, batch_size=4, ema=0.5, distil=Distil(blocks=1.0), validate_every=2))
    made = replace(made, repair=ObsRefit(), calibration=replace(SHORT, data=OwnSamples(20, 20)))
    small, record = prune(made, tmp_path)
    loaded = diffusion.load(tmp_path)
    assert torch.equal(outputs(loaded.transformer), outputs(small.module))
    assert record.plan.pruned.params <= 0.9 * record.plan.dense.params
    assert record.plan.pruned.params == sum(parameter.numel() for parameter in small.module.parameters())
    assert record.recovery is not None and record.recovery.steps == 2
    assert record.repaired
    assert [one.name for one in record.evaluation.candidates] == ["pruned", "recovered"]
    written = checked_run(tmp_path)
    pruned, recovered = written.candidates
    assert pruned.measurements["params"].value == record.plan.pruned.params and pruned.path is None
    assert recovered.path == str(tmp_path) and recovered.details["recovery"]["losses"]
    assert written.reference.path == str(dit) and written.reference.sha256 == hash_path(dit)
    assert written.details["kept_by_kind"]["heads"] == list(record.kinds["heads"]) and written.details["repaired"]
    assert written.runs[0].seeds.keys() == {"first sample", "intervals", "calibration"}
    metrics = read_manifest(tmp_path / "transformer")["metrics"]
    assert metrics["params"] == record.plan.pruned.params
    for name in ("index.html", "samples.png", NAME):
        assert (tmp_path / name).stat().st_size
    assert not list((tmp_path / "stages").glob("*.ckpt"))


CRITERIA = [
    EcoDiff(steps=2, batch_size=2),
    LatentShift(),
    DiffPruning(),
    Wanda(),
    Random(seed=1),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda criterion: type(criterion).__name__)
def test_every_kind_of_criterion_gets_what_it_looks_through(dit: Path, tmp_path: Path, criterion: Any) -> None:
    units = Units(kinds=("heads",)) if isinstance(criterion, LatentShift) else Units()
    budget = Budget(by_kind={"heads": 0.5}) if isinstance(criterion, LatentShift) else Budget(remove=0.1)
    _, record = prune(recipe(dit, criterion=criterion, units=units, budget=budget), tmp_path)
    kept, size = record.kinds["heads"]
    assert kept < size or record.kinds["neurons"][0] < record.kinds["neurons"][1]


def test_ecodiff_is_held_to_the_recipes_budget_unless_it_has_its_own(dit: Path) -> None:
    from diffusion.choose import find_target
    from diffusion.prune import to_the_budget
    from secateur.recipe import recipe_of

    target = find_target(recipe_of(recipe(dit)))
    found = to_the_budget(EcoDiff(), target)
    assert isinstance(found, EcoDiff) and isinstance(found.pressure, ExpectedBudget)
    pool = sum(float(group.cost["params"].sum()) for group in target.groups)
    assert found.pressure.share == pytest.approx(1 - 0.1 * target.size.params / pool, abs=0.02)
    own = EcoDiff(pressure=ExpectedBudget(share=0.3))
    assert to_the_budget(own, target) is own


def test_kinds_may_lose_their_own_shares(dit: Path, tmp_path: Path) -> None:
    _, record = prune(recipe(dit, budget=Budget(by_kind={"heads": 0.25, "neurons": 0.5})), tmp_path)
    assert record.kinds["heads"] == (6, 8)
    assert record.kinds["neurons"][0] == record.kinds["neurons"][1] // 2


def test_a_budget_of_time_uses_measured_times(dit: Path, tmp_path: Path) -> None:
    _, record = prune(recipe(dit, budget=Budget(remove=0.3, cost="ms", of="units")), tmp_path)
    kept = sum(kept for kept, _ in record.kinds.values())
    assert 0 < kept < sum(size for _, size in record.kinds.values())


@dataclass(frozen=True)
class Counted:
    """Magnitudes; counts in a file how often they were asked for."""

    path: str

    def score(self, target: Any, calibration: Any = None, /) -> Scores:
        file = Path(self.path)
        file.write_text(str(int(file.read_text() or "0") + 1 if file.exists() else 1))
        return Magnitude().score(target)


def test_a_stopped_run_does_not_score_again(dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter, output = tmp_path / "count", tmp_path / "out"
    made = recipe(dit, criterion=Counted(str(counter)), recovery=Recovery(steps=3, batch_size=4))

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("diffusion.prune.judge", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(made, output)
    assert not (output / "results.json").exists()
    assert list((output / "stages").glob("recovery-*.ckpt"))
    resumed, _ = prune(made, output)
    assert counter.read_text() == "1"
    whole, _ = prune(replace(made, criterion=Counted(str(tmp_path / "other"))), tmp_path / "whole")
    assert torch.equal(outputs(resumed.module), outputs(whole.module))


def test_samples_that_a_stopped_run_has_judged_are_not_drawn_again(
    dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(dit, evaluation=replace(JUDGING, batch_size=1))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        count_chunks(patched, stop_before=3)
        prune(made, tmp_path)
    with monkeypatch.context() as patched:
        again = count_chunks(patched)
        _, resumed = prune(made, tmp_path)
    assert again == [3]
    assert {path.name for path in (tmp_path / "stages").iterdir()} == {"scores.safetensors"}
    _, whole = prune(made, tmp_path / "whole")
    assert resumed.evaluation.candidates[0].paired == whole.evaluation.candidates[0].paired


def test_scores_of_another_recipe_are_not_taken(dit: Path, tmp_path: Path) -> None:
    counter = tmp_path / "count"
    made = recipe(dit, criterion=Counted(str(counter)))
    prune(made, tmp_path / "out")
    prune(made, tmp_path / "out")
    assert counter.read_text() == "1"
    prune(replace(made, calibration=replace(SHORT, seed=1)), tmp_path / "out")
    assert counter.read_text() == "2"


def test_scores_of_another_checkpoint_under_the_same_path_are_not_taken(tmp_path: Path) -> None:
    folder, counter = save_dit(tmp_path / "dit"), tmp_path / "count"
    made = recipe(folder, criterion=Counted(str(counter)))
    first, _ = prune(made, tmp_path / "out")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: -2 * tensor for name, tensor in load_file(weights).items()}, weights)
    second, _ = prune(made, tmp_path / "out")
    assert counter.read_text() == "2"
    assert not torch.equal(outputs(first.module), outputs(second.module))


def test_changed_prompts_in_the_same_file_are_scored_anew(dit: Path, tmp_path: Path) -> None:
    counter, prompts = tmp_path / "count", tmp_path / "prompts.txt"
    made = recipe(dit, criterion=Counted(str(counter)), calibration=replace(SHORT, prompts_file=prompts))
    for text in ("1\n2\n", "1\n2\n", "3\n"):
        prompts.write_text(text)
        prune(made, tmp_path / "out")
    assert counter.read_text() == "2"


def test_a_pruned_folder_can_be_pruned_again(dit: Path, tmp_path: Path) -> None:
    _, first = prune(recipe(dit), tmp_path / "first")
    small, second = prune(recipe(tmp_path / "first"), tmp_path / "second")
    assert second.plan.dense.params == first.plan.pruned.params
    assert torch.equal(outputs(diffusion.load(tmp_path / "second").transformer), outputs(small.module))


def test_a_component_alone_and_a_bare_configuration(dit: Path, tmp_path: Path) -> None:
    _, record = prune(recipe(dit / "transformer"), tmp_path / "alone")
    assert record.plan.pruned.params < record.plan.dense.params
    assert diffusion.load(tmp_path / "alone").config.num_layers == 2
    bare = tmp_path / "config.json"
    bare.write_text((dit / "transformer" / "config.json").read_text())
    with pytest.raises(ValueError, match="set random_weights"):
        prune(recipe(bare), tmp_path / "bare")
    made = replace(recipe(bare), model=Model(str(bare), random_weights=True, device="cpu"))
    prune(made, tmp_path / "bare")
    assert diffusion.load(tmp_path / "bare") is not None


def test_networks_of_prompts_get_numbers_for_prompts(tmp_path: Path) -> None:
    random_model("sdxl").save_pretrained(tmp_path / "unet")
    units = Units(kinds=("heads", "neurons", "channels"))
    made = recipe(tmp_path / "unet", units=units, criterion=EcoDiff(steps=1, batch_size=2))
    made = replace(made, calibration=Calibration(prompts=("a", "b"), count=2, steps=2, guidance=3.0))
    small, _ = prune(made, tmp_path / "out")
    assert type(diffusion.load(tmp_path / "out")) is type(small.module)


def test_blocks_go_as_in_bk_sdm_and_plain_diffusers_loads_the_rest(tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    random_model("unet", layers_per_block=2).save_pretrained(tmp_path / "unet")
    training = Recovery(steps=2, batch_size=4, distil=Distil(blocks=1.0))
    made = recipe(tmp_path / "unet", units=Units(blocks=BlockRemoval(middle=True)), criterion=None, budget=None)
    made = replace(made, recovery=training, calibration=replace(SHORT, prompts=("a", "b")))
    small, record = prune(made, tmp_path / "out")
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "out")
    assert loaded.mid_block is None
    assert sum(parameter.numel() for parameter in loaded.parameters()) == record.plan.pruned.params
    for name, tensor in small.module.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_adapters_are_merged(dit: Path, tmp_path: Path) -> None:
    small, _ = prune(recipe(dit, recovery=Recovery(steps=2, batch_size=4, adapters=Adapters(rank=2))), tmp_path)
    assert not [name for name, _ in small.module.named_parameters() if "parametrizations" in name]


def test_a_step_may_go_through_the_network_in_parts(dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion.train import DenoisingTask

    seen: list[int] = []
    draw = DenoisingTask.draw

    def noted(task: DenoisingTask, batch: Any) -> Any:
        seen.append(len(batch["latents"]))
        return draw(task, batch)

    monkeypatch.setattr(DenoisingTask, "draw", noted)
    _, record = prune(recipe(dit, recovery=Recovery(steps=3, batch_size=4, accumulate=2, drop=0.0)), tmp_path)
    assert seen == [2] * 6
    assert record.recovery is not None and record.recovery.steps == 3


def test_weights_that_do_not_fit_are_refused(dit: Path, tmp_path: Path) -> None:
    folder = save_dit(tmp_path / "dit")
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps({**config, "attention_head_dim": 16}))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(folder))


def test_a_folder_is_needed(dit: Path) -> None:
    with pytest.raises(ValueError, match="no folder for the result"):
        prune(recipe(dit))


def test_too_large_a_model_is_refused_before_it_is_loaded(
    dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusion.estimate.free_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match="of memory, and 1 kB are free"):
        prune(recipe(dit), tmp_path)


@pytest.mark.parametrize("scheduler", ["diffusers.EulerDiscreteScheduler", "diffusers.DPMSolverMultistepScheduler"])
def test_other_schedulers_sample(dit: Path, tmp_path: Path, scheduler: str) -> None:
    made = recipe(dit, calibration=replace(SHORT, scheduler=scheduler))
    prune(made, tmp_path / "out")
    with pytest.raises(ValueError, match="is no scheduler"):
        prune(replace(made, calibration=replace(SHORT, scheduler="torch.nn.Linear")), tmp_path / "no")
