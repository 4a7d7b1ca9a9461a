"""Pruning of vision transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit.inputs import example_inputs
    from vit.models import load_model
    from vit.pruned import load
    from vit.saving import save
    from vit.units import prunable

_PLACES = {
    "example_inputs": "vit.inputs",
    "load": "vit.pruned",
    "load_model": "vit.models",
    "prunable": "vit.units",
    "save": "vit.saving",
}

__all__ = ["example_inputs", "load", "load_model", "prunable", "save"]


def __getattr__(name: str) -> Any:
    """The public few, imported when they are asked for: the command line must not wait for torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
