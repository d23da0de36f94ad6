"""Figures of windows: what each task gives and masks, and how long videos are made of windows."""

from diffusers_mardini.masking import task_indices
from diffusers_mardini.pipelines.window_plans import extension_windows, slow_motion_windows

from .drawing import Sheet


FRAMES = 9


def tasks(scheme: str) -> str:
    """Draw a window for each task, with the call."""
    rows = (
        ("interpolation", task_indices("interpolation", FRAMES), "pipe(image=first, last_image=last, num_frames=9)"),
        ("image-to-video", task_indices("image-to-video", FRAMES), "pipe(image=first, num_frames=9)"),
        ("expansion", task_indices("expansion", FRAMES), "pipe(video=five, num_frames=9)"),
        ("fill any places", [0, 5, 8], "pipe(video=three, frame_indices=[0, 5, 8], num_frames=9)"),
    )
    sheet = Sheet(980, 56 + 56 * len(rows), "Which frames each task gives, and which it masks", scheme)
    sheet.frame(150, 12, 18, "given")
    sheet.text(176, 26, "given", 13, "soft")
    sheet.frame(240, 12, 18, "masked", "?")
    sheet.text(266, 26, "masked: sampled", 13, "soft")
    for number, (name, given, call) in enumerate(rows):
        y = 54 + 56 * number
        sheet.text(134, y + 24, name, 15, align="right", bold=True)
        kinds = ["given" if i in given else "masked" for i in range(FRAMES)]
        sheet.strip(150, y, kinds, [str(i) if kind == "given" else "?" for i, kind in enumerate(kinds)], 34, 40)
        sheet.text(526, y + 22, call, 13, "soft", mono=True)
    return sheet.svg()


def long_videos(scheme: str) -> str:
    """Draw slow motion level by level and an extension window by window."""
    sheet = Sheet(980, 392, "Slow motion fills gaps level by level; an extension goes on window by window", scheme)
    place, side, step = 300, 22, 26
    num_given, factor, window = 3, 8, 5
    sheet.text(20, 28, f"slow motion, factor {factor}", 15, bold=True)
    sheet.text(20, 46, f"windows of {window} frames", 13, "soft")
    known = {i * factor for i in range(num_given)}
    length = (num_given - 1) * factor + 1
    windows, y = list(slow_motion_windows(num_given, factor, window)), 16
    _row(sheet, place, y, length, known, set(), side, step, "what is given")
    levels: list[list] = []
    for one in windows:  # a level holds the windows that need nothing of each other
        gap = one.places[1] - one.places[0]
        if not levels or levels[-1][0] != gap:
            levels.append([gap, []])
        levels[-1][1].append(one)
    for number, (_, ones) in enumerate(levels, 1):
        y += 52
        new = {new for one in ones for new in one.new_places}
        _row(sheet, place, y, length, known, new, side, step, f"level {number}")
        for i, one in enumerate(ones):
            _bracket(sheet, place, y + side + 4 + 5 * (i % 2), one.places[0], one.places[-1], side, step)
        known |= new

    y += 88
    num_given, num_new, window, overlap = 5, 8, 9, 5
    sheet.text(20, y + 2, "extension", 15, bold=True)
    sheet.text(20, y + 20, f"windows of {window} frames,", 13, "soft")
    sheet.text(20, y + 36, f"each led by the last {overlap}", 13, "soft")
    known, length = set(range(num_given)), num_given + num_new
    y -= 10
    _row(sheet, place, y, length, known, set(), side, step, "what is given")
    for number, one in enumerate(extension_windows(num_given, num_new, window, overlap), 1):
        y += 52
        _row(sheet, place, y, length, known, set(one.new_places), side, step, f"window {number}")
        _bracket(sheet, place, y + side + 4, one.places[0], one.places[-1], side, step)
        known |= set(one.new_places)
    note = "teal: known by then; violet: sampled now; brackets: windows. Frames stay latents from window to window."
    sheet.text(20, 380, note, 13, "soft")
    return sheet.svg()


def _row(
    sheet: Sheet, x: float, y: float, length: int, known: set[int], new: set[int], side: float, step: float, label: str
) -> None:  # fmt: skip
    sheet.text(x - 14, y + 16, label, 13, "soft", "right")
    for i in range(length):
        kind = "new" if i in new else "given" if i in known else "masked"
        sheet.frame(x + step * i, y, side, kind, str(i))


def _bracket(sheet: Sheet, x: float, y: float, first: int, last: int, side: float, step: float) -> None:
    left, right = x + step * first + 3, x + step * last + side - 3
    sheet.line([(left, y), (left, y + 5), (right, y + 5), (right, y)], "new", 1.4)
