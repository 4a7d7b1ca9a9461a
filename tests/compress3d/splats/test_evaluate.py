import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from compress3d.cameras import Cameras
from compress3d.splats import held_out
from compress3d.splats.evaluate import SELF_REFERENCE, Judge, SceneFile, evaluate
from compress3d.splats.formats import write_scene
from compress3d.splats.rasterize import render
from compress3d.splats.report import evaluation_page
from compress3d.splats.scene import SplatScene
from compress3d.splats.views import sample_views
from secateur.evaluation.chunks import ChunkStore
from secateur.metrics.image import psnr, ssim
from secateur.quantities import format_decibels
from secateur.report.page import write_report
from secateur.report.record import to_json


def scene(count: int = 200, seed: int = 0) -> SplatScene:
    """A ball of small opaque Gaussians of all colours."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    means = torch.nn.functional.normalize(normal(count, 3), dim=1)
    scales = 0.3 * normal(count, 3) - 2.5
    return SplatScene(means, normal(count, 4), scales, normal(count) + 2, normal(count, 1, 3), torch.zeros(count, 0, 3))


def views(count: int = 4) -> Cameras:
    return sample_views(scene(), count, 48, 40)


def test_a_scene_is_identical_to_itself() -> None:
    quality = Judge(scene(), views()).quality(scene())
    assert quality.mean_psnr == float("inf") and quality.mean_ssim == pytest.approx(1.0)
    assert quality.reference == SELF_REFERENCE
    assert (quality.width, quality.height, len(quality.psnr), len(quality.ssim)) == (48, 40, 4, 4)


def test_more_damage_is_lower_quality() -> None:
    judge = Judge(scene(), views())
    slightly, badly = scene().select(torch.arange(190)), scene().select(torch.arange(60))
    assert judge.quality(slightly).mean_psnr > judge.quality(badly).mean_psnr
    assert judge.quality(slightly).mean_ssim > judge.quality(badly).mean_ssim
    assert judge.psnr(badly) == pytest.approx(judge.quality(badly).mean_psnr)


def test_views_are_judged_one_at_a_time_as_they_are_together() -> None:
    judge, half = Judge(scene(), views()), scene().select(torch.arange(100))
    quality = judge.quality(half)
    images, references = (render(one, views()) for one in (half, scene()))
    assert quality.psnr == tuple(psnr(images, references).tolist())
    assert quality.ssim == tuple(ssim(images, references).tolist())
    assert quality.mean_psnr == pytest.approx(sum(quality.psnr) / 4)
    assert quality.mean_ssim == pytest.approx(sum(quality.ssim) / 4)


def test_no_more_renders_are_held_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    held, half = Judge(scene(), views()), scene().select(torch.arange(100))
    assert held.references is not None and held.references.shape == (4, 40, 48, 3)
    monkeypatch.setattr(held_out, "HELD_BYTES", 4 * 40 * 48 * 12 - 1)
    streamed = Judge(scene(), views())
    assert streamed.references is None
    assert streamed.quality(half) == held.quality(half)
    assert streamed.psnr(half) == held.psnr(half)


def test_an_evaluation_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scene(scene(), tmp_path / "whole.ply")
    write_scene(scene().select(torch.arange(100)), tmp_path / "half.ply")
    files, store = (tmp_path / "whole.ply", [tmp_path / "half.ply"]), ChunkStore.within(tmp_path)
    seen, drawn = list[int](), held_out.Compared.__getitem__

    def stopped(self: held_out.Compared, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(index)
        if seen == [0, 1, 2]:
            raise KeyboardInterrupt
        return drawn(self, index)

    monkeypatch.setattr(import_module("compress3d.splats.evaluate"), "_VIEWS_TOGETHER", 2)
    monkeypatch.setattr(held_out.Compared, "__getitem__", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"what is finished is in .*unfinished"), store.kept_when_stopped():
        evaluate(*files, cameras=views(), store=store)
    again = evaluate(*files, cameras=views(), store=store)[0]
    assert seen == [0, 1, 2, 2, 3]
    assert again.candidates[0].quality == evaluate(*files, cameras=views())[0].candidates[0].quality


def test_files_are_measured_against_the_reference(tmp_path: Path) -> None:
    write_scene(scene(), tmp_path / "whole.ply")
    write_scene(scene(), tmp_path / "whole.spz")
    write_scene(scene().select(torch.arange(100)), tmp_path / "half.ply")
    record, judge, scenes = evaluate(
        tmp_path / "whole.ply", [tmp_path / "whole.spz", tmp_path / "half.ply"], cameras=views()
    )
    rounded, half = record.candidates
    assert [one.file.name for one in record.candidates] == ["whole.spz", "half.ply"]
    assert rounded.quality.mean_psnr > 30 > half.quality.mean_psnr
    assert half.file.gaussians == 100 and record.reference.gaussians == 200
    assert half.file.bytes == (tmp_path / "half.ply").stat().st_size
    for file in (record.reference, rounded.file, half.file):
        assert file.speed is not None and file.speed.frames_per_second > 0
    assert json.loads(json.dumps(to_json(record), allow_nan=False))["options"]["judged_on_views"] == 4

    page = evaluation_page(record, scenes, judge.original, judge.cameras)
    document = write_report(page, record, tmp_path / "report").read_text(encoding="utf-8")
    assert "half.ply" in document and format_decibels(half.quality.psnr[0]) in document


def test_sampled_views_depend_only_on_the_seed(tmp_path: Path) -> None:
    write_scene(scene(60), tmp_path / "a.ply")
    write_scene(scene(30), tmp_path / "b.ply")
    judges = [evaluate(tmp_path / "a.ply", [tmp_path / "b.ply"], views=2, seed=seed)[1] for seed in (0, 0, 1)]
    assert torch.equal(judges[0].cameras.viewmats, judges[1].cameras.viewmats)
    assert not torch.equal(judges[0].cameras.viewmats, judges[2].cameras.viewmats)


def test_a_scene_in_memory_has_the_bytes_of_its_tensors() -> None:
    described = SceneFile.in_memory(scene(100))
    assert described.bytes == 100 * scene().bytes_per_gaussian == sum(described.bytes_by_attribute.values())
