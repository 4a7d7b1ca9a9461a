"""The script that trains, prunes and compensates, and says what came of it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from compress3d.splats.sundae import load_compensated
from scripts.train_sundae import main
from tests.compress3d.splats.photographed import write_capture


@pytest.mark.parametrize(("schedule", "head"), [("one-shot", "features"), ("continuous", "gain")])
def test_the_script_leaves_one_file_and_a_record_with_both_figures(schedule: str, head: str, tmp_path: Path) -> None:
    output = tmp_path / "scene.safetensors"
    options = argparse.Namespace(
        capture=write_capture(tmp_path / "capture"),
        output=output,
        keep=0.25,
        gamma=0.5,
        schedule=schedule,
        head=head,
        features=3,
        width=2,
        warmup=10,
        steps=4,
        long_side=None,
        half=True,
        seed=0,
    )
    record = json.loads(json.dumps(main(options)))
    compensated = load_compensated(output)
    assert record["bytes"] == output.stat().st_size
    assert record["gaussians"] == len(compensated)
    assert record["head"] == compensated.head.name
    for figure in ("psnr", "ssim"):
        assert record[figure].keys() == {"with_head", "without_head"}
    assert 5 < record["psnr"]["with_head"] < 60
    if schedule == "one-shot":
        assert record["gaussians"] == record["gaussians_before"] // 4
        assert record["psnr_before_pruning"] > 5
