"""Score simple methods on a run's held-out windows, so that its own scores have something to compare with.

As for the run's scores (`heldout_scores.py`), the truth is the autoencoder's decoding, which itself scores 1.
"""

import importlib.util
import json
from pathlib import Path

from training.config.schema import StageConfig
from training.engine.guards import json_number
from training.evaluation.baselines import cross_fade, flow_warp
from training.evaluation.metrics import score_windows, summarize
from training.files import read_json, write_whole
from training.monitoring.heldout_sampler import HeldoutSampler, tasks
from training.monitoring.heldout_scores import SCORES, TASK
from training.monitoring.heldout_windows import HeldoutWindows


SIMPLE_SCORES = "simple_methods.json"


def read_simple_scores(folder: Path) -> dict[str, dict[str, dict[str, float | str]]]:
    """Return the scores of a run's folder by stage and method; empty if there are none."""
    path = folder / SIMPLE_SCORES
    return read_json(path) if path.is_file() else {}


def write_simple_scores(
    folder: Path, sampler: HeldoutSampler, windows: HeldoutWindows, stage: StageConfig
) -> dict[str, dict[str, float | str]]:
    """Return a stage's scores of cross-fade and optical flow by method; measured once, and kept in the run's folder.

    Empty if the windows have no frame between the first and the last, or the stage samples none.
    """
    given = tasks(windows.latents.shape[1]).get(TASK)
    if given is None or stage.trains == "planner":
        return {}
    known = read_simple_scores(folder)
    if stage.name not in known:
        methods = {"cross-fade": cross_fade}
        if importlib.util.find_spec("cv2") is not None:
            methods["optical flow"] = flow_warp
        truth = sampler.decode(windows.latents)
        known[stage.name] = {}
        for name, method in methods.items():
            means = summarize(score_windows(method(truth, given), truth, given))
            known[stage.name][name] = {score: json_number(round(means[score], 5)) for score in SCORES}
        write_whole(folder / SIMPLE_SCORES, json.dumps(known, indent=1) + "\n")
    return known[stage.name]
