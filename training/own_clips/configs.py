"""Write what `training.fit` chose as YAML files of the autoencoder and of the run, with the reasons as comments."""

import json
import textwrap
from pathlib import Path

from training.own_clips.choose import Choices


# A first stage for the planner pays where there is time for it; it ends early where it stops getting better.
HOURS_FOR_A_PLANNER_STAGE = 1.5

_AUTOENCODER = """\
# The autoencoder of this fit; written by training.fit. Edit it before it is trained, or delete it to choose anew.
clips: {train}
held_out: {held_out}
output: {autoencoder}
size: {size}
{latents}
latent_channels: {latent_channels}
train_encoder: false
steps: 3000
# Fewer steps are taken where this time would not suffice.
max_minutes: {minutes}
threads: {threads}
"""

_RUN = """\
# The training of this fit; written by training.fit. Edit it before training, or delete it to choose anew.
# Every key is explained in docs/config.md.
name: run
data:
  train: {train}
  validation: {held_out}
{rate}
{size_reason}
  size: {size}
  cache: {cache}
vae: {autoencoder}
{preset_reason}
preset: {preset}
planner: {{in_channels: {latent_channels}}}
transformer: {{in_channels: {latent_channels}}}
optimizer: {{name: muon, beta2: 0.98, weight_decay: 0.02, ema_decay: 0.99}}
# The trainer measures its speed and plans the steps that are left so that it ends in this time.
hours: {hours}
{anyway}validate_every: {validate_every}
sample_every: {sample_every}
checkpoint_every: {checkpoint_every}
stages:
{stages}"""

_PLANNER_STAGE = """\
  # The planner alone learns to reconstruct masked frames (Fig. 4, initial stage); ends where it stops improving.
  - name: planner
    trains: planner
    steps: {steps}
    fps: {fps:g}
    reference_ratio: [0.1, 0.5]
    tasks: {{random: 0.4, interpolation: 0.5, leading: 0.1}}
    global_batch: {windows}
    learning_rate: 2.0e-3
    final_learning_rate: 1.0e-3
    warmup_steps: {warmup}
    stop_when_flat: 4
"""
_JOINT_STAGE = """\
  # Both models by diffusion: between two frames above all, and what follows one to three frames.
  - name: joint
    trains: joint
    steps: {steps}
    fps: {fps:g}
    reference_ratio: [0.1, 0.5]
    tasks: {{random: 0.1, interpolation: 0.7, leading: 0.2}}
    global_batch: {windows}
    learning_rate: 2.0e-3
    final_learning_rate: 2.0e-5
    warmup_steps: {warmup}
    planner_loss_weight: 0.5
    timestep_shift: 2.0
"""


def autoencoder_text(choices: Choices, out: Path, minutes: float, threads: int) -> str:
    """Return the YAML file of the autoencoder; `minutes` are for its training."""
    return _AUTOENCODER.format(
        **_paths(out),
        size=_size(choices),
        latents=_comment(choices.why["latent_channels"]),
        latent_channels=choices.latent_channels,
        minutes=f"{minutes:.2f}",
        threads=threads,
    )


def run_text(choices: Choices, out: Path, hours: float, anyway: bool = False) -> str:
    """Return the YAML file of the run; `hours` is the time for its training, also where it is advised against."""
    steps, stages = choices.steps, ""
    shape = {"fps": choices.fps, "windows": choices.windows_per_step}
    if hours >= HOURS_FOR_A_PLANNER_STAGE:
        first = max(20, round(0.1 * steps))
        stages += _PLANNER_STAGE.format(steps=first, warmup=max(5, first // 20), **shape)
        steps -= first
    stages += _JOINT_STAGE.format(steps=steps, warmup=max(5, min(100, steps // 20)), **shape)
    every = max(10, steps // 8)
    return _RUN.format(
        **_paths(out),
        anyway="# Train although simple methods do as well.\nanyway: true\n" if anyway else "",
        rate=_comment(choices.why["fps"], "  "),
        size_reason=_comment(choices.why["size"], "  "),
        size=_size(choices),
        preset_reason=_comment(choices.why["preset"]),
        preset=choices.preset,
        latent_channels=choices.latent_channels,
        hours=f"{hours:.3f}",
        validate_every=every,
        sample_every=4 * every,
        checkpoint_every=max(10, every // 2),
        stages=stages,
    )


def _paths(out: Path) -> dict[str, str]:
    """Return the paths of a fit as YAML: a name may hold what means something there, such as ": " or " #"."""
    paths = {
        "train": out / "clips" / "train.jsonl",
        "held_out": out / "clips" / "held_out.jsonl",
        "autoencoder": out / "autoencoder",
        "cache": out / "cache" / "latents",
    }
    return {name: quoted(path) for name, path in paths.items()}


def quoted(path: Path) -> str:
    """Return a path as a text of YAML."""
    return json.dumps(str(path), ensure_ascii=False)


def _size(choices: Choices) -> str:
    return f"{choices.height}x{choices.width}"


def _comment(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 115, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
