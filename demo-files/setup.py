"""The checkpoints and the clips that `mardini` starts with, as a wheel of data: `make wheel`.

The files stay where they are in the checkout, and are copied while the wheel is built.
"""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "diffusers_mardini_demo"
# The first in the order of names is the default of `mardini`; the other one is driven.
CHECKPOINTS = ["mardini-tiny-carracing", "mardini-tiny-driving"]


class BuildWithData(build_py):
    """Add checkpoints and clips to the package."""

    def run(self):
        target = Path(self.build_lib, PACKAGE)
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build: files that were there and are no more
        super().run()
        for name in CHECKPOINTS:
            shutil.copytree(ROOT / "checkpoints" / name, target / "checkpoints" / name, dirs_exist_ok=True)
        shutil.copytree(ROOT / "examples/clips", target / "clips", dirs_exist_ok=True)
        shutil.copy(ROOT / "LICENSE", target)


setup(
    name="diffusers-mardini-demo",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "src/diffusers_mardini/__init__.py").read_text())[1],
    description="Two small checkpoints and clips for diffusers-mardini: data only",
    license="Apache-2.0",
    packages=[PACKAGE],
    cmdclass={"build_py": BuildWithData},
    python_requires=">=3.11",
)
