"""Safetensors of parts of tensors: written and hashed in one pass, read by the byte ranges that a process needs.

`checkpoint.py` decides which file holds what. A file names, in its metadata, where each of its parts begins in the
whole tensor; a file without that holds whole tensors, as `safetensors.torch.save_file` writes them.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from training.files import flush


Bounds = tuple[tuple[int, int], ...]  # the first index and the end of every axis
STARTS = "starts"
CHUNK = 2**24  # bytes hashed and written at a time
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Values of a tensor, or of a part of it.

    Args:
        values: on any device.
        start: where they begin in the whole tensor, an index for every axis.
    """

    values: torch.Tensor
    start: tuple[int, ...]


def write_tensors(
    path: Path, parts: Mapping[str, Part], read: Callable[[str], torch.Tensor] | None = None
) -> dict[str, Any]:
    """Write a safetensors file to the disk and hash it in the same pass; return its `bytes` and `sha256`.

    `safetensors.torch.save_file` would have the file read again for its digest.

    Args:
        path: of the file.
        parts: by the names of their tensors, on the CPU; with `read`, on the meta device.
        read: returns the values of a part, which are held until they are written; by default they are in `parts`.
    """
    # The widest types first: every tensor is aligned then, as the format asks for.
    named = sorted(parts.items(), key=lambda item: (-item[1].values.element_size(), item[0]))
    starts = {name: part.start for name, part in named if any(part.start)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} | ({STARTS: json.dumps(starts)} if starts else {})}
    end = 0
    for name, part in named:
        begin, end = end, end + part.values.nbytes
        dtype, shape = _DTYPES[part.values.dtype], list(part.values.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    values = (part.values if read is None else read(name) for name, part in named)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for piece in chain([struct.pack("<Q", len(text)) + text], _pieces(values)):
            digest.update(piece)  # this and the writing let other threads run
            file.write(piece)
            del piece  # it would hold its tensor while the next one is read
    flush(path)
    return {"bytes": 8 + len(text) + end, "sha256": digest.hexdigest()}


def _pieces(tensors: Iterator[torch.Tensor]) -> Iterator[memoryview]:
    for tensor in tensors:
        if tensor.numel():
            values = memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
            yield from (values[first : first + CHUNK] for first in range(0, len(values), CHUNK))
            del values
        del tensor


class TensorFiles(Mapping[str, torch.Tensor]):
    """Read tensors, or parts of them, out of the files that hold their parts; files are opened when they are needed.

    Tensors share the memory of the mapped files: a process holds what it copies.

    Args:
        paths: of the files.
        shapes: of the whole tensors by name; by default the files hold whole tensors.
        nearest: index of the file that is looked at first, then those next to it. With the file of the same process
            of as many, no other one is opened.
    """

    def __init__(self, paths: Sequence[Path], shapes: Mapping[str, Sequence[int]] | None = None, nearest: int = 0):
        self._paths = sorted(paths, key=lambda path: abs(paths.index(path) - nearest))
        self._opened: list[tuple[Any, dict[str, tuple[list[int], list[int]]]]] = []  # with starts and shapes
        self._shapes = shapes

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        """Return the shapes of the whole tensors by name."""
        if self._shapes is None:
            self._shapes = {name: shape for _, held in self._files() for name, (_, shape) in held.items()}
        return self._shapes

    def open(self) -> None:
        """Open the nearest file, so that one that cannot be read is noticed."""
        next(self._files(), None)

    def read(self, name: str, bounds: Bounds) -> torch.Tensor:
        """Return the part of a tensor within bounds; reads no other bytes.

        Raises:
            KeyError: if the files do not hold all of it.
        """
        found: dict[Bounds, torch.Tensor] = {}
        wanted = _size(bounds)
        for file, held in self._files() if name in self.shapes else ():
            if name not in held:
                continue
            there = tuple((start, start + size) for start, size in zip(*held[name]))
            common = tuple((max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(there, bounds))
            if common in found or (any(start >= end for start, end in common) and wanted):
                continue
            if common == there:
                found[common] = file.get_tensor(name)
            else:
                own = tuple(slice(low - at, high - at) for (low, high), (at, _) in zip(common, there))
                found[common] = file.get_slice(name)[own]
            if common == bounds:
                return found[common]
            if sum(map(_size, found)) == wanted:
                return _joined(found, bounds)
        raise KeyError(name)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self.read(name, tuple((0, size) for size in self.shapes[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def _files(self) -> Iterator[tuple[Any, dict[str, tuple[list[int], list[int]]]]]:
        """Yield every file with the beginnings and shapes of its parts; opens those that are asked for."""
        for number, path in enumerate(self._paths):
            if number == len(self._opened):
                file = safe_open(path, framework="pt")
                starts = json.loads((file.metadata() or {}).get(STARTS, "{}"))
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
                self._opened.append((file, {n: (starts.get(n, [0] * len(s)), s) for n, s in shapes.items()}))
            yield self._opened[number]


def _size(bounds: Bounds) -> int:
    return math.prod(max(0, end - start) for start, end in bounds)


def _joined(parts: Mapping[Bounds, torch.Tensor], bounds: Bounds) -> torch.Tensor:
    joined = next(iter(parts.values())).new_empty([end - start for start, end in bounds])
    for own, values in parts.items():
        joined[tuple(slice(low - at, high - at) for (low, high), (at, _) in zip(own, bounds))] = values
    return joined
