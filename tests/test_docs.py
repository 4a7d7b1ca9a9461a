"""The documentation builds without a warning, and the code on its pages runs as it stands.

Blocks marked `python` and `bash` run in the order of the page, in a folder of their own; those with a title are files:
Python is imported under its name, and what it calls `test_...` is run. Blocks marked `sh`, and YAML without a title,
are only shown.
"""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml

import compress3d.suffixes
from secateur.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "```python" in page.read_text() and page.name != "methods.md")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title (a file's name) if it has one, and what is in it."""

    language: str
    title: str | None
    code: str


def blocks(text: str) -> Iterator[Block]:
    for language, title, code in re.findall(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```$', text, re.M | re.S):
        yield Block(language, title or None, code)


def load(path: Path, name: str) -> ModuleType:
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run_tests(module: ModuleType, folder: Path) -> None:
    """Every test of a module; those that ask for a folder get one."""
    for name, function in vars(module).items():
        if name.startswith("test_"):
            wanted = inspect.signature(function).parameters
            place = folder / name
            place.mkdir()
            function(**({"tmp_path": place} if "tmp_path" in wanted else {}))


def run_commands(code: str) -> None:
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        assert not words or words[0] == "secateur", f"only secateur's own commands are run: {line}"
        assert not words or main(words[1:]) == 0, line


def run_block(block: Block, space: dict[str, Any], page: Path, folder: Path, patched: pytest.MonkeyPatch) -> None:
    if block.language == "bash":
        run_commands(block.code)
    elif block.title is not None:
        file = folder / block.title
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.code)
        if block.language == "python":
            name = block.title.removesuffix(".py").replace("/", ".")
            patched.setitem(sys.modules, name, ModuleType(name))  # and taken away again when the page is done
            run_tests(load(file, name), folder)
    elif block.language == "python":
        exec(compile(block.code, str(page), "exec"), space)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code on fewer and smaller views."""
    from compress3d.splats import cli

    compress = sys.modules["compress3d.splats.compress"]
    for name, number in (("VIEWS", 4), ("TEACHING_VIEWS", 3), ("VALIDATION_VIEWS", 1), ("RESOLUTION", 64)):
        monkeypatch.setattr(compress, name, number)
    monkeypatch.setattr(cli, "RECOVERY", 2)
    monkeypatch.setattr(sys.modules["compress3d.splats.evaluate"], "RESOLUTION", 64)
    monkeypatch.setattr("compress3d.splats.report._LONGER_SIDE", 64)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS).with_suffix("")))
def test_code_on_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "digits" in page.read_text():
        pytest.importorskip("sklearn", reason="the digits come with scikit-learn (extra: demo)")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "page"}
    with patch.dict(compress3d.suffixes.SPLAT_CODECS), torch.random.fork_rng():
        for block in blocks(page.read_text()):
            run_block(block, space, page, tmp_path, monkeypatch)


def test_pages_of_python_are_found() -> None:
    assert {page.stem for page in PAGES} >= {"index", "splats", "diffusion", "evaluate", "criterion", "format", "units"}


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None or find_spec("material") is None:
        pytest.skip("mkdocs-material and mkdocstrings are not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    home = (tmp_path / "site" / "index.html").read_text()
    assert not re.search(r'(?:src|href)="(?:https?:)?//(?!squidfunk|zensical)[^"]*\.(?:js|css|woff2?)"', home)
    assert "fonts.googleapis" not in home and "cdn." not in home


def test_the_citation_names_the_package_as_it_is() -> None:
    import tomllib

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["message"]
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"]


def test_the_changelog_has_a_section_for_the_version() -> None:
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.index("## [Unreleased]") < text.index(f"## [{version}] - ")


def test_readmes_numbers_have_files() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"scripts/bench/results/\w+\.json", text))
    assert named and all((ROOT / name).is_file() for name in named)


@pytest.mark.parametrize("page", sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")]), ids=lambda page: page.name)
def test_nothing_on_a_page_names_one_machine(page: Path) -> None:
    assert not re.search(r"(?<![\w.$}/])/(?:home|root|tmp|work)/", page.read_text())
