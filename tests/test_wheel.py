"""The wheel, installed where no checkout is: its commands run, and assets and recipes are found inside the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("secateur", "compress3d", "diffusion", "vit")
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and an empty folder to run in."""

    python: Path
    folder: Path

    def run(self, *command: str | Path) -> str:
        """What a command of the environment prints."""
        program = self.python.with_name(str(command[0]))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [program, *command[1:]], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=3600
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def value(self, expression: str) -> str:
        """A Python expression, printed; modules named in it are imported."""
        module = expression.rpartition(".")[0]
        return self.run("python", "-c", f"import {module}; print({expression})").strip()


def pip(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout and nothing in it is taken for built."""
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", target, source)
    return next(target.glob("secateur-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A fresh environment that sees the libraries of this one, but neither its secateur nor the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=3600)
    python = folder / "bin" / "python"
    own = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # A line of a .pth adds a folder whose own .pth files are not read, and those are what finds the checkout.
    (own / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip("--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    return Installed(python, tmp_path_factory.mktemp("elsewhere"))


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert wanted <= held, sorted(wanted - held)
    assert not any(name.startswith(("tests/", "scripts/", "docs/")) for name in held)


def test_nothing_comes_from_the_checkout(installed: Installed) -> None:
    for package in PACKAGES:
        place = Path(installed.value(f"{package}.__file__"))
        assert installed.python.parents[1] in place.parents and ROOT not in place.parents


def test_commands_run_on_what_comes_with_the_package(installed: Installed) -> None:
    assert installed.run("secateur", "--version").startswith("secateur 0.")
    chair = installed.value("compress3d.splats.samples.CHAIR")
    info = json.loads(installed.run("secateur", "splat", "info", chair, "--json"))
    assert info["file"]["gaussians"] == 38_893


def test_shipped_recipes_are_planned_by_name(installed: Installed) -> None:
    listed = {one["name"] for one in json.loads(installed.run("secateur", "diffusion", "recipes", "--json"))}
    assert {"digits-dit-ecodiff-20", "sd15-ecodiff-20"} <= listed
    plan = json.loads(installed.run("secateur", "diffusion", "prune", "digits-dit-ecodiff-20", "--dry-run", "--json"))
    assert plan["plan"]["pruned"]["params"] <= 0.8 * plan["plan"]["dense"]["params"]
    plan = json.loads(installed.run("secateur", "vit", "prune", "fashion-vit-tome", "--dry-run", "--json"))
    assert plan["steps"][-1]["size"]["macs"] < plan["dense"]["macs"]


@pytest.mark.parametrize("what", [".", ".[gpu]"])
def test_an_installation_resolves(what: str) -> None:
    said = pip("install", "--dry-run", "--no-build-isolation", "--no-index", what)
    assert "Would install secateur-" in said
