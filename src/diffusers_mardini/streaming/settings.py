"""What the tasks from file to file share: checked arguments, and what tells whether an earlier run had the same."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..pipelines.conditions import Conditions
from ..pipelines.inputs import output_size, whole_number
from ..pipelines.pasting import check_pasting
from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..video.reading import frames_of_numbers
from ..video.times import PICTURE_FPS
from ..video.writing import check_crf
from .parts import PartFolder
from .running import can_have_sound, check_output


@dataclass(frozen=True)
class TaskSettings:
    """What the tasks share.

    Attributes:
        output: the result.
        seed: of the noise.
        size: width and height of the frames.
        resume: whether to go on with the parts of an earlier run.
        overwrite: without `resume`, whether the parts of an earlier run are removed.
        sampling: further arguments of the pipeline's method.
        conditions: of the frames of the result, `(1, frames, channels)` each.
    """

    output: Path
    seed: int
    size: tuple[int, int]
    resume: bool
    overwrite: bool
    sampling: dict[str, Any]
    conditions: Conditions

    def generator(self, part: int) -> torch.Generator:
        """Return the source of noise of a part, which does not depend on the parts before."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + part) % 2**63)

    def open(self, pipe: MarDiniPipeline, source: str | os.PathLike, crf: float, **key: Any) -> PartFolder:
        """Open the folder of parts; `crf` and `key` are what else they depend on."""
        check_crf(crf)
        sampling = {name: repr(value) for name, value in sorted(self.sampling.items())}
        sampling |= {f"condition {name}": _digest(values) for name, values in self.conditions.items()}
        key |= {"seed": self.seed, "size": list(self.size), "model": model_digest(pipe), "sampling": sampling}
        key |= {"source": _file_key(Path(source)), "scheduler": _scheduler_key(pipe), "crf": crf}
        suffix = ".mp4" if can_have_sound(self.output) else ".mkv"
        return PartFolder(self.output, key, self.resume, self.overwrite, suffix)


def read_settings(
    pipe: MarDiniPipeline,
    source: str | os.PathLike,
    output: str | os.PathLike,
    fps: float | None,
    seed: int,
    height: int | None,
    width: int | None,
    resume: bool,
    overwrite: bool,
    sampling: dict[str, Any],
    conditions: Conditions,
) -> TaskSettings:
    """Check what the tasks share, before anything is read."""
    check_pasting(sampling.get("paste_given", False), 0, "pil")
    output = Path(output)
    check_output(output, fps or PICTURE_FPS, overwrite, resume)
    seed = whole_number(seed, "seed", least=0)
    trained = pipe.trained_window
    if height is None and width is None and trained.height is not None:
        height, width = trained.height, trained.width
    first = next(iter(frames_of_numbers(source, [0])))
    height, width = output_size([[first]], height, width, pipe.size_multiple)
    return TaskSettings(output, seed, (width, height), resume, overwrite, sampling, conditions)


def model_digest(pipe: MarDiniPipeline) -> str:
    """Return a digest of the models: names, shapes and dtypes of all parameters, some values of each, and the strength
    of LoRA weights; those that are offloaded are read where they lie."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("vae", "planner", "transformer"):
        model = getattr(pipe, name)
        for key, value in model.state_dict().items():
            flat = (_offloaded(model, key) if value.is_meta else value).detach().flatten()
            some = flat[:: max(1, len(flat) // 64)][:64].float().cpu().numpy()
            digest.update(f"{name}.{key} {tuple(value.shape)} {value.dtype}".encode() + some.tobytes())
        scales = [getattr(module, "scaling", None) for module in model.modules()]
        digest.update(repr([scale for scale in scales if isinstance(scale, dict)]).encode())
    return digest.hexdigest()


def _offloaded(model: torch.nn.Module, key: str) -> torch.Tensor:
    """Return a parameter that accelerate keeps elsewhere until it is used."""
    owner, _, name = key.rpartition(".")
    hook: Any = getattr(model.get_submodule(owner), "_hf_hook", None)
    maps = [getattr(each, "weights_map", None) for each in getattr(hook, "hooks", [hook])]
    return next(found for found in maps if found is not None)[name]


def _digest(values: torch.Tensor) -> str:
    return hashlib.blake2b(values.contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def _scheduler_key(pipe: MarDiniPipeline) -> list[str]:
    """Return what tells whether the scheduler samples otherwise; its private values are in another order each time."""
    public = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    return [type(pipe.scheduler).__name__, *(f"{name} {value!r}" for name, value in sorted(public.items()))]


def _file_key(source: Path) -> list[Any]:
    """Return what tells whether a file or a folder was changed."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
