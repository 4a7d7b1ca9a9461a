"""Pruning of vision transformers."""
