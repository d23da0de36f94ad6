"""Keep the number of steps of each stage, which may change while a run trains, and its learning rates.

A stage with `stop_when_flat` ends early once its held-out losses are flat; a run with `hours` plans its remaining
stages anew from the measured speed. Every decision is kept in checkpoints, with the time used so far and the measured
costs, so that a resumed run has them. Without either key the steps are those of the configuration.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from training.config.schema import RunConfig, StageConfig
from training.curriculum import learning_rate_factor
from training.monitoring.heldout_trend import is_flat


REPLAN_SHARE = 0.02  # of `hours`, between two plans
COOL_DOWN = 0.1  # of a stage's steps, added after it has become flat, to let its learning rate decay
SLOW_STEPS = 2  # the first ones of a stage, and after a resume: they compile and fill caches
EVENTS = ("heldout", "samples", "checkpoint", "export", "reading")


@dataclass(frozen=True)
class _Turn:
    """The number of steps of a stage since a decision, and where its learning rate stood then.

    Attributes:
        steps: of the whole stage.
        since: the step of the decision.
        warmup: steps of warm-up left.
        risen, decayed: shares of warm-up and decay at `since`.
        settled: whether the stage ends there, whatever is planned later.
    """

    steps: int
    since: int = 0
    warmup: int = 0
    risen: float = 0.0
    decayed: float = 0.0
    settled: bool = False


class Schedule:
    """The steps and learning rates of a run's stages.

    Args:
        config: the run, in `steps`.
        clock: returns rising seconds.
        started: reading of the clock when this process started the run.
    """

    def __init__(self, config: RunConfig, clock: Callable[[], float] = time.monotonic, started: float | None = None):
        self.config = config
        self.clock = clock
        self.started = clock() if started is None else started
        self.used_before: float | None = None  # seconds of earlier starts; read once, from a checkpoint
        self.turns: dict[str, _Turn] = {}
        self.losses: list[float] = []  # mean held-out losses of the stage
        self.step_seconds: dict[str, float] = {}  # by stage
        self.event_seconds: dict[str, dict[str, float]] = {}  # by stage and event
        self._planned_at = self._marked_at = self.used()
        self._marked_step, self._between = 0, 0.0
        self._slow_until = 0

    def used(self) -> float:
        """Return the seconds that the run has taken over all its starts."""
        return (self.used_before or 0.0) + self.clock() - self.started

    def steps(self, stage: StageConfig) -> int:
        """Return the number of steps of a stage as it is planned now."""
        assert stage.steps is not None, "the run has its stages in steps"
        turn = self.turns.get(stage.name)
        return stage.steps if turn is None else turn.steps

    def reach(self, stage: StageConfig) -> int:
        """Return a number of steps beyond which the stage will not be lengthened."""
        return self.steps(stage) if self.config.hours is None else 2**62

    def factor(self, stage: StageConfig, step: int) -> float:
        """Return the factor of a stage's peak learning rate at a step."""
        final = stage.final_learning_rate / stage.learning_rate
        turn = self.turns.get(stage.name)
        if turn is None:
            return learning_rate_factor(step, stage.steps, stage.warmup_steps, final)
        return learning_rate_factor(
            step - turn.since, turn.steps - turn.since, turn.warmup, final, turn.risen, turn.decayed
        )

    def begin_stage(self, stage: StageConfig, step: int) -> None:
        """Begin or continue a stage at `step`."""
        if step == 0:
            self.losses = []
        self._slow_until = step + SLOW_STEPS
        self._mark(step)

    @contextlib.contextmanager
    def timed(self, stage: StageConfig, event: str) -> Iterator[None]:
        """Measure how long one of `EVENTS` takes in a stage; it does not count as time of steps.

        Raises:
            ValueError: for another event.
        """
        if event not in EVENTS:
            raise ValueError(f"there is no event {event!r}; events are {', '.join(EVENTS)}")
        began = self.clock()
        try:
            yield
        finally:
            seconds = self.clock() - began
            self._between += seconds
            own = self.event_seconds.setdefault(stage.name, {})
            own[event] = seconds if event not in own else min(own[event], seconds)  # windows are read once

    def is_due(self, step: int) -> bool:
        """Return whether the stages should be planned anew after `step` steps of this one; to be asked after each."""
        if self.config.hours is None:
            return False
        if step <= self._slow_until:
            self._mark(step)
            return False
        saving = max((own.get("checkpoint", 0.0) for own in self.event_seconds.values()), default=0.0)
        every = REPLAN_SHARE * self.config.hours * 3600
        measured = self.used() - self._marked_at - self._between
        waited = self.used() - self._planned_at
        # Where hardly any time goes to steps, few of them must do.
        return (measured >= every / 2 or waited >= 5 * every) and waited >= max(every, saving / REPLAN_SHARE)

    def heldout(self, stage: StageConfig, step: int, loss: float) -> dict | None:
        """Note a mean held-out loss; return the decision if the stage is to end early, `None` otherwise."""
        self.losses.append(loss)
        turn = self.turns.get(stage.name)
        if stage.stop_when_flat is None or (turn is not None and turn.settled):
            return None
        end = step + max(1, math.ceil(COOL_DOWN * step))
        if end >= self.steps(stage) or not is_flat(self.losses, stage.stop_when_flat):
            return None
        self._turn(stage, step, end, settled=True)
        return {
            "why": f"held-out losses are flat over {stage.stop_when_flat} measurements",
            "steps": {stage.name: end},
        }

    def plan(self, stage: StageConfig, step: int, operations: Mapping[str, float]) -> dict | None:
        """Plan this stage and the later ones for the rest of `hours`; return the decision, or `None` if none changed.

        Args:
            stage: the present one.
            step: its finished steps.
            operations: of a step of each stage, by which the speed of later stages is guessed.
        """
        self._measure(stage, step)
        self._planned_at = self.used()
        names = [each.name for each in self.config.stages]
        later = self.config.stages[names.index(stage.name) + 1 :]
        left = self.config.hours * 3600 - self.used()
        seconds = {each.name: self._seconds_per_step(each, stage, operations) for each in (stage, *later)}
        left -= sum(sum(self._events(each, stage).values()) for each in (stage, *later))  # at the end of each
        done = seconds[stage.name] * step
        whole = seconds[stage.name] * stage.steps
        rest = sum(seconds[each.name] * each.steps for each in later)
        turn = self.turns.get(stage.name)
        changed = {}
        if turn is None or not turn.settled:
            share = (left + done) / (whole + rest)
            least = step + max(1, math.ceil(REPLAN_SHARE * step))
            end = max(least, round(share * stage.steps))
            if self._differs(end, self.steps(stage), step):
                self._turn(stage, step, end)
                changed[stage.name] = end
        left -= seconds[stage.name] * (self.steps(stage) - step)
        for each in later:
            end = max(1, round(left / rest * each.steps))
            if self._differs(end, self.steps(each)):
                self._turn(each, 0, end)
                changed[each.name] = end
        if not changed:
            return None
        return {"why": f"{self.used() / 3600:.3g} of {self.config.hours:g} hours are used", "steps": changed}

    def is_measured(self, stage: StageConfig, event: str) -> bool:
        """Return whether one of `EVENTS` has been timed in a stage."""
        return event in self.event_seconds.get(stage.name, {})

    def adopt(self, turns: Mapping[str, dict]) -> None:
        """Take the decisions of the main process, from its `state`."""
        self.turns = {name: _Turn(**turn) for name, turn in turns.items()}

    def state(self) -> dict:
        """Return what a checkpoint keeps, as JSON."""
        return {
            "seconds": self.used(), "turns": {name: vars(turn) for name, turn in self.turns.items()},
            "losses": self.losses, "step_seconds": self.step_seconds, "event_seconds": self.event_seconds,
        }  # fmt: skip

    def load_state(self, state: dict, stage: str) -> None:
        """Restore what `state` returned in the stage of that name.

        Without `hours`, stages that have not begun have the steps of the configuration.
        """
        if self.used_before is None:  # going back to a checkpoint gives no time back
            self.used_before = state["seconds"]
        names = [each.name for each in self.config.stages]
        begun = names if self.config.hours is not None else names[: names.index(stage) + 1]
        self.turns = {name: _Turn(**turn) for name, turn in state["turns"].items() if name in begun}
        self.losses = list(state["losses"])
        self.step_seconds, self.event_seconds = dict(state["step_seconds"]), dict(state["event_seconds"])
        self._planned_at = self.used()

    def _turn(self, stage: StageConfig, step: int, end: int, settled: bool = False) -> None:
        """Let the stage end at `end`; its learning rate goes on from where it is at `step`."""
        own = _Turn(stage.steps, warmup=stage.warmup_steps)
        turn = self.turns.get(stage.name, own) if step else own  # not begun: what was planned before does not count
        warm, left = turn.warmup - (step - turn.since), end - step
        if warm > 0:
            done = (step - turn.since) / turn.warmup
            risen, decayed = turn.risen + (1 - turn.risen) * done, turn.decayed
            warm = min(warm, max(1, left // 10))
        else:
            share = (step - turn.since - turn.warmup) / max(1, turn.steps - turn.since - turn.warmup)
            risen, decayed, warm = 1.0, turn.decayed + (1 - turn.decayed) * min(1.0, share), 0
        self.turns[stage.name] = _Turn(end, step, warm, risen, decayed, settled)

    @staticmethod
    def _differs(new: int, old: int, step: int = 0) -> bool:
        """Return whether a number of steps is worth a decision."""
        return abs(new - old) > REPLAN_SHARE * (old - step)

    def _mark(self, step: int) -> None:
        self._marked_step, self._marked_at, self._between = step, self.used(), 0.0

    def _measure(self, stage: StageConfig, step: int) -> None:
        """Measure the seconds of a step since the last plan, in equal parts with those before."""
        if step > self._marked_step:
            now = (self.used() - self._marked_at - self._between) / (step - self._marked_step)
            before = self.step_seconds.get(stage.name, now)
            self.step_seconds[stage.name] = (now + before) / 2
        self._mark(step)

    def _events(self, stage: StageConfig, present: StageConfig) -> dict[str, float]:
        """Return the seconds of each event in a stage; before they are measured, those of the present one."""
        return {**self.event_seconds.get(present.name, {}), **self.event_seconds.get(stage.name, {})}

    def _seconds_per_step(self, stage: StageConfig, present: StageConfig, operations: Mapping[str, float]) -> float:
        """Return the seconds of a step with its share of held-out losses, pictures and checkpoints."""
        own = self.step_seconds.get(stage.name)
        if own is None:
            own = self.step_seconds[present.name] * operations[stage.name] / operations[present.name]
        every = {
            "heldout": self.config.validate_every, "samples": self.config.sample_every,
            "checkpoint": self.config.checkpoint_every,
        }  # fmt: skip
        events = self._events(stage, present)
        return own + sum(events.get(event, 0.0) / steps for event, steps in every.items() if steps)
