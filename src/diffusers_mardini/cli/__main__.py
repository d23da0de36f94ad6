"""Run the command line as `python -m diffusers_mardini.cli`."""

from . import app


app()
