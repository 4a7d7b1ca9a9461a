"""Sections of the bench of vision transformers."""
