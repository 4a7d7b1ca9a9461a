"""Records of diffusion models as tables, for the terminal and for notebooks."""

from __future__ import annotations

from rich.table import Table

from diffusion.aptp.run import ExpertsRecord
from diffusion.evaluate import EvaluatedModel, Evaluation
from diffusion.outcome import DryRun, Pruning
from diffusion.patch_parallel.measuring import PatchMeasurement
from secateur.console import result_table
from secateur.quantities import format_bytes, format_decibels


def pruning_tables(record: Pruning | DryRun) -> list[Table]:
    """What was cut, or would be; and what came of it, or what it would take."""
    before, after = record.plan.dense, record.plan.pruned
    verb = "would be pruned" if isinstance(record, DryRun) else "pruned"
    table = result_table(f"{record.model}, {record.component}, {verb}", "", "dense", "pruned", "kept")
    for name, (kept, size) in record.kinds.items():
        table.add_row(name.replace("_", "-"), f"{size:,}", f"{kept:,}", f"{kept / size:.1%}")
    table.add_row("parameters", f"{before.params:,}", f"{after.params:,}", f"{after.params / before.params:.1%}")
    if before.macs and after.macs:
        table.add_row("multiply-adds", f"{before.macs:,}", f"{after.macs:,}", f"{after.macs / before.macs:.1%}")
    table.add_row(
        "bytes (float32)" if isinstance(record, DryRun) else "bytes",
        format_bytes(before.bytes),
        format_bytes(after.bytes),
        f"{after.bytes / before.bytes:.1%}",
    )
    return [table, _estimate(record) if isinstance(record, DryRun) else evaluation_table(record.evaluation)]


def patch_table(found: PatchMeasurement) -> Table:
    """What each way of sharing the rows of latents costs."""
    title = f"{found.model}: {found.ranks} processes, {found.steps} steps, {found.samples} samples"
    table = result_table(title, "in step", "then seen", "error", "largest", "waited", "hidden", "K and V")
    for row in found.rows:
        in_step, then = ("all", "") if row.warmup is None else (f"{row.warmup}", _seen(row.context))
        table.add_row(
            in_step,
            then,
            f"{row.relative_error:.2e}",
            f"{row.largest_error:.2e}",
            *(format_bytes(size) for size in (row.waited_bytes, row.overlapped_bytes, row.attention_bytes)),
        )
    return table


def _seen(context: float | None) -> str:
    return "all" if context is None else f"{context:.0%}"


def experts_tables(record: ExpertsRecord) -> list[Table]:
    """What experts cost, which prompts they have, and what came out."""
    tables = []
    for name, router in record.routers.items():
        table = result_table(f"{record.model}, {name}", "prompts such as", "multiply-adds", "of samples")
        for expert in router.experts:
            table.add_row("; ".join(expert.prompts[:3]), f"{expert.share:.1%}", f"{expert.used:.1%}")
        table.add_row("in the mean", f"{router.share:.1%}", "")
        tables.append(table)
    return [*tables, evaluation_table(record.evaluation)]


def evaluation_table(record: Evaluation) -> Table:
    """What was measured, a column a model."""
    models = (record.reference, *record.candidates)
    table = result_table("Against the dense model", "", *(one.name for one in models))
    if all(one.cost for one in models):
        costs = [one.cost for one in models if one.cost]
        table.add_row("parameters", *(f"{cost.params:,}" for cost in costs))
        batch = f"batch of {costs[0].batch_size}"
        table.add_row(f"multiply-adds, {batch}", *(f"{cost.macs:,}" for cost in costs))
        table.add_row(f"latency, {batch}", *(f"{cost.latency.median_ms:.1f} ms" for cost in costs))
    for index, distance in enumerate(record.reference.distances):
        table.add_row(distance.name, *(f"{one.distances[index].frechet:.2f}" for one in models))
    if all(one.accuracy for one in models):
        table.add_row("right class", *(f"{one.accuracy.mean:.1%}" for one in models if one.accuracy))
    table.add_row("PSNR of pictures", *map(_psnr, models))
    return table


def _psnr(one: EvaluatedModel) -> str:
    return "" if one.paired is None else format_decibels(one.paired.mean_psnr)


def _estimate(record: DryRun) -> Table:
    found = record.estimate
    table = result_table("Estimated", "", "")
    table.add_row("memory for weights", format_bytes(found.weights_bytes))
    table.add_row("memory for activations", format_bytes(found.activations_bytes))
    for stage, forwards in found.forwards.items():
        table.add_row(f"forwards to {stage}", f"{forwards:,}")
    table.add_row("time on this machine", _duration(found.seconds))
    return table


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:,.0f} days"
