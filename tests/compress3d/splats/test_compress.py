import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from compress3d.cameras import Cameras
from compress3d.splats.budget import Budget
from compress3d.splats.compress import Compressor
from compress3d.splats.compress import compress as compress_and_recover
from compress3d.splats.evaluate import Judge
from compress3d.splats.formats import read_scene, write_scene
from compress3d.splats.pictures import Renders
from compress3d.splats.scene import SplatScene
from compress3d.splats.views import sample_views, split_views
from secateur.report.record import to_json
from tests.compress3d.splats.test_evaluate import scene as ball

compress = partial(compress_and_recover, recover=0)

MODULE = sys.modules["compress3d.splats.compress"]
"""By name, because the package's attribute of that name is the function."""


@pytest.fixture(autouse=True)
def few_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "VIEWS", 8)
    monkeypatch.setattr(MODULE, "TEACHING_VIEWS", 6)
    monkeypatch.setattr(MODULE, "VALIDATION_VIEWS", 2)


@pytest.fixture(scope="module")
def scene() -> SplatScene:
    """A thousand Gaussians of degree 1."""
    plain = ball(1000)
    generator = torch.Generator().manual_seed(5)
    return plain.with_tensors(shN=0.05 * torch.randn(1000, 3, 3, generator=generator))


@pytest.fixture(scope="module")
def views(scene: SplatScene) -> Cameras:
    return sample_views(scene, 6, 48, 48)


def same(one: SplatScene, other: SplatScene) -> bool:
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


@pytest.mark.parametrize("keep", [None, "100%", 1.0, 1000, 5000])
def test_keeping_everything_changes_nothing(scene: SplatScene, views: Cameras, keep: float | str | None) -> None:
    kept, record = compress(scene, keep=keep, cameras=views)
    assert same(kept, scene)
    assert record.quality.mean_psnr == math.inf and record.quality.mean_ssim == pytest.approx(1.0)


def test_keeping_everything_writes_it_bit_for_bit(scene: SplatScene, views: Cameras, tmp_path: Path) -> None:
    compress(scene, tmp_path / "a.ply", keep="100%", cameras=views)
    write_scene(scene, tmp_path / "b.ply")
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


@pytest.mark.parametrize(("keep", "count"), [("25%", 250), (0.3337, 333), (77, 77), ("0.5k", 500), (1, 1), (1e-9, 1)])
def test_the_count_is_met_exactly(
    scene: SplatScene, views: Cameras, tmp_path: Path, keep: float | str, count: int
) -> None:
    small, record = compress(scene, tmp_path / "a.ply", keep=keep, cameras=views)
    assert len(small) == len(read_scene(tmp_path / "a.ply")) == record.compressed.gaussians == count
    assert record.original.gaussians == 1000


@pytest.mark.parametrize("name", ["a.ply", "a.spz", "a.splat"])
def test_a_size_is_never_exceeded_and_nearly_used(scene: SplatScene, views: Cameras, tmp_path: Path, name: str) -> None:
    write_scene(scene, tmp_path / name)
    limit = (tmp_path / name).stat().st_size // 3
    _, record = compress(scene, tmp_path / name, size_bytes=limit, cameras=views)
    assert 0.97 * limit <= (tmp_path / name).stat().st_size <= limit
    assert record.compressed.bytes == (tmp_path / name).stat().st_size
    assert len(record.trials) <= 4


def test_a_size_that_everything_fits_keeps_everything(scene: SplatScene, views: Cameras, tmp_path: Path) -> None:
    kept, record = compress(scene, tmp_path / "a.ply", size_bytes="10MB", cameras=views)
    assert same(kept, scene) and len(record.trials) == 1


def test_a_quality_is_held_by_the_written_file(scene: SplatScene, views: Cameras, tmp_path: Path) -> None:
    judge = Judge(scene, split_views(views)[1])
    whole = compress(scene, tmp_path / "whole.spz", cameras=views)[1].quality.mean_psnr
    target = whole - 6
    small, record = compress(scene, tmp_path / "a.spz", psnr=target, cameras=views)
    assert judge.psnr(read_scene(tmp_path / "a.spz")) >= target
    assert len(small) < 1000
    failed = [trial.gaussians for trial in record.trials if trial.psnr is not None and trial.psnr < target]
    assert record.quality.mean_psnr <= target + 0.1 or max(failed) >= 0.96 * len(small) - 1


def test_quality_is_that_of_the_file_read_back(scene: SplatScene, views: Cameras, tmp_path: Path) -> None:
    small, record = compress(scene, tmp_path / "a.spz", keep=0.5, cameras=views)
    judge = Judge(scene, split_views(views)[1])
    assert record.quality == judge.quality(read_scene(tmp_path / "a.spz"))
    assert record.quality_in_memory == judge.quality(small)
    assert record.quality != record.quality_in_memory


def test_views_that_judge_do_not_reach_the_simplification(
    scene: SplatScene, views: Cameras, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Cameras] = []
    simplify = MODULE.simplify

    def watched(scene: SplatScene, count: int, cameras: Cameras, **options: Any) -> SplatScene:
        seen.append(cameras)
        return simplify(scene, count, cameras, **options)

    monkeypatch.setattr(MODULE, "simplify", watched)
    compress(scene, keep=0.5, cameras=views)
    scored, judged = split_views(views)
    assert torch.equal(seen[0].viewmats[: len(scored)], scored.viewmats)
    assert len(seen[0]) == MODULE.VIEWS // 2
    assert not any(torch.equal(one, other) for one in seen[0].viewmats for other in judged.viewmats)


def test_harmonics_are_dropped_on_request(scene: SplatScene, views: Cameras, tmp_path: Path) -> None:
    small, record = compress(scene, tmp_path / "a.ply", sh_degree=0, cameras=views)
    assert small.sh_degree == read_scene(tmp_path / "a.ply").sh_degree == record.compressed.sh_degree == 0
    assert record.original.sh_degree == 1 and len(small) == 1000
    more, _ = compress(scene, sh_degree=3, cameras=views)
    assert same(more, scene)


def test_what_is_left_makes_up_for_dropped_harmonics(scene: SplatScene, views: Cameras) -> None:
    shiny = scene.with_tensors(shN=torch.full_like(scene.shN, 0.2))
    judge = Judge(shiny, split_views(views)[1])
    dropped = judge.psnr(shiny.with_sh_degree(0))
    assert compress(shiny, sh_degree=0, cameras=views)[1].quality.mean_psnr > dropped + 1


def test_a_share_of_the_harmonics_is_kept(scene: SplatScene, views: Cameras, tmp_path: Path) -> None:
    small, record = compress(scene, tmp_path / "a.ply", sh_keep=0.25, cameras=views)
    assert int(small.shN.ne(0).any(dim=2).any(dim=1).sum()) == 250
    assert same(read_scene(tmp_path / "a.ply"), small) and record.options["sh_keep"] == 0.25
    whole, _ = compress(scene, sh_keep=1.0, cameras=views)
    assert same(whole, scene)
    none, _ = compress(scene, sh_keep=0.0, keep=0.5, cameras=views)
    assert none.sh_degree == 0 and len(none) == 500


@pytest.mark.parametrize("name", ["a.sog", "a.spz"])
def test_dropped_harmonics_stay_dropped_in_recovery(
    scene: SplatScene, views: Cameras, tmp_path: Path, name: str
) -> None:
    options: dict[str, Any] = {"keep": 0.3, "sh_keep": 0.5, "cameras": views}
    small, before = compress(scene, **options)
    tuned, after = compress_and_recover(scene, tmp_path / name, recover=20, **options)
    dropped, faintest = small.shN.eq(0).all(dim=2).all(dim=1), 1e-6 if name == "a.spz" else 2e-3
    assert int(dropped.sum()) == 150 and float(tuned.shN[dropped].abs().max()) <= faintest
    assert float(tuned.shN[~dropped].abs().amax(dim=(1, 2)).min()) > 2e-3
    assert after.quality.mean_psnr > before.quality.mean_psnr


def test_the_degree_can_be_found(scene: SplatScene, views: Cameras, monkeypatch: pytest.MonkeyPatch) -> None:
    shiny = scene.with_tensors(shN=6 * scene.shN)
    found = partial(compress, shiny, sh_degree="auto", cameras=views)
    assert found(keep=0.3)[0].sh_degree == 1
    monkeypatch.setattr(MODULE, "DEGREE_TOLERANCE", 40.0)
    assert found(keep=0.3)[0].sh_degree == 0
    assert same(found()[0], shiny)


def test_given_views_that_sampling_would_give_are_not_sampled_again(scene: SplatScene) -> None:
    given = sample_views(scene, 7, 48, 48, seed=1)
    compressor = Compressor(scene, given, seed=0)
    judged = compressor.judge.cameras.viewmats
    assert len(judged) == 3 and 4 <= len(compressor.cameras) <= 8
    assert not any(torch.equal(one, other) for one in compressor.cameras.viewmats for other in judged)


def test_the_original_is_left_alone(scene: SplatScene, views: Cameras) -> None:
    before = {name: tensor.clone() for name, tensor in scene.tensors().items()}
    compress(scene, keep=0.2, sh_degree=0, cameras=views)
    assert all(torch.equal(tensor, scene.tensors()[name]) for name, tensor in before.items())


def test_the_same_seed_gives_the_same_bytes(scene: SplatScene, views: Cameras, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    for name in ("a.ply", "b.ply"):
        compress(scene, tmp_path / name, keep=0.3, cameras=views)
    assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_record_is_json_and_complete(scene: SplatScene, views: Cameras, tmp_path: Path) -> None:
    write_scene(scene, tmp_path / "source.ply")
    _, record = compress(scene, tmp_path / "a.spz", keep=0.5, cameras=views, source=tmp_path / "source.ply")
    plain = json.loads(json.dumps(to_json(record), allow_nan=False))
    assert plain["original"]["name"] == "source.ply" and plain["compressed"]["name"] == "a.spz"
    assert plain["original"]["bytes"] == (tmp_path / "source.ply").stat().st_size
    assert sum(plain["compressed"]["bytes_by_attribute"].values()) == plain["compressed"]["bytes"]
    assert len(plain["quality"]["psnr"]) == len(plain["quality"]["ssim"]) == 3
    assert plain["quality"]["reference"] == "the original's own renders"
    assert plain["original"]["speed"]["frames_per_second"] > 0
    assert {"simplify", "write", "judge"} <= set(plain["seconds"])
    assert plain["machine"]["cores"] >= 1 and plain["versions"]["torch"]
    assert plain["budget"]["keep"] == 0.5 and plain["options"]["judged_on_views"] == 3
    assert str(tmp_path) not in json.dumps(plain)


def test_unbundled_folders_are_written(scene: SplatScene, views: Cameras, tmp_path: Path) -> None:
    for output in (tmp_path / "folder", tmp_path / "other" / "meta.json"):
        _, record = compress(scene, output, keep=0.5, cameras=views)
        assert len(read_scene(output)) == 500
        assert record.compressed.name in ("folder", "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "other"]


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"keep": 0.5, "psnr": 30}, "keep and psnr"),
        ({"keep": 0}, "at least 1"),
        ({"keep": 1.5}, "at most 1"),
        ({"keep": "half"}, "write a share"),
        ({"size_bytes": 10}, "one Gaussian alone takes"),
        ({"psnr": 200}, "cannot be held"),
        ({"psnr": -1}, "above 0"),
        ({"sh_degree": 4}, "sh_degree must be 0, 1, 2 or 3"),
        ({"sh_keep": 1.5}, "sh_keep must be 0 to 1"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused(
    scene: SplatScene, views: Cameras, tmp_path: Path, budget: dict[str, float], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        compress(scene, tmp_path / "a.spz", cameras=views, **budget)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_size_needs_a_format(scene: SplatScene, views: Cameras) -> None:
    with pytest.raises(ValueError, match="needs an output"):
        compress(scene, size_bytes=1000, cameras=views)


def test_an_unknown_format_is_refused_by_the_name_that_was_given(
    scene: SplatScene, views: Cameras, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"a\.xyz: not a splat scene") as caught:
        compress(scene, tmp_path / "a.xyz", keep=0.5, cameras=views)
    assert str(tmp_path / "a.xyz") in str(caught.value)


@pytest.mark.parametrize("moment", ["Bench.attempt", "write_scene", "read_scene"])
def test_an_interruption_leaves_the_old_file_whole(
    scene: SplatScene, views: Cameras, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    (tmp_path / "a.ply").write_bytes(b"old")

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"compress3d.splats.trials.{moment}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compress(scene, tmp_path / "a.ply", keep=0.5, cameras=views)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]
    assert (tmp_path / "a.ply").read_bytes() == b"old"


def test_progress_runs_from_0_to_1(scene: SplatScene, views: Cameras, tmp_path: Path) -> None:
    told: list[float] = []
    compress(scene, tmp_path / "a.ply", size_bytes=60_000, cameras=views, progress=lambda done, _: told.append(done))
    assert told[0] == 0.0 and told[-1] == 1.0 and told == sorted(told)


def test_a_share_rounds_down_but_leaves_one() -> None:
    assert Budget(keep=0.5).count(7) == 3
    assert Budget(keep=0.01).count(7) == 1
    assert Budget(keep=9).count(7) == 7
    assert Budget().count(7) == 7


def test_recovery_wins_back_quality(scene: SplatScene, views: Cameras, tmp_path: Path) -> None:
    _, plain = compress(scene, tmp_path / "a.sog", keep=0.3, cameras=views)
    tuned, record = compress_and_recover(scene, tmp_path / "b.sog", keep=0.3, cameras=views, recover=80)
    assert record.quality.mean_psnr > plain.quality.mean_psnr + 0.3
    assert len(tuned) == 300 == record.compressed.gaussians
    assert [fit.steps for fit in record.recovery] == [60, 20]
    assert all(fit.validations[0][1] <= max(score for _, score in fit.validations) for fit in record.recovery)
    # What was tuned is what was written: the file's rounding costs nothing more, but for positions.
    assert record.quality.mean_psnr == pytest.approx(record.quality_in_memory.mean_psnr, abs=0.05)


def test_recovery_of_everything_changes_nothing(scene: SplatScene, views: Cameras) -> None:
    kept, record = compress_and_recover(scene, keep=1.0, cameras=views, recover=10)
    assert same(kept, scene) and record.recovery == ()


def test_recovered_files_stay_within_their_size(scene: SplatScene, views: Cameras, tmp_path: Path) -> None:
    for name, limit in (("a.sog", 20_000), ("a.spz", 12_000), ("a.ply", 50_000)):
        _, record = compress_and_recover(scene, tmp_path / name, size_bytes=limit, cameras=views, recover=12)
        assert 0.9 * limit < record.compressed.bytes <= limit
        assert sum(fit.steps for fit in record.recovery) == 12


def test_recovery_holds_a_quality_with_fewer(scene: SplatScene, views: Cameras, tmp_path: Path) -> None:
    fewer, plain = (tmp_path / name for name in ("fewer.ply", "plain.ply"))
    _, before = compress(scene, plain, psnr=24, cameras=views)
    _, after = compress_and_recover(scene, fewer, psnr=24, cameras=views, recover=80)
    assert after.quality.mean_psnr >= 24
    assert after.compressed.gaussians < before.compressed.gaussians
    assert any(trial.recovered for trial in after.trials)


def test_photographs_join_the_teacher(scene: SplatScene, views: Cameras) -> None:
    pictures = Renders.of(scene.select(torch.arange(0)), views)
    blank, _ = compress_and_recover(scene, keep=0.3, cameras=views, recover=30, photographs=pictures)
    taught, _ = compress_and_recover(scene, keep=0.3, cameras=views, recover=30)
    assert float(blank.peak_opacities().mean()) < float(taught.peak_opacities().mean())
