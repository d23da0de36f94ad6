"""Bound what a visitor of the page may ask for. Whoever serves it to others may lower these numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one visitor's work, and of all visitors together.

    Attributes:
        upload_bytes: of one file.
        pixels: of a picture, or of one frame of a clip, as given; checked before it is decoded.
        clip_frames: of a clip as given; by what the file states before it is decoded, and while it is.
        reading_seconds: of decoding one file.
        window_frames: frames of a window.
        made_frames: frames of a result of the tab "Long".
        sampled_pixels: of one sampled frame.
        steps: of the sampler.
        job_seconds: from the start of a job to its end.
        waiting: jobs that wait for their turn; further ones are refused.
        drivers: visitors who drive at once.
        drive_seconds: of one drive.
        recorded_frames: of a drive; the oldest are dropped.
        kept_pipelines: loaded checkpoints; the one used longest ago is dropped.
    """

    upload_bytes: int = 64 * 2**20
    pixels: int = 40_000_000
    clip_frames: int = 900
    reading_seconds: float = 60
    window_frames: int = 33
    made_frames: int = 400
    sampled_pixels: int = 512 * 512
    steps: int = 100
    job_seconds: float = 600
    waiting: int = 8
    drivers: int = 2
    drive_seconds: float = 900
    recorded_frames: int = 2000
    kept_pipelines: int = 2
