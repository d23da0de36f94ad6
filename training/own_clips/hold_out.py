"""Choose the clips that are held out: whole recordings where there are some, else the end of each in time.

The choice rests on hashes of names, so that adding clips changes little. `look.py` finds the clips and their scenes,
`recordings.py` which of them belong together.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from training.data.clip_lists import SUFFIX, ClipRow, write_clip_list
from training.data.entries import Entry
from training.data.failures import shown
from training.data.order import frames_at_stride
from training.data.sources import open_source
from training.data.spans import Span
from training.files import write_whole
from training.own_clips.look import HELD_OUT, TRAIN, WINDOW, Clip, Look
from training.own_clips.recordings import Grouping, groupings, order_key


LEAST, WANTED, MOST = 0.05, 0.10, 0.15  # of the frames
# Of clips that are parted in time.
KNOWN_FOOTAGE = "held-out scores say how well a model knows this footage, not how well it does on other footage"
MOST_OF_FEW = 0.34  # of the frames: of three to six separate clips one is held out, whole
WINDOWS = 20  # held-out windows that share no frame, WINDOW frames a tenth of a second apart
_GAP = 2.0  # seconds between training and held-out frames of one clip; at most 3% of it
_MANY_PIECES = 8  # of so many clips in a recording, whole ones are held out


@dataclass(frozen=True)
class Piece:
    """A span of frames of a clip, on one side.

    Attributes:
        clip: the clip.
        first_frame: of the span.
        num_frames: of the span.
        recording: what it belongs to.
    """

    clip: Clip
    first_frame: int
    num_frames: int
    recording: str

    @property
    def entry(self) -> Entry:
        """Return the facts of the span as if it were a clip."""
        entry, end = self.clip.entry, self.first_frame + self.num_frames
        times = None if entry.timestamps is None else entry.timestamps[self.first_frame : end]
        return entry.model_copy(
            update={
                "num_frames": self.num_frames, "timestamps": times, "duration": self.num_frames / entry.fps,
                "start": float(entry.times([self.first_frame])[0]),
            }
        )  # fmt: skip

    @property
    def windows(self) -> int:
        """Return how many windows without a common frame it holds; see `WINDOWS`."""
        return self.num_frames // (frames_at_stride(0, WINDOW, max(1.0, self.clip.entry.fps / 10))[-1] + 1)

    def row(self, spans: Mapping[str, Span]) -> ClipRow:
        """Return the row of a clip list.

        Args:
            spans: of the clip's source, if that is a clip list: a list does not name another one.
        """
        source, key, first = self.clip.source, self.clip.entry.key, self.first_frame
        if key in spans:
            span = spans[key]
            source, key, first = span.source.spec, span.clip, span.first_frame + first
        return ClipRow(source, key, first, self.num_frames, self.clip.entry.fps, self.recording)


@dataclass(frozen=True)
class Split:
    """Both sides, with reasons.

    Attributes:
        train: pieces to train on.
        held_out: pieces that are never trained on.
        left_out: reasons for pieces that are on neither side.
        reasons: sentences on how it was chosen and what to know about it.
    """

    train: tuple[Piece, ...]
    held_out: tuple[Piece, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Return the share of the frames that is held out."""
        return _frames(self.held_out) / max(1, _frames((*self.train, *self.held_out)))

    @property
    def windows(self) -> int:
        """Return the number of held-out windows; see `WINDOWS`."""
        return sum(piece.windows for piece in self.held_out)


def hold_out(found: Look, seed: int = 0) -> Split:
    """Split the clips of a look.

    Args:
        found: the clips.
        seed: another one holds out others.

    Raises:
        ValueError: if the clips are too short to be split at all.
    """
    has_sides = any(clip.split for clip in found.clips)
    split = _given(found) if has_sides else _chosen(found, seed)
    split = _without_copies(split, found)
    if not split.train or not split.held_out:
        side = "to train on" if not split.train else "to hold out"
        raise ValueError(
            f"'{shown(found.spec)}' leaves nothing {side}: {_frames((*split.train, *split.held_out))} frames can be "
            "used; add clips, or longer ones"
        )
    return replace(split, reasons=(*split.reasons, *_size(split)))


def write_split(split: Split, folder: Path, fps: float | None = None) -> None:
    """Write both sides as clip lists, `train.jsonl` and `held_out.jsonl`, and `split.json` with the reasons.

    Args:
        split: the sides.
        folder: for the files.
        fps: frames per second of pictures that do not state it.
    """
    lists = {piece.clip.source for piece in (*split.train, *split.held_out) if piece.clip.source.endswith(SUFFIX)}
    spans = {spec: open_source(spec, fps).spans() for spec in lists}
    for name, pieces in (("train", split.train), ("held_out", split.held_out)):
        rows = (piece.row(spans.get(piece.clip.source, {})) for piece in pieces)
        write_clip_list(folder / f"{name}.jsonl", rows)
    record = {
        "reasons": split.reasons, "held_out_share": round(split.share, 4), "held_out_windows": split.windows,
        "train_frames": _frames(split.train), "held_out_frames": _frames(split.held_out),
        "held_out": sorted({piece.recording for piece in split.held_out}), "left_out": split.left_out,
    }  # fmt: skip
    write_whole(folder / "split.json", json.dumps(record, indent=1) + "\n")


def _given(found: Look) -> Split:
    """Return the sides that the source states."""
    named = groupings(found.clips)
    names = named[-1].names if named else [clip.name for clip in found.clips]
    sides = [clip.split for clip in found.clips]
    held = HELD_OUT if HELD_OUT in sides else "test"
    pieces = _pieces(found.clips, names)
    left_out = {
        clip.name: f"it belongs to {clip.split}, which is left alone"
        for clip in found.clips
        if clip.split not in (TRAIN, held)
    }
    train = tuple(piece for piece in pieces if piece.clip.split == TRAIN)
    held_out = tuple(piece for piece in pieces if piece.clip.split == held)
    reasons = [f"The clips already have sides, train and {held}; they stay there."]
    both = sorted({piece.recording for piece in train} & {piece.recording for piece in held_out})
    if both:
        reasons.append(
            f"Recordings with clips on both sides: {len(both)}, such as '{shown(both[0])}'; scores may be too good."
        )
    return Split(train, held_out, left_out, tuple(reasons))


def _chosen(found: Look, seed: int) -> Split:
    """Choose the sides: the coarsest groups of which some make a fit share, else the end of each recording."""
    ways = groupings(found.clips)
    for way in ways:
        held = _pick(found, way.names, seed)
        if held is not None:
            return _whole(found, way, held)
    if not ways:  # every clip stands alone
        way = Grouping("clip", tuple(clip.name for clip in found.clips))
        held = _pick(found, way.names, seed) or _one_of_few(found, way.names, seed)
        return _by_time(found, way) if held is None else _whole(found, way, held)
    return _by_time(found, ways[-1])


def _pick(found: Look, names: Sequence[str], seed: int) -> set[str] | None:
    """Return groups that make a fit share of the frames, in the order of their hashes; `None` if none do."""
    units, sizes, windows = _units(found, names)
    total, held, share, count = sum(sizes.values()), set(), 0.0, 0
    for unit in sorted(sizes, key=lambda unit: _hash(seed, unit)):
        if share >= WANTED and count >= WINDOWS:
            break
        if share + sizes[unit] / total <= MOST:
            held.add(unit)
            share, count = share + sizes[unit] / total, count + windows[unit]
    return {name for name in names if units[name] in held} if share >= LEAST else None


def _one_of_few(found: Look, names: Sequence[str], seed: int) -> set[str] | None:
    """Return one of a few separate clips, if what remains is enough."""
    units, sizes, _ = _units(found, names)
    total = sum(sizes.values())
    fit = [unit for unit in sizes if LEAST <= sizes[unit] / total <= MOST_OF_FEW]
    if not fit:
        return None
    chosen = min(fit, key=lambda unit: (round(sizes[unit] / total, 2), _hash(seed, unit)))
    return {name for name in names if units[name] == chosen}


def _units(found: Look, names: Sequence[str]) -> tuple[dict[str, str], dict[str, int], dict[str, int]]:
    """Return what cannot be parted, groups with copies of each other's footage: unit by group, frames, windows."""
    parents = {name: name for name in names}

    def root(name: str) -> str:
        while parents[name] != name:
            name = parents[name] = parents[parents[name]]
        return name

    for first, second, _ in found.copies:
        low, high = sorted((root(names[first]), root(names[second])))
        parents[high] = low
    sizes: dict[str, int] = defaultdict(int)
    windows: dict[str, int] = defaultdict(int)
    for piece in _pieces(found.clips, names):
        sizes[root(piece.recording)] += piece.num_frames
        windows[root(piece.recording)] += piece.windows
    return {name: root(name) for name in parents}, sizes, windows


def _whole(found: Look, way: Grouping, held: set[str]) -> Split:
    pieces = _pieces(found.clips, way.names)
    train = tuple(piece for piece in pieces if piece.recording not in held)
    held_out = tuple(piece for piece in pieces if piece.recording in held)
    names = sorted(held)
    listed = ", ".join(shown(name) for name in names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
    reason = f"Held out by {way.kind}, whole: {len(names)} of {way.count} ({listed})."
    return Split(train, held_out, {}, (reason,))


def _by_time(found: Look, way: Grouping) -> Split:
    """Hold out the end of each recording, apart from the rest by a gap.

    Of two clips with the same footage the longer one alone is parted: in the other, held-out frames lie elsewhere.
    """
    kept, left_out = _without_shorter_copies(found)
    way = replace(way, names=tuple(way.names[index] for index in kept))
    found = replace(found, clips=tuple(found.clips[index] for index in kept), copies=())
    train, held_out, cut_clips = [], [], 0
    recordings: dict[str, list[Piece]] = defaultdict(list)
    order = sorted(range(len(found.clips)), key=lambda index: order_key(found.clips[index]))
    for piece in _pieces([found.clips[index] for index in order], [way.names[index] for index in order]):
        recordings[piece.recording].append(piece)
    for pieces in recordings.values():
        many = len({piece.clip.name for piece in pieces}) >= _MANY_PIECES
        before, after, between = _last_clips(pieces) if many else _last_frames(pieces)
        if _frames(after) > MOST_OF_FEW * _frames(pieces):  # one of the last clips is longer than most others together
            before, after, between = _last_frames(pieces)
        train += before
        held_out += after
        left_out |= between
        cut_clips += bool({piece.clip.name for piece in before} & {piece.clip.name for piece in after})
    count = len(recordings)
    what = f"the end of each of {count} {way.kind}s" if count > 1 else "the end"
    reasons = [f"No {way.kind} makes a fit share as a whole, so {what} is held out, in time, after a gap."]
    if cut_clips:
        reasons.append(
            f"{cut_clips} {'clip has' if cut_clips == 1 else 'clips have'} training and held-out frames at different "
            f"times: {KNOWN_FOOTAGE}."
        )
    return Split(tuple(train), tuple(held_out), left_out, tuple(reasons))


def _without_shorter_copies(found: Look) -> tuple[list[int], dict[str, str]]:
    """Return the clips that share no footage with a longer one that is kept, and reasons for the others."""
    copies: dict[int, set[int]] = defaultdict(set)
    for first, second, _ in found.copies:
        copies[first].add(second)
        copies[second].add(first)
    kept, left_out = set[int](), {}
    for index in sorted(range(len(found.clips)), key=lambda index: -found.clips[index].entry.num_frames):
        if longer := copies[index] & kept:
            copy = found.clips[min(longer)].name
            left_out[found.clips[index].name] = f"shows footage of '{shown(copy)}', which is parted in time"
        else:
            kept.add(index)
    return sorted(kept), left_out


def _last_clips(pieces: list[Piece]) -> tuple[list[Piece], list[Piece], dict[str, str]]:
    """Part a recording of many clips: the last ones are held out, and the one before them is left out."""
    frames: dict[str, int] = defaultdict(int)  # by clip, in their order
    for piece in pieces:
        frames[piece.clip.name] += piece.num_frames
    clips, held, last = list(frames), 0, list[str]()
    while held < WANTED * _frames(pieces) and len(last) < len(clips) // 2:
        last.append(clips[-1 - len(last)])
        held += frames[last[-1]]
    gap = clips[-1 - len(last)]
    held_names = set(last)
    before = [piece for piece in pieces if piece.clip.name not in {gap, *held_names}]
    after = [piece for piece in pieces if piece.clip.name in held_names]
    return before, after, {gap: "the gap between training and held-out clips of one recording"}


def _last_frames(pieces: list[Piece]) -> tuple[list[Piece], list[Piece], dict[str, str]]:
    """Part a recording of few clips where a clip begins, else where a scene does, else at any frame of its end."""
    total = _frames(pieces)
    if total < 4 * WINDOW:
        return pieces, [], {}
    places, place = [], 0
    for piece in pieces:
        places.append(place)
        place += piece.num_frames
    clips = [place for place, piece, earlier in zip(places[1:], pieces[1:], pieces) if piece.clip != earlier.clip]
    wanted = round((1 - WANTED) * total)
    for starts, most in ((clips, MOST_OF_FEW), (places, MOST), ([wanted], 1)):
        fit = [start for start in starts if LEAST <= 1 - start / total <= most]
        if fit:
            break
    border = min(min(fit, key=lambda start: abs(start - wanted)), total - WINDOW)
    fps = pieces[-1].clip.entry.fps
    gap = border - max(WINDOW, round(min(_GAP * fps, 0.03 * total)))
    before, after, left_out = [], [], {}
    for piece, place in zip(pieces, places):
        end = place + piece.num_frames
        for begin, stop, side in ((place, min(end, gap), before), (max(place, border), end, after)):
            part = replace(piece, first_frame=piece.first_frame + begin - place, num_frames=stop - begin)
            if part.num_frames >= WINDOW:
                side.append(part)
    first = next((piece for piece, place in zip(pieces, places) if place + piece.num_frames > gap), pieces[-1])
    left_out[f"{first.clip.name}, {border - gap} frames"] = "the gap between training and held-out frames of one clip"
    return before, after, left_out


def _without_copies(split: Split, found: Look) -> Split:
    """Take clips out of training that show held-out footage."""
    held = {piece.clip.name for piece in split.held_out}
    both = held & {piece.clip.name for piece in split.train}
    left_out = dict(split.left_out)
    for first, second, _ in found.copies:
        for one, other in ((first, second), (second, first)):
            name, copy = found.clips[one].name, found.clips[other].name
            if copy in held and name not in held and name not in both:
                left_out[name] = f"shows the same footage as '{shown(copy)}', which is held out"
    copies = [piece for piece in split.train if piece.clip.name in left_out]
    if not copies:
        return split
    train = tuple(piece for piece in split.train if piece.clip.name not in left_out)
    count = len({piece.clip.name for piece in copies})
    reason = f"{count} training clip{'s' if count > 1 else ''} with held-out footage left out."
    return replace(split, train=train, left_out=left_out, reasons=(*split.reasons, reason))


def _size(split: Split) -> list[str]:
    total = _frames((*split.train, *split.held_out))
    said = [
        f"{_frames(split.held_out):,} of {total:,} frames ({split.share:.1%}) are held out: {split.windows:,} windows "
        f"of {WINDOW} frames a tenth of a second apart that share no frame."
    ]
    if split.windows < WINDOWS:
        said.append(f"These are fewer than {WINDOWS} windows, so scores will be uncertain; more footage helps.")
    if split.share > MOST + 0.005:
        said.append("That is more than 15%, since the source says so or its clips are few.")
    elif split.share < LEAST - 0.005:
        said.append("That is less than 5% of the footage.")
    return said


def _pieces(clips: Sequence[Clip], names: Sequence[str]) -> list[Piece]:
    return [Piece(clip, first, count, name) for clip, name in zip(clips, names) for first, count in clip.scenes]


def _frames(pieces: Sequence[Piece]) -> int:
    return sum(piece.num_frames for piece in pieces)


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()
