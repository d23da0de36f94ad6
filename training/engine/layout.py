"""How the processes of a run share it: copies of the weights, shards of them, and frames cut into tokens.

Pure numbers, for the plan, too; `sharding.py` makes torch's device meshes of them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    """The processes of a run: `copies` groups of `shards` processes; the processes of a group share one copy of the
    weights.

    Neighbours are in one group: with as many shards as a node has devices, weights are gathered within the node, and
    only gradients cross it.

    Args:
        copies: of the weights.
        shards: into which each copy is cut; 1 where every process holds all weights.
        context: processes, neighbours in a group, that share the tokens of the same windows.
    """

    copies: int = 1
    shards: int = 1
    context: int = 1

    def __post_init__(self):
        if min(self.copies, self.shards, self.context) < 1:
            raise ValueError(f"copies, shards and context must be at least 1, got {self}")
        if self.shards % self.context:
            raise ValueError(
                f"{self.context} processes are to share the tokens of a window (cp_size), but the weights are cut into "
                f"{self.shards} shards, which that does not divide; use another number of either"
            )

    @classmethod
    def sharded(cls, processes: int, copies: int = 1, shards: int = 1, context: int = 1) -> "Layout":
        """Return the layout of FSDP2 by accelerate's sizes, of which 1 means: as many as the others leave.

        Args:
            processes: of the run.
            copies: `dp_replicate_size`.
            shards: `dp_shard_size`; of one copy, not counting those that share tokens.
            context: `cp_size`.

        Raises:
            ValueError: if the sizes do not make up the number of processes.
        """
        if shards == 1:
            shards = max(1, processes // (copies * context))
        elif copies == 1:
            copies = max(1, processes // (shards * context))
        if copies * shards * context != processes:
            raise ValueError(
                f"there are {processes} processes, but {copies} copies of the weights (dp_replicate_size) x {shards} "
                f"shards (dp_shard_size) x {context} that share tokens (cp_size) are {copies * shards * context}; "
                "change one of these numbers"
            )
        return cls(copies, shards * context, context)

    @classmethod
    def of_start(cls, start: Mapping[str, Any]) -> "Layout":
        """Return the layout of a line of `starts.jsonl`; older ones have the number of processes alone."""
        return cls(**start["layout"]) if "layout" in start else cls(copies=start["processes"])

    def of_data_ranks(self, ranks: int) -> "Layout":
        """Return the same kind of layout for so many shares of the windows, or the few more that fill its groups."""
        if self.shards == 1:
            return Layout(copies=ranks)
        if self.copies == 1:
            return Layout(shards=ranks * self.context, context=self.context)
        return Layout(-(-ranks * self.context // self.shards), self.shards, self.context)

    @property
    def processes(self) -> int:
        """Return the number of processes."""
        return self.copies * self.shards

    @property
    def data_ranks(self) -> int:
        """Return among how many a step's windows are dealt out: processes, or groups that share tokens."""
        return self.processes // self.context

    def data_rank(self, process: int) -> int:
        """Return which share of the windows a process has."""
        return process // self.context

    def as_json(self) -> dict[str, int]:
        """Return the numbers for the records of a run."""
        return asdict(self)

    def __str__(self) -> str:
        if self.processes == 1:
            return "one process"
        words = [f"{self.copies} copies"] if self.copies > 1 else []
        words += [f"{self.shards} shards"] if self.shards > 1 else []
        words += [f"{self.context} that share tokens"] if self.context > 1 else []
        return f"{self.processes} processes: {', '.join(words)}"


ONE_PROCESS = Layout()
