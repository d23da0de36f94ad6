"""The configuration's section `data`: which clips a run reads, how, and which conditions its models get.

Reading itself is in `training/data/`; the whole configuration is in `schema.py`.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from diffusers_mardini.sizes import Size
from training.config.strict import SizedModel, StrictModel


class ConditionConfig(StrictModel):
    """One condition: numbers for each frame that both models get (ours, not the paper's)."""

    columns: list[str] | None = Field(
        None,
        min_length=1,
        description="Columns of the table beside each clip, `<clip>.csv` or `<clip>.parquet`, one row per frame; or "
        "give `derive`.",
    )
    derive: Literal["rate", "motion"] | None = Field(
        None,
        description="`rate`: seconds since the previous frame of the window; `motion`: mean absolute difference of "
        "the latents from that frame.",
    )
    range: list[tuple[float, float]] = Field(
        min_length=1,
        description="Lowest and highest value of each channel, scaled to -1 and 1; one pair for all channels, or one "
        "per channel.",
    )
    unit: str = Field("", description="Unit of the values, shown in errors and model cards.")
    interval: Literal["mean", "sum"] = Field(
        "mean",
        description="How the values of skipped frames are combined: `mean` (actions) or `sum`.",
    )
    drop: float = Field(
        0.15,
        ge=0,
        le=1,
        description="Share of training windows without this condition, of those that do not lose all of them "
        "(`conditions_dropout`, `planning_dropout` of a stage); raising it helps sampling without it.",
    )

    @model_validator(mode="after")
    def _consistent(self):
        if (self.columns is None) == (self.derive is None):
            raise ValueError("give either `columns` of the tables beside the clips or `derive`")
        if len(self.range) not in (1, self.channels):
            raise ValueError(
                f"range has {len(self.range)} pairs for {self.channels} channels; give one pair, or one per channel"
            )
        for low, high in self.range:
            if not low < high:
                raise ValueError(f"range has [{low}, {high}]; the lowest value must be below the highest")
        return self

    @property
    def channels(self) -> int:
        """Return how many numbers each frame has."""
        return len(self.columns) if self.columns else 1

    @property
    def info(self) -> dict[str, Any]:
        """Return the entry of the models' `condition_info`."""
        pairs = [list(pair) for pair in self.range] * (self.channels if len(self.range) == 1 else 1)
        description = {
            "rate": "seconds since the frame before in the window",
            "motion": "mean absolute difference of the latents to the frame before in the window",
            None: "from a table beside each clip; belongs to the interval that leads to its frame",
        }[self.derive]
        names = {"names": list(self.columns)} if self.columns else {}
        interval = "sum" if self.derive == "rate" else self.interval
        return {**names, "unit": self.unit, "range": pairs, "interval": interval, "description": description}


class DataConfig(SizedModel):
    """Clips and how they are read."""

    train: str = Field(
        description="Source of training clips: a folder of videos, of picture folders or of .tar or .zip archives; a "
        "video; an archive, or several as `train-{000..009}.tar`; `datasets:NAME#SPLIT` or, streamed, "
        "`datasets-stream:NAME#SPLIT`; `lerobot:NAME#CAMERA`; a Parquet file with a column of videos; the URL of archives "
        "or Parquet files (`s3://`, `gs://`, `hf://`, `https://`); or a clip list, a `.jsonl` file."
    )
    validation: str | None = Field(
        None, description="Source of held-out clips, of the same kinds. None: no held-out losses."
    )
    picture_fps: float | None = Field(
        None, gt=0, description="Frames per second of picture folders whose metadata do not state it."
    )
    size: Size = Field(
        64,
        description="Size of the centre crop in pixels: `64` (a square) or `64x128` (height x width); the cost grows "
        "with its area.",
    )
    planner_downscale: int | None = Field(
        None,
        ge=1,
        description="How many times smaller the planner's frames are (Sec. 2.2). None: as the preset has it.",
    )
    flip: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of windows mirrored left to right; above 0 the latent cache is twice as large. Leave it "
        "at 0 where left and right differ.",
    )
    conditions: dict[str, ConditionConfig] = Field(
        {},
        description="Conditions of each frame by name, such as `action`; see below. Those that `init_from` lacks are "
        "added, with `lora` as a part of the adapter. Empty: the paper's models.",
    )
    from_pixels: bool = Field(
        False,
        description="Decode and encode windows when they are drawn instead of caching the latents of all frames: no "
        "disk space, slower steps.",
    )
    latents: Literal["auto", "all", "drawn"] = Field(
        "auto",
        description="Training frames whose latents are cached: `all`, or those alone that the run's steps draw "
        "(`drawn`), for long or many clips of which it sees little. `auto`: `drawn` where that is at most half and "
        "saves about a GB.",
    )
    workers: int = Field(
        1,
        ge=0,
        description="Steps prepared ahead while one is computed and, with `from_pixels`, threads that decode; 0: "
        "read in the loop.",
    )
    shards_at_once: int | None = Field(
        None,
        ge=1,
        description="Archives (or folders, or thousands of clips) whose clips are mixed at a time, so that each is read "
        "in one go, for storage far away; more of them mix better. None: all clips are mixed.",
    )
    device_gb: float = Field(
        0.0,
        ge=0,
        description="If the latents of all training clips need at most so many GB, each process keeps them on its "
        "device, and batches, the same ones, are gathered there: for small models on a GPU, which wait for them "
        "otherwise. 0: read them from the cache's files.",
    )
    manifests: Path = Field(
        Path("runs/manifests"),
        description="Folder of the manifests, the facts found by decoding every clip; shared by all runs.",
    )
    cache: Path = Field(Path("runs/latents"), description="Folder of the latents, kept between runs.")

    @model_validator(mode="after")
    def _latents_to_keep(self):
        if self.from_pixels and self.device_gb:
            raise ValueError("from_pixels keeps no latents that could stay on the device; leave device_gb at 0")
        if self.from_pixels and self.latents != "auto":
            raise ValueError(f"from_pixels keeps no latents, and latents is {self.latents!r}; leave one of them out")
        if self.latents == "drawn" and self.device_gb:
            raise ValueError("device_gb keeps the latents of all frames on the device; set latents to all or auto")
        return self

    @model_validator(mode="after")
    def _tables_fit_unmirrored_windows(self):
        if self.flip > 0 and any(condition.columns for condition in self.conditions.values()):
            raise ValueError(
                "flip mirrors windows but not the tables beside the clips, so a turn to the left would be shown as "
                "one to the right; set flip to 0"
            )
        return self
