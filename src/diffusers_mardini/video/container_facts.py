"""Read facts of a container that PyAV does not pass on: the crop that it asks for, and whether the file is cut off.

Matroska and MP4 are trees of sized elements; only the few that are needed are read.
"""

import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice


Crop = tuple[int, int, int, int]  # rows and columns that are hidden: above, below, left, right
NO_CROP = (0, 0, 0, 0)

MATROSKA = b"\x1a\x45\xdf\xa3"
SEGMENT, TRACKS, TRACK, TRACK_TYPE, VIDEO, CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0x83, 0xE0, 0x1F43B675
PIXEL_CROPS = (0x54BB, 0x54AA, 0x54CC, 0x54DD)  # in the order of `Crop`
UNKNOWN_LENGTH = 2**56
MOST_ELEMENTS = 100_000  # read before the list of tracks, which may come after all pictures

VISUAL_ENTRY = 78  # bytes of an MP4's sample entry before the boxes in it


def video_crops(file: io.IOBase) -> list[Crop]:
    """Return the crop of each video track of a Matroska or MP4 file, in order; empty for other files."""
    try:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(8)
        if head[:4] == MATROSKA:
            return _matroska_crops(file, size)
        if head[4:] in (b"ftyp", b"moov", b"wide", b"mdat", b"free", b"skip"):
            return _mp4_crops(file, size)
    except (EOFError, ValueError, struct.error, ZeroDivisionError):
        pass  # a damaged file, which FFmpeg may still read or will report
    return []


def ends_whole(file: io.IOBase) -> bool | None:
    """Return whether the file ends where a complete one does; `None` if the format does not show it."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(189)
    if head[:4] == MATROSKA:
        try:
            end = next((end for name, _, end in _elements(file, 0, size) if name == SEGMENT), UNKNOWN_LENGTH)
        except (EOFError, ValueError):
            return None
        return end <= size if end < UNKNOWN_LENGTH else None
    if head[:4] == b"GIF8":
        file.seek(max(0, size - 64))
        return file.read().rstrip(b"\0").endswith(b";")
    if head[:1] == head[188:] == b"G":  # a transport stream is made of packets of 188 bytes
        return False if size % 188 else None
    return None


def _number(file: io.IOBase, is_name: bool) -> int:
    """Read a number of Matroska, whose first byte marks its length; names keep that mark, lengths do not."""
    first = file.read(1)
    if not first:
        raise EOFError
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    if length > 8 or len(rest) < length - 1:
        raise ValueError("not a number of Matroska")
    value = int.from_bytes(first + rest, "big")
    if is_name:
        return value
    most = (1 << 7 * length) - 1
    return UNKNOWN_LENGTH if value & most == most else value & most


def _elements(file: io.IOBase, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield name, start and end of the elements between two places of Matroska; the caller may move the file."""
    while place < end:
        file.seek(place)
        name, length = _number(file, True), _number(file, False)
        start = file.tell()
        place = start + length
        yield name, start, place


def _matroska_crops(file: io.IOBase, size: int) -> list[Crop]:
    def value(start: int, end: int) -> int:
        file.seek(start)
        return int.from_bytes(file.read(min(8, end - start)), "big")

    crops = []
    start, end = next(((start, end) for name, start, end in _elements(file, 0, size) if name == SEGMENT), (0, 0))
    inside = islice(_elements(file, start, min(end, size)), MOST_ELEMENTS)
    start, end = next(((start, end) for name, start, end in inside if name == TRACKS), (0, 0))
    for track, *place in _elements(file, start, min(end, size)):
        fields = {name: inner for name, *inner in _elements(file, *place)} if track == TRACK else {}
        if TRACK_TYPE in fields and value(*fields[TRACK_TYPE]) == 1:
            video = {name: inner for name, *inner in _elements(file, *fields.get(VIDEO, (0, 0)))}
            crops.append(tuple(value(*video[name]) if name in video else 0 for name in PIXEL_CROPS))
    return crops


def _boxes(file: io.IOBase, place: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of the boxes between two places of an MP4; the caller may move the file."""
    while place + 8 <= end:
        file.seek(place)
        length, name = struct.unpack(">I4s", file.read(8))
        start = place + 8
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
            start += 8
        place = place + length if length else end
        if place < start:
            raise ValueError("not a box of MP4")
        yield name, start, min(place, end)


def _find(file: io.IOBase, start: int, end: int, *names: bytes) -> tuple[int, int]:
    """Return start and end of the first box at a path of names; an empty range if there is none."""
    for wanted in names:
        start, end = next(((s, e) for name, s, e in _boxes(file, start, end) if name == wanted), (end, end))
    return start, end


def _mp4_crops(file: io.IOBase, size: int) -> list[Crop]:
    crops = []
    for name, *track in _boxes(file, *_find(file, 0, size, b"moov")):
        media = _find(file, *track, b"mdia") if name == b"trak" else (0, 0)
        handler, _ = _find(file, *media, b"hdlr")
        file.seek(handler + 8)
        if media == (0, 0) or file.read(4) != b"vide":
            continue
        start, end = _find(file, *media, b"minf", b"stbl", b"stsd")
        _, start, end = next(_boxes(file, start + 8, end), (b"", end, end))
        file.seek(start + 24)
        width, height = struct.unpack(">HH", file.read(4))
        place, end = _find(file, start + VISUAL_ENTRY, end, b"clap")
        file.seek(place)
        crops.append(_clean_aperture(struct.unpack(">8i", file.read(32)), width, height) if place < end else NO_CROP)
    return crops


def _clean_aperture(numbers: tuple[int, ...], width: int, height: int) -> Crop:
    """Return the crop of a box `clap`: width, height, and the offset of its centre to the right and down."""
    shown_width, shown_height, right, down = (Fraction(*numbers[i : i + 2]) for i in range(0, 8, 2))
    left = int(right + (width - shown_width) / 2)
    above = int(down + (height - shown_height) / 2)
    crop = above, height - int(shown_height) - above, left, width - int(shown_width) - left
    return crop if min(crop) >= 0 else NO_CROP
