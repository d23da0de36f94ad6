"""The published networks of the metrics: which metric needs which, loaded together or named as missing.

The networks themselves are in the other files of this folder; their files are found by `published_files.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers_mardini.sizes import Size, sides, size_text
from training.evaluation.networks.frechet import (
    EFFICIENTNET,
    I3D,
    INCEPTION,
    MIN_I3D_FRAMES,
    Features,
    load_efficientnet,
    load_fid,
    load_fvd,
)
from training.evaluation.networks.lpips import MIN_SIZE, PACKED, TORCHVISION, Lpips, load_lpips


# SSIM, PSNR, motion, evenness and sharpness need no network and are always measured.
METRICS = ("lpips", "lpips-vgg", "fid", "fvd", "fd-efficientnet-lite0", "fd-window")
FREE = ("lpips", "fd-efficientnet-lite0", "fd-window")  # "auto" tries these: packages of PyPI bring their networks


@dataclass(frozen=True)
class Networks:
    """The networks that were found.

    Attributes:
        lpips: by trunk.
        features: of the Fréchet distances, by column.
    """

    lpips: Mapping[str, Lpips]
    features: Mapping[str, Features]

    @property
    def sources(self) -> dict[str, str]:
        """Return the digests of the files that were loaded, by name."""
        return {
            k: v for network in (*self.lpips.values(), *self.features.values()) for k, v in network.sources.items()
        }


def load_networks(
    wanted: Sequence[str],
    size: Size,
    num_frames: int,
    folder: Path | None = None,
    digests: Mapping[str, str] | None = None,
    device: str = "cpu",
    allow_torchscript: bool = False,
) -> tuple[Networks, list[str]]:
    """Return the networks of some metrics, and a sentence for each one that is missing.

    Args:
        wanted: names of `METRICS`; "auto" stands for those of `FREE` that are installed.
        size: of the frames in pixels.
        num_frames: of a window.
        folder: see `find_file`.
        digests: see `find_file`.
        device: where the networks run.
        allow_torchscript: see `load_fvd`.

    Raises:
        ValueError: if a metric that was named is missing its network, or does not suit such windows.
    """
    unknown = [name for name in wanted if name not in (*METRICS, "auto")]
    if unknown:
        raise ValueError(f"metric {unknown[0]!r} is unknown; use auto or some of {', '.join(METRICS)}")
    names = {file.name for file in (*PACKED.values(), *TORCHVISION.values(), INCEPTION, I3D, EFFICIENTNET)}
    strangers = sorted(set(digests or {}) - names)
    if strangers:
        raise ValueError(
            f"--sha256 names '{strangers[0]}', which no metric reads; they read {', '.join(sorted(names))}"
        )

    def load(name: str) -> Lpips | Features:
        if name.startswith("lpips"):
            if min(sides(size)) < MIN_SIZE:
                raise ValueError(f"LPIPS needs frames of at least {MIN_SIZE} pixels a side, got {size_text(size)}")
            return load_lpips("vgg" if name == "lpips-vgg" else "alex", folder, digests).to(device)
        if name == "fid":
            return load_fid(folder, digests, device)
        if name == "fvd":
            if num_frames < MIN_I3D_FRAMES:
                raise ValueError(f"FVD needs windows of at least {MIN_I3D_FRAMES} frames, got {num_frames}")
            return load_fvd(folder, digests, device, allow_torchscript)
        return load_efficientnet(folder, digests, device)[name == "fd-window"]

    found, missing = {}, []
    for name in METRICS:
        if name in wanted or ("auto" in wanted and name in FREE):
            try:
                found[name] = load(name)
            except ValueError as error:
                if name in wanted:
                    raise
                missing.append(f"{name}: {error}")
    lpips = {network.trunk: network for network in found.values() if isinstance(network, Lpips)}
    features = {name.replace("-", "_"): f for name, f in found.items() if isinstance(f, Features)}
    return Networks(lpips, features), missing
