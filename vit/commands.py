"""The commands of this package and their arguments. What they do is in `cli.py`, imported when one of them runs: help
must not wait for torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from secateur.cli import Command, CommandGroup, later
from secateur.evaluation.command import evaluate_one
from secateur.image_folders.commands import WORKERS

_CLI = "vit.cli"

_IMAGES: dict[str, dict[str, Any]] = {
    "--data": {
        "metavar": "IMAGES",
        "help": "images to judge by: a folder with a folder a class, or fashion or digits (default: fashion)",
    },
    "--batch": {"type": int, "metavar": "N", "help": "images at a time, also while models are timed (default: 32)"},
    "--threads": {"type": int, "metavar": "N", "help": "that torch may use while models are timed (default: 1)"},
    "--workers": WORKERS,
}


def _configure_prune(parser: ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        type=Path,
        metavar="RECIPE",
        help="what to prune, how and how far: a YAML file, or the name of a shipped recipe",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder of the result (default: the recipe's output)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be left: nothing is loaded and nothing written"
    )


def _configure_recipes(parser: ArgumentParser) -> None:
    """`recipes` takes no arguments of its own."""


def _configure_info(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a folder, a demo model (fashion-vit), or a repository of the hub"
    )
    parser.add_argument("--architecture", metavar="CLASS", help="class of transformers (default: the configuration's)")


class VitEvaluator:
    """Compares pruned vision transformers with the one that they stand for."""

    options: Mapping[str, Mapping[str, Any]] = _IMAGES
    run = staticmethod(later(_CLI, "evaluate_folders"))

    def accepts(self, path: Path) -> bool:
        """Whether `path` is a folder of a model of transformers."""
        try:
            fields = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(fields, dict) and "model_type" in fields


VIT_EVALUATOR = VitEvaluator()

VIT = CommandGroup(
    "prune vision transformers by recipes: heads, neurons, blocks, tokens",
    {
        "prune": Command(
            "carry out a recipe: cut, drop tokens, recover, evaluate and save; a run that was stopped goes on",
            _configure_prune,
            later(_CLI, "prune_recipe"),
            later(_CLI, "show_pruning"),
        ),
        "recipes": Command(
            "list the recipes that come with the package",
            _configure_recipes,
            later(_CLI, "list_recipes"),
            later(_CLI, "show_recipes"),
        ),
        "info": Command(
            "say what is in a model: parameters, multiply-adds, units that can go, tokens",
            _configure_info,
            later(_CLI, "describe_model"),
            later(_CLI, "show_info"),
        ),
        "evaluate": evaluate_one(
            "measure pruned models against the dense one: accuracy, agreement, sizes, images per second, and a page",
            VIT_EVALUATOR,
        ),
    },
)
