"""Commands about a model: count its costs, share it on the Hub."""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from huggingface_hub.utils import disable_progress_bars

from .. import costs, hub
from ..hardware import choose_dtype
from ..sizes import parse_size, sides
from .errors import plain_errors
from .options import Size, Steps


def info(
    model: Annotated[str, typer.Argument(help="A preset (such as mardini-l-t) or the folder of a checkpoint.")],
    num_frames: Annotated[int | None, typer.Option(help="Frames of the window. Else the model's own, or 9.")] = None,
    size: Size = None,
    steps: Steps = 25,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16: the format that memory is counted for.")
    ] = "bfloat16",
) -> None:
    """Count parameters, floating-point operations and memory of each part. Allocates and downloads nothing.

    Example: mardini info mardini-l-t --size 512
    """
    with plain_errors():
        data_type, _ = choose_dtype(dtype, torch.device("cpu")) if dtype != "auto" else (torch.bfloat16, "")
        height, width = sides(parse_size(size)) if size else (None, None)
        print(f"Counting {model} for one window with a first and a last frame, {steps} steps, {data_type}")
        print(costs.report(model, num_frames, height, width, steps, data_type))


def push(
    folder: Annotated[Path, typer.Argument(help="A saved pipeline, or a folder of LoRA weights.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hub, owner/name. Created if it does not exist.")],
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

    Example: mardini push checkpoints/mardini-tiny-carracing you/mardini-tiny-carracing
    """
    with plain_errors():
        print(f"Looking through {folder}", flush=True)
        upload = hub.plan_upload(folder, repo, hub.read_facts_file(facts) if facts else None)
        print(hub.describe(upload))
        if not yes:
            print(f"\nNothing was sent. --yes sends this to {repo}.")
            return
        print(f"\nSending to {repo}", flush=True)
        if not sys.stderr.isatty():
            disable_progress_bars()
        address = hub.push(upload, message, private or None, create_pr=pull_request)
        print(f"Sent {len(upload.files) + 1} files: {address}")
