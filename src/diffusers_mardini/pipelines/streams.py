"""Sample a video that arrives frame by frame, and give its frames away as soon as they are finished.

Memory does not grow with the video: only frames that a later window needs are kept, as latents. The pipeline is in use
while a window is sampled or frames are decoded, and free in between, so that one stream may feed another.
`stream_plans.py` plans the windows, `stream_inputs.py` reads the frames.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch

from .conditions import Conditions, conditions_of_window
from .one_call import in_use
from .pasting import OwnPixels
from .rollout import MarDiniRollout
from .sampling_options import SamplingOptions
from .stream_inputs import Picture, PictureStream, in_chunks
from .stream_plans import Arrival, RetimePlan, SlowMotionPlan
from .window_plans import Batcher, Window


if TYPE_CHECKING:
    from .pipeline_mardini import MarDiniPipeline


class Outlet:
    """Decode finished latents, a chunk at a time, and give the frames away.

    Args:
        pipe: decodes.
        chunk_size: frames that are decoded at once.
        output_type: form of the frames.
    """

    def __init__(self, pipe: "MarDiniPipeline", chunk_size: int, output_type: str):
        self._pipe, self._size, self._output_type = pipe, chunk_size, output_type
        self._waiting: list[torch.Tensor] = []
        self._own: dict[int, torch.Tensor] = {}  # by the place among those that wait

    def put(self, frames: Iterable[tuple[torch.Tensor, torch.Tensor | None]]) -> Iterator[Any]:
        """Take the next frames; yield those that are decoded by now.

        Args:
            frames: latents `(channels, h, w)` of each, and the pixels `(3, height, width)` in [-1, 1] to show in place
                of what they decode to, if any.
        """
        for latents, own in frames:
            if own is not None:
                self._own[len(self._waiting)] = own
            self._waiting.append(latents)
            if len(self._waiting) == self._size or self._output_type == "latent":
                yield from self.finish()

    def finish(self) -> Iterator[Any]:
        """Decode and yield all frames that wait."""
        if not self._waiting:
            return
        latents, self._waiting = torch.stack(self._waiting)[None], []  # (1, frames, channels, h, w)
        own = OwnPixels(torch.stack([*self._own.values()])[None], [*self._own]) if self._own else None
        self._own = {}
        with in_use(self._pipe, self._pipe.scheduler):
            frames = self._pipe.decode(latents, self._output_type, self._size, own)
        yield from frames[0]


class Strip:
    """The latents of the frames that are not given away yet, or that a later window needs.

    Args:
        pipe: encodes and samples.
        options: how to sample each window.
        chunk_size: most frames that the autoencoder takes at once.
        conditions: of the frames of the result, result of `read_rows`.
        call: of the pipeline, which other calls may come between.
        paste_given: whether given frames are shown with their own pixels.
    """

    def __init__(
        self,
        pipe: "MarDiniPipeline",
        options: SamplingOptions,
        chunk_size: int,
        conditions: Conditions,
        call: object,
        paste_given: bool,
    ):
        self._pipe, self._options, self._size, self._conditions = pipe, options, chunk_size, conditions
        self._call, self._paste_given = call, paste_given
        self._latents: dict[int, torch.Tensor] = {}  # (channels, h, w) by place
        self._low_latents: dict[int, torch.Tensor] = {}  # (channels, h_low, w_low); of sampled ones when needed
        self._own: dict[int, torch.Tensor] = {}  # (3, height, width), of given ones, if they are pasted
        self._given: deque[int] = deque()
        self._shown: deque[int] = deque()
        self._arrived = 0
        self._checked_scheduler = pipe.scheduler

    def give(self, places: list[int], pixels: torch.Tensor) -> None:
        """Encode given frames, `(1, frames, 3, height, width)` in [-1, 1]."""
        pipe = self._pipe
        with in_use(pipe, pipe.scheduler):
            self._latents.update(zip(places, pipe.encode_frames(pixels, self._size)[0]))
            self._low_latents.update(zip(places, pipe.encode_low_frames(pixels, self._size)[0]))
        if self._paste_given:
            self._own.update(zip(places, pixels[0]))
        self._given.extend(places)

    def sample(self, windows: list[Window]) -> bool:
        """Sample windows as rows of one batch; return whether that was not interrupted."""
        pipe = self._pipe
        with in_use(pipe, pipe.scheduler):
            pipe._go_on_with(self._call)
            if pipe.scheduler is not self._checked_scheduler:
                pipe.check_inputs(self._options, 1, "latent")
                self._checked_scheduler = pipe.scheduler
            places = [[window.places[i] for i in window.given_indices] for window in windows]
            self._make_low(sorted({place for row in places for place in row}))
            told = [conditions_of_window(self._conditions, pipe.conditions, window) for window in windows]
            sampled = pipe.sample_windows(
                windows,
                torch.stack([torch.stack([self._latents[place] for place in row]) for row in places]),
                torch.stack([torch.stack([self._low_latents[place] for place in row]) for row in places]),
                self._options,
                {name: torch.cat([one[name] for one in told]) for name in self._conditions},
            )  # (windows, frames, channels, h, w)
            if pipe.interrupt:
                return False
        for window, latents in zip(windows, sampled):
            for place, one in zip(window.places, latents):
                if place not in self._latents:
                    self._latents[place] = one.clone()  # a view would keep the whole window alive
        return True

    def show(self, arrival: Arrival) -> None:
        """Take the places of the next frames of the result; the next gap begins at the frame that arrived."""
        self._arrived = arrival.place
        self._shown.extend(arrival.shown)

    def take(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield the latents of the next frames of the result that are finished, with their own pixels if these are
        pasted; drop what is not needed any more."""
        while self._shown and self._shown[0] in self._latents:
            place = self._shown.popleft()
            yield self._latents[place], self._own.get(place)
        # Frames that are missing lie in or after the gap of the first of them.
        missing = self._shown[0] if self._shown else self._arrived
        while len(self._given) > 1 and self._given[1] <= missing:
            self._given.popleft()
        for kept in (self._latents, self._low_latents, self._own):
            for place in [place for place in kept if place < self._given[0]]:
                del kept[place]

    def _make_low(self, places: list[int]) -> None:
        """Make what the planner gets of sampled frames that lead a finer window."""
        missing = [place for place in places if place not in self._low_latents]
        if missing:
            latents = torch.stack([self._latents[place] for place in missing])[None]
            self._low_latents.update(zip(missing, self._pipe._low_latents_of_sampled(latents, self._size)[0]))


@torch.no_grad()
def stream_windows(
    pipe: "MarDiniPipeline",
    pictures: PictureStream,
    arrivals: Iterator[tuple[Picture, Arrival]],
    plan: SlowMotionPlan | RetimePlan,
    options: SamplingOptions,
    output_type: str,
    chunk_size: int,
    window_batch_size: int,
    conditions: Conditions,
    paste_given: bool,
) -> Iterator[Any]:
    """Yield the frames of slow motion or of a new rate.

    Args:
        pipe: samples.
        pictures: makes tensors of the given frames.
        arrivals: the given frames, and what `plan` said to each.
        plan: has the last windows.
        options: how to sample each window.
        output_type: form of the frames.
        chunk_size: given frames are read and encoded, and frames of the result decoded, so many at once.
        window_batch_size: most windows that run at once.
        conditions: of the frames of the result, result of `read_rows`.
        paste_given: whether given frames are shown with their own pixels.
    """
    strip = Strip(pipe, options, chunk_size, conditions, pictures.call, paste_given)
    outlet = Outlet(pipe, chunk_size, output_type)
    batcher = Batcher(window_batch_size)

    def batches() -> Iterator[list[Window]]:
        """Yield batches that can run, and an empty one where frames of the result may have arrived without."""
        for chunk in in_chunks(arrivals, chunk_size):
            frames, arrived = zip(*chunk)
            strip.give([arrival.place for arrival in arrived], pictures.pixels(frames))
            for arrival in arrived:
                strip.show(arrival)
                for window in arrival.windows:
                    yield from batcher.push(window)
            yield []
        for window in plan.finish():
            yield from batcher.push(window)
        yield from batcher.finish()

    for batch in batches():
        if batch and not strip.sample(batch):
            break
        yield from outlet.put(strip.take())
    yield from outlet.finish()
    with in_use(pipe, pipe.scheduler):
        pipe.maybe_free_model_hooks()


@torch.no_grad()
def stream_extension(
    pipe: "MarDiniPipeline",
    pictures: PictureStream,
    rollout: MarDiniRollout,
    num_new_frames: int | None,
    conditions: Conditions,
    output_type: str,
    chunk_size: int,
    paste_given: bool,
) -> Iterator[Any]:
    """Yield the given frames of a clip, and then `num_new_frames` more, or ever more.

    Args:
        pipe: samples.
        pictures: the given frames.
        rollout: not started.
        num_new_frames: `None` for no end.
        conditions: of the new frames.
        output_type: form of the frames.
        chunk_size: frames are encoded and decoded so many at once.
        paste_given: whether given frames come with their own pixels.
    """
    outlet = Outlet(pipe, chunk_size, output_type)
    latents = low_latents = None
    num_given, places = 0, []  # places of the frames that these are of
    for chunk in in_chunks(pictures, chunk_size):
        pixels = pictures.pixels(chunk)
        with in_use(pipe, pipe.scheduler):
            new, new_low = pipe.encode_frames(pixels, chunk_size), pipe.encode_low_frames(pixels, chunk_size)
        latents = new if latents is None else torch.cat([latents, new], dim=1)
        low_latents = new_low if low_latents is None else torch.cat([low_latents, new_low], dim=1)
        places = [*places, *range(num_given, num_given + len(chunk))]
        num_given += len(chunk)
        # Of keyframes, those that are needed depend on the length of the clip: all that may be are kept meanwhile.
        kept = rollout.may_be_kept(places, num_given)
        latents, low_latents, places = latents[:, kept], low_latents[:, kept], [places[i] for i in kept]
        yield from outlet.put(zip(new[0], pixels[0] if paste_given else repeat(None)))
    assert latents is not None and low_latents is not None, "a stream has at least one frame"
    kept = [places.index(place) for place in rollout.kept_places(num_given)]
    rollout.start(latents[:, kept], low_latents[:, kept], {}, rollout.kept_places(num_given))
    made, checked_scheduler = 0, pipe.scheduler
    while num_new_frames is None or made < num_new_frames:
        count = rollout.most_new_frames  # whole windows, as `extend` has them
        with in_use(pipe, pipe.scheduler):
            pipe._go_on_with(pictures.call)
            if pipe.scheduler is not checked_scheduler:
                pipe.check_inputs(rollout.options, 1, output_type)
                checked_scheduler = pipe.scheduler
            sampled = rollout.sample(count, conditions_of(conditions, range(made, made + count)))[0]
            if pipe.interrupt:
                break
        made += count
        surplus = 0 if num_new_frames is None else max(0, made - num_new_frames)
        yield from outlet.put(zip(sampled[: count - surplus].clone(), repeat(None)))
    yield from outlet.finish()
    with in_use(pipe, pipe.scheduler):
        pipe.maybe_free_model_hooks()


@torch.no_grad()
def reconstruct(
    pipe: "MarDiniPipeline",
    frames: Iterable[Picture],
    output_type: str = "pil",
    chunk_size: int = 16,
    paste_given: bool = False,
) -> Iterator[Any]:
    """Yield given frames, `chunk_size` at a time, as the autoencoder decodes them, or with their own pixels."""
    pictures = PictureStream(frames, 1, None, None, pipe.size_multiple, pipe.video_processor)
    outlet = Outlet(pipe, chunk_size, output_type)
    for chunk in in_chunks(pictures, chunk_size):
        pixels = pictures.pixels(chunk)
        with in_use(pipe, pipe.scheduler):
            latents = pipe.encode_frames(pixels, chunk_size)[0]
        yield from outlet.put(zip(latents, pixels[0] if paste_given else repeat(None)))
    yield from outlet.finish()


def conditions_of(conditions: Conditions, places: range) -> Conditions:
    """Return the conditions of consecutive frames; places after the last frame have its values."""
    return {
        name: values[:, [min(place, values.shape[1] - 1) for place in places]] for name, values in conditions.items()
    }
