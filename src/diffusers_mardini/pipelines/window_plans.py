"""Which windows make a long video, and in which order. Knows no pictures and no models.

`long_video.py` samples the windows of a whole video, `streams.py` those of a video that arrives frame by frame.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

from ..masking import interpolation_indices, leading_indices


EVEN = 0.02  # places that lie so near to 0, 1, 2, ... are taken as these, because files round their times


@dataclass(frozen=True)
class Window:
    """One window of a long video.

    Args:
        places: places of its frames in the video; rising.
        given_indices: places within the window of the frames that the user gave or an earlier window sampled.
        positions: places of the frames on the models' axis of frames; `None` for 0, 1, 2, ...
        numbers: of its frames in the result, which lie between whole numbers if the result has others; `None` if these
            are the places.
    """

    places: list[int]
    given_indices: list[int]
    positions: tuple[float, ...] | None = None
    numbers: tuple[float, ...] | None = field(default=None, compare=False)

    @property
    def new_places(self) -> list[int]:
        """Places in the video of the frames that this window samples."""
        return [place for i, place in enumerate(self.places) if i not in set(self.given_indices)]

    def is_like(self, other: "Window") -> bool:
        """Tell whether both may be rows of one batch."""
        return (len(self.places), self.given_indices, self.positions) == (
            len(other.places),
            other.given_indices,
            other.positions,
        )


class LazySequence(Sequence):
    """Sequence of windows, or of batches of them, that are computed at each iteration: a billion frames, asked for by
    mistake, take no memory.

    Args:
        make: returns a new iterator.
        count: returns the length; by default an iteration counts it.
    """

    def __init__(self, make: Callable[[], Iterator], count: Callable[[], int] | None = None):
        self._make = make
        self._count = count

    def __iter__(self) -> Iterator:
        return self._make()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return list(self)[index]
        try:
            return next(islice(self, index if index >= 0 else len(self) + index, None))
        except (StopIteration, ValueError) as error:
            raise IndexError(index) from error

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    @cached_property
    def _length(self) -> int:
        return sum(1 for _ in self) if self._count is None else self._count()


class Batcher:
    """Put up to `most` consecutive windows into one batch: alike, and independent of each other.

    Args:
        most: windows of a batch.
    """

    def __init__(self, most: int):
        self.most = most
        self._batch: list[Window] = []
        self._sampled: set[int] = set()  # places that the batch samples

    def push(self, window: Window) -> Iterator[list[Window]]:
        """Take the next window; yield the batch that is complete by now, if any."""
        if self._batch:
            given = {window.places[i] for i in window.given_indices}
            if not window.is_like(self._batch[0]) or not self._sampled.isdisjoint(given):
                yield from self.finish()
        self._batch.append(window)
        self._sampled.update(window.new_places)
        if len(self._batch) == self.most:
            yield from self.finish()

    def finish(self) -> Iterator[list[Window]]:
        """Yield the last batch, if any."""
        batch, self._batch, self._sampled = self._batch, [], set()
        if batch:
            yield batch


class GapJoiner:
    """Join neighbouring gaps between known frames to windows, each with as many gaps as fit.

    The models were trained on whole windows, and more of the motion is in view.

    Args:
        window: most frames of a window.
        alike: whether to join gaps of the same length only.
    """

    def __init__(self, window: int, alike: bool = True):
        self.window = window
        self.alike = alike
        self._last: Window | None = None
        self._last_gap: tuple[int, int] | None = None

    def push(self, start: int, stop: int) -> Iterator[Window]:
        """Take the next gap, between two places; yield the window before it if that is complete."""
        cuts = cut_evenly(start, stop, self.window - 1)
        last, last_gap, self._last_gap = self._last, self._last_gap, (start, stop)
        if last is not None and last_gap is not None:
            follows = last_gap[1] == start and (not self.alike or last_gap[0] == 2 * start - stop)
            if follows and len(last.places) + len(cuts) - 1 <= self.window:
                places = last.places + cuts[1:]
                self._last = Window(places, given_indices=[*last.given_indices, len(places) - 1])
                return
        self._last = Window(cuts, given_indices=interpolation_indices(len(cuts)))
        if last is not None:
            yield self._placed(last)

    @property
    def first_place(self) -> int | None:
        """First place of the window that waits for its next gap, if any."""
        return None if self._last is None else self._last.places[0]

    def finish(self) -> Iterator[Window]:
        """Yield the last window, if any; the next gap begins another one."""
        last, self._last, self._last_gap = self._last, None, None
        if last is not None:
            yield self._placed(last)

    def _placed(self, window: Window) -> Window:
        """Return a window of this grid with its places as positions; whoever joins unlike gaps knows the times."""
        return placed(window, float) if self.alike else window


class GapPlan:
    """Plan windows while gaps arrive one by one: coarse windows first, and fine ones as soon as they can follow.

    These are the windows of `slow_motion_windows`; there, all coarse ones run before the first fine one.

    Args:
        window, alike: see `GapJoiner`.
    """

    def __init__(self, window: int, alike: bool = True):
        self.window = window
        self.alike = alike
        self._levels: list[GapJoiner] = []

    @property
    def oldest(self) -> int | None:
        """First place of all windows that wait for another gap, if any."""
        return min((level.first_place for level in self._levels if level.first_place is not None), default=None)

    def push(self, start: int, stop: int, level: int = 0) -> Iterator[Window]:
        """Take the next gap, between two known places; yield the windows that are complete by now."""
        if level == len(self._levels):
            self._levels.append(GapJoiner(self.window, self.alike))
        yield from self._with_finer(self._levels[level].push(start, stop), level)

    def finish(self) -> Iterator[Window]:
        """Yield the windows that waited for the next gap."""
        level = 0
        while level < len(self._levels):  # which may get more meanwhile
            yield from self._with_finer(self._levels[level].finish(), level)
            level += 1

    def _with_finer(self, windows: Iterator[Window], level: int) -> Iterator[Window]:
        """Yield windows of a level, each with those between its frames that are complete after it."""
        for window in windows:
            yield window
            for before, after in pairwise(window.places):
                if after - before > 1:
                    yield from self.push(before, after, level + 1)


def placed(window: Window, time_of: Callable[[int], float]) -> Window:
    """Return a window whose frames lie on the models' axis as they do in time, one apart in the mean.

    Args:
        window: with places of any distance.
        time_of: returns the time of a place.
    """
    times = [time_of(place) for place in window.places]
    last = len(times) - 1
    positions = tuple(last * (time - times[0]) / (times[-1] - times[0]) for time in times)
    even = all(abs(position - i) < EVEN for i, position in enumerate(positions))
    return Window(window.places, window.given_indices, None if even else positions)


def slow_motion_windows(num_given: int, factor: int, window: int) -> LazySequence:
    """Return the windows that take `num_given` frames to `(num_given - 1) * factor + 1`, coarse ones first.

    A window holds as many neighbouring gaps of one length as fit into `window` frames (`GapJoiner`).
    """

    def make() -> Iterator[Window]:
        level = 0
        while next(_gaps(num_given, factor, window, level), None) is not None:
            yield from _windows_of_level(_gaps(num_given, factor, window, level), window)
            level += 1

    return LazySequence(make)


def batch_windows(windows: Sequence[Window], most: int) -> LazySequence:
    """Put up to `most` consecutive windows into one batch, see `Batcher`."""

    def make() -> Iterator[list[Window]]:
        batcher = Batcher(most)
        for window in windows:
            yield from batcher.push(window)
        yield from batcher.finish()

    return LazySequence(make, windows.__len__ if most == 1 else None)


def extension_windows(num_given: int, num_new_frames: int, window: int, overlap: int) -> LazySequence:
    """Return the windows that continue a clip of `num_given` frames, each led by up to `overlap` given ones."""
    _, later = windows_to_extend(num_given, num_new_frames, window, overlap)

    def make() -> Iterator[Window]:
        num_frames = num_given
        for _ in range(1 + later):
            num_leading = min(overlap, num_frames)
            start = num_frames - num_leading
            yield Window(list(range(start, start + window)), given_indices=leading_indices(num_leading))
            num_frames = start + window

    return LazySequence(make, lambda: 1 + later)


def windows_to_extend(num_given: int, num_new_frames: int, window: int, overlap: int) -> tuple[int, int]:
    """Return how many frames the first window of an extension samples, and the number of windows after it, which begin
    with `overlap` given frames each."""
    first = window - min(overlap, num_given)
    return first, max(0, -(-(num_new_frames - first) // (window - overlap)))


def _windows_of_level(gaps: Iterable[tuple[int, int]], window: int) -> Iterator[Window]:
    """Yield windows for consecutive gaps, each with as many gaps of one length as fit."""
    joiner = GapJoiner(window)
    for start, stop in gaps:
        yield from joiner.push(start, stop)
    yield from joiner.finish()


def _gaps(num_given: int, factor: int, window: int, level: int) -> Iterator[tuple[int, int]]:
    """Yield pairs of neighbouring frames that exist before a level of windows and have missing ones between;
    rising."""
    if level == 0:
        for i in range(num_given - 1):
            yield i * factor, (i + 1) * factor
        return
    for start, stop in _gaps(num_given, factor, window, level - 1):
        cuts = cut_evenly(start, stop, window - 1)
        yield from ((before, after) for before, after in pairwise(cuts) if after - before > 1)


def cut_evenly(start: int, stop: int, most_parts: int) -> list[int]:
    """Cut `start..stop` into single steps if they fit, otherwise into as many equal or nearly equal parts as fit."""
    length = stop - start
    parts = length
    if length > most_parts:
        parts = max((d for d in range(2, most_parts + 1) if length % d == 0), default=most_parts)
    return [start + (i * length + parts // 2) // parts for i in range(parts + 1)]
