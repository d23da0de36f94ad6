"""Find clips that show the same footage though their files differ: encoded anew, resized, or overlapping.

A clip's fingerprints are 8x8 grey averages of its first and last frame and of frames that its content chooses, so
that two copies choose the same ones wherever they begin. Cropped or mirrored copies, and clips in which nothing moves,
are not found.
"""

import base64
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np


SIDE = 8
REACH = 0.25  # seconds on both sides in which a chosen frame is an extreme
LEAST_CHANGE = 4.0  # by which it exceeds the frames around it
MOST_PRINTS = 1_000_000  # of all clips; of more, those that exceed the frames around them most
# A copy at crf 40 differs by less; another move of an arm, small as it is in the picture, by more in some block.
MEAN_DIFFERENCE, LARGEST_DIFFERENCE = 2.0, 8
LEAST_MATCHES = 3  # fingerprints that agree at the same offset in time
_SIGNS = np.where(np.random.default_rng(0).permutation(SIDE * SIDE) % 2, 1.0, -1.0) / SIDE
_CELL, _AXES, _NEIGHBOURS = 12.0, 4, 64


@dataclass(frozen=True)
class Prints:
    """The fingerprints of a clip.

    Attributes:
        times: seconds from its first frame.
        strengths: by how much each frame exceeds those around it.
        blocks: `uint8` `(fingerprints, 64)`.
    """

    times: np.ndarray
    strengths: np.ndarray
    blocks: np.ndarray

    def record(self) -> dict:
        """Return them as JSON holds them."""
        return {
            "times": [round(float(time), 3) for time in self.times],
            "strengths": [round(float(strength), 1) for strength in self.strengths],
            "blocks": base64.b85encode(self.blocks.tobytes()).decode(),
        }

    @classmethod
    def of(cls, record: dict) -> "Prints":
        """Read what `record` returned."""
        blocks = np.frombuffer(base64.b85decode(record["blocks"]), dtype=np.uint8).reshape(-1, SIDE * SIDE)
        times, strengths = (np.array(record[name], dtype=np.float32) for name in ("times", "strengths"))
        if not len(blocks) == len(times) == len(strengths):
            raise ValueError("fingerprints and their times differ in number")
        return cls(times, strengths, blocks)


class PrintMaker:
    """Take the frames of a clip one by one; keep fingerprints of those that stand out, the first and the last."""

    def __init__(self, fps: float):
        self._reach = max(1, round(REACH * fps))
        self._passing: deque[tuple[float, float, np.ndarray]] = deque(maxlen=2 * self._reach + 1)
        self._found: list[tuple[float, float, np.ndarray]] = []
        self._first: tuple[float, float, np.ndarray] | None = None
        self._low, self._high = np.inf, -np.inf

    def add(self, time: float, grey: np.ndarray) -> None:
        """Take the next frame, small and in grey levels, `(height, width)`."""
        blocks = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).reshape(-1)
        value = float(_SIGNS @ blocks)
        self._passing.append((time, value, blocks))
        self._first = self._first or (time, value, blocks)
        self._low, self._high = min(self._low, value), max(self._high, value)
        if len(self._passing) < 2 * self._reach + 1:
            return
        values = [value for _, value, _ in self._passing]
        time, value, blocks = self._passing[self._reach]
        low, high = min(values), max(values)
        # Of equal frames the first one counts.
        if value in (low, high) and high - low >= LEAST_CHANGE and value not in values[: self._reach]:
            self._found.append((time, high - low, blocks))

    def finish(self) -> Prints:
        """Return the fingerprints."""
        found, change = self._found, self._high - self._low
        if self._first is not None and change >= LEAST_CHANGE:  # short copies have little between
            (begin, _, first), (end, _, last) = self._first, self._passing[-1]
            found = [(begin, change, first), *found, (end, change, last)]
        times, strengths, blocks = zip(*found) if found else ((), (), ())
        stacked = np.array(blocks, dtype=np.uint8).reshape(-1, SIDE * SIDE)
        return Prints(np.array(times, dtype=np.float32), np.array(strengths, dtype=np.float32), stacked)


def find_copies(clips: list[Prints]) -> list[tuple[int, int, float]]:
    """Return pairs of clips that show the same footage, with the seconds by which the second one begins later.

    Each fingerprint is compared with at most `3 * _NEIGHBOURS` similar ones, so that time and memory are bounded; of
    very many clips that are all alike some pairs are missed, and are then mostly linked by others.
    """
    numbers = np.repeat(np.arange(len(clips)), [len(prints.times) for prints in clips])
    if not len(numbers):
        return []
    blocks = np.concatenate([prints.blocks for prints in clips])
    times = np.concatenate([prints.times for prints in clips])
    strengths = np.concatenate([prints.strengths for prints in clips])
    if len(numbers) > MOST_PRINTS:
        kept = strengths >= np.partition(strengths, -MOST_PRINTS)[-MOST_PRINTS]
        numbers, blocks, times = numbers[kept], blocks[kept], times[kept]
    places = _coordinates(blocks)
    pairs = np.concatenate([_similar(places, blocks, numbers, shift) for shift in (0, _CELL / 3, 2 * _CELL / 3)])
    pairs = np.unique(pairs, axis=0)
    return _agreeing(pairs, numbers, times)


def _coordinates(blocks: np.ndarray) -> np.ndarray:
    """Return the first principal components of all fingerprints, `(fingerprints, _AXES + 1)`."""
    sample = blocks[:: max(1, len(blocks) // 20_000)].astype(np.float32)
    _, axes = np.linalg.eigh(np.cov(sample, rowvar=False) if len(sample) > 1 else np.eye(SIDE * SIDE))
    return blocks @ axes[:, : -_AXES - 2 : -1].astype(np.float32)


def _similar(places: np.ndarray, blocks: np.ndarray, numbers: np.ndarray, shift: float) -> np.ndarray:
    """Return pairs of similar fingerprints of two clips that fall in the same cell of a grid."""
    cells = np.floor((places[:, :_AXES] + shift) / _CELL).astype(np.int32)
    order = np.lexsort((places[:, _AXES], *cells.T))
    cells, found = cells[order], [np.empty((0, 2), dtype=np.int64)]
    for distance in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
        together = np.flatnonzero((cells[distance:] == cells[:-distance]).all(axis=1))
        if not len(together):
            break
        first, second = order[together], order[together + distance]
        others = numbers[first] != numbers[second]
        first, second = first[others], second[others]
        for part in range(0, len(first), 1 << 16):  # no more are compared at once
            a, b = first[part : part + (1 << 16)], second[part : part + (1 << 16)]
            off = np.abs(blocks[a].astype(np.int16) - blocks[b])
            same = (off.max(axis=1) <= LARGEST_DIFFERENCE) & (off.mean(axis=1) <= MEAN_DIFFERENCE)
            found.append(np.sort(np.stack([a[same], b[same]], axis=1), axis=1))
    return np.concatenate(found)


def _agreeing(pairs: np.ndarray, numbers: np.ndarray, times: np.ndarray) -> list[tuple[int, int, float]]:
    """Return the pairs of clips whose similar fingerprints agree on the time between the clips."""
    clips = numbers[pairs]  # the first number is the smaller one, since fingerprints are in the order of the clips
    offsets = times[pairs[:, 0]] - times[pairs[:, 1]]
    found: dict[tuple[int, int], tuple[int, float]] = {}
    for half in (0.0, 0.5):  # bins of a fifth of a second, twice, so that no border separates
        bins = np.floor(offsets / 0.2 + half).astype(np.int64)
        keys, inverse = np.unique(np.column_stack([clips, bins]), axis=0, return_inverse=True)
        order = np.argsort(inverse.reshape(-1), kind="stable")
        counts = np.bincount(inverse.reshape(-1), minlength=len(keys))
        ends = np.cumsum(counts)
        for place in np.flatnonzero(counts >= LEAST_MATCHES):
            rows = order[ends[place] - counts[place] : ends[place]]
            matches = min(len(np.unique(pairs[rows, 0])), len(np.unique(pairs[rows, 1])))
            pair = int(keys[place, 0]), int(keys[place, 1])
            if matches >= LEAST_MATCHES and matches > found.get(pair, (0, 0.0))[0]:
                found[pair] = matches, round(float(np.median(offsets[rows])), 2)
    return [(first, second, offset) for (first, second), (_, offset) in sorted(found.items())]
