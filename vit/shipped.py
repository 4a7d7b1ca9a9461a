"""The recipes that come with this package."""

from pathlib import Path

RECIPES = Path(__file__).with_name("recipes")
"""Their folder: a YAML file each, known to `secateur vit prune` by its name."""
