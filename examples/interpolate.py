"""Sample seven frames between two: `python examples/interpolate.py [OUTPUT]`."""

import os
import sys
from pathlib import Path

import torch
from PIL import Image, ImageOps

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.video_io import read_video, write_video


ROOT = Path(__file__).parents[1]
pipe = MarDiniPipeline.from_pretrained(os.environ.get("CHECKPOINT", ROOT / "checkpoints/mardini-tiny-carracing"))
clip, fps = read_video(ROOT / "examples/clips/carracing_200000.mp4")
frames = [ImageOps.fit(Image.fromarray(frame), (64, 64)) for frame in clip[::2]]  # the size and pace of its training
options = {"num_inference_steps": int(os.environ.get("STEPS", "25")), "generator": torch.Generator().manual_seed(0)}

video = pipe(image=frames[0], last_image=frames[8], num_frames=9, **options).frames[0]
output = write_video(sys.argv[1] if len(sys.argv) > 1 else "interpolation.mp4", video, fps / 2)
print(f"Wrote {output}")
