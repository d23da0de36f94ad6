"""The base of all blocks: their parts, their settings, and the `MarDiniPipeline` that does their work.

The blocks cut `MarDiniPipeline.__call__` into steps that can be removed, replaced and combined with others. Each block
calls the pipeline's method of its step, so that sampling is written once, and the results are equal bit for bit.
"""

import torch
from diffusers import AutoencoderKL, ModularPipeline, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline import BlockState, PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, ConfigSpec

from ..models.transformer_mardini import MarDiniTransformer3DModel
from ..models.transformer_mardini_planner import MarDiniPlannerTransformer3DModel
from ..pipelines.pipeline_mardini import MarDiniPipeline
from ..schedulers.scheduling_mardini import MarDiniScheduler
from ..trained_window import KEYS


PARTS = {
    "vae": AutoencoderKL,
    "planner": MarDiniPlannerTransformer3DModel,
    "transformer": MarDiniTransformer3DModel,
    "scheduler": MarDiniScheduler,
}


class MarDiniBlock(ModularPipelineBlocks):
    """A single step. `parts` are the names of its components; `description` is the first paragraph of the
    docstring."""

    model_name = "mardini"
    parts: tuple[str, ...] = ()

    def _run(self, pipe: MarDiniPipeline, block_state: BlockState) -> None:
        """Read the inputs from `block_state`, and write the outputs to it."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, components: ModularPipeline, state: PipelineState) -> tuple[ModularPipeline, PipelineState]:
        """Run the step.

        Raises:
            ValueError: if an input is missing, or a part that the step needs is not loaded.
        """
        block_state = self.get_block_state(state)
        missing = [name for name in self.parts if getattr(components, name, None) is None]
        if missing:
            raise ValueError(
                f"{type(self).__name__} needs {', '.join(missing)}, which is not loaded; call `load_components()` "
                "first, or pass it to `update_components`"
            )
        self._run(window_pipeline(components), block_state)
        self.set_block_state(state, block_state)
        return components, state

    @property
    def description(self) -> str:
        """First paragraph of the docstring."""
        return " ".join(self.__doc__.split("\n\n")[0].split())

    @property
    def expected_components(self) -> list[ComponentSpec]:
        """Specifications of `parts`."""
        return [ComponentSpec(name, PARTS[name]) for name in self.parts]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        """Specification of the settings."""
        return [
            ConfigSpec("planner_downscale", 4, "How many times smaller the planner's frames are."),
            *(ConfigSpec(key, None, "Of the window that the models were trained on.") for key in KEYS),
        ]


def window_pipeline(components: ModularPipeline) -> MarDiniPipeline:
    """Return the `MarDiniPipeline` of a modular pipeline's parts, with `None` for those that are not loaded.

    It is an attribute of the modular pipeline, because it holds the state of a call (timestep, guidance,
    interruption), and is replaced when a part was.
    """
    parts = {name: getattr(components, name, None) for name in PARTS}
    settings = {key: components.config[key] for key in ("planner_downscale", *KEYS)}
    made = components.__dict__.get("_window_pipeline")
    if (
        made is None
        or any(made.config[key] != value for key, value in settings.items())
        or any(getattr(made, name) is not part for name, part in parts.items())
    ):
        before = made
        made = components._window_pipeline = MarDiniPipeline(**parts, **settings)
        if before is not None and before.transformer is made.transformer and before._noise_levels is not None:
            made._noise_levels = before._noise_levels  # of the transformer; a new scheduler must have the same
    return made
