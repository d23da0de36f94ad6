"""Run `mardini` within this process, because each start of Python imports torch."""

from pathlib import Path

from typer.testing import CliRunner

from diffusers_mardini import cli


SAMPLING = {  # commands that sample, with the least that each takes
    "interpolate": ["a.png", "b.png"],
    "animate": ["a.png"],
    "fill": ["0=a.png", "4=b.png"],
    "views": ["a.png", "b.png"],
    "expand": ["clip.mp4"],
    "slow-motion": ["clip.mp4"],
    "retime": ["clip.mp4", "--fps", "20"],
    "extend": ["clip.mp4"],
    "loop": ["clip.mp4"],
}
QUICK = ("--steps", "1", "--device", "cpu", "--dtype", "float32")


def run(*arguments, stdin: bytes | None = None) -> tuple[int, str]:
    """Return the exit code, and standard output and error together."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def outputs(*arguments, stdin: bytes | None = None) -> tuple[int, bytes, str]:
    """Return the exit code, standard output as bytes, and standard error."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout_bytes, result.stderr


def listing(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
