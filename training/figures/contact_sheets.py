"""Contact sheets for judging by eye: a row per method, a column per frame, given frames with an orange border."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont


GIVEN_COLOUR = (255, 140, 0)
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def contact_sheet(
    groups: Sequence[tuple[str, dict[str, torch.Tensor]]],
    given: Sequence[int],
    title: str = "",
    width: int = 128,
    names: Sequence[str] | None = None,
) -> Image.Image:
    """Draw windows below each other.

    Args:
        groups: for each window a caption and its rows: label to frames in [0, 1], `(frames, 3, height, width)`.
        given: positions of the given frames, which get a border.
        title: one line at the top.
        width: least width of a frame in pixels; small frames are enlarged by a whole factor without smoothing.
        names: of the columns; default: the frames' numbers.
    """
    first = next(iter(groups[0][1].values()))
    num_frames, _, height, frame_width = first.shape
    scale = max(1, -(-width // frame_width))
    cell_width, cell_height = frame_width * scale, height * scale
    gap, border = 8, 4
    font = ImageFont.load_default(size=18)
    labels = [label for _, rows in groups for label in rows]
    left = max(round(font.getlength(label)) for label in labels) + 3 * gap
    line = 30

    num_rows = sum(len(rows) for _, rows in groups)
    sheet_width = left + num_frames * (cell_width + gap) + gap
    header = f"{title}   " if title else ""
    header += "(orange frame: given)"
    sheet_width = max(sheet_width, round(font.getlength(header)) + 2 * gap)
    sheet_height = 2 * line + len(groups) * (line + gap) + num_rows * (cell_height + gap) + gap
    sheet = Image.new("RGB", (sheet_width, sheet_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap // 2), header, fill=_INK, font=font)
    for index, name in enumerate(range(num_frames) if names is None else names):
        place = (left + index * (cell_width + gap) + cell_width // 2, line + line // 2)
        draw.text(place, str(name), fill=_INK, font=font, anchor="mm")

    top = 2 * line
    for caption, rows in groups:
        draw.text((gap, top), caption, fill=_INK, font=font)
        top += line
        for label, frames in rows.items():
            draw.text((gap, top + cell_height // 2), label, fill=_INK, font=font, anchor="lm")
            for index in range(num_frames):
                x = left + index * (cell_width + gap)
                sheet.paste(
                    to_image(frames[index]).resize((cell_width, cell_height), Image.Resampling.NEAREST), (x, top)
                )
                if index in given:
                    box = (x - border, top - border, x + cell_width + border - 1, top + cell_height + border - 1)
                    draw.rectangle(box, outline=GIVEN_COLOUR, width=border)
            top += cell_height + gap
        top += gap
    return sheet


def side_by_side(
    groups: Sequence[tuple[str, dict[str, torch.Tensor]]], given: Sequence[int], width: int = 192
) -> list[Image.Image]:
    """Return the frames of a video that shows windows in rows and methods in columns; given frames have a border.

    Args:
        groups: as for `contact_sheet`; captions are not drawn.
        given: positions of the given frames.
        width: least width of a frame in pixels.
    """
    labels = list(groups[0][1])
    num_frames, _, height, frame_width = groups[0][1][labels[0]].shape
    scale = max(1, -(-width // frame_width))
    cell_width, cell_height = frame_width * scale, height * scale
    gap, border, line = 8, 4, 30
    font = ImageFont.load_default(size=18)
    size = (gap + len(labels) * (cell_width + gap), line + len(groups) * (cell_height + gap))
    result = []
    for index in range(num_frames):
        picture = Image.new("RGB", tuple(side + side % 2 for side in size), _PAPER)
        draw = ImageDraw.Draw(picture)
        for column, label in enumerate(labels):
            x = gap + column * (cell_width + gap)
            draw.text((x + cell_width // 2, line // 2), label, fill=_INK, font=font, anchor="mm")
            for row, (_, rows) in enumerate(groups):
                y = line + row * (cell_height + gap)
                cell = to_image(rows[label][index]).resize((cell_width, cell_height), Image.Resampling.NEAREST)
                picture.paste(cell, (x, y))
                if index in given:
                    box = (x - border, y - border, x + cell_width + border - 1, y + cell_height + border - 1)
                    draw.rectangle(box, outline=GIVEN_COLOUR, width=border)
        result.append(picture)
    return result


def to_image(frame: torch.Tensor) -> Image.Image:
    """Return a frame in [0, 1], `(3, height, width)`, as a picture."""
    return Image.fromarray((frame.float() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy())
