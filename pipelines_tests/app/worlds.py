"""Tiny checkpoints and files for the tests of the page: one without conditions, one that can be driven."""

from pathlib import Path

import torch
from PIL import Image

from diffusers_mardini import MarDiniPipeline
from pipelines_tests.tiny_pipeline import SIZE, tiny_pipeline


ACTION = {"action": {"names": ["steering", "gas", "brake"], "range": [[-1, 1], [0, 1], [0, 1]]}}


def plain_pipeline() -> MarDiniPipeline:
    """A tiny pipeline that says what it was trained on, as the trainer writes it."""
    pipe = tiny_pipeline()
    pipe.register_to_config(height=SIZE, width=SIZE, num_frames=9, fps=10.0)
    return pipe


def driven_pipeline() -> MarDiniPipeline:
    """The same with actions, which change the frames."""
    pipe = plain_pipeline()
    for model in (pipe.planner, pipe.transformer):
        model.add_conditions({"action": 3}, ACTION)
        for parameter in model.condition_embedder.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return pipe


def save_worlds(folder: Path) -> list[str]:
    """Save both; return their folders, the one without actions first."""
    plain_pipeline().save_pretrained(folder / "still")
    driven_pipeline().save_pretrained(folder / "driven")
    return [str(folder / "still"), str(folder / "driven")]


def pictures(count: int, size: int = 48) -> list[Image.Image]:
    """Pictures that differ from each other."""
    return [Image.new("RGB", (size, size), (20 * i, 255 - 20 * i, 90)) for i in range(count)]
