"""Records of vision transformers as tables, for the terminal and for notebooks."""

from __future__ import annotations

from rich.table import Table

from secateur.console import result_table
from secateur.quantities import format_bytes
from vit.evaluate import Evaluation
from vit.outcome import DryRun, Pruning


def pruning_tables(record: Pruning | DryRun) -> list[Table]:
    """The model behind each step; and how good it is, where it was made."""
    verb = "would be pruned" if isinstance(record, DryRun) else "pruned"
    table = result_table(f"{record.model}, {verb}", "", "parameters", "multiply-adds", "size", "patches")
    dense = record.dense
    table.add_row("dense", f"{dense.params:,}", f"{dense.macs:,}", format_bytes(dense.bytes), "")
    for step in record.steps:
        size, tokens = step.size, "" if step.tokens is None else " ".join(map(str, step.tokens))
        counts = (_beside(size.params, dense.params), _beside(size.macs, dense.macs))
        table.add_row(step.name, *counts, format_bytes(size.bytes), tokens)
    return [table, *([evaluation_table(record.evaluation)] if isinstance(record, Pruning) else [])]


def evaluation_table(record: Evaluation) -> Table:
    """What was measured, a column a model."""
    models = (record.reference, *record.candidates)
    table = result_table(f"Against the dense model, {record.images:,} images", "", *(one.name for one in models))
    answers = [one.classified for one in models if one.classified]
    if answers:
        table.add_row("accuracy", *(f"{one.accuracy:.2%}" for one in answers))
        table.add_row("agreement", *(f"{one.agreement:.2%}" for one in answers))
    else:
        table.add_row("error of the embedding", *(f"{one.embedding_error:.4f}" for one in models))
    cost = record.reference.cost
    speed = f"images/s, batch of {cost.batch_size}, threads: {cost.latency.threads}"
    table.add_row(speed, *(f"{one.images_per_second:,.0f}" for one in models))
    table.add_row("multiply-adds, one image", *(f"{one.macs:,}" for one in models))
    table.add_row("parameters", *(f"{one.cost.params:,}" for one in models))
    table.add_row("bytes", *(format_bytes(one.cost.bytes) for one in models))
    return table


def _beside(after: int | None, before: int | None) -> str:
    return f"{after:,} ({after / before:.1%})" if after and before else ""
