"""`secateur evaluate` for fields: what a record says is what the files hold, and fields are known by their header."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compress3d.nerf import evaluation
from compress3d.nerf.commands import FIELD_EVALUATOR, NERF
from compress3d.nerf.evaluate import quality_to_photographs
from compress3d.nerf.evaluation import evaluate_files
from compress3d.nerf.files import load_field, save_field
from compress3d.nerf.rounding import rounding_for
from compress3d.nerf.sizes import bytes_by_part, is_field
from compress3d.nerf.units import ROWS
from secateur.cli import main
from secateur.evaluation.evaluator import carry_out
from tests.compress3d.nerf.fields import some_field
from tests.compress3d.splats.photographed import photographed, write_capture


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A field, and itself with half of its rows and six bits an entry; sampled views are small."""
    monkeypatch.setattr(evaluation, "_SIZE", 24)
    field = some_field()
    save_field(field, tmp_path / "field.safetensors")
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in field.groups()}
    keep[ROWS][1::2] = False
    small = field.cut(keep)
    rounding = rounding_for(small, 6)
    with torch.no_grad():
        small.table.copy_(rounding(small.table))
    save_field(small, tmp_path / "small.safetensors", rounding)
    return tmp_path / "field.safetensors", tmp_path / "small.safetensors"


def test_bytes_by_part_are_those_of_the_file(files: tuple[Path, Path]) -> None:
    whole, small = (bytes_by_part(file) for file in files)
    field = load_field(files[0])
    assert whole["table"] == 4 * field.table.numel()
    assert whole["occupied cells"] == len(field.occupancy.bits)
    assert "rows that are left" in small and "rows that are left" not in whole
    for file, sizes in zip(files, (whole, small), strict=True):
        assert sum(sizes.values()) == file.stat().st_size
        assert min(sizes.values()) > 0


def test_fields_are_known_by_their_header(files: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"table": torch.zeros(3)}, tmp_path / "other.safetensors")
    save_file({"table": torch.zeros(3)}, tmp_path / "liar.safetensors", {"secateur": "[1]"})
    (tmp_path / "short.safetensors").write_bytes(b"\x05")
    assert all(FIELD_EVALUATOR.accepts(file) for file in files)
    for name in ("other", "liar", "short", "absent"):
        assert not is_field(tmp_path / f"{name}.safetensors")
    assert not FIELD_EVALUATOR.accepts(tmp_path)
    with pytest.raises(ValueError, match="not a safetensors file"):
        bytes_by_part(tmp_path / "short.safetensors")


def test_candidates_are_compared_with_the_references_renders(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole, small = files
    record = carry_out(FIELD_EVALUATOR, whole, [small, whole], tmp_path / "report", views=2)
    assert record.kind == "field"
    reference, one, same = record.subjects
    assert "psnr" not in reference.measurements
    assert one.measurements["size"].value == small.stat().st_size
    assert one.measurements["rows"].value == load_field(small).table.shape[0]
    psnr = one.measurements["psnr"].value
    assert psnr is not None and psnr < 60
    assert same.name != reference.name and same.measurements["psnr"].infinite
    assert one.measurements["frame"].unit == "ms" and one.measurements["frame"].samples == 3
    assert one.measurements["peak_memory"].value
    assert record.protocol["compared_with"] == "the reference's own renders"
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("Reference") and "small.safetensors" in page


def test_candidates_are_compared_with_photographs(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole, small = files
    capture = write_capture(tmp_path / "blobs")
    record = evaluate_files(whole, [small], tmp_path, capture=capture).record
    photographs = photographed(16)
    # The folder has no split of its own: every eighth photograph judges.
    expected = quality_to_photographs(load_field(whole), photographs, [0, 8])
    reference, one = record.subjects
    assert reference.measurements["psnr"].value == pytest.approx(expected.mean_psnr, abs=0.05)
    assert one.measurements["psnr"].change is not None
    assert one.parts["views"].rows == (photographs.names[0], photographs.names[8])
    assert record.protocol["capture"] == "blobs"
    with pytest.raises(ValueError, match="not both"):
        evaluate_files(whole, [small], tmp_path, capture=capture, cameras=tmp_path / "cameras.json")


def test_it_is_one_of_the_kinds_of_the_command(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import secateur.cli

    kinds = {"commands": {"nerf": NERF}, "evaluators": {"field": FIELD_EVALUATOR}}
    monkeypatch.setattr(secateur.cli, "_load_all", lambda group: kinds[group.partition(".")[2]])
    whole, small = map(str, files)
    assert main(["evaluate", whole, small, "-o", str(tmp_path / "report"), "--views", "1"]) == 0
    assert "PSNR" in capsys.readouterr().out
    record = json.loads((tmp_path / "report" / "results.json").read_text())
    assert record["schema"].startswith("secateur.evaluation/") and record["kind"] == "field"
    assert main(["evaluate", whole, str(tmp_path), "-o", str(tmp_path / "again")]) == 2
