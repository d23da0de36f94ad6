"""`mardini doctor`: what this machine has, what is missing, and what helps."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch
import typer
from huggingface_hub import constants
from packaging.requirements import Requirement
from PIL import features

from ..hardware import choose_device, choose_dtype, has_bfloat16_units
from ..measured_sampling import MeasuredSampling
from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..video.codecs import has_codec
from ..video.writing import FORMS
from .checkpoints import resolve_checkpoint, window_to_sample
from .checks import check_model_options
from .errors import FAILED
from .messages import tell
from .options import ModelOptions, command


PACKAGE = "diffusers-mardini"
DECODERS = {"h264": "most mp4", "hevc": "videos of telephones", "vp9": "webm", "av1": "videos of the web"}
EXTRAS = {  # module: what it is for, and how to get it
    "peft": ("LoRA weights", "pip install peft"),
    "torchao": ("quantization", 'pip install ".[quantization]"'),
    "gguf": ("GGUF files", 'pip install ".[quantization]"'),
    "xformers": ("xformers' attention on CUDA", 'pip install ".[xformers]"'),
    "torchmetrics": ("scores of evaluations", 'pip install ".[train]"'),
    "pydantic": ("training", 'pip install ".[train]"'),
    "scenedetect": ("cuts, in slow-motion, retime and own clips", 'pip install ".[cuts]"'),
    "gradio": ("the page of `mardini app`", 'pip install ".[demo]"'),
    "gymnasium": ("clips of CarRacing", 'pip install ".[sim]"'),
}
LOW_DISK = 2 * 2**30  # bytes; a download of a small model or a long video may fill less
OK, MISSING, OPTIONAL = "ok", "missing", "not here"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        state: `OK`, `MISSING` (needed) or `OPTIONAL` (not here, and needed for some things only).
        detail: what was found.
        hint: what helps, if it is not here.
    """

    name: str
    state: str
    detail: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.name:<16} {self.state:<9} {self.detail}" + (f" -> {self.hint}" if self.hint else "")


@command(ModelOptions)
def doctor(options: ModelOptions) -> None:
    """Show what this machine has and what is missing, with a hint for each missing thing. Exit code 1 if something is
    missing that sampling needs.

    Example: mardini doctor
    """
    check_model_options(options)
    findings = [
        *_programs(), *_devices(options), *_codecs(), *_extras(), *_checkpoint(options), *_disks(),
    ]  # fmt: skip
    missing = sum(finding.state == MISSING for finding in findings)
    told = f"{missing or 'none'} of what sampling needs is missing"
    tell(options, "\n".join([*map(str, findings), told]), findings=list(map(asdict, findings)), missing=missing)
    if missing:
        raise typer.Exit(FAILED)


def _programs() -> Iterator[Finding]:
    fits = sys.version_info >= (3, 11)
    yield Finding("python", OK if fits else MISSING, platform.python_version(), "" if fits else "install Python 3.11")
    try:
        requirements = [Requirement(text) for text in metadata.requires(PACKAGE) or []]
    except metadata.PackageNotFoundError:
        yield Finding(PACKAGE, OPTIONAL, "runs from a folder, not installed", "pip install . in the checkout")
        return
    yield Finding(PACKAGE, OK, metadata.version(PACKAGE))
    for requirement in requirements:
        if requirement.marker is not None and "extra" in str(requirement.marker):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Finding(requirement.name, MISSING, "", f'pip install "{requirement}"')
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        hint = "" if fits else f'pip install "{requirement}"'
        yield Finding(requirement.name, OK if fits else MISSING, version, hint)


def _devices(options: ModelOptions) -> Iterator[Finding]:
    cpu = torch.device("cpu")
    units = "with bfloat16 units" if has_bfloat16_units(cpu) else "without bfloat16 units"
    yield Finding("cpu", OK, f"{os.cpu_count()} cores, {units}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield Finding(f"cuda:{index}", OK, f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    elif torch.backends.mps.is_available():
        yield Finding("mps", OK, "Apple's GPU")
    else:
        yield Finding("gpu", OPTIONAL, "torch sees none", "on a machine with one, install a torch for it: pytorch.org")
    try:
        device = choose_device(options.device)
    except ValueError as error:
        yield Finding("device", MISSING, str(error), "give another --device")
        return
    data_type, why = choose_dtype(options.dtype, device)
    yield Finding("chosen", OK, f"{device} in {str(data_type).removeprefix('torch.')} ({why})")


def _codecs() -> Iterator[Finding]:
    for suffix, form in FORMS.items():
        if form.container:
            there = has_codec(form.encoder, encodes=True)
            needed = MISSING if suffix == ".mp4" else OPTIONAL
            hint = "" if there else "pip install --force-reinstall av, whose wheels have it; or write .gif"
            yield Finding(f"write {suffix}", OK if there else needed, form.encoder, hint)
    there = features.check("webp")
    hint = "" if there else "pip install --force-reinstall Pillow"
    yield Finding("write .webp", OK if there else OPTIONAL, "Pillow's", hint)
    for codec, use in DECODERS.items():
        there = has_codec(codec, encodes=False)
        hint = "" if there else "pip install --force-reinstall av, or encode such files again"
        yield Finding(f"read {codec}", OK if there else OPTIONAL, use, hint)


def _extras() -> Iterator[Finding]:
    for module, (use, hint) in EXTRAS.items():
        there = find_spec(module) is not None
        yield Finding(module, OK if there else OPTIONAL, f"for {use}", "" if there else hint)


def _checkpoint(options: ModelOptions) -> Iterator[Finding]:
    try:
        checkpoint = resolve_checkpoint(options.checkpoint)
        if not Path(checkpoint).is_dir():
            yield Finding("checkpoint", OPTIONAL, checkpoint, "no folder here; it would be loaded from the Hub")
            return
        window = window_to_sample(checkpoint, None)
        measured = MeasuredSampling.from_config(MarDiniPipeline.load_config(checkpoint))
    except (ValueError, OSError) as error:
        yield Finding("checkpoint", MISSING, str(error))
        return
    few = f", {measured.num_inference_steps} steps of {measured.solver}" if measured.solver else ""
    yield Finding("checkpoint", OK, f"{checkpoint}: {window}{few}")


def _disks() -> Iterator[Finding]:
    for name, place in (("disk here", Path.cwd()), ("disk of models", Path(constants.HF_HUB_CACHE))):
        there = next((folder for folder in (place, *place.parents) if folder.exists()), Path("/"))
        free = shutil.disk_usage(there).free
        hint = "make room, or set HF_HOME to another disk" if free < LOW_DISK else ""
        yield Finding(name, OK if not hint else OPTIONAL, f"{free / 2**30:.0f} GiB free at {there}", hint)
