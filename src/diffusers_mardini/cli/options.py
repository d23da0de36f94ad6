"""The options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer


Output = Annotated[
    Path, typer.Option("--output", "-o", help="File or folder to write: .mp4, .gif, or no suffix for a folder of PNG.")
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="Folder or Hub id. Else $MARDINI_CHECKPOINT, else ./checkpoints/mardini-tiny-carracing, else the installed one."
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        help='"64" (square) or "64x128" (height x width), in pixels. Else the size that the checkpoint was trained on.'
    ),
]
Window = Annotated[int | None, typer.Option(help="Frames of a window. Else as many as the checkpoint was trained on.")]
Steps = Annotated[int, typer.Option(help="Denoising steps: fewer are faster and blurrier.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance on the planning signals. Else the task's default.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same frames.")]
Fps = Annotated[
    float | None, typer.Option(help="Frames per second of the result. Else the input's, the checkpoint's, or 8.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
