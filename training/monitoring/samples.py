"""Pictures while a run trains: a few fixed held-out windows, true, as they are given, and sampled, for every task.

They lie in `samples/<global step>-<stage>/`, a contact sheet and a video for each task. What is shown as the truth is the autoencoder's
decoding of it: the best that the models could reach.
"""

from pathlib import Path

import torch

from diffusers_mardini.video_io import write_video
from training.config.schema import StageConfig
from training.figures.contact_sheets import contact_sheet, side_by_side
from training.monitoring.heldout_sampler import HeldoutSampler, tasks
from training.monitoring.heldout_windows import HeldoutWindows


PAPER = 0.85  # the grey of frames that are not given


def write_samples(
    sampler: HeldoutSampler, windows: HeldoutWindows, stage: StageConfig, global_step: int, folder: Path
) -> dict[str, dict]:
    """Samples the windows and, on the main process, writes them below `folder`, the run's.

    Every process samples all of them, and not its share: they are few, and so a model that is sharded over the processes, which
    runs only where all of them run it, needs no other way.

    In a stage that trains the planner alone, there is nothing but its reconstruction at low resolution, and that is shown.

    Returns:
        For each task `sheet` and `video`, paths relative to `folder`, and the `windows` in words.
    """
    target = Path("samples") / f"{global_step:08d}-{stage.name}"
    low = stage.trains == "planner"
    truth = sampler.decode(windows.planner_latents if low else windows.latents)
    told = {}
    for task, given in tasks(windows.latents.shape[1]).items():
        if low:
            latents = sampler.reconstruct(windows.planner_latents, given, windows.conditions)
        else:
            latents = sampler.sample(
                windows.latents,
                windows.planner_latents,
                given,
                range(len(windows.latents)),
                stage,
                windows.conditions,
            )
        sampled = sampler.decode(latents)
        label = "reconstructed" if low else "generated"
        groups = [
            (caption, {"truth": true, "given": _only(true, given), label: ours})
            for caption, true, ours in zip(windows.captions, truth, sampled, strict=True)
        ]
        told[task] = {
            "sheet": str(target / f"{task}.png"),
            "video": str(target / f"{task}.mp4"),
            "windows": list(windows.captions),
        }
        if sampler.accelerator.is_main_process:
            (folder / target).mkdir(parents=True, exist_ok=True)
            how = "the planner's reconstruction" if low else f"{sampler.steps} denoising steps"
            title = f"{task}, step {global_step}, {stage.name}, {how}"
            contact_sheet(groups, given, title).save(folder / told[task]["sheet"])
            write_video(folder / told[task]["video"], side_by_side(groups, given), windows.fps)
    return told


def _only(frames: torch.Tensor, given: list[int]) -> torch.Tensor:
    """The given frames, and paper in place of the others."""
    shown = torch.full_like(frames, PAPER)
    shown[given] = frames[given]
    return shown
