"""Fill a page with what the runs that it compares cost: parameters, windows seen and operations, counted, nothing run.

    python -m training.reproduction.run_costs "curriculum=pair" "last stage alone=direct" --page PAGE BLOCK

A run is a label and a configuration of `training/configs/reproduction`, with overrides after it, separated by spaces.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.config.layers import load_config
from training.config.schema import RunConfig
from training.evaluation.tables import markdown_table
from training.page_blocks import fill
from training.plan import make_plan


CONFIGS = Path("training/configs/reproduction")


@dataclass(frozen=True)
class RunCost:
    """What a run costs.

    Attributes:
        parameters: of planner and transformer.
        steps: by stage.
        windows: seen in all stages.
        operations: floating-point operations of all steps, backward passes included.
    """

    parameters: tuple[int, int]
    steps: dict[str, int]
    windows: int
    operations: float

    @classmethod
    def of(cls, config: RunConfig) -> "RunCost":
        """Count the costs of a run, without opening its clips or a run that it goes on from."""
        config = config.for_processes(1)
        # Compiled or not, a step has the same operations, and those of a compiled one can't be counted on the CPU.
        stages = [stage.model_copy(update={"compile": False}) for stage in config.stages]
        config = config.model_copy(update={"stages": stages, "init_from": None})
        plan = make_plan(config, with_data=False)
        return cls(
            (plan.parameters["planner"], plan.parameters["transformer"]),
            {stage.name: stage.steps for stage in stages},
            sum(stage.steps * stage.batch_size for stage in stages),
            sum(stage.operations for stage in plan.stages),
        )


def costs_table(runs: dict[str, RunCost]) -> str:
    """Return a row for each run in markdown; operations also as a share of the first run's."""
    first = next(iter(runs.values())).operations
    rows = []
    for label, cost in runs.items():
        planner, transformer = cost.parameters
        rows.append(
            [label, f"{planner / 1e6:.2f} M", f"{transformer / 1e6:.2f} M", f"{planner / (planner + transformer):.0%}",
             ", ".join(f"{stage} {steps}" for stage, steps in cost.steps.items()), f"{cost.windows:,}",
             f"{cost.operations:.3g}", f"{cost.operations / first:.2f}"]
        )  # fmt: skip
    columns = ["run", "planner", "transformer", "in the planner", "steps", "windows", "operations", "of the first's"]
    return markdown_table(columns, rows)


def read_run(text: str) -> tuple[str, RunConfig]:
    """Parse `LABEL=CONFIG [KEY=VALUE ...]`."""
    label, equals, rest = text.partition("=")
    name, *overrides = rest.split() or [""]
    path = CONFIGS / f"{name}.yaml"
    if not equals or not path.is_file():
        raise ValueError(f"{text!r} is not LABEL=CONFIG [KEY=VALUE ...] with a configuration of {CONFIGS}")
    return label, load_config(path, overrides)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.run_costs", description=__doc__.splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", metavar="LABEL=CONFIG [KEY=VALUE ...]", help="operations are compared with the first's")  # fmt: skip
    parser.add_argument("--page", nargs=2, metavar=("PAGE", "NAME"), help="markdown file and its block")
    options = parser.parse_args(arguments)
    try:
        table = costs_table({label: RunCost.of(config) for label, config in map(read_run, options.runs)})
        print(table)
        if options.page:
            fill(Path(options.page[0]), options.page[1], table)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
