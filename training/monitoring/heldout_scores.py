"""Held-out quality: windows sampled between their first and last frame, scored against what the autoencoder makes of the truth.

SSIM and PSNR reward blur, so the amount of motion and the sharpness, relative to the true ones, stand beside them; all are defined in
`metrics.py`. The losses are in `heldout.py`.
"""

import torch

from training.config.schema import StageConfig
from training.engine.guards import json_number
from training.evaluation.metrics import score_windows, summarize
from training.monitoring.heldout_sampler import HeldoutSampler, tasks
from training.monitoring.heldout_windows import HeldoutWindows


TASK = "interpolation"
SCORES = ("mid_psnr", "mid_ssim", "motion", "sharpness")


def heldout_scores(sampler: HeldoutSampler, windows: HeldoutWindows, stage: StageConfig) -> dict[str, float | str]:
    """Scores of sampled windows, the processes sharing them; every process must call it.

    Returns:
        `quality/<score>` for `SCORES`; nothing where the stage does not train the transformer, or its windows have no frame
        between the first and the last.
    """
    given = tasks(windows.latents.shape[1]).get(TASK)
    if given is None or stage.trains == "planner":
        return {}
    accelerator, count = sampler.accelerator, len(windows.latents)
    # Equal shares, the last window repeated where they are not: models that are sharded must run equally often everywhere.
    share = -(-count // accelerator.num_processes)
    first = accelerator.process_index * share
    mine = [min(number, count - 1) for number in range(first, first + share)]
    latents = windows.latents[mine]
    told = {name: values[mine] for name, values in windows.conditions.items()}
    sampled = sampler.decode(sampler.sample(latents, windows.planner_latents[mine], given, mine, stage, told))
    scores = score_windows(sampled, sampler.decode(latents), given)
    names = list(scores)
    stacked = torch.stack([scores[name] for name in names], dim=1).to(accelerator.device)  # (share, scores)
    gathered = accelerator.gather(stacked).cpu()[:count]  # (windows, scores)
    means = summarize({name: gathered[:, column] for column, name in enumerate(names)})
    return {f"quality/{name}": json_number(round(means[name], 5)) for name in SCORES}
