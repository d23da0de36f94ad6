"""Count what processes send each other in a step, and how many of them make sense for a batch.

`costs.py` has the operations and the memory of a step; `plan.py` prints both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.config.schema import RunConfig, StageConfig
from training.costs import StageCosts, count_tokens
from training.engine.layout import Layout
from training.engine.models import trained_parts, whole_models
from training.engine.optimizers import learned, learns_by_muon
from training.engine.sharding import uses_bfloat16


# Exchanges of an attention layer whose tokens are shared: queries, keys, values and its output.
EXCHANGED = 4
WORTH_A_NOTE = 0.1  # of the time, in which processes wait for those with a window more


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second that each process receives from others.

    Args:
        within: from those that share a copy of the weights, or tokens.
        across: from those with other copies.
    """

    within: float
    across: float


@dataclass(frozen=True)
class Sharing:
    """How the processes share the steps of a stage.

    Attributes:
        windows: of the process with the most.
        waiting: share of all processes' time in which they wait for those with a window more, or have none.
        within, across: bytes that each process receives in a step; see `Bandwidth`.
        gathering: seconds of that at the stated bandwidth; `None` if none is stated.
        computing: seconds of the step's operations; `None` if no speed is known.
        most_processes: beyond it a step is not faster.
        limit: why not, in words.
    """

    windows: int
    waiting: float
    within: float
    across: float
    gathering: float | None
    computing: float | None
    most_processes: int
    limit: str


def count_sent(config: RunConfig, stage: StageConfig, layout: Layout) -> tuple[float, float]:
    """Return the bytes that a process receives in a step, within its copy of the weights and from other copies.

    Args:
        config: the run.
        stage: of one shape, resolved for the layout.
        layout: of the processes.
    """
    models, width = whole_models(config), 2 if uses_bfloat16(config) else 4
    trained = [(f"{part}.{name}", p) for part in trained_parts(stage) for name, p in learned(models[part]).items()]
    weights = sum(p.numel() for _, p in trained)
    by_muon = sum(p.numel() for name, p in trained if learns_by_muon(name, p, config.optimizer))
    others, other_copies = 1 - 1 / layout.shards, 1 - 1 / layout.copies
    within = across = 0.0
    if layout.shards > 1:
        # Every part gathers the weights for its forward and its backward pass; gradients are sent once, in float32.
        within += others * weights * (2 * stage.gradient_accumulation * width + 4)
        within += others * 4 * by_muon  # matrices are gathered; each process orthogonalizes some and sends them to all
    across += other_copies * 2 * 4 * weights / layout.shards  # summed in a ring, then handed round
    if by_muon and layout.copies > 1:
        across += other_copies * 4 * by_muon * (1 if layout.shards > 1 else 2)
    elif by_muon and layout.shards > 1:
        within += others * 4 * by_muon
    return within + _tokens_sent(config, stage, layout, width), across


def _tokens_sent(config: RunConfig, stage: StageConfig, layout: Layout, width: int) -> float:
    """Return the bytes that attention exchanges between processes that share tokens; the gathered results are few."""
    if layout.context == 1:
        return 0.0
    models, tokens = whole_models(config), count_tokens(config, stage)
    passes = 3 if config.gradient_checkpointing else 2
    channels = 0
    for part in trained_parts(stage):
        if part == "head":
            continue
        sizes: Any = models[part].config
        # Spatial attention, and attention across frames unless a place's frames lie on one process.
        layers = 2 if part == "planner" or stage.temporal_attention == "spatiotemporal" else 1
        channels += tokens[part] * layers * sizes.num_layers * sizes.num_attention_heads * sizes.attention_head_dim
    rows = -(-stage.windows_per_step // layout.data_ranks)
    return rows * passes * EXCHANGED * channels * width / layout.context * (1 - 1 / layout.context)


def count_sharing(
    config: RunConfig,
    stage: StageConfig,
    costs: StageCosts,
    layout: Layout,
    bandwidth: Bandwidth | None = None,
    flops_per_second: float | None = None,
) -> Sharing:
    """Return how a layout shares a stage, as it is configured, whose costs under the layout are given."""
    total = costs.batch
    shapes = config.by_bucket(stage.model_copy(update={"global_batch": total}))  # also for other numbers of processes
    shares = [bucket.share for bucket in costs.buckets]

    def sent(layout: Layout) -> tuple[float, float]:
        of_shapes = [count_sent(config, shape.for_processes(layout.data_ranks), layout) for shape in shapes]
        within, across = (sum(share * each for share, each in zip(shares, kind)) for kind in zip(*of_shapes))
        return within, across

    def gathering(layout: Layout) -> float | None:
        if bandwidth is None:
            return None
        within, across = sent(layout)
        return within / bandwidth.within + across / bandwidth.across

    def computing(layout: Layout) -> float | None:
        if flops_per_second is None:
            return None
        rows = -(-total // layout.data_ranks)
        return costs.operations_per_step / total * rows / layout.context / flops_per_second

    most, limit = layout.of_data_ranks(total), "one window each"
    if bandwidth is not None and flops_per_second is not None:
        for rows in range(1, total + 1):
            most = layout.of_data_ranks(-(-total // rows))
            if most.processes == 1 or gathering(most) <= computing(most):
                break
            limit = "more would gather longer than compute"
    windows = -(-total // layout.data_ranks)
    return Sharing(
        windows, 1 - total / (windows * layout.data_ranks), *sent(layout), gathering(layout), computing(layout),
        most.processes, limit,
    )  # fmt: skip


def sharing_notes(config: RunConfig, layout: Layout) -> list[str]:
    """Return a sentence on each stage, resolved for a layout, whose processes wait for each other for long."""
    found = []
    for stage in config.stages:
        total, ranks = stage.windows_per_step, layout.data_ranks
        windows = -(-total // ranks)
        waiting = 1 - total / (windows * ranks)
        if ranks > total:
            found.append(
                f"stage {stage.name!r}: {ranks - total} of {ranks} processes have no window of a step, which has "
                f"{total}; use at most {layout.of_data_ranks(total).processes} processes, or raise `global_batch`"
            )
        elif waiting > WORTH_A_NOTE:
            enough = layout.of_data_ranks(-(-total // windows)).processes
            found.append(
                f"stage {stage.name!r}: {total} windows do not divide by {ranks}, so that processes wait for those "
                f"with {windows}, {waiting:.0%} of the time; {enough} processes would be as fast"
            )
    return found


def gathering_notes(stages: Sequence[StageCosts], shared: Sequence[Sharing]) -> list[str]:
    """Return a sentence on each stage whose steps gather for longer than they compute."""
    return [
        f"stage {stage.name!r}: a step gathers for {each.gathering:.3g} s and computes for {each.computing:.3g} s, so "
        f"that the stage takes {each.gathering * stage.steps / 3600:.3g} hours and not {stage.hours:.3g}; at most "
        f"{each.most_processes} processes make sense"
        for stage, each in zip(stages, shared, strict=True)
        if each.gathering is not None and each.computing is not None and each.gathering > each.computing
    ]


def sharing_rows(stages: Sequence[StageCosts], shared: Sequence[Sharing]) -> list[tuple]:
    """Return the rows of a table, with its head."""
    rows: list[tuple] = [
        ("stage", "windows each", "waiting", "GB within", "across", "s gathering", "s computing",
         "most processes", "because")
    ]  # fmt: skip
    for stage, each in zip(stages, shared, strict=True):
        rows.append(
            (stage.name, each.windows, f"{each.waiting:.1%}", _number(each.within / 1e9),
             _number(each.across / 1e9), _number(each.gathering), _number(each.computing), each.most_processes,
             each.limit)
        )  # fmt: skip
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
