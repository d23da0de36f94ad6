"""Where diffusers' own tests are: a checkout of huggingface/diffusers, named by the environment.

    DIFFUSERS_CHECKOUT=/path/to/diffusers python -m pytest pipelines_tests/upstream

Only its `tests` folder is used, as the package `tests`; the library that is tested is the installed one.
"""

import os
import sys
from pathlib import Path

import pytest


VARIABLE = "DIFFUSERS_CHECKOUT"


def require_checkout() -> None:
    """Makes `import tests` mean diffusers' tests, or skips the module that asks."""
    if VARIABLE not in os.environ:
        pytest.skip(f"set {VARIABLE} to a checkout of huggingface/diffusers", allow_module_level=True)
    checkout = Path(os.environ[VARIABLE]).resolve()
    if not (checkout / "tests/models/testing_utils").is_dir():
        raise ValueError(
            f"{VARIABLE} is {checkout}, which has no tests/models/testing_utils; give a checkout of 0.40 on"
        )
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))  # last: it has folders named like ours
    import tests

    assert Path(tests.__path__[0]).parent == checkout, f"another package is called tests: {tests.__path__}"
