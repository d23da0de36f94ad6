"""The lines of a run's `metrics.jsonl`; the files themselves are read and written by `files.py`."""

from pathlib import Path

from training.files import whole_lines, write_whole


# Keys of every line of `metrics.jsonl`.
METRICS = {"global_step": int, "stage": str, "step": int, "windows_seen": int}


def forget_records_after(path: Path, global_step: int) -> None:
    """Delete the lines of later steps: they run again, and `metrics.jsonl` holds each step once."""
    if path.is_file():
        kept = [line for line, record in whole_lines(path, METRICS) if record["global_step"] <= global_step]
        write_whole(path, b"".join(kept))
