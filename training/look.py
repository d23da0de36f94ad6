"""Look at clips before training, and hold some out: `python -m training.look CLIPS OUT`.

Says how many clips there are and of which rates, sizes and lengths, where they are cut, what is left out and why, how
much they move, and what is there twice. OUT gets `train.jsonl` and `held_out.jsonl`, lists of spans of clips;
`split.json` with the reasons; and `look.json` with all numbers.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from training.data.failures import sentence, shown
from training.data.manifest_files import MANIFESTS
from training.files import write_whole
from training.own_clips.hold_out import hold_out, write_split
from training.own_clips.look import look
from training.own_clips.report import numbers, sentences
from training.stopping import STOPPED, Stopped, StopRequest


def main(arguments: list[str] | None = None) -> int:
    """Look at clips, split them, and print the report; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", help="a source of clips: a folder, .tar shards or datasets:NAME")
    parser.add_argument("out", type=Path, help="folder for the lists of both sides and the report")
    parser.add_argument(
        "--picture-fps", "--fps", dest="fps", type=float,
        help="frames per second of picture folders that do not state it",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="another one holds out others (default 0)")
    parser.add_argument("--workers", type=int, help="processes that read clips (default: all cores)")
    parser.add_argument(
        "--manifests", type=Path, default=MANIFESTS, help=f"folder that keeps what was read (default {MANIFESTS})"
    )
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        for name, value in (("--workers", options.workers), ("--picture-fps", options.fps)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value:g}; give a positive number")
        with StopRequest(options.out) as request:
            found = look(
                options.clips, options.manifests, options.fps, options.workers, lambda: request.reason,
                lambda line: print(line, flush=True),
            )  # fmt: skip
        split = hold_out(found, options.seed)
        write_split(split, options.out, options.fps)
        write_whole(options.out / "look.json", json.dumps(numbers(found, split), indent=1) + "\n")
    except Stopped as stopped:
        print(f"stopped by {stopped}; what was read is kept, and the same command goes on")
        return STOPPED
    except (ValueError, OSError) as error:
        print(sentence(error), file=sys.stderr)
        return 2
    print("\n".join(sentences(found, split)))
    print(f"{shown(str(options.out))} holds train.jsonl, held_out.jsonl, split.json and look.json; "
          f"that took {time.monotonic() - started:.1f} seconds.")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
