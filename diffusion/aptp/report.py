"""What a router does: which prompts go where, what their experts cost, and how evenly they are used."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion.aptp.captions import Captioned
from diffusion.aptp.experts import Experts
from secateur.files import replacing_file
from secateur.report.record import to_json
from secateur.surgery.cost import count_macs, count_params
from secateur.surgery.network import Network


@dataclass(frozen=True, slots=True)
class ExpertRecord:
    """One expert.

    Args:
        macs: multiply-adds of a forward of the example inputs.
        share: of the whole network's.
        params: parameters.
        used: share of the samples whose prompts are routed to it.
        prompts: these prompts, those of most samples first.
    """

    macs: int
    share: float
    params: int
    used: float
    prompts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RouterRecord:
    """All experts.

    Args:
        dense_macs: multiply-adds of the whole network.
        dense_params: its parameters.
        share: of the multiply-adds that a sample costs in the mean.
        even: how evenly experts are used: exp(entropy of their use) / experts, 1 where all are used alike.
        experts: by code.
    """

    dense_macs: int
    dense_params: int
    share: float
    even: float
    experts: tuple[ExpertRecord, ...]

    def lines(self, shown: int = 3) -> list[str]:
        """A Markdown table, with a few prompts of each expert."""
        rows = [
            f"| {code} | {one.macs / 1e6:.1f} M | {one.share:.1%} | {one.params / 1e6:.2f} M | {one.used:.1%} | "
            f"{len(one.prompts)} | {'; '.join(one.prompts[:shown])} |"
            for code, one in enumerate(self.experts)
        ]
        head = ["| expert | multiply-adds | of dense | parameters | of samples | prompts | such as |"]
        return [*head, "|---|---|---|---|---|---|---|", *rows]


def describe(experts: Experts, dense: Network, data: Captioned) -> RouterRecord:
    """The record of a router, on the prompts of these samples.

    Args:
        experts: the router and its networks.
        dense: the whole network, with example inputs.
        data: samples with prompts.

    Raises:
        ValueError: there are no example inputs.
    """
    if dense.example_inputs is None:
        raise ValueError("multiply-adds are those of a forward: give the whole network example inputs")
    codes, counts = experts.router.route(data.embeddings).cpu(), data.counts()
    whole = count_macs(dense.module, dense.example_inputs)
    records = []
    for code, expert in enumerate(experts.networks):
        own = (codes == code).nonzero()[:, 0]
        own = own[counts[own].argsort(descending=True, stable=True)]
        macs = count_macs(expert.module, dense.example_inputs)
        used = float(counts[own].sum()) / len(data)
        texts = tuple(data.texts[row] for row in own.tolist())
        records.append(ExpertRecord(macs, macs / whole, count_params(expert.module), used, texts))
    share = sum(record.share * record.used for record in records)
    even = _perplexity([record.used for record in records]) / len(records)
    return RouterRecord(whole, count_params(dense.module), share, even, tuple(records))


def write_record(record: RouterRecord, folder: str | os.PathLike[str], **more: Any) -> None:
    """Write `router.json`, with further entries, and `router.md`, the table, into a folder."""
    text = json.dumps(to_json({"router": record, **more}), indent=2, allow_nan=False) + "\n"
    for name, content in (("router.json", text), ("router.md", "\n".join(record.lines()) + "\n")):
        with replacing_file(Path(folder) / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


def _perplexity(shares: Sequence[float]) -> float:
    held = torch.tensor([share for share in shares if share > 0], dtype=torch.float64)
    return math.exp(float(-(held * held.log()).sum()))
