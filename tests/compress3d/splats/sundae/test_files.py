"""Files of compensated scenes: one artefact with everything in it, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress3d.splats.compensation import CompensationHead, FeatureHead, GainUNet
from compress3d.splats.sundae import CompensatedScene, load_compensated, save_compensated
from compress3d.splats.sundae.files import compensated_bytes
from tests.compress3d.splats.sundae.scenes import ORIGINAL, VIEWS, stirred
from tests.contracts import assert_round_trip, assert_same

HEADS = pytest.mark.parametrize("head", [FeatureHead(3, 4), GainUNet(1)], ids=lambda head: head.name)


def state(compensated: CompensatedScene) -> dict[str, torch.Tensor]:
    return {**compensated.tensors(), **compensated.head.state_dict()}


@HEADS
def test_what_is_saved_loads_back_bit_for_bit(head: CompensationHead, tmp_path: Path) -> None:
    compensated, path = stirred(head), tmp_path / "scene.safetensors"
    assert_round_trip(
        lambda to: save_compensated(to, compensated), lambda of: state(load_compensated(of)), state(compensated), path
    )
    loaded = load_compensated(path)
    assert_same(compensated.render(VIEWS[:1]).detach(), loaded.render(VIEWS[:1]).detach())
    assert loaded.scene.antialiased == compensated.scene.antialiased
    assert all(parameter.requires_grad for parameter in loaded.head.parameters())


def test_the_mode_of_the_rasteriser_is_kept(tmp_path: Path) -> None:
    compensated = stirred()
    scene = compensated.scene.with_tensors()
    scene.antialiased = True
    save_compensated(tmp_path / "file", CompensatedScene(scene, compensated.features, compensated.head))
    assert load_compensated(tmp_path / "file").scene.antialiased


@HEADS
def test_the_bytes_count_everything(head: CompensationHead, tmp_path: Path) -> None:
    compensated = stirred(head)
    for half in (False, True):
        sizes = compensated_bytes(compensated, half=half)
        header = save_compensated(tmp_path / "file", compensated, half=half) - sum(sizes.values())
        assert 0 < header < 4000
        width = 2 if half else 4
        assert sizes["head"] == width * sum(parameter.numel() for parameter in head.parameters())
        assert sizes["features"] == width * len(compensated) * head.features
        assert sizes["means"] == 12 * len(compensated)


def test_half_is_smaller_and_close_and_stable(tmp_path: Path) -> None:
    compensated = stirred()
    whole, half = (save_compensated(tmp_path / str(h), compensated, half=h) for h in (False, True))
    assert half < 0.65 * whole
    rounded = load_compensated(tmp_path / "True")
    assert float((rounded.render(VIEWS[:2]) - compensated.render(VIEWS[:2])).detach().abs().max()) < 0.05
    save_compensated(tmp_path / "again", rounded, half=True)
    assert_same(state(rounded), state(load_compensated(tmp_path / "again")))


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    compensated, path = stirred(), tmp_path / "file"
    large = compensated.scene.with_tensors(sh0=compensated.scene.sh0 * 1e6)
    with pytest.raises(ValueError, match="sh0"):
        save_compensated(path, CompensatedScene(large, compensated.features, compensated.head), half=True)
    nowhere = compensated.scene.with_tensors(means=compensated.scene.means * torch.nan)
    with pytest.raises(ValueError, match="means"):
        save_compensated(path, CompensatedScene(nowhere, compensated.features, compensated.head))
    assert not path.exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="file"):
        load_compensated(path)
    for content in (b"", b"no scene at all", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="file: "):
            load_compensated(path)
    save_compensated(path, stirred())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="file: "):
        load_compensated(path)


GOOD = {
    "format": "secateur compensated scene",
    "version": 1,
    "gaussians": len(ORIGINAL),
    "antialiased": False,
    "head": "feature head",
    "settings": {"features": 3, "width": 4},
}


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (None, "header"),
        ({"format": "another"}, "not a secateur"),
        ({"version": 2}, "version 2"),
        ({"gaussians": 3}, "3 Gaussians"),
        ({"gaussians": "many"}, "gaussians"),
        ({"antialiased": 1}, "antialiased"),
        ({"head": "crown"}, "crown"),
        ({"head": "gain U-Net"}, "settings"),
        ({"head": "gain U-Net", "settings": {"width": 1}}, "head|features"),
        ({"settings": [1]}, "settings"),
        ({"settings": {"features": 3, "width": 4.5}}, "whole numbers"),
        ({"settings": {"features": 3, "width": 5}}, "head.inner"),
        ({"settings": {"features": 3, "width": 10**9}}, "file: "),
        ({"settings": {"features": 3, "width": 10**30}}, "file: "),
        ({"settings": {"features": -3, "width": 4}}, "at least 1"),
    ],
)
def test_wrong_headers_are_named(tmp_path: Path, header: dict[str, object] | None, match: str) -> None:
    path = tmp_path / "file"
    save_compensated(path, stirred())
    metadata = None if header is None else {"secateur": json.dumps({**GOOD, **header})}
    save_file(load_file(path), path, metadata)
    with pytest.raises(ValueError, match=match):
        load_compensated(path)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("means", torch.full((len(ORIGINAL), 3), torch.nan), "means"),
        ("means", torch.zeros(3), "means"),
        ("opacities", torch.zeros(3), "opacities"),
        ("shN", torch.zeros(len(ORIGINAL), 5, 3), "shN"),
        ("features", torch.zeros(len(ORIGINAL), 2), "features"),
        ("features", None, "features"),
        ("quats", None, "quats"),
        ("head.last.bias", None, "head.last.bias"),
        ("head.last.bias", torch.zeros(5), "head.last.bias"),
        ("scales", torch.zeros(len(ORIGINAL), 3, dtype=torch.int32), "scales"),
        ("spare", torch.zeros(3), "spare"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, name: str, value: torch.Tensor | None, match: str) -> None:
    path = tmp_path / "file"
    save_compensated(path, stirred())
    tensors = {**load_file(path), name: value}
    save_file({key: t for key, t in tensors.items() if t is not None}, path, {"secateur": json.dumps(GOOD)})
    with pytest.raises(ValueError, match=match):
        load_compensated(path)
