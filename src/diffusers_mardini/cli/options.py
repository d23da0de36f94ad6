"""The options of all commands, declared once, and the decorator that gives them to a command.

A command takes its own arguments and `options`, one of the classes below, whose fields become options of the command
line.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ..hardware import DTYPES
from ..presets import list_presets
from ..schedulers.named import SHORT_NAMES
from ..video.writing import FILE_SUFFIXES
from .errors import plain_errors


def _starting(*words: str) -> Callable[[str], list[str]]:
    """Return a completion by one of some words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def _rate(text: str) -> float:
    """Return a number of frames per second, also from a fraction such as 30000/1001."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(text)
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(f"{text!r} is no number; give one such as 25 or 30000/1001") from error


def _rate_option(says: str) -> Any:
    """Return an option whose value is a rate."""
    return typer.Option(parser=_rate, metavar="FLOAT", help=says)


Frames = Annotated[int | None, typer.Option(help="Frames of the result, the given ones included. Else as trained.")]
NewFrames = Annotated[int | None, typer.Option(help="Frames to add.")]
Window = Annotated[int | None, typer.Option(help="Most frames of a window. Else as many as trained.")]
Batch = Annotated[int, typer.Option(help="Most windows that run at once: more use a GPU better and take more memory.")]
Overlap = Annotated[int | None, typer.Option(help="Frames of the clip, or of the window before, that are given.")]
Anchors = Annotated[
    int | None,
    typer.Option(
        help="Against drift: how many of the given frames lie far back, the first frame among them. Else as measured for "
        "the checkpoint, or 0."
    ),
]
KeyframeInterval = Annotated[
    int, typer.Option(help="Against drift: above 1, sample keyframes so far apart first, then those between.")
]
Cuts = Annotated[
    str | None,
    typer.Option(
        help="keep (found and left alone), ignore, or a text file with the frames that begin a scene, by number or time "
        "(312, 12.48s, 00:00:12.48). Else keep, if PySceneDetect is installed.",
        autocompletion=_starting("keep", "ignore"),
    ),
]
Picture = Annotated[str, typer.Argument(help="A picture; - is standard input.", show_default=False)]
Video = Annotated[
    str, typer.Argument(help="A video or a folder of pictures; - is standard input.", show_default=False)
]
Model = Annotated[
    str | None,
    typer.Argument(
        help="A preset (such as mardini-l-t) or the folder of a checkpoint. Else that of the other commands.",
        autocompletion=_starting(*list_presets()),
        show_default=False,
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="Folder or Hub id. Else $MARDINI_CHECKPOINT, else ./checkpoints/mardini-tiny-carracing, else the "
        "installed one."
    ),
]
Size = Annotated[
    str | None, typer.Option(help='"64" (square) or "64x128" (height x width), in pixels. Else as trained.')
]

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...", autocompletion=_starting("auto", "cpu", "cuda", "mps"))
]
Dtype = Annotated[
    str, typer.Option(help="auto, float32, bfloat16 or float16.", autocompletion=_starting("auto", *DTYPES))
]


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """Options of every command."""

    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on a line.")] = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class ModelOptions(CommandOptions):
    """Options of commands that look at a checkpoint."""

    checkpoint: Checkpoint = None
    device: Device = "auto"
    dtype: Dtype = "auto"


@dataclass(frozen=True, kw_only=True)
class TaskOptions(ModelOptions):
    """Options of every command that samples frames."""

    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o",
            help=f"File to write ({', '.join(FILE_SUFFIXES)}); without a suffix a folder of PNG; - is standard output.",
        ),
    ]  # fmt: skip
    size: Size = None
    fps: Annotated[
        float | None,
        _rate_option("Frames per second of the result (25, 30000/1001). Else the input's, the checkpoint's, or 8."),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            help="Denoising steps: fewer are faster and blurrier. Else as measured for the checkpoint, or 25."
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(SHORT_NAMES)} or a class of diffusers. Else as measured for the checkpoint, or its own.",
            autocompletion=_starting(*SHORT_NAMES),
        ),
    ] = None
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance on the planning signals. Else the task's default.")
    ] = None
    seed: Annotated[int, typer.Option(help="The same seed gives the same frames.")] = 0
    lora: Annotated[
        list[str] | None,
        typer.Option(help="Folder, file or Hub id of LoRA weights, =0.5 behind it for half of them. May be repeated."),
    ] = None
    conditions: Annotated[
        str | None,
        typer.Option(
            help="A .csv with the conditions of the result, for a checkpoint that takes some: a column for each channel, "
            "a row for each frame."
        ),
    ] = None
    paste_given: Annotated[
        bool,
        typer.Option("--paste-given", help="Given frames keep their own pixels, not as the autoencoder has them."),
    ] = False
    blend: Annotated[int, typer.Option(help="With --paste-given: sampled frames into which the difference fades.")] = 0
    format: Annotated[
        str | None,
        typer.Option(
            help=f"Form of standard output: {', '.join(suffix[1:] for suffix in FILE_SUFFIXES)}. Else mp4.",
            autocompletion=_starting(*(suffix[1:] for suffix in FILE_SUFFIXES)),
        ),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False


@dataclass(frozen=True, kw_only=True)
class FileOptions(TaskOptions):
    """Options of the commands that go from file to file, frame by frame."""

    source_fps: Annotated[
        float | None,
        _rate_option(
            "Frames per second of a picture or a folder of them, which state none. Else the checkpoint's, or 8."
        ),
    ] = None
    sound: Annotated[
        str | None,
        typer.Option(
            help="keep, stretch (slow-motion, with its pitch) or drop. Else it stays with the pictures.",
            autocompletion=_starting("keep", "stretch", "drop"),
        ),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the parts that an interrupted run left beside the output.")
    ] = False


def command(options_class: type[CommandOptions]) -> Callable[[Callable], Callable]:
    """Return a decorator: the function's own arguments and the fields of `options_class` become the command's, and
    errors become sentences."""

    def decorate(function: Callable) -> Callable:
        own = [one for one in inspect.signature(function).parameters.values() if one.name != "options"]
        shared = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=field.type,
            )
            for field in sorted(fields(options_class), key=lambda field: field.default is not MISSING)
        ]
        names = [parameter.name for parameter in shared]

        @functools.wraps(function)
        def run(**given: Any) -> None:
            options = options_class(**{name: given.pop(name) for name in names})
            with plain_errors(options.debug):
                function(**given, options=options)

        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + shared
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate
