"""Record what the scripts of training/runs/ would do: their commands, with a function in place of Python.

`Done` reads the commands in order and knows what each leaves behind, so that a script that compares what it has not
scored, or fills a block from it, is refused.
"""

import argparse
import os
import shutil
import subprocess
from pathlib import Path

from diffusers_mardini.masking import task_indices
from training import counterfactuals, drift, drives, evaluate
from training.config.layers import load_config
from training.evaluation import methods as methods_of
from training.evaluation.altered_signals import DROPPED, OTHER
from training.evaluation.drift import Arm
from training.evaluation.methods import WITHOUT_CONDITIONS, SamplerSettings, baselines
from training.page_blocks import block_names
from training.reproduction import degraded_signals, planner_alone, run_costs, slow_motion_doubling, table_3
from training.train_autoencoder import AutoencoderTrainingConfig


ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "training" / "runs"
# Blocks that a program knows by itself.
OF_PROGRAMS = {
    "long_video_quality": {"slow motion", "slow motion, paired", "extension", "far extension"},
    "places_between": {"places between"},
    "figure_6a": {"table"},
    "table_3": {"timed", "operations", "memory", "paper sizes"},
}
CEILING = "autoencoder alone (ceiling)"
Labels = set[str] | set[tuple[str, ...]] | None


def filling_scripts() -> list[str]:
    """Return the names of the scripts that fill a page."""
    return sorted(path.name for path in SCRIPTS.glob("*.sh") if _fills(path.read_text(encoding="utf-8")))


def _fills(text: str) -> bool:
    return any(word in text for word in ("pages.inc.sh", "reproduction.inc.sh", "--page ", "own_clips docs/")) and (
        "docs/results/" in text and "# Sourced by" not in text
    )


def commands(script: str, folder: Path, text: str | None = None, **settings: str) -> list[list[str]]:
    """Return the arguments of every call of Python, in order.

    Args:
        script: its name.
        folder: an empty one, in which it runs.
        text: in place of its own.
        settings: environment variables.

    Raises:
        AssertionError: if the script fails.
    """
    runs = folder / "training" / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    for path in SCRIPTS.glob("*.sh"):
        shutil.copy(path, runs)
    if text is not None:
        (runs / script).write_text(text, encoding="utf-8")
    told = folder / "told"
    told.unlink(missing_ok=True)
    environment = {"PATH": os.environ["PATH"], "PYTHON": "write_down", "TOLD": str(told), "RACING": "laps"}
    environment |= {"BESIDE": "AMD=amd", **settings}
    # An exported function: a process for each command would take seconds.
    body = '() { printf "%s\\0" "$@" >> "$TOLD"; printf "\\n" >> "$TOLD"; }'
    arguments = ["clips"] if script in ("mardini-tiny-robot.sh", "own-clips.sh") else []
    done = subprocess.run(
        ["bash", f"training/runs/{script}", *arguments], cwd=folder, capture_output=True, text=True,
        env={**environment, "BASH_FUNC_write_down%%": body},
    )  # fmt: skip
    assert done.returncode == 0, f"{script}: {done.stderr}"
    lines = told.read_text(encoding="utf-8").split("\n")[:-1] if told.is_file() else []
    return [line.rstrip("\0").split("\0") for line in lines]


class Done:
    """Hold what commands have left behind.

    Attributes:
        trained: folders of runs and autoencoders.
        rows: names of the methods by the folder of an evaluation.
        arms: names of the ways of continuing, and the ranges of frames, by the folder of a drift.
        files: what benchmarks and fits have written.
        filled: the first cells of the rows by page and block; `None` where they are not known.
        pictures: files that are drawn.
    """

    def __init__(self):
        self.trained: set[str] = set()
        self.rows: dict[str, set[str]] = {}
        self.arms: dict[str, tuple[set[str], set[str]]] = {}
        self.files: set[str] = set()
        self.filled: dict[str, dict[str, set[tuple[str, ...]] | None]] = {}
        self.pictures: set[str] = set()

    def follow(self, recorded: list[list[str]]) -> "Done":
        """Read commands in order; raise `AssertionError` where one needs what none before it has made."""
        for command in recorded:
            start = len(command) - command[::-1].index("-m")  # after the last one: programs run others
            name, arguments = command[start].rpartition(".")[2], command[start + 1 :]
            if command[start] == "training.drift":
                name = "drift"
            handler = getattr(self, f"_{name}", None)
            if handler is not None:
                handler(arguments)
            elif name in OF_PROGRAMS:
                self._page_of(arguments, dict.fromkeys(OF_PROGRAMS[name]))
            self.pictures |= {text.rpartition("=")[2] for text in arguments if text.endswith(".png")}
            if "--pictures" in arguments:
                folder = after(arguments, "--pictures")
                shown = ("slow_motion", "extension", "extension_sheet", "far_sheet")
                self.pictures |= {f"{folder}/long_video_{name}.png" for name in shown}
        return self

    def _fill(self, page: str, blocks: dict[str, Labels]) -> None:
        tuples = {
            block: labels and {label if isinstance(label, tuple) else (label,) for label in labels}
            for block, labels in blocks.items()
        }
        self.filled.setdefault(page, {}).update(tuples)

    def _page_of(self, arguments: list[str], blocks: dict[str, Labels]) -> None:
        if "--page" in arguments:
            self._fill(after(arguments, "--page"), blocks)

    def _block_of(self, arguments: list[str], labels: Labels) -> None:
        if "--page" in arguments:
            page, name = arguments[arguments.index("--page") + 1 :][:2]
            assert name in block_names(ROOT / page), f"{page} has no block {name!r}"
            self._fill(page, {name: labels})

    # Training and scoring.

    def _train_mardini(self, arguments: list[str]) -> None:
        names = [text.removeprefix("name=") for text in arguments if text.startswith("name=")]
        self.trained.add(f"runs/{names[-1] if names else load_config(ROOT / arguments[0]).name}")
        for text in arguments:
            if text.startswith("init_from=runs/"):
                self._need(text.removeprefix("init_from=").partition("/stages/")[0])

    def _train_autoencoder(self, arguments: list[str]) -> None:
        config = AutoencoderTrainingConfig.from_yaml(ROOT / arguments[0], arguments[1:])
        self.trained.add(str(config.output))

    def _need(self, run: str) -> None:
        assert run in self.trained, f"{run} is used and was not trained before"

    def _need_checkpoint(self, checkpoint: str) -> None:
        if not checkpoint.startswith("checkpoints/"):
            self._need(checkpoint.removesuffix("/pipeline"))

    def _evaluate(self, arguments: list[str]) -> None:
        options = evaluate._parser().parse_args(arguments)
        self._need_checkpoint(options.checkpoint)
        settings = SamplerSettings(tuple(options.steps), tuple(options.scheduler), options.guidance_scale)
        names = {settings.label(steps, scheduler) for scheduler in options.scheduler for steps in options.steps}
        altered = [a for a, wanted in ((DROPPED, options.no_planning), (OTHER, options.wrong_planning)) if wanted]
        names |= {settings.label(options.steps[0], options.scheduler[0], alteration) for alteration in altered}
        if options.no_planning:  # of a checkpoint that takes conditions
            names.add(settings.label(options.steps[0], options.scheduler[0], DROPPED) + WITHOUT_CONDITIONS)
        if options.no_conditions:
            names.add(settings.label(options.steps[0], options.scheduler[0]) + WITHOUT_CONDITIONS)
        names |= simple_methods(options.task, 9) | {CEILING}
        names |= {f"told {text}" for text in options.condition_scale}
        if options.train_clips:
            names.add("best match among training windows")
        self.rows[str(options.output)] = names

    def _planner_alone(self, arguments: list[str]) -> None:
        self._need(arguments[0])
        self.rows[after(arguments, "-o")] = {planner_alone.METHOD}

    def _degraded_signals(self, arguments: list[str]) -> None:
        options = degraded_signals._parser().parse_args(arguments)
        self._need_checkpoint(options.checkpoint)
        own = SamplerSettings().label(options.steps)
        altered = degraded_signals.alterations(
            options.noise, options.dropped, options.squares, options.reach, options.sides
        )
        names = simple_methods(options.task, 9) | {CEILING, own} | {own + each.suffix for each in altered}
        self.rows[str(options.output)] = names
        pairs = {f"{own} − {name}" for name in names}
        self._page_of(arguments, {"scores": names, "differences": pairs, "information": None})

    def _drift(self, arguments: list[str]) -> None:
        options = drift._parser().parse_args(arguments)
        self._need_checkpoint(options.checkpoint)
        folder = f"{options.output}/{drift.checkpoint_name(options.checkpoint)}"
        ranges = {_text_of(*span) for span in drift.chosen_ranges(options.range or drift.RANGES, options.frames)}
        self.arms[folder] = {Arm.read(text, Arm("")).name for text in options.arm}, ranges

    def _counterfactuals(self, arguments: list[str]) -> None:
        self._write_for_checkpoint(counterfactuals._parser().parse_args(arguments), "counterfactuals")

    def _drives(self, arguments: list[str]) -> None:
        self._write_for_checkpoint(drives._parser().parse_args(arguments), "drives")

    def _write_for_checkpoint(self, options: argparse.Namespace, program: str) -> None:
        self._need_checkpoint(options.checkpoint)
        self.files.add(f"{options.output}/{counterfactuals.checkpoint_name(options.checkpoint)}/{program}.md")

    def _asymmetry(self, arguments: list[str]) -> None:
        self.files.add(after(arguments, "-o"))

    def _fit(self, arguments: list[str]) -> None:
        self.files.add(arguments[1])

    # Filling.

    def _comparison(self, arguments: list[str]) -> None:
        methods = arguments[: arguments.index("-o")]
        for method in methods:
            folders, _, row = method.partition("=")[2].partition(":")
            for folder in folders.split(","):
                assert folder in self.rows, f"{method} was not scored before"
                assert not row or row in self.rows[folder], f"{folder} has no row {row!r}"
        labels = [method.partition("=")[0] for method in methods]
        if "--page" in arguments:
            page, name = arguments[arguments.index("--page") + 1 :][:2]
            seeds = {len(method.partition("=")[2].partition(":")[0].split(",")) for method in methods}
            pairs = {f"{each} − {labels[0]}" for each in labels[1:]}
            pairs |= {f"{pair}, training {n}" for pair in pairs for n in range(1, min(seeds) + 1) if seeds != {1}}
            blocks = {name: pairs.union(labels), f"{name}, differences": pairs}
            there = {block: rows for block, rows in blocks.items() if block in block_names(ROOT / page)}
            assert there, f"{page} has no block {name!r}"
            self._fill(page, there)

    def _released_models(self, arguments: list[str]) -> None:
        results, *pages = arguments[: min(arguments.index(f) for f in ("--picture", "--only") if f in arguments)]
        for page in pages:
            for block in block_names(ROOT / page):
                folders = [f"{results}/{name}" for name in block.removesuffix(", short").split(" + ")]
                for folder in folders:
                    assert folder in self.rows, f"{folder} was not scored before"
                rows = set.union(*(self.rows[folder] for folder in folders))
                self._fill(page, {block: rows | {f"{row} − {other}" for row in rows for other in rows}})

    def _figure_6a(self, arguments: list[str]) -> None:
        for folder in arguments[:2]:
            assert folder in self.rows, f"{folder} was not scored before"
        self._page_of(arguments, {"table": None})

    def _told_motion(self, arguments: list[str]) -> None:
        told = [row for row in self.rows.get(arguments[0], ()) if row.startswith("told motion=")]
        assert told, f"{arguments[0]} was not told another motion before"
        self._block_of(arguments, None)

    def _copied_result(self, arguments: list[str]) -> None:
        assert arguments[0] in self.files, f"{arguments[0]} was not written before"
        if "--picture" in arguments:
            self.pictures.add(after(arguments, "--picture"))
        self._block_of(arguments, None)

    def _rates(self, arguments: list[str]) -> None:
        for text in (text for text in arguments if "=" in text):
            for folder in text.partition("=")[2].split(","):
                assert folder in self.rows, f"{folder} was not scored before"
        self._block_of(arguments, None)

    def _run_costs(self, arguments: list[str]) -> None:
        named = arguments[: arguments.index("--page")] if "--page" in arguments else arguments
        for text in named:
            name = text.partition("=")[2].split()[0]
            assert (ROOT / run_costs.CONFIGS / f"{name}.yaml").is_file(), text
        self._block_of(arguments, {text.partition("=")[0] for text in named})

    def _curves(self, arguments: list[str]) -> None:
        self._need_runs(arguments)
        self._block_of(arguments, None)

    def _gradient_noise(self, arguments: list[str]) -> None:
        self._block_of(arguments, self._need_runs(arguments))

    def _need_runs(self, arguments: list[str]) -> set[str]:
        named = [text for text in arguments if "=runs/" in text]
        assert named
        for text in named:
            for run in text.partition("=")[2].split(","):
                self._need(run)
        return {text.partition("=")[0] for text in named}

    def _drift_comparison(self, arguments: list[str]) -> None:
        labels, measured = [], set()
        for method in (text for text in arguments if "=" in text):
            label, _, rest = method.partition("=")
            folders, _, arm = rest.partition(":")
            for folder in folders.split(","):
                assert folder in self.arms, f"{folder} was not continued before"
                arms, measured = self.arms[folder]
                assert not arm or arm in arms, f"{folder} has no arm {arm!r}"
            labels.append(label)
        places = [i for i, word in enumerate(arguments) if word == "--range"]
        shown = {_text_of(*arguments[i + 1 : i + 3]) for i in places} or measured
        assert shown <= measured, f"{sorted(shown - measured)} was not measured before"
        rows = [
            *labels,
            *(f"{label} − {labels[0]}" for label in labels[1:]),
            "clear from, beside the chance of trainings",
        ]
        self._block_of(arguments, {(row, span) for row in rows for span in shown})

    def _slow_motion_doubling(self, arguments: list[str]) -> None:
        page = after(arguments, "--page") if "--page" in arguments else None
        options = slow_motion_doubling._parser().parse_args(arguments)
        most = options.apart * (1 if options.finer is None else 2)
        methods = slow_motion_doubling.METHODS
        rows = {
            (f"{8 * factor + 1:,} frames", str(factor), name)
            for factor in options.factors
            for kind, name in methods.items()
            if kind != methods_of.CEILING or factor <= most
        }
        if page:
            self._fill(page, {slow_motion_doubling.BLOCK: rows})

    def _clips_by_speed(self, arguments: list[str]) -> None:
        self.files.add(f"{after(arguments, '-o')}/motion.json")
        self._block_of(arguments, None)

    def _motion_predicts(self, arguments: list[str]) -> None:
        assert arguments[0] in self.files, f"{arguments[0]} was not written before"
        for text in (text for text in arguments if "=" in text):
            for folder in text.partition("=")[2].split(","):
                assert folder in self.rows, f"{folder} was not scored before"
        self._block_of(arguments, None)

    def _table_3(self, arguments: list[str]) -> None:
        wanted = [f"{part}-{size}" for part in ("timed", "memory") for size in table_3.SIZES]
        for name in (*wanted, "counted-tiny", "counted"):
            assert f"{arguments[0]}/{name}.json" in self.files, f"{name} was not measured before"
        self._page_of(arguments, dict.fromkeys(OF_PROGRAMS["table_3"]))

    def _robot_choices(self, arguments: list[str]) -> None:
        table, *sources = arguments[: arguments.index("--page")]
        if table == "paces":
            for text in sources:
                assert text.partition("=")[2] in self.rows, f"{text} was not scored before"
        for folder in sources[:1] if table == "losses" else sources if table == "autoencoders" else []:
            self._need(folder)
        self._block_of(arguments, None)

    def _own_clips(self, arguments: list[str]) -> None:
        page, *fits = arguments
        for fit in fits:
            assert fit in self.files, f"{fit} was not fitted before"
        self._fill(page, {Path(fit).name: None for fit in fits})


def _text_of(first: int | str, last: int | str) -> str:
    return f"{first} to {last}"


def after(arguments: list[str], flag: str) -> str:
    """Return the argument that follows a flag."""
    return arguments[arguments.index(flag) + 1]


def simple_methods(task: str, num_frames: int) -> set[str]:
    """Return the names of the simple methods of a task."""
    return {method.name for method in baselines(2, task_indices(task, num_frames), num_frames, None)}
