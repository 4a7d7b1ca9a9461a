"""Shared importance, masking and recovery core of secateur: knows torch, knows no domain."""

import os

# Idle OpenMP threads spin by default, which on a machine with few or busy cores takes the time from those at work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
