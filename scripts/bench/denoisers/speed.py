"""Section `speed`: how much faster cut models are, by their shape alone: weights do not matter, so none are loaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
from parts import Job
from torch import nn

from denoisers.entrants import kept_by_kind, prunable_share
from denoisers.settings import LATENCY_BATCH, Settings
from denoisers.subjects import KINDS
from diffusion.demo import networks
from diffusion.inputs import example_inputs
from diffusion.onnx_file import write_onnx
from diffusion.units import prunable
from secateur.console import Report
from secateur.importance import Random
from secateur.surgery.cost import count_macs, count_params, run_example

HOW = (
    "The demo models' configurations with random weights; units go at random within their kind, each of which loses "
    "the same share. Latency is that of a forward of 8 samples on one thread, in processor time: the least of 12, in "
    "turns with the dense model. onnxruntime: the same of their ONNX files."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a model."""
    return {name: partial(_model, name, settings) for name in settings.models}


def _model(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    dense = getattr(networks, name.replace("-", "_"))().eval()
    one, batch = (example_inputs(dense, batch=count, text_tokens=16) for count in (1, LATENCY_BATCH))
    target, rows = prunable(dense, KINDS[name], one), []
    scores = Random(0).score(target)
    dense_file = _session(dense, batch, folder / "dense.onnx")
    for number, share in enumerate(settings.shares):
        report(number / len(settings.shares), f"{name}: timing at {share:.0%}")
        module = target.cut(kept_by_kind(target, KINDS[name], scores, share)).module
        times = settings.latencies(partial(run_example, module, batch), partial(run_example, dense, batch))
        of_files = settings.latencies(_session(module, batch, folder / f"{share}.onnx"), dense_file)
        size = {"params": count_params(module), "macs": count_macs(module, one)}
        rows.append({"share": share} | size | times | {"onnxruntime": of_files})
    size = {"params": count_params(dense), "macs": count_macs(dense, one)}
    return {"how": HOW, "prunable_share": prunable_share(target), **size, "rows": rows}


def _session(module: nn.Module, batch: dict[str, Any], path: Path) -> Callable[[], Any]:
    """A forward of the network's ONNX file on one thread."""
    names = write_onnx(module, path, batch)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {name: batch[name].numpy() for name in names})
