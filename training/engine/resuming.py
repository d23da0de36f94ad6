"""Save the state of a run from all its processes; resume it, unless the configuration changed in what matters.

A checkpoint is the same whichever way the processes shared the tensors: two processes under FSDP2 may write it, and
one process, or several under DDP, resume from it. The files are in `checkpoint.py`, the thread that writes them in
`writing.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from training.config.schema import RunConfig, default_of, shaping_fields
from training.engine.checkpoint import Checkpoint, CheckpointError, load_checkpoint, newest_checkpoint
from training.engine.ema import AveragedWeights
from training.engine.gradient_steps import GradientSteps
from training.engine.optimizers import learned
from training.engine.sharding import fill_from
from training.engine.tensor_files import TensorFiles
from training.engine.writing import CheckpointWriter


@dataclass(frozen=True)
class Position:
    """The position of a run in its stages.

    Args:
        stage, step: the stage's name and the number of its finished steps.
        global_step, windows_seen: over all stages.
        attempt: how often the run has gone back.
        skipped: steps that were skipped as not finite: in all, and in a row.
    """

    stage: str
    step: int
    global_step: int = 0
    windows_seen: int = 0
    attempt: int = 0
    skipped: tuple[int, int] = (0, 0)


_STATE = (*(field.name for field in fields(Position)), "ema_steps", "shaped_by")


class RunCheckpoints:
    """Save and load the checkpoints of a run; every process must call every method.

    Args:
        config: the run, resolved for its processes.
        accelerator: the processes.
        models: planner, transformer and head, sharded or not; frozen weights are not saved.
        averages: of their weights.
        folder: of the checkpoints.
        allow_change: dotted keys of `config` that may differ from what a checkpoint was trained with.
        frozen: digests of weights that are used and not saved, by key of the configuration; they must not change.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        models: torch.nn.ModuleDict,
        averages: AveragedWeights,
        folder: Path,
        allow_change: Sequence[str] = (),
        frozen: Mapping[str, str] | None = None,
    ):
        self.config = config
        self.accelerator = accelerator
        self.models = models
        self.averages = averages
        self.folder = folder
        self.allow_change = allow_change
        self.frozen = frozen or {}
        self.more: dict = {}  # of the loaded checkpoint
        # Medians of training losses come late.
        late_news = config.data.validation is None
        self.writer = CheckpointWriter(folder, accelerator, config.keep_checkpoints, late_news)
        self._loaded: Checkpoint | None = None  # until its optimizers are made

    def save(self, position: Position, gradient_steps: GradientSteps, more: dict, good_until: int) -> None:
        """Begin to write a checkpoint, of copies that the process keeps until then; see `CheckpointWriter`.

        Args:
            position: of the run.
            gradient_steps: of the stage.
            more: further state as JSON, which `load` puts into the attribute of the same name.
            good_until: see `checkpoint.complete`.

        Raises:
            CheckpointError: on every process, if one could not write the checkpoint before.
        """
        state = {
            **asdict(position), "ema_steps": self.averages.updates,
            "shaped_by": self._shaped_by(position.stage), "more": more,
        }  # fmt: skip
        checkpoint = Checkpoint(learned(self.models), self.averages.tensors, *gradient_steps.state(), state)
        self.writer.begin(checkpoint, good_until)

    def load(self, start_at: str | None) -> Position:
        """Restore weights and averages of the newest checkpoint; `load_optimizers` restores the rest later.

        Returns:
            The checkpoint's position; without a checkpoint, the beginning of `start_at` or of the first stage.

        Raises:
            ValueError: if the checkpoint was trained with another configuration, or `start_at` does not fit it.
            CheckpointError: if it is damaged.
        """
        stages = self.config.stages
        names = [stage.name for stage in stages]
        path = self._newest()
        if path is None:
            if start_at is not None and self.config.init_from is None and start_at != names[0]:
                raise ValueError(
                    f"stage {start_at!r} cannot be the first without weights to start from; give `init_from`, for "
                    "example the folder stages/<name> of another run"
                )
            first = names.index(start_at) if start_at else 0
            return Position(names[first], 0, sum(stage.steps for stage in stages[:first]))
        checkpoint = self._read(path)
        state = checkpoint.state
        self._check_configuration(path, state, names, start_at)
        self._put_in_place(checkpoint)
        self.more = state.get("more", {})  # older checkpoints have none
        self._loaded = checkpoint
        self.accelerator.print(f"resuming {path}: stage {state['stage']}, step {state['step']}")
        position = {field.name: state[field.name] for field in fields(Position)}
        return Position(**{**position, "skipped": tuple(position["skipped"])})

    def written_averages(self) -> Mapping[str, torch.Tensor]:
        """Return the averages of the checkpoint that was begun or loaded last, whole tensors out of its files.

        Raises:
            CheckpointError: on every process, if it could not be written or read.
        """
        self.writer.finish()
        path = self._newest()
        assert path is not None, "stages and stopped runs end with a checkpoint"
        return self._read(path).averages

    def load_optimizers(self, gradient_steps: GradientSteps) -> None:
        """Restore the moments of the checkpoint that was loaded last, once, and close its files."""
        if self._loaded is not None:
            gradient_steps.load_state(self._loaded.moments, self._loaded.optimizers)
            self._loaded = None

    def _newest(self) -> Path | None:
        """Return the newest checkpoint that the main process finds: on a file system of a network others may be late."""
        path, error = None, None
        if self.accelerator.is_main_process:
            try:
                path = newest_checkpoint(self.folder)
            except CheckpointError as found:
                error = str(found)
        shared = [path, error]
        broadcast_object_list(shared)
        if shared[1] is not None:
            raise CheckpointError(shared[1])
        return shared[0]

    def _read(self, path: Path) -> Checkpoint:
        """Open a checkpoint on every process; they share the work of checking it, and fail together."""
        error, checkpoint = None, None
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        try:
            checkpoint = load_checkpoint(path, _STATE, rank, ranks)
        except CheckpointError as found:
            error = str(found)
        if errors := [text for text in gather_object([error]) if text is not None]:
            raise CheckpointError(errors[0])
        assert checkpoint is not None, "a process that could not read it has failed"
        return checkpoint

    def _check_configuration(self, path: Path, state: dict, names: list[str], start_at: str | None) -> None:
        if state["stage"] not in names:
            raise ValueError(
                f"{path} stands in stage {state['stage']!r}, which the configuration does not have ({names}); "
                "use the configuration it was trained with (and --longer, if it was trained longer), or another "
                "`name` for a new run"
            )
        if start_at is not None and names.index(state["stage"]) < names.index(start_at):
            raise ValueError(
                f"{path} stands in stage {state['stage']!r}, before {start_at!r}; leave the stage out to go on from "
                "there, or use another `name` and `init_from`"
            )
        now = self._shaped_by(state["stage"])
        # A key that did not exist when the checkpoint was written had its default.
        then = {key: default_of(key) for key in now} | state["shaped_by"]
        changed = [
            f"  {_typed(key)}: {then[key]!r} then, {now.get(key)!r} now"
            for key in sorted(then)
            if now.get(key) != then[key] and not {key, _typed(key)} & set(self.allow_change)
        ]
        if changed:
            raise ValueError(
                "\n".join(
                    [f"{path} was trained with another configuration:", *changed,
                     "put these back, use another `name` for a new run, or accept them by name with --allow-change"]
                )
            )  # fmt: skip

    def _put_in_place(self, checkpoint: Checkpoint) -> None:
        assert isinstance(checkpoint.weights, TensorFiles) and isinstance(checkpoint.averages, TensorFiles)
        for name, parameter in learned(self.models).items():
            fill_from(parameter, checkpoint.weights, name)
            fill_from(self.averages.tensors[name], checkpoint.averages, name)
        self.averages.updates = checkpoint.state["ema_steps"]

    def _shaped_by(self, stage_name: str) -> dict:
        """Return what the weights at this stage depend on; later stages may still be edited."""
        names = [stage.name for stage in self.config.stages]
        passed = self.config.stages[: names.index(stage_name) + 1]
        shaped = shaping_fields(self.config, [stage.name for stage in passed])
        shaped["mixed_precision"] = self.accelerator.mixed_precision  # `auto` depends on the machine
        shaped |= self.frozen
        return shaped | {f"stages.{stage.name}.windows_per_step": stage.windows_per_step for stage in passed}


def _typed(key: str) -> str:
    """Return the key that users type for one of `_shaped_by`."""
    return key.replace(".windows_per_step", ".batch_size")
