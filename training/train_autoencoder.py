"""Train the small per-frame autoencoder of the tiny models on the frames of clips.

    python -m training.train_autoencoder training/configs/autoencoder-carracing.yaml

Fits the linear basis in seconds, trains the convolutions on top of it for minutes, measures shift and scale of the
latents, and writes a folder for `AutoencoderPatchBasis.from_pretrained`. The same command resumes an unfinished
training, with the same result as if it had not been interrupted; exit codes are those of `train_mardini.py`. The
paper's sizes use a public pretrained `AutoencoderKL` instead.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError, model_validator
from torchmetrics.functional.image import structural_similarity_index_measure

from diffusers_mardini.latents import downscale_video
from diffusers_mardini.models.autoencoder_patch_basis import AutoencoderPatchBasis
from diffusers_mardini.sizes import Size, sides, size_text
from training.config.layers import read_override
from training.config.sentences import invalid_file
from training.config.strict import SizedModel
from training.config.yaml_files import load_yaml
from training.cores import cores
from training.curriculum import learning_rate_factor
from training.data.failures import shown
from training.data.frames import draw_frames, evenly_spaced
from training.data.manifest import read_manifest_of
from training.data.manifest_files import MANIFESTS
from training.data.sources import open_source
from training.digests import tensors_digest
from training.engine.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from training.engine.feasibility import warmup_note
from training.engine.guards import RunFailed, absurd_weights
from training.engine.optimizers import load_optimizers, optimizer_tensors
from training.files import named_write_errors, whole_folder, write_whole
from training.locks import Owner
from training.probe import show_room
from training.progress import Progress
from training.stopping import STOPPED, Stopped, StopRequest


# Keys that may differ when a training goes on.
FREE_KEYS = (
    "output",
    "picture_fps",
    "manifests",
    "threads",
    "max_minutes",
    "max_hours",
    "checkpoint_seconds",
    "eval_every",
)


class AutoencoderTrainingConfig(SizedModel):
    """The configuration of `training/train_autoencoder.py`."""

    clips: str | Path = Field(description="Source of training clips, as `data.train` of a run.")
    held_out: str | Path = Field(description="Source of clips never trained on; PSNR and SSIM are measured on them.")
    picture_fps: float | None = Field(
        None, gt=0, description="Frames per second of picture folders whose metadata do not state it."
    )
    output: Path = Field(description="Folder that the autoencoder is saved in.")
    size: Size = Field(
        64,
        description="Size of the frames in pixels: `64` (a square) or `64x128` (height x width); time grows with its "
        "area.",
    )
    planner_downscale: int = Field(
        2, ge=1, description="The planner's frames are so many times smaller; they are trained on, too."
    )
    planner_share: float = Field(0.25, ge=0, lt=1, description="Share of a batch that is of the planner's size.")

    patch: Literal[2, 4, 8, 16] = Field(
        8,
        description="Side in pixels of a patch, one latent each. Small ones are sharper, but more have to be predicted.",
    )
    latent_channels: int = Field(16, ge=1, description="Channels of a latent; more are sharper and harder to predict.")
    width: int = Field(96, ge=8, description="Channels of the residual convolutions.")
    encoder_blocks: int = Field(1, ge=0, description="Residual blocks of the encoder.")
    train_encoder: bool = Field(
        True,
        description="False keeps the encoder linear, which is less exact; but a trained encoder hides detail in the "
        "small channels, evens out their deviations and makes latents that are harder to predict.",
    )
    decoder_blocks: int = Field(3, ge=0, description="Residual blocks of the decoder; they remove block edges.")

    steps: int = Field(2000, ge=0, description="Optimizer steps; 0 keeps the bare linear basis.")
    batch_size: int = Field(32, ge=1, description="Frames a step.")
    learning_rate: float = Field(2e-3, gt=0, description="Peak learning rate of AdamW.")
    warmup_steps: int = Field(50, ge=0, description="Steps of linear warm-up; the rest is a cosine to zero.")
    weight_decay: float = Field(1e-3, ge=0, description="AdamW's weight decay.")
    l1_weight: float = Field(0.01, ge=0, description="Weight of the mean absolute error beside the squared one.")
    latent_noise: float = Field(
        0.02,
        ge=0,
        description="Noise on latents in training, relative to their deviation; the decoder learns to tolerate it.",
    )
    basis_frames: int = Field(
        2048,
        ge=16,
        description="Training frames that the linear basis is fitted to; of frames larger than 64x64 fewer, with as "
        "many pixels.",
    )
    eval_every: int = Field(500, ge=1, description="Steps between two measurements.")
    eval_frames: int = Field(448, ge=1, description="Held-out frames, evenly spaced, that are measured.")
    memory_gb: float = Field(
        0.5,
        gt=0,
        description="Memory for training frames; of clips with more frames (43,690 of 64x64), evenly spaced ones are "
        "used.",
    )
    manifests: Path = Field(
        MANIFESTS, description="Folder of the manifests, the facts found by decoding every clip; shared with runs."
    )
    threads: int = Field(1, ge=1, description="CPU threads.")
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="Time limit of the steps: if they would take longer, measured at the start, fewer are taken.",
    )
    max_hours: float | None = Field(
        None, gt=0, description="Stop after so many hours; the same command resumes. None: no limit."
    )
    checkpoint_seconds: float = Field(60, ge=0, description="Seconds between two checkpoints of the training.")
    seed: int = Field(0, ge=-(2**63), lt=2**64, description="Seed of everything random.")

    @model_validator(mode="after")
    def _divides(self):
        multiple = self.patch * self.planner_downscale
        if any(side % multiple for side in sides(self.size)):
            nearest = tuple(max(1, round(side / multiple)) * multiple for side in sides(self.size))
            raise ValueError(
                f"size is {size_text(self.size)}, which does not divide into patches of {self.patch} pixels in frames "
                f"and in the planner's, {self.planner_downscale} times smaller; sides must be multiples of {multiple}, the "
                f"nearest are {size_text(nearest)}"
            )
        return self

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "AutoencoderTrainingConfig":
        """Read a YAML file and changes to it; `ValueError` with its name where a key is unknown or out of bounds."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"no config at '{path}'")
        try:
            content = load_yaml(path)
            for override in overrides:
                content |= read_override(override)[1]
            return cls.model_validate(content)
        except ValidationError as error:
            raise invalid_file(path, cls, error) from error


@dataclass(frozen=True)
class Quality:
    """Reconstruction of held-out frames: means over frames, values in [0, 1]."""

    psnr: float  # dB
    ssim: float
    planner_psnr: float  # dB, at the planner's size

    def __str__(self) -> str:
        return f"PSNR {self.psnr:.2f} dB, SSIM {self.ssim:.4f} (planner's size: {self.planner_psnr:.2f} dB)"


def spread(frames: torch.Tensor, count: int) -> torch.Tensor:
    """Return at most `count` of the frames, evenly spaced from the first to the last."""
    return frames[evenly_spaced(len(frames), count)]


def to_float(frames: torch.Tensor) -> torch.Tensor:
    """Return `uint8` frames as numbers in [-1, 1]."""
    return frames.float() / 127.5 - 1


def downscale_frames(frames: torch.Tensor, factor: int) -> torch.Tensor:
    """Resize frames `(batch, 3, height, width)` to the planner's size, exactly as the pipeline does."""
    return downscale_video(frames[None], factor)[0]


@torch.no_grad()
def measure(vae: AutoencoderPatchBasis, frames: torch.Tensor, planner_downscale: int, batch_size: int = 64) -> Quality:
    """Measure the reconstruction of `uint8` frames `(batch, 3, height, width)`."""
    psnr, ssim, planner_psnr = [], [], []
    for batch in frames.split(batch_size):
        batch = to_float(batch)
        for source, values in ((batch, psnr), (downscale_frames(batch, planner_downscale), planner_psnr)):
            decoded = vae(source).sample.clamp(-1, 1)
            error = ((decoded - source) / 2).square().mean(dim=(1, 2, 3))
            values += (-10 * torch.log10(error.clamp(min=1e-10))).tolist()
            if source is batch:
                both = (decoded + 1) / 2, (batch + 1) / 2
                ssim += structural_similarity_index_measure(*both, data_range=1.0, reduction="none").view(-1).tolist()
    return Quality(*(sum(values) / len(values) for values in (psnr, ssim, planner_psnr)))


@torch.no_grad()
def latent_statistics(
    vae: AutoencoderPatchBasis, frames: torch.Tensor, batch_size: int = 64
) -> tuple[float, float, torch.Tensor]:
    """Return mean and standard deviation of all latents of `uint8` frames, and the deviation of each channel."""
    latents = torch.cat([vae.encode(to_float(batch)).latent_dist.mode() for batch in frames.split(batch_size)])
    return latents.mean().item(), latents.std().item(), latents.std(dim=(0, 2, 3))


class Training:
    """The training of the convolutions, which can be interrupted after every step.

    Args:
        vae: trained in place; only its decoder unless `train_encoder`.
        frames: `uint8` `(frames, 3, height, width)` to train on.
        held_out: frames that are measured.
        config: of the training.

    Attributes:
        step: number of steps that were taken.
        steps: number of steps in all, at most `config.steps`.
        minutes: that the steps have taken.
    """

    def __init__(
        self,
        vae: AutoencoderPatchBasis,
        frames: torch.Tensor,
        held_out: torch.Tensor,
        config: AutoencoderTrainingConfig,
    ):
        self.vae, self.frames, self.held_out, self.config = vae, frames, held_out, config
        for part in (vae.to_latents, vae.encoder_residual):
            part.requires_grad_(config.train_encoder)
        self.trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self.noise_std = config.latent_noise * latent_statistics(vae, spread(frames, 512))[1]
        self.step, self.steps, self.minutes = 0, config.steps, 0.0

    def run(self, stop: Callable[[], str | None], save: Callable[[], None]) -> None:
        """Take the steps that are left.

        Args:
            stop: called after every step; returns a reason to stop, or `None`.
            save: saves the training; called every `checkpoint_seconds`, and before it stops.

        Raises:
            ValueError: if the loss is not finite.
            Stopped: if there was a reason to stop.
        """
        first, began = self.step, time.monotonic()
        saved, before = began, self.minutes
        with Progress("training the autoencoder, steps", self.steps) as progress:
            while self.step < self.steps:
                self._take_step()
                now = time.monotonic()
                self.minutes = before + (now - began) / 60
                progress.update(self.step, first)
                if self.step % self.config.eval_every == 0 or self.step == self.steps:
                    rate = (self.step - first) * self.config.batch_size / (now - began)
                    quality = measure(self.vae, self.held_out, self.config.planner_downscale)
                    print(
                        f"step {self.step} of {self.steps}: held-out {quality}; {rate:.0f} frames a second", flush=True
                    )
                reason = stop()
                if reason or now - saved >= self.config.checkpoint_seconds:
                    save()
                    saved = time.monotonic()
                if reason:
                    raise Stopped(reason)

    def _take_step(self) -> None:
        config = self.config
        factor = learning_rate_factor(self.step, self.steps, config.warmup_steps)
        self.optimizer.param_groups[0]["lr"] = config.learning_rate * factor
        num_planner = round(config.batch_size * config.planner_share)
        picked = torch.randint(len(self.frames), (config.batch_size,), generator=self.generator)
        batch = to_float(self.frames[picked])
        loss = torch.zeros(())
        for source in (batch[num_planner:], downscale_frames(batch[:num_planner], config.planner_downscale)):
            if len(source):
                latents = self.vae.encode(source).latent_dist.mode()
                noise = torch.randn(latents.shape, generator=self.generator) * self.noise_std
                decoded = self.vae.decode(latents + noise).sample
                error = F.mse_loss(decoded, source) + config.l1_weight * F.l1_loss(decoded, source)
                loss = loss + error * len(source) / len(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.step += 1
        if not torch.isfinite(norm):
            raise ValueError(f"the loss is no longer finite at step {self.step}; lower learning_rate")
        self.optimizer.step()

    def keep_to(self, minutes: float) -> None:
        """Lower the number of steps, before the first one, to what `minutes` are enough for."""
        state = {name: tensor.clone() for name, tensor in self.vae.state_dict().items()}
        generator = self.generator.get_state()
        tried = min(self.steps, 6)
        for number in range(tried):
            if number == 1:  # the first step warms up
                began = time.monotonic()
            self._take_step()
        if tried > 1:
            fitting = max(1, int(minutes * 60 * (tried - 1) / (time.monotonic() - began)))
            if fitting < self.steps:
                print(f"{self.steps} steps would take more than {minutes:g} minutes; {fitting} are taken")
                self.steps = fitting
        self.vae.load_state_dict(state)
        self.generator.set_state(generator)
        self.optimizer.state.clear()
        self.step = 0

    def checkpoint(self, state: dict) -> Checkpoint:
        """Return everything from which `restore` goes on, and `state` beside it."""
        moments, rest = optimizer_tensors([self.optimizer])
        moments["generator"] = self.generator.get_state()
        own = {"global_step": self.step, "steps": self.steps, "noise_std": self.noise_std, "minutes": self.minutes}
        return Checkpoint(self.vae.state_dict(), {}, moments, rest, {**state, **own})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.vae.load_state_dict(dict(checkpoint.weights))
        moments = {name: tensor.clone() for name, tensor in checkpoint.moments.items()}  # not of the open file
        self.generator.set_state(moments.pop("generator"))
        load_optimizers([self.optimizer], moments, checkpoint.optimizers)
        self.step, self.steps = checkpoint.state["global_step"], checkpoint.state["steps"]
        self.noise_std, self.minutes = checkpoint.state["noise_std"], checkpoint.state["minutes"]


def save(vae: AutoencoderPatchBasis, output: Path, record: dict) -> None:
    """Save the autoencoder's folder with the record of its training; whole or absent."""
    with whole_folder(output) as unfinished:
        vae.save_pretrained(unfinished)
        write_whole(unfinished / "training.json", json.dumps(record, indent=2) + "\n")


def check_trained(vae: AutoencoderPatchBasis, quality: Quality, mean: float, std: float) -> None:
    """Check the trained autoencoder before it is saved.

    Raises:
        RunFailed: if weights, quality or latents are not finite or absurdly large, or all latents are the same.
    """
    absurd = absurd_weights(dict(vae.named_parameters()))
    if absurd or not all(map(math.isfinite, (*asdict(quality).values(), mean, std))):
        raise RunFailed(
            f"the training has blown up: {absurd[0] if absurd else 'held-out quality or latents'} not finite or "
            "absurdly large; nothing is saved. Lower learning_rate or raise warmup_steps"
        )
    if not std > 0:
        raise RunFailed("all latents are the same, as of clips of one colour; nothing is saved. Look at the clips")


def unfinished_folder(config: AutoencoderTrainingConfig) -> Path:
    """Return the folder of the checkpoints of an unfinished training; a file `stop` in it stops the training."""
    return config.output.with_name(f"{config.output.name}-unfinished")


def run(config: AutoencoderTrainingConfig) -> AutoencoderPatchBasis:
    """Fit, train, measure and save; return the autoencoder.

    Raises:
        ValueError: if clips cannot be used, the loss is not finite, the disk is full, or another process writes
            `output`.
        Stopped: if a signal, `max_hours` or the file `stop` asked for it; the training is saved.
        RunFailed: if the training has blown up.
    """
    if config.warmup_steps >= config.steps > 0:
        print(f"note: {warmup_note('the training', config.steps, config.warmup_steps)}")
    lock = config.output.with_name(f".{config.output.name}.lock.json")
    folder = unfinished_folder(config)
    with Owner(lock, f"the autoencoder {config.output}"), StopRequest(folder, config.max_hours) as request:
        try:
            return _run(config, lambda: request.reason)
        except Stopped:
            request.done()
            raise


def _read(
    config: AutoencoderTrainingConfig, spec: str | Path, count: int, stop: Callable[[], str | None]
) -> torch.Tensor:
    """Return frames of a source, evenly spaced over its clips."""
    source = open_source(spec, config.picture_fps, config.manifests)
    manifest = read_manifest_of(source, config.manifests, stop)
    if not manifest.ok:
        reasons = "; ".join(f"{shown(entry.key)}: {entry.reason}" for entry in manifest.left_out[:3])
        raise ValueError(f"none of the {len(manifest.entries)} clips of '{spec}' can be used: {reasons}")
    return draw_frames(source, manifest.ok, sides(config.size), count, cores(), stop)


def _run(config: AutoencoderTrainingConfig, stop: Callable[[], str | None]) -> AutoencoderPatchBasis:
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    started = time.monotonic()
    most = max(1, int(config.memory_gb * 2**30 / (3 * math.prod(sides(config.size)))))
    frames = _read(config, config.clips, most, stop)
    held_out = _read(config, config.held_out, config.eval_frames, stop)
    print(f"{len(frames)} frames to train on, {len(held_out)} held out; read in {time.monotonic() - started:.0f} s")

    vae = AutoencoderPatchBasis(
        latent_channels=config.latent_channels,
        block_out_channels=(config.width,) * config.patch.bit_length(),  # an entry for each halving, and one more
        encoder_blocks=config.encoder_blocks,
        decoder_blocks=config.decoder_blocks,
        sample_size=config.size,
    )
    some = spread(frames, max(16, config.basis_frames * 64**2 // max(64**2, math.prod(sides(config.size)))))
    vae.fit_basis(to_float(some))
    before = measure(vae, held_out, config.planner_downscale)
    print(f"{sum(p.numel() for p in vae.parameters()):,} parameters; bare linear basis: held-out {before}", flush=True)

    training = Training(vae, frames, held_out, config)
    folder = unfinished_folder(config)
    try:
        _train(training, folder, stop)
        after = measure(vae, held_out, config.planner_downscale)
        mean, std, channel_std = latent_statistics(vae, some)
        check_trained(vae, after, mean, std)
    except (ValueError, RunFailed) as error:
        if not isinstance(error, CheckpointError):  # otherwise the next start would go on from what has blown up
            shutil.rmtree(folder, ignore_errors=True)
        raise
    vae.register_to_config(shift_factor=mean, scaling_factor=1 / std)
    record = {
        "config": config.model_dump(mode="json"),
        "linear": asdict(before),
        "trained": asdict(after),
        "training_minutes": round(training.minutes, 2),
        "normalized_channel_std": [round(value, 4) for value in (channel_std / std).tolist()],
    }
    with named_write_errors(f"the autoencoder '{config.output}'"):
        save(vae, config.output, record)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"trained: held-out {after}, after {training.minutes:.1f} minutes")
    print(f"shift_factor {mean:.5f}, scaling_factor {1 / std:.5f}; saved in {config.output}")
    show_room(config.held_out, sides(config.size), vae, config.picture_fps, config.manifests)
    return vae


def _train(training: Training, folder: Path, stop: Callable[[], str | None]) -> None:
    """Train from the newest checkpoint of the same training, if there is one, and write checkpoints."""
    config = training.config
    # Places, limits and threads may differ: they change no result, or only its rounding.
    settings = config.model_dump(mode="json", exclude=set(FREE_KEYS))
    identity = tensors_digest({"frames": training.frames, "held_out": training.held_out}, settings)
    if not _resume(training, folder, identity) and config.max_minutes is not None and config.steps:
        training.keep_to(config.max_minutes)
    training.run(stop, lambda: save_checkpoint(folder, training.checkpoint({"identity": identity}), keep=1))


def _resume(training: Training, folder: Path, identity: str) -> bool:
    """Restore the newest checkpoint; return whether there is one of the same frames and settings."""
    newest = newest_checkpoint(folder)
    if newest is None:
        return False
    found = load_checkpoint(newest, needed=("identity",))
    if found.state["identity"] != identity:
        print(f"'{folder}' holds a training with other settings or clips; this one begins anew")
        del found  # Windows removes no file that is mapped
        shutil.rmtree(folder)
        return False
    training.restore(found)
    print(f"going on from step {training.step} of {training.steps} ({newest})")
    return True


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML file, see training/configs/autoencoder-*.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it, such as steps=1000")
    options = parser.parse_args()
    try:
        run(AutoencoderTrainingConfig.from_yaml(options.config, options.overrides))
    except Stopped as stopped:
        print(f"stopped ({stopped}); the state is saved, and the same command goes on from it")
        sys.exit(STOPPED)
    except (ValueError, OSError, RunFailed) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
