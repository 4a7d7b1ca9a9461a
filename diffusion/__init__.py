"""Pruning of diffusion models."""
