"""Drive through a world that exists only inside the model: keys become actions, actions become frames.

No network here; `drive_socket.py` carries keys and frames.
"""

import io
import json
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler
from PIL import Image

from ..models.conditions import Condition
from ..pipelines.pipeline_mardini import MarDiniPipeline
from .limits import Limits
from .sampling import at_rate, fitted, output_size


ACTION, RATE = "action", "rate"
KEYS = ("left", "right", "up", "down")
NEW_FRAMES = 4  # of a step, in windows of 9: fewer answer sooner and cost more each
# Channels by the names that data sets give them, and in this order where a checkpoint names none.
STEERING = ("steering", "steer", "angle")
GAS = ("gas", "throttle", "accelerate")
BRAKE = ("brake",)
UNNAMED = (STEERING[0], GAS[0], BRAKE[0])


def action_of(keys: Collection[str], condition: Condition, strength: float = 1.0) -> list[float]:
    """Return the values of an action for the pressed keys.

    The left key is the lower end of steering, the right key its upper end; up is the upper end of gas and down that of
    brake. Everything else, and both or neither of two opposite keys, is 0, or the nearest value within the range.

    Args:
        keys: some of `KEYS`.
        condition: names and ranges of the channels; -1 to 1 for steering and 0 to 1 for others where unknown.
        strength: share of the range, 0 to 1.
    """
    values = []
    for i in range(condition.channels):
        name = (condition.names[i] if condition.names else UNNAMED[i] if i < len(UNNAMED) else "").lower()
        steers = name in STEERING
        low, high = condition.ranges[i] if condition.ranges else (-1.0 if steers else 0.0, 1.0)
        rest = min(max(0.0, low), high)
        push = 0
        if steers:
            push = ("right" in keys) - ("left" in keys)
        elif name in GAS:
            push = int("up" in keys)
            if "down" in keys and low < 0:  # one channel for both, as in some robots
                push = push - 1
        elif name in BRAKE:
            push = int("down" in keys)
        end = high if push > 0 else low if push < 0 else rest
        values.append(rest + strength * (end - rest))
    return values


def why_not(pipe: MarDiniPipeline, name: str) -> str | None:
    """Return a sentence if a checkpoint cannot be driven, else `None`."""
    if ACTION in pipe.conditions:
        return None
    takes = ", ".join(pipe.conditions) or "none"
    return (
        f"{name} cannot be driven: it was trained without actions (its conditions: {takes}). Choose a checkpoint with "
        f"the condition '{ACTION}', or train one on clips with actions; docs/data.md says how."
    )


def told(pipe: MarDiniPipeline, actions: torch.Tensor, fps: float | None) -> dict[str, torch.Tensor]:
    """Return the conditions of frames: actions and, if it is taken and known, the time between frames.

    Args:
        pipe: takes actions.
        actions: `(frames, channels)`; NaN is no value.
        fps: frames per second.
    """
    conditions = {ACTION: actions}
    if RATE in pipe.conditions and fps:
        conditions[RATE] = torch.full((len(actions), 1), 1 / fps)
    return conditions


@dataclass(frozen=True)
class Frame:
    """One frame as it is sent: its number since the start, and a JPEG."""

    index: int
    jpeg: bytes


class Drive:
    """One visitor's drive. Calls may come from any thread, one at a time.

    Args:
        pipe: of this drive alone; takes actions.
        start: frames to start from, at the rate of the training if there are several.
        limits: of the recording.
        steps: of the sampler, UniPC.
        seed: of the noise.
        guidance: 1 halves the work.
    """

    def __init__(
        self,
        pipe: MarDiniPipeline,
        start: Sequence[Image.Image],
        limits: Limits,
        steps: int = 3,
        seed: int = 0,
        guidance: float = 1.0,
    ):
        pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
        self.pipe, self.condition = pipe, pipe.conditions[ACTION]
        self.size = output_size(pipe, start[0], limits)
        self._start = fitted(start[-pipe.trained_window.frames :], self.size)
        self.recording = False
        self._recorded: deque[bytes] = deque(maxlen=limits.recorded_frames)  # as JPEG, which takes less memory
        self._made = 0
        window = pipe.trained_window.frames
        self._rollout = pipe.rollout(
            self._start,
            overlap=max(window - NEW_FRAMES, window // 2),  # whole windows, as the model was trained
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed % 2**63),
            conditions=self._told_of_start,
        )

    @property
    def _told_of_start(self) -> dict[str, torch.Tensor]:
        return self._told(torch.full((len(self._start), self.condition.channels), torch.nan))

    def _told(self, actions: torch.Tensor) -> dict[str, torch.Tensor]:
        return told(self.pipe, actions, self.pipe.trained_window.fps)

    @property
    def fps(self) -> float:
        """Rate at which the world moves as fast as it did in training."""
        return self.pipe.trained_window.fps or 8

    def restart(self) -> None:
        """Go back to where the drive started."""
        self._rollout.reset(self._start, self._told_of_start)
        self._made = 0

    def first_frame(self) -> Frame:
        """Return the last of the given frames, to be shown before the first made ones."""
        return Frame(0, _jpeg(self._start[-1]))

    def step(self, keys: Collection[str], strength: float = 1.0) -> list[Frame]:
        """Make the next frames under the pressed keys."""
        count = min(NEW_FRAMES, self._rollout.most_new_frames)
        values = action_of(keys, self.condition, strength)
        pictures = self._rollout.step(count, self._told(torch.tensor([values] * count))).frames[0]
        frames = [Frame(self._made + i + 1, _jpeg(picture)) for i, picture in enumerate(pictures)]
        if self.recording:
            self._recorded.extend(frame.jpeg for frame in frames)
        self._made += count
        return frames

    def take_recording(self) -> list[Image.Image]:
        """End the recording and return its frames."""
        frames = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in self._recorded]
        self._recorded.clear()
        self.recording = False
        return frames


def start_frames(clip: Sequence[Image.Image], rate: float | None, pipe: MarDiniPipeline) -> list[Image.Image]:
    """Return the frames of a clip to start from: as far apart as in training, the last of them first to be driven on."""
    return at_rate(clip, rate, pipe.trained_window.fps)


def _jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92)
    return file.getvalue()


def message_of(frame: Frame, facts: dict[str, Any]) -> bytes:
    """Pack a frame for the WebSocket: length of a JSON header (4 bytes, little endian), header, JPEG."""
    header = json.dumps({"index": frame.index, **facts}).encode()
    return len(header).to_bytes(4, "little") + header + frame.jpeg
