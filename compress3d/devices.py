"""The device that `--device` names."""

from __future__ import annotations

import re

import torch


def device_named(name: str | None) -> torch.device:
    """Where to work: "cpu", "cuda" or "cuda:1"; None: on CUDA where there is some.

    A device with a number becomes the current one, by which torch's clocks and other libraries go.

    Raises:
        ValueError: it is none of these, or there is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise ValueError(f"--device {name}: choose cpu or cuda")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch finds no CUDA device here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices here, from cuda:0 on")
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)
    return device
