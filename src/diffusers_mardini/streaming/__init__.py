"""From file to file: slow motion, another rate and extension of videos of any length, in bounded memory.

    from diffusers_mardini.streaming import retime_file
    retime_file(pipe, "clip.mp4", "smooth.mp4", fps=60)

Finished parts lie in a folder beside the result until it is complete, so that a killed run goes on (`resume=True`).
"""

from .running import FileProgress, FileResult
from .tasks import extend_file, retime_file, slow_motion_file


__all__ = ["FileProgress", "FileResult", "extend_file", "retime_file", "slow_motion_file"]
