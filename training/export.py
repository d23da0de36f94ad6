"""Make a pipeline, or an adapter, of a checkpoint of a run: `python -m training.export runs/NAME [-o FOLDER]`.

The run may be training, stopped, failed or finished. The folder holds the averaged weights, as the trainer's own
results do, and loads with `from_pretrained` (`load_lora_weights` for an adapter).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from training.config.layers import read_run_config
from training.data.buckets import heldout_window_request
from training.data.manifest_files import read_entries
from training.data.windows import usual_window
from training.engine.adapter import export_adapter
from training.engine.checkpoint import list_checkpoints, load_checkpoint, newest_checkpoint, step_of
from training.engine.exporting import export_pipeline
from training.engine.guards import absurd_weights
from training.engine.models import build_models, load_vae, make_models, make_scheduler, model_arguments
from training.engine.optimizers import learned


def export(run: Path, output: Path | None = None, step: int | None = None) -> Path:
    """Write the pipeline or adapter of a checkpoint; return its folder.

    Args:
        run: folder of the run.
        output: by default `exports/step-…` in it.
        step: global step of the checkpoint; by default the newest.

    Raises:
        ValueError: if there is no such run or checkpoint, it is damaged, or its weights have blown up; or if `output`
            holds anything else than an export.
    """
    config = read_run_config(run)
    path = _checkpoint(run, step)
    output = output or run / "exports" / path.name
    mark = "model_index.json" if config.lora is None else "pytorch_lora_weights.safetensors"
    if output.exists() and not (output / mark).is_file():
        raise ValueError(f"{output} exists and is no export; give another folder with -o")
    checkpoint = load_checkpoint(path, needed=("stage",))
    stages = {stage.name: stage for stage in config.stages}
    if (name := checkpoint.state["stage"]) not in stages:
        raise ValueError(f"{path} stands in stage {name!r}, which {run / 'config.json'} does not have")
    # Without values: those of a pipeline come from the checkpoint's files alone.
    models = build_models(model_arguments(config), "meta") if config.lora is None else make_models(config)
    averages = checkpoint.averages
    if missing := learned(models).keys() - averages.keys():
        raise ValueError(f"{path} lacks {len(missing)} weights of this run's models, such as {min(missing)!r}")
    # One at a time: those of several processes' files are joined in memory.
    if absurd := [name for name in averages if absurd_weights({name: averages[name]})]:
        raise ValueError(f"the weights of {path} have blown up ({absurd[0]}); give an earlier one with --checkpoint")
    accelerator = Accelerator(cpu=True)
    window = usual_window(read_entries(run / "clips-train.parquet"), heldout_window_request(config, stages[name]))
    if config.lora is not None:
        return export_adapter(output, config, models, averages, window, accelerator)
    models["transformer"].set_temporal_attention(stages[name].temporal_attention)
    vae, scheduler = load_vae(config.vae, config.vae_subfolder), make_scheduler(config)
    return export_pipeline(output, config, models, averages, vae, scheduler, window, accelerator)


def _checkpoint(run: Path, step: int | None) -> Path:
    folder = run / "checkpoints"
    newest = newest_checkpoint(folder)
    if newest is None:
        raise ValueError(f"{run} has no checkpoint yet; the first one comes after `checkpoint_every` steps")
    if step is None:
        return newest
    by_step = {step_of(path): path for path in list_checkpoints(folder)}
    if step not in by_step:
        raise ValueError(f"{run} has no checkpoint of step {step}; it has {', '.join(map(str, by_step))}")
    return by_step[step]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run, runs/NAME")
    parser.add_argument("-o", "--output", type=Path, help="folder to write; default: exports/step-… in the run's")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="global step; default: the newest")
    options = parser.parse_args(arguments)
    try:
        print(f"Wrote {export(options.run, options.output, options.checkpoint)}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
