"""The scripts parse, call one another, and install what the project says it needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [ROOT / ".ci" / "run", *sorted((ROOT / "scripts").glob("*.sh"))]
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def normalised(requirement: str) -> str:
    """The name of a requirement as package indexes compare them (PEP 503)."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the scripts read, with a stand-in for the virtual environment's Python that logs its calls."""
    (tmp_path / "scripts").mkdir()
    for script in (ROOT / "scripts").glob("*.sh"):
        shutil.copy(script, tmp_path / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def stand_in(checkout: Path, failing: str = "nothing") -> Path:
    """Replace setup and Python: each call is written to calls.txt, and fails when it contains `failing`."""
    log = checkout / "calls.txt"
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\necho "$(basename "$0") $*" >> {log}\n'
        f'case "$*" in *"{failing}"*) exit 3;; *pytest*) echo "5 passed in 1s";; esac\n'
    )
    python.chmod(0o755)
    shutil.copy(python, python.with_name("secateur"))
    (checkout / "scripts" / "setup.sh").write_text("#!/bin/sh\n")
    return log


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses_is_executable_and_stops_at_errors(script: Path) -> None:
    assert run("bash", "-n", script).returncode == 0
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text


def test_nothing_names_a_place_on_one_machine_or_a_package_index() -> None:
    for path in [*SCRIPTS, ROOT / "README.md", ROOT / "constraints.txt"]:
        found = re.search(r"https?://|(?<![\w.$}])/(?:home|root|tmp|opt|work)/|index-url", path.read_text())
        assert found is None, f"{path.name} names {found[0] if found else ''}"


def test_ci_runs_the_test_script() -> None:
    assert "scripts/test.sh" in (ROOT / ".ci" / "run").read_text()


def test_recipes_of_the_packages_are_found_in_one_folder() -> None:
    links = sorted((ROOT / "scripts" / "recipes").glob("*.yaml"))
    shipped = [path for package in ("diffusion", "vit") for path in (ROOT / package / "recipes").glob("*.yaml")]
    assert [link.resolve() for link in links] == sorted(shipped, key=lambda path: path.name)


def test_readme_names_both_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "scripts/demo.sh" in readme
    assert "scripts/test.sh" in readme


def test_constraints_pin_every_direct_dependency_to_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: [Requirement(line) for line in lines] for name, lines in project["optional-dependencies"].items()}
    wanted = [*map(Requirement, project["dependencies"]), *extras["dev"]]
    # An extra that takes in another one names the package itself.
    own = {name for each in extras["dev"] if each.name == project["name"] for name in each.extras}
    wanted += [each for name in own for each in extras[name]]
    wanted = [each for each in wanted if each.name != project["name"] and (not each.marker or each.marker.evaluate())]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    pinned = {normalised(line) for line in lines}
    assert {normalised(each.name) for each in wanted} <= pinned


def test_test_script_runs_all_checks_and_closes_with_the_line_of_pytest(checkout: Path) -> None:
    log = stand_in(checkout)
    done = run("bash", "scripts/test.sh", "--all", "tests/compress3d", cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "5 passed in 1s"
    calls = log.read_text()
    for part in ("ruff check", "ruff format --check", "mypy"):
        assert part in calls
    assert calls.splitlines()[-1].endswith("--all tests/compress3d")


@pytest.mark.parametrize("failing", ["ruff check", "ruff format", "mypy", "pytest"])
def test_test_script_fails_when_any_step_fails_and_still_runs_the_rest(checkout: Path, failing: str) -> None:
    log = stand_in(checkout, failing)
    done = run("bash", "scripts/test.sh", cwd=checkout)
    assert done.returncode != 0
    assert "pytest" in log.read_text().splitlines()[-1]
    if failing != "pytest":
        assert done.stdout.splitlines()[-1] == "5 passed in 1s"
        assert failing in done.stdout


def test_demo_takes_a_scene_from_where_it_is_called(checkout: Path, tmp_path: Path) -> None:
    log = stand_in(checkout)
    folder = tmp_path / "else where"
    folder.mkdir()
    (folder / "my scene.compressed.ply").write_text("")
    done = run("bash", "../scripts/demo.sh", "my scene.compressed.ply", cwd=folder)
    assert done.returncode == 0, done.stderr
    call = log.read_text()
    assert "else where/my scene.compressed.ply -o out/demo/my scene.sog --keep 25% --report out/demo/report" in call
    assert "out/demo/report/index.html" in done.stdout


def test_demo_says_which_scene_is_missing_before_it_sets_up(checkout: Path) -> None:
    done = run("bash", "scripts/demo.sh", "nowhere.ply", cwd=checkout)
    assert done.returncode == 2
    assert "nowhere.ply" in done.stderr
    assert not (checkout / ".venv").exists()


def test_setup_says_so_when_no_python_is_recent_enough(checkout: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("bash", "dirname", "cat", "id", "mkdir"):
        (old / name).symlink_to(shutil.which(name) or name)
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        (old / name).write_text("#!/bin/sh\nexit 1\n")
        (old / name).chmod(0o755)
    done = run(old / "bash", "scripts/setup.sh", cwd=checkout, PATH=str(old), PYTHON="")
    assert done.returncode == 1
    assert "no Python 3.11 or newer found" in done.stderr
    assert not (checkout / ".venv" / "secateur-setup.stamp").exists()
