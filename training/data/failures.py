"""Clips that could not be read in mid-run, told once and kept with the run; what is read in their place is decided in `windows.py`."""

import contextlib
import json
import time
from pathlib import Path


class FailedClips:
    """One line of a file for each clip, whichever process meets it first and however often the run is started again.

    Args:
        path: `failed_clips.jsonl` of the run.
    """

    def __init__(self, path: Path):
        self.path = path

    def __len__(self) -> int:
        return len(self._known())

    def add(self, source: str, clip: str, reason: str) -> None:
        """Prints and writes a clip that is not in the file yet. Two processes that meet it at the same moment may both do so."""
        if (source, clip) in self._known():
            return
        print(
            f"clip '{clip}' of '{source}' can't be read; other clips take its place from here on: {reason}", flush=True
        )
        record = {
            "source": source,
            "clip": clip,
            "reason": reason,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")  # one short write, which processes do not mix up

    def _known(self) -> set[tuple[str, str]]:
        known = set()
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            with contextlib.suppress(json.JSONDecodeError):  # a full disk may have cut a line short
                record = json.loads(line)
                known.add((record["source"], record["clip"]))
        return known
