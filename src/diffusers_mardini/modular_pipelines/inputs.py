"""First block: reads the given frames and their places in the window. One block for each task of Sec. 2.1."""

import PIL.Image
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from torch import Tensor

from ..pipelines.inputs import read_given_frames, to_pixels
from ..pipelines.pipeline_mardini import MarDiniPipeline
from .block import MarDiniBlock


TASK_INPUTS = {
    "image": InputParam("image", type_hint=PIL.Image.Image, description="First frame, or a list of them for a batch."),
    "last_image": InputParam("last_image", type_hint=PIL.Image.Image, description="Last frame, in the same form."),
    "video": InputParam(
        "video", type_hint=list[PIL.Image.Image], description="A list of frames, or a list of such lists for a batch."
    ),
    "frame_indices": InputParam(
        "frame_indices", type_hint=list[int], description="The place of each frame of `video` in the window."
    ),
}


class MarDiniInputStep(MarDiniBlock):
    """Read the given frames and their places."""

    parts = ("vae", "planner", "transformer")
    task_inputs: tuple[str, ...] = ()

    @property
    def inputs(self) -> list[InputParam]:
        """Arguments, and results of earlier blocks."""
        return [
            *(TASK_INPUTS[name] for name in self.task_inputs),
            InputParam("num_frames", type_hint=int, description="Frames of the window; by default as trained, or 9."),
            InputParam("height", type_hint=int, description="In pixels; see `MarDiniPipeline.__call__`."),
            InputParam("width", type_hint=int, description="In pixels; see `MarDiniPipeline.__call__`."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Results for later blocks."""
        return [
            OutputParam("pixels", type_hint=Tensor, description="(batch, given frames, 3, height, width) in [-1, 1]."),
            OutputParam("given_indices", type_hint=list[int], description="Their places in the window, rising."),
            OutputParam("num_frames", type_hint=int, description="Frames of the window, given ones included."),
        ]

    def _run(self, pipe: MarDiniPipeline, block_state: BlockState) -> None:
        given = read_given_frames(
            *(getattr(block_state, name) if name in self.task_inputs else None for name in TASK_INPUTS),
            block_state.num_frames,
            block_state.height,
            block_state.width,
            pipe.size_multiple,
            pipe.trained_window,
        )
        block_state.pixels = to_pixels(given.videos, given.height, given.width, pipe.video_processor)
        block_state.given_indices = given.given_indices
        block_state.num_frames = given.num_frames


class MarDiniImageToVideoInputStep(MarDiniInputStep):
    """Image-to-video: the first frame is given."""

    task_inputs = ("image",)


class MarDiniInterpolationInputStep(MarDiniInputStep):
    """Interpolation: the first and the last frame are given."""

    task_inputs = ("image", "last_image")


class MarDiniExpansionInputStep(MarDiniInputStep):
    """Video expansion: the given frames lead."""

    task_inputs = ("video",)


class MarDiniAnyFramesInputStep(MarDiniInputStep):
    """Any frames at any places."""

    task_inputs = ("video", "frame_indices")
