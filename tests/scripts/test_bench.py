"""The bench keeps what it measured, draws it, tells what stopped a peer, and runs from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "splats.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def results() -> dict[str, Any]:
    """Figures of one scene in the form that the sections give."""
    psnr = {"ours": 35.0, "splat-transform": 31.0}
    rows = [
        {"share": share, "method": method, "psnr": value + 10 * share, "bytes": int(1e6 * share)}
        for share in (0.1, 0.25)
        for method, value in psnr.items()
    ]
    reference = {"shares": [0.25, 0.1], "+ colour refit": {"biker": [None, 30.0]}}
    frame = {"ours": {"median_ms": 20.0}, "prototype": {"median_ms": 50.0}}
    late = {"share": 0.5, "method": "splat-transform", "failed": "not finished in 1 s"}
    return {
        "simplify": {"biker": {"gaussians": 1000, "rows": rows, "reference": reference}},
        "size": {"biker": {"gaussians": 1000, "rows": [*rows, late]}},
        "recover": {"biker": {"gaussians": 1000, "rows": [*rows, {**rows[0], "method": "without gradients"}]}},
        "growth": {
            "1000": {"size": 64, "frame": frame},
            "2000": {"size": 64, "frame": frame},
            "resolutions": {"gaussians": 1000, "frame": {"64": frame, "128": frame}},
        },
    }


def test_plots_are_drawn_from_the_json_alone(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    drawn = bench("plots").draw_all(results(), tmp_path)
    names = ["psnr_by_share.png", "rasterizer_growth.png", "rate_distortion.png", "sog_size.png"]
    assert sorted(path.name for path in drawn) == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_a_section_that_was_not_measured_is_not_drawn(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    drawn = bench("plots").draw_all({"growth": results()["growth"]}, tmp_path)
    assert [path.name for path in drawn] == ["rasterizer_growth.png"]


def test_a_part_is_kept_beside_those_of_earlier_runs(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    parts, output = bench("parts"), tmp_path / "splats.json"
    parts.keep(output, "size", "biker", {"rows": [1]})
    parts.keep(output, "size", "plant", {"psnr": float("inf")})
    parts.keep(output, "codecs", "biker", {"rows": [2]})
    parts.keep(output, "size", "biker", {"rows": [3]})
    expected = {"size": {"biker": {"rows": [3]}, "plant": {"psnr": None}}, "codecs": {"biker": {"rows": [2]}}}
    assert json.loads(output.read_text()) == expected


def test_a_process_is_measured_and_its_own_time_read(bench: Callable[[str], ModuleType]) -> None:
    peers = bench("peers")
    done = peers.run_process([sys.executable, "-c", "print('done in 1m2.500s')"], 60)
    assert done.own_seconds == 62.5
    assert done.seconds > 0 and done.peak_bytes > 0


def test_a_process_that_fails_or_takes_too_long_says_so(bench: Callable[[str], ModuleType]) -> None:
    peers = bench("peers")
    with pytest.raises(RuntimeError, match="no such scene"):
        peers.run_process([sys.executable, "-c", "raise SystemExit('no such scene')"], 60)
    with pytest.raises(TimeoutError, match=r"not finished in 0\.2 s"):
        peers.run_process([sys.executable, "-c", "import time; time.sleep(60)"], 0.2)


def test_a_peer_that_fails_leaves_a_row_that_says_so_and_our_own_mistakes_are_not_its_failure(
    bench: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    jobs, peers, settings = bench("jobs"), bench("peers"), bench("settings")
    code = "import sys; print(sys.argv[-2:]); sys.exit('--decimate' in sys.argv)"
    peer = peers.SplatTransform((sys.executable, "-c", code), "0")
    run = settings.Settings((), peer, limit_seconds=30)

    def decimate(splat_transform: Callable[..., Any]) -> dict[str, Any]:
        return {"seconds": splat_transform(tmp_path / "a.ply", "--decimate", "50%", target=tmp_path / "b.ply").seconds}

    def convert(splat_transform: Callable[..., Any]) -> dict[str, Any]:
        return {"output": splat_transform(tmp_path / "a.ply", target=tmp_path / "b.ply").output}

    def judge(splat_transform: Callable[..., Any]) -> dict[str, Any]:
        raise RuntimeError("of our renderer")

    assert jobs.peer_rows(run, "theirs", decimate) == [{"method": "theirs", "failed": "failed with status 1"}]
    (row,) = jobs.peer_rows(run, "theirs", convert)
    assert row["method"] == "theirs" and "a.ply" in row["output"] and "b.ply" in row["output"]
    with pytest.raises(RuntimeError, match="of our renderer"):
        jobs.peer_rows(run, "theirs", judge)
    assert jobs.peer_rows(settings.Settings((), None), "theirs", decimate) == []


def test_without_node_the_peer_is_missing_with_the_reason(
    bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="needs node"):
        bench("peers").find_splat_transform()


def test_an_unknown_scene_is_refused_with_the_known_ones() -> None:
    done = run("--scenes", "teapot")
    assert done.returncode == 2
    assert "'teapot' is none of playbot, biker, plant" in done.stderr


@pytest.mark.slow
def test_it_runs_from_end_to_end(shared_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "splats.json"
    done = run(
        "--quick", "--only", "simplify,rasterizer", "--scenes", "biker", "--output", output, "--images", tmp_path
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    ours = next(row for row in record["simplify"]["biker"]["rows"] if row["method"] == "ours")
    assert ours["gaussians"] in (15274, 15275)
    assert ours["psnr"] > 28
    assert record["simplify"]["biker"]["conditions"]["quick"]
    assert record["rasterizer"]["biker"]["400"]["frames_per_second"] > 0
