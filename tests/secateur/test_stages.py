"""Stages of a run: made once, made again when what they were made from has changed, never taken from damaged files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from secateur.stages import StageKind, Stages, kept_when_stopped, on_cpu
from secateur.tensor_files import TensorFormat
from secateur.units import Scores


def counted(calls: list[int], scores: Scores) -> Callable[[], Scores]:
    def make() -> Scores:
        calls.append(1)
        return scores

    return make


def test_scores_are_made_once_and_come_back_bit_for_bit(tmp_path: Path) -> None:
    calls: list[int] = []
    scores = {"a": torch.randn(5, dtype=torch.float64), "b": torch.randn(3)}
    stages = Stages.within(tmp_path, {"scores": {"weights": "0" * 64, "seed": 1}})
    first, second = (stages.scores(counted(calls, scores)) for _ in range(2))
    assert len(calls) == 1
    assert all(torch.equal(first[name], second[name]) and second[name].dtype == scores[name].dtype for name in scores)


def test_what_depends_on_something_else_is_made_again(tmp_path: Path) -> None:
    calls: list[int] = []
    for hashed in ("one", "one", "other"):
        made = {"a": torch.full((2,), float(len(calls)))}
        Stages.within(tmp_path, {"scores": {"weights": hashed}}).scores(counted(calls, made))
    assert len(calls) == 2


def test_checkpoints_of_other_identities_have_other_names(tmp_path: Path) -> None:
    places = {Stages.within(tmp_path, {"fit": identity}).checkpoint("fit") for identity in (1, 2, 1)}
    assert len(places) == 2 and all(place.parent.is_dir() for place in places)


def test_only_scores_outlive_the_run(tmp_path: Path) -> None:
    rows = StageKind[torch.Tensor](
        TensorFormat("rows", 1), lambda made: ({"rows": made}, {"sum": 6}), lambda tensors, _: tensors["rows"]
    )
    stages = Stages.within(tmp_path, {"scores": 1, "rows": 1, "fit": 1})
    stages.scores(lambda: {"a": torch.ones(2)})
    shared = torch.arange(3)[None].expand(2, 3)
    assert torch.equal(stages.kept("rows", rows, lambda: shared), shared)
    assert torch.equal(stages.kept("rows", rows, lambda: torch.zeros(1)), shared)
    stages.checkpoint("fit").mkdir()
    stages.clear()
    assert [entry.name for entry in stages.folder.iterdir()] == ["scores.safetensors"]


def test_a_stopped_run_says_what_is_kept_and_how_it_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"^$"), kept_when_stopped(tmp_path):
        raise KeyboardInterrupt
    Stages.within(tmp_path, {"scores": {}}).scores(lambda: {"a": torch.ones(2)})
    with pytest.raises(KeyboardInterrupt, match=r"finished is in .*stages; the same"), kept_when_stopped(tmp_path):
        raise KeyboardInterrupt
    with (
        pytest.raises(KeyboardInterrupt, match=r"^after step 3; the same command goes on"),
        kept_when_stopped(tmp_path),
    ):
        raise KeyboardInterrupt("after step 3")
    with pytest.raises(SystemError), kept_when_stopped(tmp_path):
        raise SystemError("no interrupt")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    stages = Stages.within(tmp_path, {"scores": 1})
    stages.scores(lambda: {"a": torch.ones(2)})
    (stages.folder / "scores.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"scores\.safetensors"):
        stages.scores(dict)


def test_units_are_chosen_on_the_cpu_in_float64() -> None:
    found = on_cpu({"a": torch.ones(2, dtype=torch.bfloat16, requires_grad=True)})["a"]
    assert found.dtype == torch.float64 and not found.requires_grad
