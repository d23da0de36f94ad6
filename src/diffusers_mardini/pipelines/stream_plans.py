"""Plan the windows of a video whose given frames arrive one by one: slow motion, and a new rate.

`window_plans.py` forms the windows, `streams.py` samples them. Knows no pictures and no models.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import repeat

from .window_plans import GapPlan, Window, placed


TOLERANCE = 0.0005  # seconds by which a frame may be early or late
NEAR = 0.15  # of a grid's gap, by which one of its places may be moved


@dataclass(frozen=True)
class Arrival:
    """What the arrival of a given frame brings about.

    Attributes:
        place: of the frame in the video.
        windows: those that can be sampled by now.
        shown: places of the next frames of the result, not falling.
    """

    place: int
    windows: list[Window]
    shown: Iterable[int]


class SlowMotionPlan:
    """Plan slow motion: given frame `i` is at place `i * factor`, and every place is shown.

    Args:
        factor: how many times slower.
        window: most frames of a window.
    """

    def __init__(self, factor: int, window: int):
        self.factor = factor
        self._gaps = GapPlan(window)
        self._place: int | None = None

    def push(self, is_cut: bool = False) -> Arrival:
        """Take the next given frame; no frame is sampled before one that begins a scene: its neighbours are held."""
        before = self._place
        if before is None:
            self._place = 0
            return Arrival(0, [], [0])
        place = self._place = before + self.factor
        if not is_cut:
            return Arrival(place, list(self._gaps.push(before, place)), range(before + 1, place + 1))
        held = (self.factor - 1) // 2
        shown = [*repeat(before, held), *repeat(place, self.factor - held)]
        return Arrival(place, list(self._gaps.finish()), shown)

    def finish(self) -> list[Window]:
        """Return the windows that waited for another frame."""
        return list(self._gaps.finish())


class RetimePlan:
    """Plan a video at even times out of given frames at any times.

    Places count the frames that are given or sampled, in order of time.

    Args:
        fps: frames per second of the result.
        window: most frames of a window.
        origin: time of the first frame of the result; by default that of the first given frame.
        first: number of the first frame of the result that is made, if a part of it is made already.
    """

    def __init__(self, fps: float, window: int, origin: float | None = None, first: int = 0):
        self.fps = fps
        self.tolerance = min(TOLERANCE, 0.25 / fps)
        self.next = first
        self.origin = origin
        self._gaps = GapPlan(window, alike=False)
        self._place = -1
        self._time = 0.0
        self._times: dict[int, float] = {}  # of the places that a later window may have

    def push(self, time: float, is_cut: bool = False, is_still: bool = False) -> Arrival:
        """Take the next given frame.

        Args:
            time: in seconds, later than that of the frame before.
            is_cut: whether it begins a scene: frames before it are not sampled, but those of the nearer side.
            is_still: whether it equals the frame before, and so do all between.
        """
        before, start = self._place, self._time
        if self.origin is None:
            self.origin = time
        if before < 0:
            self._place, self._time = 0, time
            self._times[0] = time
            return Arrival(0, [], [0] * self._count_until(time + self.tolerance))
        first = self.next
        self._count_until(time - self.tolerance)
        wanted = [self.time_of(number) for number in range(first, self.next)]
        exact = self._count_until(time + self.tolerance)
        if wanted and not (is_cut or is_still):
            return self._sample_between(time, wanted, exact)
        windows = self._placed(self._gaps.finish())  # the next gap is no neighbour of those before
        held = len(wanted)
        if is_cut:
            middle = (start + time) / 2 - self.tolerance  # halfway, the scene that begins is shown
            held = sum(second < middle for second in wanted)
        self._arrive(before + 1, time)
        return Arrival(before + 1, windows, [*repeat(before, held), *repeat(before + 1, len(wanted) - held + exact)])

    def _sample_between(self, time: float, wanted: list[float], exact: int) -> Arrival:
        """Plan the frames at some times before the next given one, which is itself shown `exact` times."""
        before, start = self._place, self._time
        grid = near_grid([(second - start) / (time - start) for second in wanted], self._gaps.window - 1)
        places: list[int | None] = list(range(len(wanted))) if grid is None else grid
        seconds = [
            start + (time - start) * (number + 1) / (len(places) + 1) if i is None else wanted[i]
            for number, i in enumerate(places)
        ]
        self._times.update(enumerate(seconds, before + 1))
        self._arrive(before + len(places) + 1, time)
        shown = [place for place, i in enumerate(places, before + 1) if i is not None]
        windows = self._placed(self._gaps.push(before, self._place))
        return Arrival(self._place, windows, [*shown, *repeat(self._place, exact)])

    def finish(self) -> list[Window]:
        """Return the windows that waited for another frame."""
        return self._placed(self._gaps.finish())

    def time_of(self, number: int) -> float:
        """Return the time of a frame of the result."""
        assert self.origin is not None, "called after the first frame"
        return self.origin + number / self.fps

    def number_at(self, time: float) -> float:
        """Return which frame of the result a time is, between whole numbers for a time between two."""
        assert self.origin is not None, "called after the first frame"
        return (time - self.origin) * self.fps

    def _count_until(self, time: float) -> int:
        """Return how many more frames of the result come before a time, and pass them."""
        first = self.next
        while self.time_of(self.next) < time:
            self.next += 1
        return self.next - first

    def _arrive(self, place: int, time: float) -> None:
        self._place, self._time = place, time
        self._times[place] = time

    def _placed(self, windows: Iterable[Window]) -> list[Window]:
        """Return windows with the positions that their times give; forget the times of places before all open ones."""
        found = [
            replace(
                placed(window, self._times.__getitem__),
                numbers=tuple(self.number_at(self._times[place]) for place in window.places),
            )
            for window in windows
        ]
        oldest = self._gaps.oldest
        for place in [place for place in self._times if place < (self._place if oldest is None else oldest)]:
            del self._times[place]
        return found


def near_grid(parts: list[float], most: int) -> list[int | None] | None:
    """Return the coarsest grid that has a place near each of some places, which may be moved there.

    Whole windows of almost even frames are what the models learned: frames that are sampled in them are better than
    those sampled with no others (docs/results/long_video.md).

    Args:
        parts: places between 0 and 1; rising.
        most: gaps of the finest grid.

    Returns:
        For each place of the grid between 0 and 1 the index of the part that is near, if any; `None` for no grid.
    """
    for gaps in range(len(parts) + 1, most + 1):
        nearest = [round(part * gaps) for part in parts]
        fits = nearest[0] > 0 and nearest[-1] < gaps and len(set(nearest)) == len(nearest)
        if fits and all(abs(part * gaps - place) <= NEAR for part, place in zip(parts, nearest)):
            index = {place: i for i, place in enumerate(nearest)}
            return [index.get(place) for place in range(1, gaps)]
    return None
