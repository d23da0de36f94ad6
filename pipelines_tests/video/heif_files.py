"""HEIF pictures of tiles, as telephones write them; no library at hand does."""

import io
import struct

import numpy as np
from PIL import Image


def _box(kind: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def _full(kind: bytes, flags: int, *parts: bytes, version: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *parts)


def _cut(data: bytes, kind: bytes) -> bytes:
    start = data.index(kind) - 4
    return data[start : start + struct.unpack(">I", data[start : start + 4])[0]]


def _coded(tile: np.ndarray, kind: str) -> tuple[bytes, bytes]:
    """Data of a tile and the box that configures its decoder; of "heic" empty, because nothing here decodes it."""
    if kind == "heic":
        return bytes(64), _box(b"hvcC", b"\1" + bytes(22))
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "avif", quality=90)
    return _cut(file.getvalue(), b"mdat")[8:], _cut(file.getvalue(), b"av1C")


def heif_grid(tiles: list[np.ndarray], rows: int, columns: int, kind: str) -> bytes:
    """One picture of `rows` times `columns` tiles of one size, as `kind` "avif" or "heic"."""
    height, width = tiles[0].shape[:2]
    coded = [_coded(np.ascontiguousarray(tile), kind) for tile in tiles]
    brand, item = kind.encode(), {"avif": b"av01", "heic": b"hvc1"}[kind]
    whole = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, columns * width, rows * height)
    items = [(1, b"grid", whole), *((number, item, data) for number, (data, _) in enumerate(coded, 2))]
    numbers = [number for number, _, _ in items]
    entries = [
        _full(b"infe", number > 1, struct.pack(">HH4sB", number, 0, name, 0), version=2) for number, name, _ in items
    ]
    sizes = [
        _full(b"ispe", 0, struct.pack(">II", columns * width, rows * height)),
        _full(b"ispe", 0, struct.pack(">II", width, height)),
    ]
    of_items = [struct.pack(">HBB", 1, 1, 1), *(struct.pack(">HBBB", number, 2, 2, 0x83) for number in numbers[1:])]

    def meta(offset: int) -> bytes:
        places = []
        for number, _, data in items:
            places.append(struct.pack(">HHHII", number, 0, 1, offset, len(data)))
            offset += len(data)
        return _full(
            b"meta",
            0,
            _full(b"hdlr", 0, struct.pack(">I4s13x", 0, b"pict")),
            _full(b"pitm", 0, struct.pack(">H", 1)),
            _full(b"iloc", 0, struct.pack(">BBH", 0x44, 0, len(items)), *places),
            _full(b"iinf", 0, struct.pack(">H", len(items)), *entries),
            _full(b"iref", 0, _box(b"dimg", struct.pack(f">HH{len(tiles)}H", 1, len(tiles), *numbers[1:]))),
            _box(
                b"iprp",
                _box(b"ipco", *sizes, coded[0][1]),
                _full(b"ipma", 0, struct.pack(">I", len(items)), *of_items),
            ),
        )

    head = _box(b"ftyp", brand, bytes(4), b"mif1", brand, b"miaf")
    data_start = len(head) + len(meta(0)) + 8
    return head + meta(data_start) + _box(b"mdat", *(data for _, _, data in items))
