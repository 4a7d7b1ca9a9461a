"""CUDA libraries that fields use where they are installed, and do without where they are not."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from types import ModuleType


@cache
def library(name: str) -> ModuleType | None:
    """The library of that name; None where it is not installed, or does not load, of which a warning tells once."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        reason: Exception = error
    except (ImportError, OSError) as error:  # tiny-cuda-nn raises OSError where it was built for another device
        reason = error
    warnings.warn(f"{name} is installed but does not load, so plain torch stands in for it: {reason}", stacklevel=2)
    return None
