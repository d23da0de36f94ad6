"""What all blocks share: the parts, the one setting, and the `MarDiniPipeline` that does their work.

The blocks cut `MarDiniPipeline.__call__` into pieces that can be taken out, replaced and put between others. How a window is sampled is
told once, there: a block calls the pipeline's method of its step, and the results are the same to the bit.
"""

from copy import deepcopy
from typing import Any

import torch
from diffusers import AutoencoderKL, ModularPipeline, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline import BlockState, PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, ConfigSpec

from ..models.transformer_mardini import MarDiniTransformer3DModel
from ..models.transformer_mardini_planner import MarDiniPlannerTransformer3DModel
from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..schedulers.scheduling_mardini import MarDiniScheduler


PARTS = {
    "vae": AutoencoderKL,
    "planner": MarDiniPlannerTransformer3DModel,
    "transformer": MarDiniTransformer3DModel,
    "scheduler": MarDiniScheduler,
}


def init_pipeline(
    self: ModularPipelineBlocks,
    pretrained_model_name_or_path: str | None = None,
    components_manager: Any = None,
    collection: str | None = None,
) -> ModularPipeline:
    """A `MarDiniModularPipeline` of these blocks; its parts are loaded by `load_components`.

    The method `init_pipeline` of all our blocks: that of diffusers finds classes of pipelines among its own only.
    """
    from .modular_pipeline import MarDiniModularPipeline  # which has `MarDiniBlocks` for a default

    return MarDiniModularPipeline(deepcopy(self), pretrained_model_name_or_path, components_manager, collection)


class MarDiniBlock(ModularPipelineBlocks):
    """A single step. `parts` names the components that it uses, `description` is the docstring's first paragraph."""

    model_name = "mardini"
    parts: tuple[str, ...] = ()
    init_pipeline = init_pipeline  # pyright: ignore[reportAssignmentType]

    def run(self, pipe: MarDiniPipeline, block_state: BlockState) -> None:
        """Reads the inputs off `block_state`, and writes the outputs to it."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        """Runs the step; raises `ValueError` where an input is missing, or a part that it needs is not loaded."""
        block_state = self.get_block_state(state)
        missing = [name for name in self.parts if getattr(components, name, None) is None]
        if missing:
            raise ValueError(
                f"{type(self).__name__} needs {', '.join(missing)}, which is not loaded; call `load_components()` first, "
                "or give it with `update_components`"
            )
        self.run(window_pipeline(components), block_state)
        self.set_block_state(state, block_state)
        return components, state

    @property
    def description(self) -> str:
        return " ".join(self.__doc__.split("\n\n")[0].split())

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec(name, PARTS[name]) for name in self.parts]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return [ConfigSpec("planner_downscale", 4, "How many times smaller the frames are that the planner sees.")]


def window_pipeline(components: ModularPipeline) -> MarDiniPipeline:
    """The `MarDiniPipeline` of a modular pipeline's parts, `None` where one is not loaded; made anew where one was replaced.

    Kept as an attribute, because it holds what a call knows: the current timestep, the guidance, an interruption.
    """
    parts = {name: getattr(components, name, None) for name in PARTS}
    downscale = components.config["planner_downscale"]
    made = components.__dict__.get("_window_pipeline")
    if (
        made is None
        or made.config.planner_downscale != downscale
        or any(getattr(made, name) is not part for name, part in parts.items())
    ):
        before = made
        made = components._window_pipeline = MarDiniPipeline(**parts, planner_downscale=downscale)
        if before is not None and before.transformer is made.transformer and before._noise_levels is not None:
            made._noise_levels = before._noise_levels  # a scheduler that was put in has to mean the same by a timestep
    return made
