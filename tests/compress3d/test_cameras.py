"""Cameras: batches, JSON, and the refusal of what is not a camera."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from compress3d.cameras import Cameras
from tests.contracts import assert_round_trip, assert_same


def cameras(count: int = 4) -> Cameras:
    generator = torch.Generator().manual_seed(0)
    rotations = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator)).Q
    viewmats = torch.eye(4).repeat(count, 1, 1)
    viewmats[:, :3, :3] = rotations
    viewmats[:, :3, 3] = torch.randn(count, 3, generator=generator)
    Ks = torch.tensor([[50.0, 0, 32], [0, 60, 24], [0, 0, 1]]).repeat(count, 1, 1)
    return Cameras(viewmats, Ks, 64, 48)


def same(first: Cameras, second: Cameras) -> bool:
    assert_same(
        [first.viewmats, first.Ks, first.width, first.height], [second.viewmats, second.Ks, second.width, second.height]
    )
    return True


def test_positions_project_to_the_camera_centre() -> None:
    batch = cameras()
    ones = torch.ones(4, 1)
    seen = torch.einsum("cij,cj->ci", batch.viewmats, torch.cat([batch.positions, ones], dim=1))
    torch.testing.assert_close(seen[:, :3], torch.zeros(4, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("index", [0, 2, -1])
def test_an_integer_gives_a_batch_of_one(index: int) -> None:
    one = cameras()[index]
    assert len(one) == 1
    assert_same(one.viewmats[0], cameras().viewmats[index])


def test_slices_and_index_tensors_give_batches() -> None:
    batch = cameras()
    assert len(batch[1::2]) == 2
    assert same(batch[torch.tensor([3, 1])][0], batch[3])


def test_resizing_keeps_what_is_seen() -> None:
    batch = cameras()
    small = batch.resized(32, 12)
    point = torch.tensor([0.3, -0.2, 2.0])
    before, after = batch.Ks[0] @ point, small.Ks[0] @ point
    torch.testing.assert_close(
        after[:2] / after[2] / torch.tensor([32, 12]), before[:2] / before[2] / torch.tensor([64, 48])
    )
    assert (small.width, small.height) == (32, 12)
    assert same(small.resized(64, 48), batch)


def test_json_round_trip_is_exact(tmp_path: Path) -> None:
    batch = cameras()

    def load(path: Path) -> list[Any]:
        read = Cameras.load(path)
        return [read.viewmats, read.Ks, read.width, read.height]

    assert_round_trip(
        lambda path: path.write_text(json.dumps(batch.to_json())),
        load,
        [batch.viewmats, batch.Ks, batch.width, batch.height],
        tmp_path / "cameras.json",
    )


def test_one_K_serves_all_views() -> None:
    record = cameras().to_json()
    record["K"] = record.pop("Ks")[0]
    assert same(Cameras.from_json(record), cameras())


def test_the_shared_views_load(shared_data: Path) -> None:
    record = json.loads((shared_data / "splats" / "heldout_views.json").read_text())
    for name in ("playbot", "biker", "plant"):
        batch = Cameras.from_json(record[name])
        assert len(batch) == 10 and (batch.width, batch.height) == (400, 400)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"viewmats": None}, "cameras need"),
        ({"width": "wide"}, "cameras need"),
        ({"width": 0}, "positive"),
        ({"Ks": [[[1.0, 0], [0, 1]]]}, "Ks"),
        ({"viewmats": [[[float("nan")] * 4] * 4] * 4}, "finite"),
    ],
)
def test_what_is_not_a_camera_is_refused_with_the_file_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "views.json"
    path.write_text(json.dumps(cameras().to_json() | change))
    with pytest.raises(ValueError, match=message) as caught:
        Cameras.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"viewmats": 1'])
def test_files_that_hold_something_else_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "views.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"views\.json"):
        Cameras.load(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Cameras.load(tmp_path / "absent.json")
