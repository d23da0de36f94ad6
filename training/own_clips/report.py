"""Say in sentences what a look found and how the clips were split, and return the same as numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from training.data.failures import reason_lines, shown
from training.data.order import SAME_RATE, Rate, num_starts
from training.own_clips.hold_out import Split
from training.own_clips.look import WINDOW, Clip, Look
from training.own_clips.reading import DISTANCES, STILL_FROM


RATES = (30, 20, 15, 10, 5, 2, 1)  # frames per second at which windows are counted
STILL_MOTION = 1.0  # grey levels at half a second: less is hardly to be seen


def numbers(found: Look, split: Split) -> dict:
    """Return what was found, as `look.json` holds it."""
    entries = [clip.entry for clip in found.clips]
    frames = [entry.num_frames for entry in entries]
    return {
        "source": found.spec,
        "clips": len(entries),
        "frames": sum(frames),
        "seconds": round(sum(entry.duration for entry in entries), 2),
        "shortest_and_longest": [min(frames), max(frames)],
        "rates": _counted(f"{entry.fps:.4g}" for entry in entries),
        "variable_rates": sum(entry.variable_rate for entry in entries),
        "sizes": _counted(f"{entry.width}x{entry.height}" for entry in entries),
        "scenes": sum(len(clip.scenes) for clip in found.clips),
        "clips_with_cuts": sorted(clip.name for clip in found.clips if len(clip.look.scenes) > 1),
        "motion": _motion(found.clips),
        "hardly_moving": sorted(clip.name for clip in found.clips if hardly_moves(clip)),
        "still_stretches": {clip.name: clip.look.stills for clip in found.clips if clip.look.stills},
        "copies": [[found.clips[a].name, found.clips[b].name, offset] for a, b, offset in found.copies],
        "left_out": found.left_out,
        "windows": {
            "train": {str(rate): _windows(split.train, rate) for rate in RATES},
            "held_out": {str(rate): _windows(split.held_out, rate) for rate in RATES},
        },
        "split": list(split.reasons),
    }


def sentences(found: Look, split: Split) -> list[str]:
    """Return the report as lines of text."""
    facts = numbers(found, split)
    shortest, longest = facts["shortest_and_longest"]
    lines = [
        f"{_clips(facts['clips'])} of '{shown(found.spec)}' can be used: {facts['frames']:,} frames, "
        f"{_time(facts['seconds'])}, {shortest} to {longest:,} frames in a clip.",
        f"Frames per second: {_listed(facts['rates'])}"
        + (f"; {_clips(facts['variable_rates'])} with a varying rate." if facts["variable_rates"] else "."),
        f"Width x height: {_listed(facts['sizes'])}.",
        *_about_scenes(facts),
        *_about_motion(facts),
        *_about_copies(facts),
    ]
    if found.left_out:
        lines.append(f"Left out: {len(found.left_out):,}.")
        lines += [f"  {line}" for line in reason_lines(found.left_out, 3, 20)]
    lines += found.notes
    lines += split.reasons
    for side, windows in facts["windows"].items():
        counts = ", ".join(f"{count:,} at {rate}" for rate, count in windows.items() if count)
        name = "to train on" if side == "train" else "held out"
        lines.append(f"Windows of {WINDOW} frames {name}, by frames per second: {counts or 'none'}.")
    return lines


def hardly_moves(clip: Clip) -> bool:
    """Return whether frames of a clip half a second apart look the same, or as far apart as its rate allows."""
    known = [distance for distance in (0.5, 1.0, 0.2, 0.1, 0.04) if distance in clip.look.motion]
    return bool(known) and clip.look.motion[known[0]] < STILL_MOTION


def _about_scenes(facts: dict) -> list[str]:
    cut = facts["clips_with_cuts"]
    if not cut:
        return ["No clip has a cut."]
    return [
        f"{_clips(len(cut))} with cuts ({_names(cut)}); {facts['scenes']:,} scenes in all; no window crosses a cut."
    ]


def _about_motion(facts: dict) -> list[str]:
    lines = []
    if facts["motion"]:
        listed = ", ".join(
            f"{low:g} / {middle:g} / {high:g} at {distance} s"
            for distance, (low, middle, high) in facts["motion"].items()
        )
        lines.append(
            f"Motion, mean change in grey levels (slowest tenth / median / fastest tenth of clips): {listed}."
        )
    if facts["hardly_moving"]:
        lines.append(
            f"{_clips(len(facts['hardly_moving']))} with hardly any motion ({_names(facts['hardly_moving'])})."
        )
    if stills := facts["still_stretches"]:
        seconds = sum(length for stretches in stills.values() for _, length in stretches)
        lines.append(
            f"Nothing moves for {STILL_FROM:g} seconds or more in {_clips(len(stills))} ({_names(sorted(stills))}), "
            f"{_time(seconds)} in all."
        )
    return lines


def _about_copies(facts: dict) -> list[str]:
    copies = facts["copies"]
    if not copies:
        return ["No two clips show the same footage."]
    first, second, offset = copies[0]
    later = f", {abs(offset):g} s apart" if abs(offset) >= 0.2 else ""
    return [
        f"Pairs of clips that show the same footage: {len(copies)}, such as "
        f"'{shown(first)}' and '{shown(second)}'{later}; no pair is on both sides."
    ]


def _motion(clips: Sequence[Clip]) -> dict[str, list[float]]:
    """Return the 10th, 50th and 90th percentile over clips, by distance in seconds."""
    found = {}
    for distance in DISTANCES:
        values = [clip.look.motion[distance] for clip in clips if distance in clip.look.motion]
        if values:
            found[f"{distance:g}"] = [round(float(value), 1) for value in np.quantile(values, (0.1, 0.5, 0.9))]
    return found


def _windows(pieces: Iterable, rate: float) -> int:
    entries = (piece.entry for piece in pieces)
    return sum(num_starts(entry, WINDOW, Rate(fps=rate)) for entry in entries if entry.fps * SAME_RATE >= rate)


def _clips(number: int) -> str:
    return "1 clip" if number == 1 else f"{number:,} clips"


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _listed(counts: dict[str, int], most: int = 6) -> str:
    listed = ", ".join(f"{value} ({count})" for value, count in list(counts.items())[:most])
    return listed + (f" and {len(counts) - most} more" if len(counts) > most else "")


def _names(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(shown(name) for name in names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
