"""The bench of diffusion models: its cuts meet their shares, it goes on where it was stopped, and draws what it has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from diffusion import demo
from secateur.surgery.cost import count_macs

NAME = "digits-dit"

pytestmark = pytest.mark.skipif(not (demo.MODELS / NAME).is_dir(), reason=f"the demo model {NAME} is not trained yet")


@pytest.mark.parametrize("method", ["random", "magnitude", "Taylor", "Diff-Pruning"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_cuts_meet_their_share(bench: Callable[[str], ModuleType], method: str, share: float) -> None:
    settings = bench("denoisers.settings").Settings((NAME,), quick=True)
    of = bench("denoisers.subjects").subject(NAME)
    pruned, _ = bench("denoisers.entrants").small(NAME, method, settings, share, 0)
    whole, left = (count_macs(network, of.inputs()) for network in (of.dense, pruned.module))
    assert (1 - share) * whole * 0.99 < left <= (1 - share) * whole
    kept = {kind: [0, 0] for kind in of.kinds}
    for group in of.units.groups():
        now = next((small.size for small in pruned.groups() if small.name == group.name), 0)
        kept[group.name.rpartition(".")[2]][0] += now
        kept[group.name.rpartition(".")[2]][1] += group.size
    shares = [now / before for now, before in kept.values()]
    assert max(shares) - min(shares) < 0.05


def test_repair_leaves_the_cut_as_it_is(bench: Callable[[str], ModuleType]) -> None:
    settings = bench("denoisers.settings").Settings((NAME,), quick=True)
    entrants, of = bench("denoisers.entrants"), bench("denoisers.subjects").subject(NAME)
    pruned, _ = entrants.small(NAME, "random", settings, 0.3, 0)
    before = {name: value.clone() for name, value in pruned.module.state_dict().items()}
    mended = entrants.repaired(NAME, pruned, settings, 0)
    assert all(torch.equal(value, before[name]) for name, value in pruned.module.state_dict().items())
    sampling = of.sampling(0, 20, 2)
    dense, cut, better = (sampling.sample(model, sampling.seeds) for model in (of.dense, pruned.module, mended.module))
    assert (better - dense).square().mean() < (cut - dense).square().mean()


def test_more_than_the_units_have_cannot_go(bench: Callable[[str], ModuleType]) -> None:
    settings = bench("denoisers.settings").Settings((NAME,), quick=True)
    with pytest.raises(ValueError, match="99% of the multiply-adds cannot go"):
        bench("denoisers.entrants").small(NAME, "random", settings, 0.99, 0)


def test_every_part_is_found(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    main = bench("diffusion")
    options = main.parse(["--only", "dense,one_shot", "--models", NAME, "--quick", "--output", str(tmp_path / "a")])
    settings = bench("denoisers.settings").Settings(options.models, quick=True)
    every = [(part.section, part.name) for part in main.BENCH.parts(options, settings)]
    assert ("dense", NAME) in every and ("one_shot", f"{NAME}: EcoDiff: seed 0") in every


def results() -> dict[str, Any]:
    """Figures in the form that the sections give."""

    def rows(level: float) -> list[dict[str, Any]]:
        return [
            {"share": share, "seed": seed, "repaired": repaired, "frechet": level + share}
            for share in (0.2, 0.5)
            for seed in (0, 1)
            for repaired in (False, True)
        ] + [{"share": 0.9, "seed": 0, "failed": "cannot go"}]

    blocks = [{"share": 0.2, "repaired": False, "recovered": done, "frechet": 2.0} for done in (False, True)]
    return {
        "dense": {NAME: {"rows": [{"frechet": 0.8, "floor": 0.5}]}},
        "one_shot": {f"{NAME}: EcoDiff: seed 0": {"rows": rows(1.0)}, f"{NAME}: random: seed 0": {"rows": rows(3.0)}},
        "recovered": {
            f"{NAME}: EcoDiff: 20%: seed 0": {"rows": rows(0.9)[:4]},
            f"{NAME}: EcoDiff: 30%, long: seed 0": {"rows": [rows(0.5)[1] | {"steps": 1000}]},
        },
        "blocks": {f"{NAME}: LD-Pruner: seed 0": {"rows": blocks}, f"{NAME}: middle: seed 0": {"rows": [{"macs": 1}]}},
    }


def test_plots_are_drawn_from_the_json_alone(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    drawn = bench("denoisers.pictures").draw_all(json.loads(json.dumps(results())), tmp_path)
    assert [path.name for path in drawn] == ["diffusion_digits_dit.png"]
    assert drawn[0].read_bytes().startswith(b"\x89PNG")


def test_long_recoveries_are_parts_of_their_own(bench: Callable[[str], ModuleType]) -> None:
    settings = bench("denoisers.settings").Settings((NAME,), quick=True)
    assert f"{NAME}: EcoDiff: 30%, long: seed 0" in bench("denoisers.recovered").jobs(settings)
    short = bench("denoisers.pictures")._recovered(results(), NAME)["EcoDiff"]
    assert short == {0.2: [1.1, 1.1]}


def test_experts_are_of_models_of_prompts(bench: Callable[[str], ModuleType]) -> None:
    settings = bench("denoisers.settings").Settings((NAME, "fashion-unet"), quick=True)
    names = list(bench("denoisers.experts").jobs(settings))
    assert names == ["fashion-unet: codes 1: seed 0", "fashion-unet: codes 4: seed 0"]
