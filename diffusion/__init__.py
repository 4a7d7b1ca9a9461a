"""Pruning of diffusion models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion.inputs import example_inputs
    from diffusion.lora import slice_lora
    from diffusion.saving import PrunedPipeline, load, save, save_pipeline
    from diffusion.units import prunable

_PLACES = {
    "PrunedPipeline": "diffusion.saving",
    "example_inputs": "diffusion.inputs",
    "load": "diffusion.saving",
    "prunable": "diffusion.units",
    "save": "diffusion.saving",
    "save_pipeline": "diffusion.saving",
    "slice_lora": "diffusion.lora",
}

__all__ = ["PrunedPipeline", "example_inputs", "load", "prunable", "save", "save_pipeline", "slice_lora"]


def __getattr__(name: str) -> Any:
    """The public few, imported when they are asked for: the command line must not wait for torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
