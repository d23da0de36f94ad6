"""Places of results: refuse bad names, hold unfinished results in a hidden folder, and rename finished ones.

The formats are in `writing.py`.
"""

import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path


try:
    import fcntl
except ImportError:  # on Windows the open file of a living process cannot be removed, which serves as a lock
    fcntl = None


UNFINISHED = ".part"
_MACHINE = hashlib.sha256(platform.node().encode(errors="replace")).hexdigest()[:8]
_ROOM = re.compile(rf"\.([0-9a-f]{{8}})-[0-9a-f]{{8}}{re.escape(UNFINISHED)}")
_DAY = 24 * 60 * 60


def real_place(path: Path, is_folder: bool) -> Path:
    """Return the real place of a result of this name: the target of a link, else the path itself.

    Raises:
        ValueError: for names that cannot be a file's, and if a folder, a device or an endless link is in the way.
    """
    if str(path) == "-":
        raise ValueError("'-' stands for standard output, to which no video is written; give a name such as out.mp4")
    if path.name in ("", ".."):
        raise ValueError(f"'{path}' has no name of its own; give the name of a file or of a new folder")
    if path.name.endswith((".", " ")):
        raise ValueError(f"'{path}' ends with a dot or a space, which Windows drops; leave it out")
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    if place.is_symlink():
        raise ValueError(f"'{path}' is a link that leads back to itself; remove it or give another name")
    if path.exists() and not path.is_dir() and not path.is_file():
        raise ValueError(f"'{path}' is a device or a pipe, not a file; give the name of a file")
    if is_folder and path.is_symlink():
        raise ValueError(f"'{path}' is a link to '{place}'; give its target")
    if not is_folder and place.is_dir():
        raise ValueError(f"'{path}' is a folder; give the name of a file")
    there = nearest_folder(place)
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        obstacle = "write-protected" if there.is_dir() else "a file" if there.exists() else "a link to nothing"
        raise ValueError(f"cannot write '{path}': '{there}' is {obstacle}")
    return place


def nearest_folder(place: Path) -> Path:
    """Return the nearest existing parent of a place: a folder, or whatever has its name."""
    return next((folder for folder in place.absolute().parents if os.path.lexists(folder)), place)


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Yield a new hidden folder within `folder` for unfinished files; it is removed at the end, whatever happens.

    Folders of killed processes are removed first. A living process holds a lock on its own folder, so that others
    leave it alone. The name does not depend on the result's, so that no legal name becomes too long.
    """
    _remove_abandoned(folder)
    room, lock = _claim(folder)
    try:
        yield room
    finally:
        lock.close()
        shutil.rmtree(room, ignore_errors=True)


def publish(finished: Path, place: Path, overwrite: bool) -> None:
    """Give a finished file or folder its name in one step.

    Raises:
        FileExistsError: if the place is taken and `overwrite` is false, even if it was taken a moment ago.
    """
    if overwrite:
        old = finished.with_name("replaced")
        if finished.is_dir() and place.is_dir():  # a folder can only replace an empty one
            os.replace(place, old)
        try:
            os.replace(finished, place)
        except OSError:
            if old.exists():
                os.replace(old, place)
            raise
    elif os.name == "nt":
        os.rename(finished, place)  # fails if the place is taken
    elif finished.is_dir():
        place.mkdir()
        os.replace(finished, place)
    else:
        try:
            os.link(finished, place)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.replace(finished, place)


def spare_names(path: Path) -> Iterator[Path]:
    """Yield names like that of `path` with a number, `clip-1.mp4` for `clip.mp4`, short enough for any file system."""
    stem = path.stem
    if len(os.fsencode(stem)) > 200:
        stem = os.fsencode(stem)[:200].decode(errors="ignore")
    for number in range(1, 100):
        yield path.with_name(f"{stem}-{number}{path.suffix}")


def _claim(folder: Path) -> tuple:
    """Return a new folder and its open lock."""
    while True:
        room = folder / f".{_MACHINE}-{secrets.token_hex(4)}{UNFINISHED}"
        room.mkdir()
        lock = open(room / "lock", "xb")  # noqa: SIM115
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process found it unlocked between the two lines, and removes it
            lock.close()
            continue
        except OSError:  # on a file system without locks no folder counts as abandoned
            pass
        if (room / "lock").exists():
            return room, lock
        lock.close()


def _remove_abandoned(folder: Path) -> None:
    """Remove folders whose lock is free, as their process is dead. Other machines' locks may not show: wait a day."""
    for name in os.listdir(folder) if os.access(folder, os.R_OK) else ():
        room, found = folder / name, _ROOM.fullmatch(name)
        if found is None:
            continue
        with contextlib.suppress(OSError):  # locked, gone meanwhile, or another user's
            if found[1] != _MACHINE and time.time() - room.stat().st_mtime < _DAY:
                continue
            if fcntl is None:
                (room / "lock").unlink()
                shutil.rmtree(room, ignore_errors=True)
                continue
            with open(room / "lock", "r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(room, ignore_errors=True)
