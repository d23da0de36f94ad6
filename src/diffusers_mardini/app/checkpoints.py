"""The checkpoints that the page offers, loaded once for all visitors.

Visitors share the models; each piece of work gets a pipeline of its own with a scheduler of its own, because a pipeline
serves one call at a time. Weights with a LoRA are loaded apart from those without.
"""

import copy
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..demo_files import demo_checkpoints
from ..hardware import choose_device, choose_dtype
from ..measured_sampling import MeasuredSampling
from ..models import MarDiniPlannerTransformer3DModel, MarDiniTransformer3DModel
from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..video.errors import FILE_ERRORS, named_file_errors


PARTS = ((MarDiniTransformer3DModel, "transformer"), (MarDiniPlannerTransformer3DModel, "planner"))


def find_checkpoints() -> list[str]:
    """Return what to offer if nobody says: $MARDINI_CHECKPOINT, the checkout's, and those of the package for the demo."""
    named = [os.path.expanduser(os.environ["MARDINI_CHECKPOINT"])] if os.environ.get("MARDINI_CHECKPOINT") else []
    found = sorted(file.parent for file in Path("checkpoints").glob("*/model_index.json"))
    # CarRacing first: the examples are of its world.
    found.sort(key=lambda folder: "carracing" not in folder.name)
    return list(dict.fromkeys(map(str, [*named, *(found or demo_checkpoints())])))


class Checkpoints:
    """Load and lend pipelines.

    Args:
        known: folders or Hub ids to offer, the first one by default.
        open_to_others: whether visitors may name others, and LoRA weights: folders of this machine, and downloads.
        device, dtype: see `hardware.py`.
        most: loaded ones that are kept.
        lora: folder or Hub id of LoRA weights of all pipelines for which no others are named; empty for none.
    """

    def __init__(
        self,
        known: Sequence[str],
        open_to_others: bool = True,
        device: str = "auto",
        dtype: str = "auto",
        most: int = 2,
        lora: str = "",
    ):
        if not known:
            raise ValueError(
                "there is no checkpoint: give one (a folder or a Hub id), set MARDINI_CHECKPOINT, run this in a "
                "checkout, or install the extra `demo`, which brings one"
            )
        self.known = list(known)
        self.open_to_others = open_to_others
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)[0]
        self.lora = lora.strip()
        self._most = most
        self._loaded: OrderedDict[tuple[str, str, float], MarDiniPipeline] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def choices(self) -> list[tuple[str, str]]:
        """Short name and value of each offered checkpoint."""
        return [(Path(name).name if os.path.isdir(name) else name, name) for name in self.known]

    def first_with(self, condition: str) -> str:
        """Return the first offered folder whose transformer or planner has a condition, else the first of all."""
        for name in filter(os.path.isdir, self.known):
            for part, folder in PARTS:
                with suppress(*FILE_ERRORS):  # a damaged folder is reported when it is used
                    if condition in (part.load_config(name, subfolder=folder).get("conditions") or {}):
                        return name
        return self.known[0]

    def lend(self, checkpoint: str | None = None, lora: str = "", scale: float = 1.0) -> MarDiniPipeline:
        """Return a pipeline for one piece of work.

        Args:
            checkpoint: one of `known`, by default the first; another one if the page is open to them.
            lora: folder or Hub id of LoRA weights; empty for those of all pipelines, if there are any.
            scale: of the LoRA.

        Raises:
            ValueError: for a checkpoint or a LoRA that may not be used here, or cannot be loaded.
        """
        checkpoint, lora = (checkpoint or self.known[0]).strip(), (lora or "").strip() or self.lora
        if not self.open_to_others and (checkpoint not in self.known or lora != self.lora):
            raise ValueError(
                "this server offers only the checkpoints of its list, without LoRA of others; choose one of them"
            )
        key = (checkpoint, lora, float(scale) if lora else 1.0)
        with self._lock:  # a second visitor waits, and finds it loaded
            pipe = self._loaded.get(key)
            if pipe is None:
                pipe = self._load(*key)
                while len(self._loaded) >= self._most:
                    self._loaded.popitem(last=False)
            self._loaded[key] = pipe
            self._loaded.move_to_end(key)
        # Not `from_pipe`, which casts the shared models anew.
        own = MarDiniPipeline(
            **{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)},
            planner_downscale=pipe.config.planner_downscale,
            **pipe.trained_window.config,
            **MeasuredSampling.from_config(pipe.config).config,
        )
        own.set_progress_bar_config(disable=True)
        return own

    def _load(self, checkpoint: str, lora: str, scale: float) -> MarDiniPipeline:
        with named_file_errors(f"'{checkpoint}'", "a checkpoint"):
            pipe = MarDiniPipeline.from_pretrained(checkpoint, dtype=self.dtype).to(self.device)
        if lora:
            try:
                with named_file_errors(f"'{lora}'", "LoRA weights"):
                    pipe.load_lora_weights(lora, adapter_name="page")
            except ImportError as error:
                raise ValueError(f"LoRA needs the library peft: {error}") from error
            pipe.set_adapters("page", scale)
        return pipe
