"""Score a planner that samples alone, by the reconstruction head of its training (Sec. 2.4.1; Table 2).

    python -m training.reproduction.planner_alone runs/claims-planner-alone CLIPS -o outputs/planner-alone

Finished pipelines do not contain the head, so its averaged weights are read from the run's last checkpoint. The
planner predicts one latent for each place, the mean of all possible ones, without noise or steps. A planner at low
resolution samples there, and its frames are enlarged. Scores, windows and files are those of `training.evaluate`, so
`comparison.py` can read them.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from diffusers_mardini import MarDiniPipeline
from diffusers_mardini.hardware import choose_device, choose_dtype
from diffusers_mardini.latents import decode_latents
from diffusers_mardini.masking import TASKS, task_indices
from diffusers_mardini.models.embeddings import unpatchify
from training.config.schema import RunConfig
from training.engine.checkpoint import load_checkpoint, newest_checkpoint
from training.engine.reconstruction_head import PlannerReconstructionHead
from training.evaluation.evaluation_windows import add_window_options, choose_window, load_windows
from training.evaluation.finished_parts import FinishedParts
from training.evaluation.methods import OURS, Method, baselines, model_key
from training.evaluation.networks.loading import load_networks
from training.evaluation.results import write_results, write_sheets
from training.evaluation.sampling import batches, weights_digest
from training.evaluation.scores import Evaluation
from training.evaluation.tables import score_table
from training.reproduction.shared_options import facts


METHOD = "planner alone"


class PlannerAlone:
    """The planner of a run and its head, with averaged weights.

    Args:
        run: folder of a finished run whose last stage trained the planner by reconstruction.
        device: to run on.
        dtype: of the weights.

    Raises:
        ValueError: if the run is not finished, has no head, or trained something else last.
    """

    def __init__(self, run: Path, device: torch.device, dtype: torch.dtype):
        if not (run / "pipeline").is_dir():
            raise ValueError(f"{run} has no finished pipeline; give the folder of a run that has ended, runs/NAME")
        config = RunConfig.model_validate_json((run / "config.json").read_text(encoding="utf-8"))
        if config.stages[-1].trains != "planner":
            raise ValueError(
                f"the last stage of {run}, {config.stages[-1].name!r}, trains {config.stages[-1].trains!r}; a planner "
                "can sample alone only if its last stage trained it by reconstruction"
            )
        newest = newest_checkpoint(run / "checkpoints")
        if newest is None:
            raise ValueError(f"{run} has no checkpoint, which alone contains the reconstruction head")
        averages = load_checkpoint(newest).averages
        self.pipe = MarDiniPipeline.from_pretrained(run / "pipeline", dtype=dtype).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        planner = self.pipe.planner.config
        width = planner.num_attention_heads * planner.attention_head_dim
        head = PlannerReconstructionHead(width, planner.in_channels, planner.patch_size)
        head.load_state_dict({name: averages[f"head.{name}"] for name in head.state_dict()})
        self.head = head.to(device, dtype)
        self.newest = newest.name

    @torch.no_grad()
    def sample(self, windows: torch.Tensor, given: Sequence[int]) -> torch.Tensor:
        """Return frames in [0, 1], shaped like `windows`, `(batch, frames, 3, height, width)`, from the given ones."""
        pipe, given = self.pipe, list(given)
        low = pipe.encode_low_frames(windows[:, given] * 2 - 1)  # (batch, given frames, channels, h_low, w_low)
        patches = self.head(pipe.plan(low, given, windows.shape[1]))
        latents = unpatchify(patches, pipe.planner.config.patch_size)  # (batch, frames, channels, h_low, w_low)
        frames = decode_latents(pipe.vae, latents.to(pipe.vae.dtype)).float().cpu() / 2 + 0.5
        if frames.shape[-2:] != windows.shape[-2:]:
            large = F.interpolate(frames.flatten(0, 1), size=windows.shape[-2:], mode="bilinear")
            frames = large.unflatten(0, frames.shape[:2])
        frames = frames.clamp(0, 1)
        frames[:, given] = windows[:, given].float()
        return frames

    def method(self, count: int, batch_size: int = 8) -> Method:
        """Return the method for `count` windows."""
        key = {"method": METHOD, **model_key(self.pipe), "head": self.newest}
        return Method(METHOD, OURS, key, (0,), batches(count, batch_size), lambda w, given, *_: self.sample(w, given))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reproduction.planner_alone", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run", type=Path, help="the folder of a run, runs/NAME")
    parser.add_argument("clips", type=Path, help="folder of held-out clips")
    add_window_options(parser)
    parser.add_argument("--windows-per-clip", type=int, default=2)
    parser.add_argument("--task", choices=TASKS, default="interpolation")
    parser.add_argument("--metrics", nargs="*", default=["auto"], help="as training.evaluate takes them")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    try:
        _evaluate(options, f"{parser.prog} " + shlex.join(given))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _evaluate(options: argparse.Namespace, command: str) -> None:
    device = choose_device(options.device)
    dtype, _ = choose_dtype(options.dtype, device)
    planner = PlannerAlone(options.run, device, dtype)
    choose_window(options, planner.pipe.trained_window)
    networks, missing = load_networks(options.metrics, options.size, options.num_frames, device=str(device))
    windows = load_windows(
        options.clips, options.size, options.num_frames, options.stride, options.windows_per_clip, options.fps
    )
    count, given = len(windows.frames), task_indices(options.task, options.num_frames)
    methods = [*baselines(count, given, options.num_frames, None), planner.method(count)]
    finished = FinishedParts(options.output / "kept")
    rows, differences, sampled = Evaluation(windows, given, networks, finished).run(methods)
    record = facts(options, command, weights_digest(planner.pipe))
    record |= {"seeds": [0], "networks": networks.sources, "not_measured": missing}
    write_results(options.output, record, rows, differences, windows)
    write_sheets(options.output, windows, sampled, options.task, METHOD, 4)
    print(f"\n{score_table(rows)}\n")
    print(f"Wrote results.json, results.csv, results.md and a contact sheet to {options.output}")


if __name__ == "__main__":
    main()
