"""Describe clips that could not be read, and record those that fail during a run.

`windows.py` chooses the windows that take their place.
"""

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path


def shown(text: str) -> str:
    r"""Return a name as one printable line of UTF-8: other bytes as `\xff`, control characters as `\n`."""
    text = re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) & 0xFF:02x}", text)
    text = re.sub("[\0-\x1f\x7f-\x9f\u2028\u2029]", lambda found: found[0].encode("unicode_escape").decode(), text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_utf8(name: str) -> bool:
    """Return whether a file's name can be encoded in UTF-8."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def sentence(error: BaseException) -> str:
    """Return an error's message as one line."""
    if isinstance(error, MemoryError):
        return "there was too little memory to read it"
    return shown(" ".join(str(error).split())) or type(error).__name__


def reason_lines(left_out: Mapping[str, str], of_one_reason: int = 10, most: int = 100) -> list[str]:
    """Return a line for each clip left out, with its reason; of very many, some are named and the rest counted."""
    lines, seen, more = [], Counter(), Counter()
    for key, reason in left_out.items():
        seen[reason] += 1
        if seen[reason] > of_one_reason or len(lines) == most:
            more[reason] += 1
        else:
            lines.append(f"{shown(key)}: {reason}")
    lines += [f"and {count:,} more: {reason}" for reason, count in more.most_common(10)]
    rest = sum(more.values()) - sum(count for _, count in more.most_common(10))
    return [*lines, f"and {rest:,} more, for other reasons"] if rest else lines


class FailedClips:
    """A file with one line per failed clip, whichever process meets it first and however often the run is restarted.

    Args:
        path: `failed_clips.jsonl` of the run.
    """

    def __init__(self, path: Path):
        self.path = path

    def __len__(self) -> int:
        return len(self._known())

    def add(self, source: str, clip: str, reason: str) -> None:
        """Print and record a clip that is not in the file yet; two processes that meet it at once may both do so."""
        if (source, clip) in self._known():
            return
        print(
            f"clip '{shown(clip)}' of '{shown(source)}' can't be read; other clips take its place from here on: "
            f"{reason}",
            flush=True,
        )
        record = {
            "source": source,
            "clip": clip,
            "reason": reason,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        start = "" if self._text()[-1:] in ("", "\n") else "\n"  # the last line was cut short
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(
                start + json.dumps(record) + "\n"
            )  # one short write, so that lines of several processes do not mix

    def _known(self) -> set[tuple[str, str]]:
        known = set()
        for line in self._text().splitlines():
            with contextlib.suppress(
                ValueError, LookupError, TypeError
            ):  # a full disk, or a power cut, left half a line
                record = json.loads(line)
                known.add((record["source"], record["clip"]))
        return known

    def _text(self) -> str:
        return self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
