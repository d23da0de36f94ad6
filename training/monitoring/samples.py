"""Write pictures while a run trains: a few fixed held-out windows, true, with given frames only, and sampled.

`samples/<global step>-<stage>/` gets a contact sheet and a video for each task. The truth is shown as the autoencoder
decodes it, the best that the models can reach.
"""

from pathlib import Path

import torch

from diffusers_mardini.video_io import write_video
from training.config.schema import StageConfig
from training.figures.contact_sheets import contact_sheet, side_by_side
from training.monitoring.heldout_sampler import HeldoutSampler, tasks
from training.monitoring.heldout_windows import HeldoutWindows


MASKED_GREY = 0.85  # of masked frames


def write_samples(
    sampler: HeldoutSampler, windows: HeldoutWindows, stage: StageConfig, global_step: int, folder: Path
) -> dict[str, dict]:
    """Sample the windows and, on the main process, write pictures of them in `folder`, the run's.

    Every process samples all windows, because they are few and a sharded model only runs if all processes run it.

    A stage that trains the planner alone has no samples; its reconstruction at low resolution is shown instead.

    Returns:
        For each task, the paths `sheet` and `video` relative to `folder`, and the captions of the `windows`.
    """
    target = Path("samples") / f"{global_step:08d}-{stage.name}"
    low = stage.trains == "planner"
    truth = sampler.decode(windows.planner_latents if low else windows.latents)
    written = {}
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
        written[task] = {
            "sheet": (target / f"{task}.png").as_posix(),
            "video": (target / f"{task}.mp4").as_posix(),
            "windows": list(windows.captions),
        }
        if sampler.accelerator.is_main_process:
            (folder / target).mkdir(parents=True, exist_ok=True)
            how = "the planner's reconstruction" if low else f"{sampler.steps} denoising steps"
            title = f"{task}, step {global_step}, {stage.name}, {how}"
            contact_sheet(groups, given, title).save(folder / written[task]["sheet"])
            write_video(folder / written[task]["video"], side_by_side(groups, given), windows.fps)
    return written


def _only(frames: torch.Tensor, given: list[int]) -> torch.Tensor:
    """Return the frames with grey in place of the masked ones."""
    shown = torch.full_like(frames, MASKED_GREY)
    shown[given] = frames[given]
    return shown
