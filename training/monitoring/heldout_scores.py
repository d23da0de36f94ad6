"""Score held-out windows sampled between their first and last frame, against the autoencoder's decoding of the truth.

SSIM and PSNR reward blur, so motion and sharpness relative to the true ones are reported, too; `evaluation/metrics.py`
defines all of them. `heldout_losses.py` has the losses.
"""

import torch

from training.config.schema import StageConfig
from training.engine.guards import json_number
from training.engine.sharding import layout_of
from training.evaluation.metrics import score_windows, summarize
from training.monitoring.heldout_sampler import HeldoutSampler, tasks
from training.monitoring.heldout_windows import HeldoutWindows


TASK = "interpolation"
SCORES = ("mid_psnr", "mid_ssim", "motion", "sharpness")


def heldout_scores(sampler: HeldoutSampler, windows: HeldoutWindows, stage: StageConfig) -> dict[str, float | str]:
    """Score sampled windows, which the processes share; every process must call this.

    Returns:
        `quality/<score>` for `SCORES`; empty if the stage does not train the transformer, or its windows have no frame
        between the first and the last.
    """
    given = tasks(windows.latents.shape[1]).get(TASK)
    if given is None or stage.trains == "planner":
        return {}
    accelerator, count = sampler.accelerator, len(windows.latents)
    layout = layout_of(accelerator)
    # Equal shares, filled up with the last window, because sharded models must run equally often on all processes.
    share = -(-count // layout.data_ranks)
    first = layout.data_rank(accelerator.process_index) * share
    mine = [min(number, count - 1) for number in range(first, first + share)]
    latents = windows.latents[mine]
    conditions = {name: values[mine] for name, values in windows.conditions.items()}
    sampled = sampler.decode(sampler.sample(latents, windows.planner_latents[mine], given, mine, stage, conditions))
    scores = score_windows(sampled, sampler.decode(latents), given)
    names = list(scores)
    stacked = torch.stack([scores[name] for name in names], dim=1).to(accelerator.device)  # (share, scores)
    # Processes that share tokens have the same windows.
    gathered = accelerator.gather(stacked).cpu().unflatten(0, (-1, share))[:: layout.context].flatten(0, 1)
    gathered = gathered[:count]  # (windows, scores)
    means = summarize({name: gathered[:, column] for column, name in enumerate(names)})
    return {f"quality/{name}": json_number(round(means[name], 5)) for name in SCORES}
