"""The text of a plan: its tables, and a line for each note and problem. `plan.py` makes the plan."""

from typing import TYPE_CHECKING

from training.costs import BucketCosts
from training.engine.adapter import summary
from training.gathering import sharing_rows


if TYPE_CHECKING:  # which prints itself with this file
    from training.plan import Plan


def render(plan: "Plan", title: str) -> str:
    """Return the plan as plain text."""
    lines = [title]
    if plan.stages:
        parameters = ", ".join(f"{name} {_short(count)}" for name, count in plan.parameters.items())
        if plan.adapted is None:
            lines += [f"parameters: {parameters} (the head is thrown away after training)", ""]
        else:
            lines += _render_adapter(plan)
        rows = [("stage", "trains", "frames", "size", "sampled", "clips seen", "steps", "batch", "tokens planner",
                 "transformer",
                 "parameters", "FLOP/step", "FLOP", "s/step", "hours")]  # fmt: skip
        for s in plan.stages:
            one = s.buckets[0] if len(s.buckets) == 1 else None
            shape = _shape(one) if one else ("", f"{len(s.buckets)} buckets")
            rows.append(
                (s.name, s.trains, *shape, s.sampling, _short(s.clips), f"{s.steps:,}", s.batch,
                 *(_tokens(one) if one else ("", "")), _short(s.parameters), f"{s.operations_per_step:.3g}",
                 f"{s.operations:.3g}", _number(s.seconds_per_step), _number(s.hours))
            )  # fmt: skip
            for bucket in s.buckets if one is None else ():
                rows.append(
                    (f"  {bucket.share:.1%} of it", "", *_shape(bucket), "", "", "", "", *_tokens(bucket), "",
                     f"{bucket.operations_per_step:.3g}", "", "", "")
                )  # fmt: skip
        hours = None if any(s.hours is None for s in plan.stages) else sum(s.hours for s in plan.stages)
        rows.append(("all", "", "", "", "", _short(sum(s.clips for s in plan.stages)),
                     f"{sum(s.steps for s in plan.stages):,}", "", "", "", "", "",
                     f"{sum(s.operations for s in plan.stages):.3g}", "", _number(hours)))  # fmt: skip
        lines += [
            *_table(rows),
            *_render_overheads(plan),
            "",
            "memory of each device, GiB, for the largest bucket; in brackets with gradient checkpointing switched the "
            "other way",
        ]
        keeps = any(s.largest.memory.latents for s in plan.stages)
        rows = [("stage", "weights", "low-precision", "gradients", "optimizer", "average",
                 *(("latents",) if keeps else ()), "activations", "together")]  # fmt: skip
        for s in plan.stages:
            m, other = s.largest.memory, s.largest.memory_other
            kinds = (m.weights, m.low_precision_weights, m.gradients, m.optimizer, m.ema)
            rows.append(
                (s.name, *map(gib, (*kinds, m.latents) if keeps else kinds), f"{gib(m.activations)} ({gib(other.activations)})",
                 f"{gib(m.total)} ({gib(other.total)})")
            )  # fmt: skip
        lines += [*_table(rows)]
        if plan.sharing[0].within + plan.sharing[0].across > 0:
            lines += ["", "a step, shared by the processes", *_table(sharing_rows(plan.stages, plan.sharing))]
        copies = f"copies of a checkpoint while it is written, GiB of the host's memory: {gib(plan.checkpoint_copies)}"
        if plan.process:
            most = max(s.largest.memory.total for s in plan.stages) + plan.process + plan.checkpoint_copies
            lines += [copies, f"the process itself, GiB: {gib(plan.process)}; at most {gib(most)} together"]
        else:
            lines.append(f"{copies} for each process")
        lines.append("")
        lines.append("disk, GiB: " + ", ".join(f"{kind} {gib(size)}" for kind, size in plan.disk.items() if size))
        lines += [str(plan.latents)] if plan.latents is not None else []
        lines += _render_clips(plan)
        if plan.room is not None and plan.room.distances:
            lines += [
                "",
                "held-out clips, what can be reached between the first and the last frame:",
                plan.room.table(),
            ]
            lines += [f"note: {note}" for note in plan.room.notes]
    lines += [f"note: {note}" for note in plan.notes]
    clear = "nothing stands against it" + (" beside these notes" if plan.notes else "")
    lines += [f"problem: {problem}" for problem in plan.problems] or [clear]
    return "\n".join(lines)


def _render_overheads(plan: "Plan") -> list[str]:
    """Return a line on the time beside the steps."""
    if plan.hours is None:
        return []
    kinds = ", ".join(f"{kind} {_number(value / 3600)}" for kind, value in plan.overheads.items() if value)
    return [f"beside the steps, hours: {kinds}; {_number(plan.hours)} hours together"]


def _render_adapter(plan: "Plan") -> list[str]:
    """Return lines on adapted layers and learned parameters, by model, and on added conditions."""
    lines = []
    for part, count in plan.parameters.items():
        names = plan.adapted.get(part, [])
        lines.append(f"{part}: {len(names)} layers adapted, {_short(count)} parameters to be learned")
        lines += [f"  {name}" for name in summary(names)]
    counts = [f"{name} ({_short(count)} of these parameters)" for name, count in plan.added.items()]
    return [*lines, *([f"conditions that the adapter adds: {', '.join(counts)}"] if counts else []), ""]


def _render_clips(plan: "Plan") -> list[str]:
    lines = []
    for stage in plan.stages:
        if stage.census is not None:
            first, *others = stage.census.lines(stage.clips)
            lines += [f"{stage.name}: {first}", *others]
    return lines


def _shape(bucket: BucketCosts) -> tuple[int, str]:
    return bucket.num_frames, "x".join(map(str, dict.fromkeys(bucket.size)))


def _tokens(bucket: BucketCosts) -> tuple[int | str, int | str]:
    return bucket.tokens["planner"] or "-", bucket.tokens["transformer"] or "-"


def _table(rows: list[tuple]) -> list[str]:
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in cells
    ]


def _short(number: int) -> str:
    for unit, size in ((" B", 1e9), (" M", 1e6), (" k", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return str(number)


def gib(size: int) -> str:
    """Return a number of bytes in GiB."""
    return f"{size / 2**30:.2f}" if size < 2**30 else f"{size / 2**30:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
