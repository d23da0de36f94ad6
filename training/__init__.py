"""Programs that train MarDini, and their parts: `python -m training.…` from the checkout, never imported by src."""

import sys
from io import TextIOWrapper


for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, TextIOWrapper):  # names of files may have letters that a terminal or a log lacks
        _stream.reconfigure(errors="backslashreplace")
