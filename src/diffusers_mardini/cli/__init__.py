"""`mardini`, the tasks of the pipeline from the command line.

Every command says first what it will do and last where the result lies, and checks everything that it can before a
model runs. The commands are in `tasks.py` (`streams.py` for those that go from file to file), `models.py`, `doctor.py` and `web.py`, their options in `options.py`, exit codes in
`errors.py`, and the steps that they share in `checks.py`, `checkpoints.py`, `files.py` and `messages.py`.
"""

import typer

from . import doctor, models, tasks, web
from .errors import OneLineGroup, plain_errors


__all__ = ["app", "plain_errors"]

app = typer.Typer(
    name="mardini",
    cls=OneLineGroup,
    help="Generate video with MarDini: in-between frames, moving pictures, longer clips.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    tasks.interpolate,
    tasks.animate,
    tasks.expand,
    tasks.fill,
    tasks.slow_motion,
    tasks.retime,
    tasks.extend,
    tasks.loop,
    tasks.views,
    models.info,
    models.push,
    doctor.doctor,
):
    app.command()(command)
app.command("app")(web.page)
app.command()(web.play)
