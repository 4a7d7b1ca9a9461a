"""The bench of neural fields: plain torch draws what the kernels draw, the clock judges, claims are what rows say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from compress3d.nerf.files import save_field
from compress3d.nerf.occupancy import pack_bits
from compress3d.nerf.rays import rays_of
from compress3d.nerf.render import trace
from tests.compress3d.nerf.fields import QUICK, some_field
from tests.compress3d.splats.photographed import around, photographed, write_capture

Load = Callable[[str], ModuleType]


@pytest.fixture
def settings(bench: Load, tmp_path: Path) -> Any:
    """Of a quick run, on a field that is hardly trained."""
    capture, field = write_capture(tmp_path / "blobs", 10), tmp_path / "field.safetensors"
    save_field(some_field(), field)
    return bench("fields.settings").Settings(
        capture, capture, tmp_path / "kept", tmp_path / "images", field, quick=True
    )


def test_plain_torch_sees_what_the_kernels_see(bench: Load) -> None:
    field = some_field()
    rays = rays_of(around(1), 0, field.box)
    ours = trace(field, rays)[0].over(torch.ones(3))
    plain = bench("fields.speed").plain(field, rays)
    torch.testing.assert_close(plain, ours, atol=2e-3, rtol=0)
    assert not field.plain


def test_a_training_is_judged_by_the_clock_and_goes_on(bench: Load, tmp_path: Path, monkeypatch: Any) -> None:
    chair = bench("fields.chair")
    monkeypatch.setattr(chair, "BARS", {0: 1.0, 90: 99.0})
    capture = photographed(8)
    modules = [chair.WatchedByTheClock(capture, QUICK, 4, capture.test.tolist()) for _ in range(2)]
    for module in modules:
        chair.fit_field(module, 4, tmp_path / "run.ckpt", True, lambda done, doing: None)
    assert [row["minutes"] for row in modules[0].rows] == [0]
    assert modules[0].rows[0]["step"] == 1
    assert modules[1].rows == modules[0].rows
    assert modules[1].seconds_of_training == modules[0].seconds_of_training > 0
    rows = [*modules[1].rows, modules[1].row("end", capture.test.tolist())]
    first, last = chair.bars(rows)
    assert first["psnr"] == rows[0]["psnr"] and first["met"]
    assert last["psnr"] == rows[1]["psnr"] and not last["met"]


def test_claims_are_what_the_rows_say(bench: Load) -> None:
    def part(size: int, dense: float, hollow: float, parameters: int) -> dict[str, Any]:
        rows = [
            {"share": None, "psnr": dense, "parameters": parameters, "parameters_in_training": parameters},
            {"share": 0.04, "psnr": hollow, "parameters": parameters, "parameters_in_training": parameters + 10},
        ]
        return {"log2_table": size, "opaque": False, "rows": rows}

    section = {"2^14": part(14, 28.0, 29.0, 100), "2^15": part(15, 29.0, 30.5, 290), "2^16": part(16, 30.0, 31.0, 1000)}
    lower, upper = bench("fields.hollow").claims(section)
    assert (lower["log2_table"], lower["claimed_share"], lower["share_of_parameters"]) == (15, 0.31, 0.3)
    assert lower["gain_db"] == 0.5 and lower["gain_over_its_own_size_db"] == 1.5
    assert upper["log2_table"] == 15 and upper["claimed_gain_db"] == 1.0
    assert bench("fields.hollow").claims({}) == []


def test_rows_say_what_a_file_takes(bench: Load, settings: Any, tmp_path: Path) -> None:
    compress, folder = bench("fields.compress"), tmp_path / "files"
    folder.mkdir()
    parts = compress.jobs(settings)
    told: list[float] = []
    (row,) = parts["rows: random"](lambda done, doing: told.append(done), folder)["rows"]
    whole = parts["nothing"](lambda done, doing: None, folder)["rows"][0]
    assert row["rows"] == whole["rows"] // 2
    assert row["zstd_bytes"] < row["bytes"] < 0.65 * whole["bytes"]
    assert {"cut_psnr", "psnr", "cut_ssim", "ssim"} <= row.keys()
    assert told and max(told) <= 1


def test_the_surface_of_a_field_lies_in_its_box(bench: Load) -> None:
    mesh = pytest.importorskip("open3d") and bench("fields.mesh").extracted(some_field(), 24, 0.5)
    low = torch.tensor(some_field().box.low)
    inside = (mesh.vertices - low) / some_field().box.side
    assert len(mesh) > 50
    assert float(inside.min()) > -0.05 and float(inside.max()) < 1.05
    accuracy, completeness = bench("fields.mesh").distances(mesh, mesh.vertices)
    assert accuracy < 0.1 and completeness < 0.3


def test_splats_start_from_the_field(bench: Load, settings: Any, tmp_path: Path) -> None:
    (job,) = bench("fields.handover").jobs(settings).values()
    rows = job(lambda *_: None, tmp_path)["rows"]
    assert [row["start"] for row in rows] == [
        "photographs",
        "points of the field",
        "points and renders of the field",
    ]
    assert all(row["psnr"] > 0 and row["gaussians"] for row in rows)


def test_what_is_hollow_costs_the_visible_no_rows(bench: Load, settings: Any, tmp_path: Path) -> None:
    field = some_field()
    cells = torch.arange(field.occupancy.resolution**3) % field.occupancy.resolution < 4
    field.occupancy.bits.copy_(pack_bits(cells))
    save_field(field, settings.field)
    (job,) = bench("fields.collisions").jobs(settings).values()
    rows = job(lambda *_: None, tmp_path)["rows"]
    assert rows[0]["hollow"] == 0 < rows[-1]["hollow"] < 1 and rows[-1]["points"] < rows[0]["points"]
    assert rows[-1]["error_fitted"] < rows[0]["error_fitted"]
    assert all(row["error"] > 0 for row in rows)


def test_parts_are_written_one_by_one_and_drawn(bench: Load, settings: Any, tmp_path: Path) -> None:
    main, output = bench("nerf"), tmp_path / "nerf.json"
    given = ["--quick", "--output", str(output), "--images", str(tmp_path / "images"), "--threads", "1"]
    given += ["--fields-at", str(settings.folder), "--field", str(settings.field), "--chair", str(settings.chair)]
    main.main([*given, "--only", "chair,view"])
    results = json.loads(output.read_text())
    assert [row["minutes"] for row in results["chair"]["training"]["rows"]] == ["end"]
    assert results["view"]["400x400"]["conditions"]["threads"] == 1
    assert (tmp_path / "images" / "nerf_chair.png").exists()
    options = main.parse(["--only", "hollow"])
    assert options.output.name == "nerf.json" and "out" not in options.output.parts
