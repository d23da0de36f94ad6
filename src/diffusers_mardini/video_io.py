"""Read and write clips: mp4, gif, or a folder of pictures. The public names of `video/`.

Frames are numpy `uint8` arrays shaped `(frames, height, width, 3)` or PIL images; the pipeline's video processor makes
tensors in [-1, 1] of them, and `training/data/clips.py` crops.
"""

from .video.opening import FileSection
from .video.picture_files import PICTURE_SUFFIXES, PictureSeries, natural_key
from .video.reading import (
    VideoFacts,
    decoder_version,
    has_sound,
    iterate_frames,
    probe_video,
    read_frames,
    read_images,
    read_video,
)
from .video.writing import MAX_GIF_FPS, check_writable, write_video


VIDEO_SUFFIXES = (
    ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".wmv",
    ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".mxf", ".dv", ".y4m", ".apng",
)  # fmt: skip

__all__ = [
    "MAX_GIF_FPS",
    "PICTURE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "FileSection",
    "PictureSeries",
    "VideoFacts",
    "check_writable",
    "decoder_version",
    "has_sound",
    "iterate_frames",
    "natural_key",
    "probe_video",
    "read_frames",
    "read_images",
    "read_video",
    "write_video",
]
