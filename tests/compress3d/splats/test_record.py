"""An evaluation of scenes as the shared record."""

import json
from dataclasses import asdict
from pathlib import Path

import jsonschema
import pytest
import torch

from compress3d.splats.evaluate import evaluate
from compress3d.splats.formats import write_scene
from compress3d.splats.record import record_of
from secateur.evaluation.decode import load_record
from secateur.evaluation.record import EvaluationRecord
from secateur.evaluation.run import Start, hash_path
from secateur.evaluation.schema import record_schema
from secateur.report.record import to_json
from tests.compress3d.splats.test_evaluate import scene, views


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for name, count in (("whole", 80), ("more", 60), ("less", 20)):
        write_scene(scene(80).select(torch.arange(count)), folder / f"{name}.ply")
    return folder


def measured(folder: Path, *names: str) -> EvaluationRecord:
    start, paths = Start.now(), [folder / f"{name}.ply" for name in ("whole", *names)]
    found, judge, _ = evaluate(paths[0], paths[1:], cameras=views())
    return record_of(found, paths, judge.cameras, start)


def test_the_record_says_what_was_measured(folder: Path) -> None:
    record = measured(folder, "more", "less")
    written = json.loads(json.dumps(to_json(record), allow_nan=False))
    jsonschema.validate(written, record_schema())
    (folder / "results.json").write_text(json.dumps(written))
    assert asdict(load_record(folder).candidates[0]) == asdict(record.candidates[0])
    more, less = record.candidates
    assert (record.kind, record.reference.name, more.name) == ("splat", "whole.ply", "more.ply")
    assert less.measurements["size"].value == (folder / "less.ply").stat().st_size
    assert less.measurements["gaussians"].value == 20 and less.sha256 == hash_path(folder / "less.ply")
    psnr = less.measurements["psnr"]
    values = less.parts["views"].columns["psnr"].values
    assert psnr.value == pytest.approx(sum(value or 0 for value in values) / len(values)) and psnr.samples == 4
    assert psnr.noise is not None and psnr.interval is not None and psnr.interval.low < (psnr.value or 0)
    assert sum(value or 0 for value in less.parts["attributes"].columns["attribute_bytes"].values) == (
        less.measurements["size"].value
    )
    frame = less.measurements["frame"].noise
    assert frame is not None and len(frame.repeats) == 5 and less.details["speed"]["first_call_ms"] > 0


def test_candidates_are_compared_in_pairs(folder: Path) -> None:
    record = measured(folder, "more", "less")
    pairs = {pair.measurement: pair for pair in record.pairs}
    assert pairs.keys() == {"psnr", "ssim"}
    difference = pairs["psnr"].difference
    better, worse = (one.measurements["psnr"].value or 0 for one in record.candidates)
    assert difference.mean == pytest.approx(better - worse) and difference.low > 0


def test_the_protocol_knows_the_cameras(folder: Path) -> None:
    first, again = measured(folder, "less"), measured(folder, "more")
    assert first.protocol == again.protocol and len(first.protocol["cameras_sha256"]) == 64
    sampled, judge, _ = evaluate(folder / "whole.ply", [folder / "less.ply"], views=2, seed=7)
    paths = [folder / "whole.ply", folder / "less.ply"]
    record = record_of(sampled, paths, judge.cameras, Start.now(), seed=7)
    assert (record.protocol["views"], record.protocol["views_seed"], record.runs[0].seeds) == (2, 7, {"views": 7})
