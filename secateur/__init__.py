"""Shared importance, masking and recovery core of secateur: knows torch, knows no domain."""
