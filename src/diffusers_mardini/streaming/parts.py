"""The folder of finished parts beside a result that is being made; what is in it survives a killed process."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from diffusers.utils import logging

from ..video.places import UNFINISHED, unfinished


try:
    import fcntl
except ImportError:  # on Windows no lock is held
    fcntl = None

logger = logging.get_logger(__name__)

SUFFIX = ".parts"
LONGEST_NAME = 255  # bytes, on nearly all file systems
LONG = 200  # letters about one setting
SETTINGS, FACTS, WRITTEN = "settings.json", "source.json", "written.json"


class PartFolder:
    """Finished parts of a result, and the settings that they were made with.

    A part counts once its record is written, after its file: a killed process leaves no half of one.

    Args:
        output: the result; the folder has its name with `.parts` at the end.
        settings: what the frames depend on.
        resume: whether to go on with the parts that are there.
        overwrite: without `resume`, whether `begin` removes the parts that are there.
        container_suffix: of the parts' files.

    Raises:
        ValueError: if the folder has parts and neither is true, parts of other settings, or is in use.
    """

    def __init__(self, output: Path, settings: dict[str, Any], resume: bool, overwrite: bool, container_suffix: str):
        self.output = output
        self.folder = folder_of(output)
        self.replaces = output.exists()  # which `check_output` has allowed; what appears later is left alone
        self._suffix = container_suffix
        settings = json.loads(json.dumps(settings))
        if has_parts(output) and not resume and not overwrite:
            raise ValueError(
                f"'{self.folder}' holds parts of an earlier run; `resume=True` goes on with them, `overwrite=True` begins "
                "anew"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder)
        self._settings, self._facts = settings, None
        self.records: list[dict[str, Any]] = []
        self._is_replaced = has_parts(output) and not resume
        if self._is_replaced:
            return
        before = self._read(SETTINGS) if resume else None
        if before is not None and before != settings:
            self._lock.close()
            names = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
            was = ", ".join(_difference(name, before.get(name), settings.get(name)) for name in names)
            raise ValueError(
                f"the parts in '{self.folder}' were made with other settings ({was}); give those, or begin anew: "
                "`overwrite=True` without `resume`"
            )
        if before is None:  # what a process left that was killed in its first part may be of another source
            (self.folder / FACTS).unlink(missing_ok=True)
        self._write(SETTINGS, settings)
        while (record := self._read(f"{len(self.records):05}.json")) is not None:
            self.records.append(record)

    @property
    def num_frames(self) -> int:
        """Frames of all finished parts."""
        return sum(record["frames"] for record in self.records)

    def begin(self) -> None:
        """Make room for the first part: remove those of an earlier run that are to be replaced, now that all
        arguments and files are known to be usable."""
        if not self._is_replaced:
            return
        count = len(list(self.folder.glob("[0-9]*.json")))
        self._lock.close()
        with unfinished(self.folder.parent) as room:  # in one step, so that no part is left without the others
            os.replace(self.folder, room / "parts")
        self.folder.mkdir()
        self._lock = _locked(self.folder)
        self._is_replaced = False
        self._write(SETTINGS, self._settings)
        if self._facts is not None:
            self._write(FACTS, self._facts)
        logger.warning(f"{count} finished parts of an earlier run were removed from '{self.folder}'")

    def facts(self) -> dict[str, Any] | None:
        """Return what `keep_facts` kept, if anything."""
        return self._facts if self._is_replaced else self._read(FACTS)

    def keep_facts(self, facts: dict[str, Any]) -> None:
        """Keep the facts about the source for a run that goes on."""
        self._facts = facts
        if not self._is_replaced:
            self._write(FACTS, facts)

    def path(self, number: int) -> Path:
        """Return the place of a part's file."""
        return self.folder / f"{number:05}{self._suffix}"

    def unfinished(self, number: int) -> Path:
        """Return the place of a part's file while it is written."""
        return self.folder / f"{number:05}{self._suffix}{UNFINISHED}"

    def state(self, number: int) -> Path:
        """Return the place of what the part after this one needs."""
        return self.folder / f"{number:05}.safetensors"

    def finish(self, number: int, record: dict[str, Any]) -> None:
        """Count a part whose files are complete."""
        if self.unfinished(number).exists():
            os.replace(self.unfinished(number), self.path(number))
        self._write(f"{number:05}.json", record)
        self.records.append(record)
        if number:
            self.state(number - 1).unlink(missing_ok=True)

    def keep_written(self) -> None:
        """Remember the result of an interrupted run, which `wrote` then knows."""
        self._write(WRITTEN, _state_of(self.output))

    def close(self) -> None:
        """Let others use the folder; remove it if there is nothing to go on with."""
        self._lock.close()
        if not self.records and not self._is_replaced and not (self.folder / WRITTEN).exists():
            shutil.rmtree(self.folder, ignore_errors=True)

    def remove(self) -> None:
        """Remove the folder, when the result is complete."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"'{self.folder / name}' is damaged; remove the folder to begin anew") from error

    def _write(self, name: str, content: Any) -> None:
        unfinished = self.folder / f"{name}{UNFINISHED}"
        unfinished.write_text(json.dumps(content), encoding="utf-8")
        os.replace(unfinished, self.folder / name)


def has_parts(output: Path) -> bool:
    """Return whether an earlier run left finished parts of a result."""
    return (folder_of(output) / "00000.json").exists()


def wrote(output: Path) -> bool:
    """Return whether an interrupted run left this result, which its resumption may replace."""
    try:
        written = json.loads((folder_of(output) / WRITTEN).read_text(encoding="utf-8"))
        return written == _state_of(output)
    except (OSError, ValueError):
        return False


def _state_of(path: Path) -> list[int]:
    """Return what tells whether a file or a folder was changed."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def folder_of(output: Path) -> Path:
    """Return the folder of the parts of a result."""
    name, most = output.name, LONGEST_NAME - len(SUFFIX)
    if len(os.fsencode(name)) > most:  # cut between letters: some systems refuse half of one
        name = os.fsencode(name)[:most].decode("utf-8", "ignore")
    return output.parent / (name + SUFFIX)


def _difference(name: str, before: Any, now: Any) -> str:
    """Say how a setting differs: of lists and dictionaries only the values that do, long ones by their name alone."""
    if isinstance(before, dict) and isinstance(now, dict):
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        return ", ".join(_difference(f"{name} {key}", before.get(key), now.get(key)) for key in changed)
    if isinstance(before, list) and isinstance(now, list):
        before, now = ([item for item in one if item not in other] for one, other in ((before, now), (now, before)))
    said = f"{name} {before!r}, now {now!r}"
    return said if len(said) <= LONG else name


def _locked(folder: Path):
    """Return the open lock of a folder, which a killed process gives free.

    Raises:
        ValueError: if another process holds it.
    """
    lock = open(folder / "lock", "ab")  # noqa: SIM115
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise ValueError(
                f"another process is at work in '{folder}'; wait for it, or give another output"
            ) from error
        except OSError:  # a file system without locks
            pass
    return lock
