"""Files of published networks: find them, check their digests, and name those that are missing.

Nothing is downloaded. A known digest is compared: one that is written here, the first digits in the file's name
(`torch.hub`), or one that the user gave. The results always contain the digest that was loaded.
"""

import hashlib
import io
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class PublishedFile:
    """One file of weights.

    Attributes:
        name: of the file.
        origin: where to get it.
        sha256: its digest or the first digits of it; empty if unknown.
        package: the package that contains it, if one does.
        inside: its path in that package.
    """

    name: str
    origin: str
    sha256: str = ""
    package: str = ""
    inside: str = ""


def find_file(
    file: PublishedFile, folder: Path | None = None, digests: Mapping[str, str] | None = None
) -> Path | None:
    """Find a file in `folder`, its package, or the cache of `torch.hub`, and compare its digest; `None` if missing.

    Args:
        file: to find.
        folder: the user's folder of files that no package contains.
        digests: SHA-256 digests that the user gave, by the name of the file.

    Raises:
        ValueError: if a file of this name has another digest.
    """
    places = [folder / file.name] if folder is not None else []
    spec = find_spec(file.package) if file.package else None
    if spec is not None:
        places += [Path(place) / file.inside for place in spec.submodule_search_locations or ()]
    places.append(Path(torch.hub.get_dir()) / "checkpoints" / file.name)
    for path in places:
        if path.is_file():
            for expected in (file.sha256, (digests or {}).get(file.name, "").lower()):
                if not sha256(path).startswith(expected):
                    raise ValueError(
                        f"'{path}' has the SHA-256 digest {sha256(path)}, but {expected} was expected; it is damaged "
                        f"or another file: get it again from {file.origin}"
                    )
            return path
    return None


def missing(metric: str, files: Sequence[PublishedFile], folder: Path | None) -> str:
    """Return a sentence about the files that a user must provide."""
    ways = " or ".join(f"'{file.name}' ({file.origin})" for file in files)
    place = (
        f"into '{folder}'"
        if folder is not None
        else "into the cache of torch.hub, or a folder that --weights of training.evaluate names"
    )
    return f"{metric} needs the file {ways}, which is missing: install its package if it has one, or put it {place}"


def sha256(path: Path) -> str:
    """Return the digest of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_cache() -> Path:
    """Return the folder for converted weights: `$XDG_CACHE_HOME/diffusers_mardini`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusers_mardini"


def read_numpy_pickle(path: Path) -> Any:
    """Read a pickle of numpy arrays and plain containers; any other name in it is refused.

    Raises:
        ValueError: if it contains anything else, or is no pickle.
    """
    try:
        return _NumpyUnpickler(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"'{path}' is not a pickle of numpy arrays alone: {error}") from error


class _NumpyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            # numpy 2 moved it; pickles of numpy 1 have the old name
            ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[module, name]
