"""Plan a window once and sample four videos from it: `python examples/plan_once_sample_often.py [FOLDER]`."""

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

videos = pipe(image=frames[0], num_frames=9, num_videos_per_prompt=4, **options).frames  # the planner runs once
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "samples")
for number, video in enumerate(videos):
    print(f"Wrote {write_video(folder / f'{number}.mp4', video, fps / 2)}")
