"""The units of diffusers' models, found by what a module is made of and not by its class name."""

from diffusion.units.prunable import Kind, prunable

__all__ = ["Kind", "prunable"]
