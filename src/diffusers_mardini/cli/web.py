"""Commands that open the page in the browser, see `app/`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import plain_errors
from .options import Debug, Device, Dtype


Host = Annotated[
    str, typer.Option(help="Address to listen at. Others than this machine's own also serve to whoever reaches it.")
]
Port = Annotated[int, typer.Option(help="Port to listen at.")]
BehindProxy = Annotated[
    bool,
    typer.Option(
        "--behind-proxy", help="Another server passes requests on: its visitors use the offered checkpoints only."
    ),
]
Browser = Annotated[bool, typer.Option(help="Open the page in the browser, where there is a terminal.")]


def page(
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="Folder or Hub id to offer; may be given several times. Else all that are found."),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    device: Device = "auto",
    dtype: Dtype = "auto",
    browser: Browser = True,
    behind_proxy: BehindProxy = False,
    debug: Debug = False,
) -> None:
    """Open a page to play with: fill in frames, make clips longer, drive.

    Example: mardini app
    """
    with plain_errors(debug):
        checkpoints = [os.path.expanduser(one) for one in checkpoint or []]
        opened = browser and sys.stdout.isatty()
        _server().serve(checkpoints, host, port, device, dtype, open_browser=opened, behind_proxy=behind_proxy)


def play(
    checkpoint: Annotated[str, typer.Argument(help="Folder or Hub id of a checkpoint with the condition 'action'.")],
    start: Annotated[Path | None, typer.Option(help="Picture or clip to start from. Else an example.")] = None,
    lora: Annotated[str, typer.Option(help="Folder or Hub id of LoRA weights, which may add the condition.")] = "",
    host: Host = "127.0.0.1",
    port: Port = 7860,
    device: Device = "auto",
    dtype: Dtype = "auto",
    browser: Browser = True,
    behind_proxy: BehindProxy = False,
    debug: Debug = False,
) -> None:
    """Drive through the world of a checkpoint with the arrow keys.

    Example: mardini play checkpoints/mardini-tiny-driving --start clip.mp4
    """
    with plain_errors(debug):
        server = _server()
        checkpoint = os.path.expanduser(checkpoint)
        lora = os.path.expanduser(lora)
        server.check_drive(checkpoint, start, device, dtype, lora)
        opened = browser and sys.stdout.isatty()
        server.serve(
            [checkpoint], host, port, device, dtype, start=start, path="drive", open_browser=opened, lora=lora,
            behind_proxy=behind_proxy,
        )  # fmt: skip


def _server() -> Any:
    """Import what needs the extra `demo`; raise `ValueError` if it is not installed."""
    try:
        from ..app import server
    except ModuleNotFoundError as error:
        raise ValueError(
            f'the page needs {error.name}, which the extra `demo` brings: pip install ".[demo]" ./demo-files in the checkout'
        ) from error
    return server
