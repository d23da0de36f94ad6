"""Train the small per-frame autoencoder of the tiny models on a folder of clips.

    python -m training.train_autoencoder training/configs/autoencoder-carracing.yaml

Fits the linear basis in seconds, trains the convolutions on top of it for minutes, measures shift and scale of the
latents, and writes a folder for `AutoencoderPatchBasis.from_pretrained`. Too short to need resuming. The paper's sizes
use a public pretrained `AutoencoderKL` instead.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torchmetrics.functional.image import structural_similarity_index_measure

from diffusers_mardini.latents import downscale_video
from diffusers_mardini.models.autoencoder_patch_basis import AutoencoderPatchBasis
from diffusers_mardini.sizes import Size
from training.config.strict import SizedModel
from training.config.yaml_files import load_yaml
from training.curriculum import learning_rate_factor
from training.data.clips import load_clips
from training.engine.feasibility import warmup_note
from training.engine.guards import RunFailed, absurd_weights
from training.files import whole_folder, write_whole
from training.locks import Owner


class AutoencoderTrainingConfig(SizedModel):
    """The configuration of `training/train_autoencoder.py`."""

    clips: Path = Field(description="Folder of training clips.")
    held_out: Path = Field(description="Folder of clips never trained on; PSNR and SSIM are measured on them.")
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
    basis_frames: int = Field(2048, ge=16, description="Training frames that the linear basis is fitted to.")
    eval_every: int = Field(500, ge=1, description="Steps between two measurements.")
    eval_frames: int = Field(448, ge=1, description="Held-out frames, evenly spaced, that are measured.")
    threads: int = Field(1, ge=1, description="CPU threads.")
    seed: int = Field(0, ge=-(2**63), lt=2**64, description="Seed of everything random.")

    @classmethod
    def from_yaml(cls, path: str | Path) -> "AutoencoderTrainingConfig":
        """Read a YAML file; `ValueError` with its name where a key is unknown or a value out of bounds."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"no config at '{path}'")
        try:
            return cls.model_validate(load_yaml(path))
        except ValidationError as error:
            raise ValidationError.from_exception_data(str(path), error.errors()) from error


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
    return frames[torch.linspace(0, len(frames) - 1, min(count, len(frames)), dtype=torch.float64).round().long()]


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


def train(
    vae: AutoencoderPatchBasis, frames: torch.Tensor, held_out: torch.Tensor, config: AutoencoderTrainingConfig
) -> None:
    """Train `vae` in place on `uint8` frames `(batch, 3, height, width)`; only its decoder unless `train_encoder`."""
    for part in (vae.to_latents, vae.encoder_residual):
        part.requires_grad_(config.train_encoder)
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, config.steps, config.warmup_steps)
    )
    num_planner = round(config.batch_size * config.planner_share)
    noise_std = config.latent_noise * latent_statistics(vae, spread(frames, 512))[1]
    started = time.monotonic()
    for step in range(1, config.steps + 1):
        picked = torch.randint(len(frames), (config.batch_size,), generator=generator)
        batch = to_float(frames[picked])
        loss = torch.zeros(())
        for source in (batch[num_planner:], downscale_frames(batch[:num_planner], config.planner_downscale)):
            if len(source):
                latents = vae.encode(source).latent_dist.mode()
                noise = torch.randn(latents.shape, generator=generator) * noise_std
                decoded = vae.decode(latents + noise).sample
                error = F.mse_loss(decoded, source) + config.l1_weight * F.l1_loss(decoded, source)
                loss = loss + error * len(source) / len(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        if not torch.isfinite(norm):
            raise ValueError(f"the loss is no longer finite at step {step}; lower learning_rate")
        optimizer.step()
        schedule.step()
        if step % config.eval_every == 0 or step == config.steps:
            rate = step * config.batch_size / (time.monotonic() - started)
            quality = measure(vae, held_out, config.planner_downscale)
            print(f"step {step} of {config.steps}: held-out {quality}; {rate:.0f} frames a second", flush=True)


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


def run(config: AutoencoderTrainingConfig) -> AutoencoderPatchBasis:
    """Fit, train, measure and save; return the autoencoder.

    Raises:
        ValueError: if clips cannot be used, the loss is not finite, or another process writes `output`.
        RunFailed: if the training has blown up.
    """
    if config.warmup_steps >= config.steps > 0:
        print(f"note: {warmup_note('the training', config.steps, config.warmup_steps)}")
    lock = config.output.with_name(f".{config.output.name}.lock.json")
    with Owner(lock, f"the autoencoder {config.output}"):
        return _run(config)


def _run(config: AutoencoderTrainingConfig) -> AutoencoderPatchBasis:
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    started = time.monotonic()
    frames = torch.cat(load_clips(config.clips, config.size).frames)
    held_out = torch.cat(load_clips(config.held_out, config.size).frames)
    held_out = spread(held_out, config.eval_frames)
    print(f"{len(frames)} frames to train on, {len(held_out)} held out; read in {time.monotonic() - started:.0f} s")

    vae = AutoencoderPatchBasis(
        latent_channels=config.latent_channels,
        block_out_channels=(config.width,) * config.patch.bit_length(),  # an entry for each halving, and one more
        encoder_blocks=config.encoder_blocks,
        decoder_blocks=config.decoder_blocks,
        sample_size=config.size,
    )
    some = spread(frames, config.basis_frames)
    vae.fit_basis(to_float(some))
    before = measure(vae, held_out, config.planner_downscale)
    print(f"{sum(p.numel() for p in vae.parameters()):,} parameters; bare linear basis: held-out {before}", flush=True)

    started = time.monotonic()
    train(vae, frames, held_out, config)
    minutes = (time.monotonic() - started) / 60
    after = measure(vae, held_out, config.planner_downscale)
    mean, std, channel_std = latent_statistics(vae, some)
    check_trained(vae, after, mean, std)
    vae.register_to_config(shift_factor=mean, scaling_factor=1 / std)
    record = {
        "config": config.model_dump(mode="json"),
        "linear": asdict(before),
        "trained": asdict(after),
        "training_minutes": round(minutes, 2),
        "normalized_channel_std": [round(value, 4) for value in (channel_std / std).tolist()],
    }
    save(vae, config.output, record)
    print(f"trained: held-out {after}, after {minutes:.1f} minutes")
    print(f"shift_factor {mean:.5f}, scaling_factor {1 / std:.5f}; saved in {config.output}")
    return vae


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML file, see training/configs/autoencoder-*.yaml")
    try:
        run(AutoencoderTrainingConfig.from_yaml(parser.parse_args().config))
    except (ValueError, OSError, RunFailed) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
