"""Commands about a model: count its costs, share it on the Hub."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from huggingface_hub.utils import disable_progress_bars

from .. import costs, hub
from ..hardware import DTYPES
from ..measured_sampling import USUAL_STEPS
from ..sizes import parse_size, sides
from .checkpoints import folder_of_configs, resolve_checkpoint
from .checks import as_usage_errors, check_count, check_model_options
from .messages import is_terminal, note, tell
from .options import CommandOptions, Frames, Model, ModelOptions, Size, command


@command(ModelOptions)
def info(
    options: ModelOptions,
    model: Model = None,
    frames: Frames = None,
    size: Size = None,
    steps: Annotated[int, typer.Option(help="Denoising steps that are counted.")] = USUAL_STEPS,
) -> None:
    """Count parameters, floating-point operations and memory of each part. Allocates nothing, and downloads no weights.

    Memory is counted for --dtype, by default bfloat16.

    Example: mardini info mardini-l-t --size 512
    """
    check_model_options(options)
    check_count("--frames", frames, 3)
    check_count("--steps", steps)
    height = width = None
    if size is not None:
        with as_usage_errors():
            height, width = sides(parse_size(size))
    model = model or resolve_checkpoint(options.checkpoint)
    data_type = DTYPES.get(options.dtype, torch.bfloat16)
    note(f"Counting {model} for one window with a first and a last frame, {steps} steps, {data_type}")
    counted = costs.count_model(folder_of_configs(model), frames, height, width, steps, data_type)
    tell(
        options, str(counted), model=model, steps=steps, dtype=str(data_type).removeprefix("torch."), **asdict(counted)
    )


@command(CommandOptions)
def push(
    folder: Annotated[Path, typer.Argument(help="A saved pipeline, or a folder of LoRA weights.", show_default=False)],
    repo: Annotated[
        str,
        typer.Argument(help="Repository on the Hub, owner/name. Created if it does not exist.", show_default=False),
    ],
    options: CommandOptions,
    yes: Annotated[bool, typer.Option("--yes", "--no-dry-run", help="Really send. Else only look and show.")] = False,
    facts: Annotated[
        Path | None, typer.Option(help="JSON with facts for the card, if the folder has no README.md.")
    ] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    pull_request: Annotated[bool, typer.Option("--pull-request", help="Propose the commit only.")] = False,
) -> None:
    """Show which files of a folder would go to the Hub, and the card; with --yes send them. Refuses unsafe or partial
    folders.

    The token is that of `hf auth login` or of the environment variable HF_TOKEN.

    Example: mardini push outputs/mine you/mine
    """
    upload = hub.plan_upload(folder, repo, hub.read_facts_file(facts) if facts else None)
    known = {"repo": repo, "files": upload.files, "notes": upload.notes}
    if not yes:
        shown = f"{hub.describe(upload)}\n\nNothing was sent. --yes sends this to {repo}."
        tell(options, shown, **known, sent=False, address=None)
        return
    if not options.json:
        print(hub.describe(upload))
    note(f"Sending to {repo}")
    if not is_terminal():
        disable_progress_bars()
    address = hub.push(upload, message, private or None, create_pr=pull_request)
    tell(options, f"Sent {len(upload.files) + 1} files: {address}", **known, sent=True, address=address)
