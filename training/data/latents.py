"""Latents of all frames of all clips, made once and kept in one safetensors file.

Training then never touches a video or the autoencoder. Clips are read by `training/data/clips.py`; which frames of a
window are kept is drawn elsewhere (`diffusers_mardini/masking.py`).
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diffusers_mardini.latents import downscale_video, encode_video
from training.data.clips import CROP_POLICY, iterate_clips, list_clips


@dataclass(frozen=True)
class LatentClips:
    """Normalized latents (mean 0, deviation 1) of a folder of clips, frame after frame.

    Attributes:
        latents: `(total_frames, channels, height, width)`, what the transformer sees.
        planner_latents: `(total_frames, channels, h, w)`, the same frames made `planner_downscale` times smaller.
        offsets: `(clips + 1,)`: clip i owns the frames `offsets[i]` to `offsets[i + 1]`.
        names: file names of the clips.
        fps: frames per second of each clip.
    """

    latents: torch.Tensor
    planner_latents: torch.Tensor
    offsets: torch.Tensor
    names: list[str]
    fps: list[float]

    def num_windows(self, num_frames: int, stride: int = 1) -> int:
        """How many windows of `num_frames`, every `stride`-th frame of a clip, there are."""
        return len(self.windows(num_frames, stride))

    def windows(self, num_frames: int, stride: int = 1) -> torch.Tensor:
        """First frames of all windows that lie within one clip, as `(windows,)` indices into `latents`.

        Raises:
            ValueError: if no clip is long enough.
        """
        if num_frames < 1 or stride < 1:
            raise ValueError(f"num_frames and stride must be at least 1, got {num_frames} and {stride}")
        span = (num_frames - 1) * stride + 1
        lengths = self.offsets.diff()
        if span > lengths.max():
            raise ValueError(
                f"{num_frames} frames at stride {stride} span {span} frames, but the longest clip has "
                f"{lengths.max().item()}; lower num_frames or stride, or add longer clips"
            )
        starts = [
            torch.arange(first, last - span + 1)
            for first, last in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist())
            if last - first >= span
        ]
        return torch.cat(starts)

    def describe(self, start: int, stride: int) -> str:
        """The window from frame `start` of `latents`, in words: clip, first frame of it, stride."""
        clip = int(torch.searchsorted(self.offsets, start, right=True)) - 1
        return f"{self.names[clip]} from frame {start - int(self.offsets[clip])}, stride {stride}"

    def gather(
        self, starts: torch.Tensor, num_frames: int, stride: int | torch.Tensor = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cuts windows out.

        Args:
            starts: first frames, `(batch,)`, out of `windows`.
            num_frames: frames of each window.
            stride: distance of its frames, one number or one for each row, `(batch,)`.

        Returns:
            Latents `(batch, num_frames, channels, height, width)` and the planner's, `(batch, num_frames, channels, h,
            w)`, both float32.

        Raises:
            ValueError: if a window leaves its clip.
        """
        if not isinstance(stride, torch.Tensor):
            stride = torch.full_like(starts, stride)
        frames = starts[:, None] + torch.arange(num_frames) * stride[:, None]  # (batch, num_frames)
        first, last = (torch.searchsorted(self.offsets, frames[:, i].contiguous(), right=True) for i in (0, -1))
        if (first != last).any() or (frames[:, 0] < 0).any():
            row = int(((first != last) | (frames[:, 0] < 0)).nonzero()[0])
            raise ValueError(
                f"the window of row {row} ({num_frames} frames from frame {starts[row].item()}, stride "
                f"{stride[row].item()}) leaves its clip; take starts from windows(num_frames, stride)"
            )
        return self.latents[frames].float(), self.planner_latents[frames].float()


def cache_latents(
    clips_folder: str | Path,
    vae: torch.nn.Module,
    size: int,
    planner_downscale: int,
    cache_dir: str | Path,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float16,
) -> LatentClips:
    """Encodes a folder of clips, or reads the result of an earlier call where nothing that shaped it has changed.

    The file carries a fingerprint: the autoencoder's config and weights, the size, `planner_downscale`, the crop, the
    storage type, and the names and sizes of the clips. A file that does not match is made anew.

    Args:
        clips_folder: see `training/data/clips.py`.
        vae: an image autoencoder with `AutoencoderKL`'s interface; runs where it lies, in its own type.
        size: side of the square frames in pixels.
        planner_downscale: how many times smaller the planner's frames are.
        cache_dir: folder of cache files; one for each folder of clips and size.
        batch_size: frames encoded at once.
        dtype: of the stored latents.

    Raises:
        ValueError: if there are no readable clips, or a clip's latents are not finite.
    """
    folder = Path(clips_folder)
    path = Path(cache_dir) / f"{folder.parent.name}-{folder.name}-{size}px.safetensors"
    fingerprint = {
        "vae": _hash_module(vae),
        "size": size,
        "planner_downscale": planner_downscale,
        "crop": CROP_POLICY,
        "dtype": str(dtype),
        "clips": _hash_text([(file.name, file.stat().st_size) for file in list_clips(folder) if file.exists()]),
    }
    cached = _read(path, fingerprint)
    if cached is not None:
        return cached
    print(f"encoding '{folder}' into '{path}'")
    result, skipped = _encode_folder(folder, vae, size, planner_downscale, batch_size, dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    header = {"fingerprint": fingerprint, "names": result.names, "fps": result.fps, "skipped": skipped}
    save_file(
        {"latents": result.latents, "planner_latents": result.planner_latents, "offsets": result.offsets},
        temporary,
        metadata={key: json.dumps(value) for key, value in header.items()},
    )
    os.replace(temporary, path)
    return result


@torch.no_grad()
def _encode_folder(
    folder: Path, vae: torch.nn.Module, size: int, planner_downscale: int, batch_size: int, dtype: torch.dtype
) -> tuple[LatentClips, dict[str, str]]:
    skipped: dict[str, str] = {}
    latents, planner_latents, names, rates, offsets = [], [], [], [], [0]
    for name, frames, fps in iterate_clips(folder, size, skipped):
        for batch in frames.split(batch_size):
            video = (batch[None].to(vae.device).float() / 127.5 - 1).to(vae.dtype)  # (1, frames, 3, size, size)
            for source, kept in ((video, latents), (downscale_video(video, planner_downscale), planner_latents)):
                encoded = encode_video(vae, source)[0]  # (frames, channels, h, w)
                if not torch.isfinite(encoded).all():
                    raise ValueError(f"the latents of clip '{name}' are not finite; run the autoencoder in float32")
                kept.append(encoded.to("cpu", dtype))
        names.append(name)
        rates.append(fps)
        offsets.append(offsets[-1] + len(frames))
    result = LatentClips(torch.cat(latents), torch.cat(planner_latents), torch.tensor(offsets), names, rates)
    return result, skipped


def _read(path: Path, fingerprint: dict) -> LatentClips | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = {key: json.loads(value) for key, value in file.metadata().items()}
            changed = [key for key, value in fingerprint.items() if header["fingerprint"].get(key) != value]
            if changed:
                print(f"'{path}' is stale ({', '.join(changed)} changed)")
                return None
            tensors = {key: file.get_tensor(key) for key in ("latents", "planner_latents", "offsets")}
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        print(f"'{path}' is damaged ({error})")
        return None
    if header["skipped"]:
        print(f"'{path}' was made without {len(header['skipped'])} clips that could not be read")
    return LatentClips(**tensors, names=header["names"], fps=header["fps"])


def _hash_module(module: torch.nn.Module) -> str:
    config = {key: value for key, value in dict(module.config).items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hash_text(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
