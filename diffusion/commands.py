"""The commands of this package and their arguments. What they do is in `cli.py`, imported when one of them runs: help
must not wait for torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from secateur.cli import Command, CommandGroup, argument_type, later
from secateur.evaluation.command import evaluate_one

_CLI = "diffusion.cli"

_SAMPLES: dict[str, dict[str, Any]] = {
    "--samples": {"type": int, "metavar": "N", "help": "samples of each model (default: 16)"},
    "--steps": {"type": int, "metavar": "N", "help": "steps of the sampler (default: 20)"},
    "--guidance": {"type": float, "metavar": "SCALE", "help": "classifier-free guidance (default: 1, none)"},
    "--prompts": {
        "type": Path,
        "metavar": "FILE.txt",
        "help": "prompts, or class labels, a line each (default: every class)",
    },
    "--judge": {
        "choices": ("digits", "fashion"),
        "help": "take distances from real pictures of the demo models' data, and tell classes",
    },
}


def _parse_count(value: Any) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"{value!r} is not a whole number from 1 up")
    return int(value)


def _configure_prune(parser: ArgumentParser) -> None:
    parser.add_argument(
        "recipe",
        type=Path,
        metavar="RECIPE",
        help="what to prune, by what and how far: a YAML file, or the name of a shipped recipe",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder of the result (default: the recipe's output)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only say what would go, and what it would take: nothing is loaded and nothing written",
    )


def _configure_recipes(parser: ArgumentParser) -> None:
    """`recipes` takes no arguments of its own."""


def _configure_info(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a folder, a demo model (fashion-unet), or a repository of the hub"
    )
    parser.add_argument(
        "--component", choices=("unet", "transformer"), help="which part (default: the one that denoises)"
    )


def _configure_generate(parser: ArgumentParser) -> None:
    count = argument_type(_parse_count)
    parser.add_argument("folder", metavar="FOLDER", help="a pipeline, pruned or not, or a demo model")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="prompt, or class label; may be repeated")
    parser.add_argument("--prompts", type=Path, metavar="FILE.txt", help="more of them, a line each")
    parser.add_argument("-o", "--output", type=Path, metavar="PNG", help="picture to write: a grid of all")
    parser.add_argument(
        "--each",
        type=Path,
        metavar="DIR",
        help="folder to write each picture into, with captions.json, as secateur evaluate reads them",
    )
    parser.add_argument("--count", type=count, default=1, metavar="N", help="pictures of each prompt (default: 1)")
    parser.add_argument("--batch", type=count, default=8, metavar="N", help="drawn at once (default: 8)")
    parser.add_argument("--steps", type=count, default=20, metavar="N", help="of the sampler (default: 20)")
    parser.add_argument("--guidance", type=float, default=1.0, metavar="SCALE", help="classifier-free (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda where there is one)")


def _configure_export(parser: ArgumentParser) -> None:
    count = argument_type(_parse_count)
    parser.add_argument("model", metavar="MODEL", help="a folder, pruned or not, or a demo model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="ONNX", help="file to write")
    parser.add_argument(
        "--component", choices=("unet", "transformer"), help="which part (default: the one that denoises)"
    )
    parser.add_argument("--batch", type=count, default=1, metavar="N", help="samples of a call (default: 1)")
    parser.add_argument(
        "--size", type=count, metavar="N", help="rows and columns of the latents (default: the model's own)"
    )


def _configure_patches(parser: ArgumentParser) -> None:
    count = argument_type(_parse_count)
    parser.add_argument("model", metavar="MODEL", help="a folder, a demo model, or a repository of the hub")
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="or class label; may be repeated (default: every class)",
    )
    parser.add_argument("--ranks", type=count, default=2, metavar="N", help="processes (default: 2)")
    parser.add_argument("--steps", type=count, default=20, metavar="N", help="of the sampler (default: 20)")
    parser.add_argument("--samples", type=count, default=4, metavar="N", help="sampled at once (default: 4)")
    parser.add_argument(
        "--size", type=count, metavar="N", help="rows and columns of the latents (default: the model's own)"
    )
    parser.add_argument(
        "--warmup", type=count, nargs="+", default=[1, 2, 4, 8], metavar="N", help="synchronous steps at the start"
    )
    parser.add_argument(
        "--context",
        type=float,
        nargs="*",
        default=[0.5],
        metavar="SHARE",
        help="of the neighbours' keys and values that self-attention sees, beside all of them (default: 0.5)",
    )


class DiffusionEvaluator:
    """Compares pruned diffusion models with the one that they stand for."""

    options: Mapping[str, Mapping[str, Any]] = _SAMPLES
    run = staticmethod(later(_CLI, "evaluate_folders"))

    def accepts(self, path: Path) -> bool:
        """Whether `path` is a folder of a pipeline or of a single network of diffusers."""
        if (path / "model_index.json").is_file():
            return True
        config = path / "config.json"
        return config.is_file() and b'"_class_name"' in config.read_bytes()


DIFFUSION_EVALUATOR = DiffusionEvaluator()

DIFFUSION = CommandGroup(
    "prune diffusion models by recipes, generate and compare pictures",
    {
        "prune": Command(
            "carry out a recipe: score, cut, repair, recover, evaluate and save; a run that was stopped goes on",
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
            "say what is in a model: parameters, multiply-adds, units that can go",
            _configure_info,
            later(_CLI, "describe_model"),
            later(_CLI, "show_info"),
        ),
        "generate": Command(
            "draw pictures with a pipeline",
            _configure_generate,
            later(_CLI, "generate_pictures"),
            later(_CLI, "show_pictures"),
        ),
        "export": Command(
            "write the network as an ONNX file, with its weights, for other runtimes",
            _configure_export,
            later(_CLI, "export_model"),
            later(_CLI, "show_exported"),
        ),
        "patches": Command(
            "share a model's rows among processes, and say how far that is from one process, and what travels",
            _configure_patches,
            later(_CLI, "measure_sharing"),
            later(_CLI, "show_sharing"),
        ),
        "evaluate": evaluate_one(
            "measure pruned models against the dense one: quality, sizes, times, and a page with pictures",
            DIFFUSION_EVALUATOR,
        ),
    },
)
