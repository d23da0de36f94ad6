"""Locks that let one process at a time write a folder: a lock file names the owner, as long as it lives.

Locks of the operating system are unreliable on network file systems, so the owner touches its lock file every few
seconds instead. An owner on this machine is dead if its process is; one on another machine, if the file was not
touched for `SILENCE`.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from training.stopping import Stopped


BEAT = 15.0  # seconds between two touches
SILENCE = 300.0  # seconds without a touch, after which an owner on another machine is taken for dead


class OwnedError(ValueError):
    """Another living process owns the lock; the message says which."""


class Owner:
    """Own a lock within a `with` block; the lock of a dead owner is taken over.

    Args:
        path: the lock file; its folder is created.
        what: a name for what is locked, for messages.
        wait: wait until the lock is free instead of refusing. One whose owner lies on another machine and has missed
            several beats, as when a cluster starts a job again elsewhere, is waited for in any case.
        stop: asked while waiting, for a reason to stop.

    Raises:
        OwnedError: if another process owns the lock, and `wait` is false.
        Stopped: if there was a reason to stop.
    """

    def __init__(self, path: Path, what: str, wait: bool = False, stop: Callable[[], str | None] = lambda: None):
        self.path = path
        self.what = what
        self.wait = wait
        self.stop = stop
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._mine = json.dumps(
            {**_this_process(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "id": uuid.uuid4().hex}
        )

    def __enter__(self) -> "Owner":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        announced = False
        while not self._take():
            owner = self._read()
            if not self.wait and not self._is_silent(owner):
                raise OwnedError(self._refusal(owner))
            if reason := self.stop():
                raise Stopped(reason)
            if not announced:
                print(
                    f"waiting for process {owner.get('pid', '?')} on {owner.get('host', '?')}, which writes "
                    f"{self.what}"
                    + ("" if self.wait else f"; it counts as dead after {SILENCE / 60:.0f} silent minutes"),
                    flush=True,
                )
            announced = True
            time.sleep(1)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()
        if self._read_text() == self._mine:
            self.path.unlink(missing_ok=True)

    def _take(self) -> bool:
        """Return whether this process owns the lock now."""
        if self._create(self.path):
            return True
        if not self._is_dead():
            return False
        # Only one process at a time may take over, or a second would take the lock from the first.
        turn = self.path.with_name(f"{self.path.name}.turn")
        if not self._create(turn):
            with contextlib.suppress(OSError):
                if self._age(turn) > SILENCE:  # left by a process that died within the next lines
                    turn.unlink()
            return False
        try:
            if not self._is_dead():
                return False
            self.path.unlink(missing_ok=True)
            return self._create(self.path)
        finally:
            turn.unlink(missing_ok=True)

    def _create(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except (FileExistsError, PermissionError) as error:
            if path.exists():  # Windows raises PermissionError for a file that is being deleted
                return False
            raise error
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(self._mine)
        return True

    def _is_dead(self) -> bool:
        owner, me = self._read(), _this_process()
        if owner.get("machine") == me["machine"]:
            return not _is_alive(owner.get("pid"), owner.get("started"))
        with contextlib.suppress(OSError):
            return self._age(self.path) > SILENCE
        return False

    def _is_silent(self, owner: dict[str, Any]) -> bool:
        """Return whether an owner on another machine has missed several beats: it may be known to be dead soon."""
        with contextlib.suppress(OSError):
            return owner.get("machine") != _this_process()["machine"] and self._age(self.path) > 3 * BEAT
        return False

    def _age(self, path: Path) -> float:
        """Return the seconds since a file was touched, by the clock of its file system, which all machines share."""
        probe = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        probe.touch()
        try:
            return probe.stat().st_mtime - path.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _read_text(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""

    def _read(self) -> dict[str, Any]:
        """Return what the owner wrote; empty before it has written."""
        try:
            owner = json.loads(self._read_text())
        except ValueError:
            return {}
        return owner if isinstance(owner, dict) else {}

    def _refusal(self, owner: dict[str, Any]) -> str:
        return (
            f"{self.what} is being written by process {owner.get('pid', '(unknown)')} on "
            f"{owner.get('host', 'an unknown machine')}, since {owner.get('since', 'a moment ago')}; wait until it "
            "ends, or end it. The lock of a dead process is taken over at once on its own machine, and after "
            f"{SILENCE / 60:.0f} minutes without a sign of life on others ({self.path})"
        )

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            found = self._read_text()
            if found == self._mine:
                with contextlib.suppress(OSError):  # a file system that is away for a while
                    os.utime(self.path)
            elif not found:  # deleted by hand
                with contextlib.suppress(OSError):
                    self._create(self.path)
            elif '"id"' in found:
                # This process was suspended for so long that another took it for dead; only one may write.
                print(f"{self._refusal(self._read())}; this process ends without writing anything more", flush=True)
                os._exit(1)


@contextlib.contextmanager
def turn_to_write(path: Path, what: str, stop: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Own a lock within the block, waiting for earlier owners; do without if the lock file cannot be written."""
    owner = Owner(path, what, wait=True, stop=stop)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(owner)
        yield


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "host": socket.gethostname(),
        "machine": _machine(),
    }


def _machine() -> str:
    """Return what processes that see each other's numbers have in common: the host and, on Linux, a PID namespace."""
    known = [socket.gethostname()]
    with contextlib.suppress(OSError):  # small images of containers have none
        known.append(Path("/etc/machine-id").read_text().strip())
    with contextlib.suppress(OSError):
        known.append(str(os.stat("/proc/self/ns/pid").st_ino))
    # The address of the network differs from process to process where there is none, so it is the last resort.
    return " ".join(known) if len(known) > 1 else f"{known[0]} {uuid.getnode():x}"


def _is_alive(pid: Any, started: Any) -> bool:
    """Return whether the process with this number is the one that began then: numbers are reused."""
    if not isinstance(pid, int):
        return False
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, TypeError, ValueError):
        return False
