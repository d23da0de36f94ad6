"""Which clips a stage can use, and why it leaves the others out; `plan.py` prints it. Windows themselves are cut in `data/`."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from diffusers_mardini.video_io import read_video

from .config import RunConfig, StageConfig
from .data.clips import list_clips


@dataclass(frozen=True)
class Census:
    """What a folder of clips holds for a stage.

    Attributes:
        clips: how many are used.
        frames: frames of all readable clips of the folder.
        windows: how many different windows there are, by their sampling ("stride 2", "8 fps").
        left_out: reasons by file name.
    """

    clips: int
    frames: int
    windows: dict[str, int]
    left_out: dict[str, str]


def census(config: RunConfig, stage: StageConfig) -> Census:
    """Counts the training clips that are long enough for the stage's windows; every clip is decoded, once for all stages.

    Raises:
        ValueError: if there is no folder of clips.
    """
    lengths, unreadable = _read_lengths(config.data.train)
    spacings = {f"{stage.fps:g} fps": None} if stage.fps else {f"stride {s}": s for s in sorted(stage.strides)}
    windows, left_out = dict.fromkeys(spacings, 0), dict(unreadable)
    for name, (frames, fps) in lengths.items():
        reasons = []
        for label, stride in spacings.items():
            distance = stride or fps / stage.fps  # frames of the clip from one frame of a window to the next
            free = frames - 1 - (stage.num_frames - 1) * distance
            if distance < 1:
                reasons.append(f"it has {fps:g} frames per second, fewer than the stage's {stage.fps:g}")
            elif free < 0:
                needed = int((stage.num_frames - 1) * distance + 1.999)
                reasons.append(f"too short: it has {frames} frames, {stage.num_frames} at {label} need {needed}")
            else:
                windows[label] += int(free) + 1
        if len(reasons) == len(spacings):
            left_out[name] = reasons[0]
    used = len(lengths) + len(unreadable) - len(left_out)
    return Census(used, sum(frames for frames, _ in lengths.values()), windows, left_out)


@cache
def _read_lengths(folder: Path) -> tuple[dict[str, tuple[int, float]], dict[str, str]]:
    """Frames and frames per second of the clips that can be decoded, by name, and why the others cannot."""
    lengths, unreadable = {}, {}
    for path in list_clips(folder):
        try:
            frames, fps = read_video(path)
            lengths[path.name] = (len(frames), fps)
        except ValueError as error:
            unreadable[path.name] = f"unreadable: {error}"
    return lengths, unreadable
