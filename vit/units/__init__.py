"""The units of vision transformers, found by what a module is made of and not by its class name."""

from vit.units.prunable import Kind, prunable

__all__ = ["Kind", "prunable"]
