"""The recipes that come with this package, and the prompts that they name."""

from pathlib import Path

RECIPES = Path(__file__).with_name("recipes")
"""Their folder: a YAML file each, known to `secateur diffusion prune` by its name; lists of prompts are .txt."""
