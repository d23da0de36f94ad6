"""The finished parts of an evaluation on disk: after an interruption, the same command goes on with them.

Tensors are safetensors files in a folder for each key; the key, everything that they depend on, is beside them as
JSON. Parts that no key asks for any more are left in place and do no harm.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from training.files import whole_file, write_whole


class FinishedParts:
    """Tensors by key and by range of windows.

    Args:
        folder: created when the first tensors are saved.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def get(
        self, key: dict[str, Any], first: int, last: int, make: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Return the tensors of the windows `first` to `last - 1`; call `make` for them if they are not saved yet.

        An unreadable file is made again: files are written whole, so it was damaged later.
        """
        text = json.dumps(key, sort_keys=True)
        folder = self.folder / hashlib.sha256(text.encode()).hexdigest()[:24]
        path = folder / f"{first:05d}-{last:05d}.safetensors"
        if path.is_file():
            try:
                return _sorted(load_file(path))
            except SafetensorError as error:
                print(f"{path} cannot be read ({error}); it is made again")
        tensors = {name: tensor.contiguous() for name, tensor in make().items()}
        write_whole(folder / "key.json", json.dumps(key, sort_keys=True, indent=1) + "\n")
        with whole_file(path) as unfinished:
            save_file(tensors, unfinished)
        return _sorted(tensors)


def _sorted(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors in the order of their names, whether they come from a file or not."""
    return dict(sorted(tensors.items()))
