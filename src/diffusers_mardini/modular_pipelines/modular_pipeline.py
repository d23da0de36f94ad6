"""The modular pipeline: blocks, their parts, LoRA, and the folder it is saved to.

Our blocks also run in diffusers' own `ModularPipeline`, which finds some classes among diffusers' own only; this class
finds ours.
"""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers import ModularPipeline, ModularPipelineBlocks
from diffusers import __version__ as diffusers_version
from diffusers.modular_pipelines.mellon_node_utils import MellonPipelineConfig
from diffusers.modular_pipelines.modular_pipeline import PipelineState

from ..format_version import BLOCKS_SHIM, BLOCKS_SHIM_NAME, FORMAT_KEY, FORMAT_VERSION, check_format
from ..loaders import MarDiniLoraLoaderMixin
from ..pipelines.one_call import one_call_at_a_time
from ..weights import check_tensors, check_weight_files, empty_tensors, require_safetensors_argument
from .block import PARTS, MarDiniBlock, window_pipeline
from .modular_blocks_mardini import MarDiniAutoInputStep, MarDiniBlocks


# Controls of a node in Mellon; inputs that are not named here take what another node gives.
NODE_INPUTS = {
    "image": "image",
    "last_image": "image",
    "num_frames": "number",
    "height": "number",
    "width": "number",
    "num_inference_steps": "number",
    "guidance_scale": "number",
    "eta": "number",
}


class MarDiniModularPipeline(MarDiniLoraLoaderMixin, ModularPipeline):
    r"""
    A pipeline made of blocks, `MarDiniBlocks` unless others are given.

    Call it with the arguments of [`~MarDiniPipeline.__call__`]; `output="videos"` returns the `frames` of that.

    Args:
        blocks (`ModularPipelineBlocks`, *optional*): The blocks to run.
        pretrained_model_name_or_path (`str`, *optional*):
            A folder or an id on the Hub of a `MarDiniPipeline` or a modular one, from which `load_components` loads
            the parts.
        components_manager, collection, workflow, kwargs: See [`ModularPipeline`].

    Raises:
        ValueError: if the folder was saved by a newer plugin.
    """

    def __init__(
        self,
        blocks: ModularPipelineBlocks | None = None,
        pretrained_model_name_or_path: str | None = None,
        components_manager: Any = None,
        collection: str | None = None,
        workflow: str | None = None,
        **kwargs: Any,
    ):
        if blocks is None:
            blocks = MarDiniBlocks()
        if pretrained_model_name_or_path is not None:
            pretrained_model_name_or_path = str(pretrained_model_name_or_path)  # diffusers joins it to names
        super().__init__(
            blocks, pretrained_model_name_or_path, components_manager, collection, workflow=workflow, **kwargs
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        components_manager: Any = None,
        collection: str | None = None,
        workflow: str | None = None,
        **kwargs: Any,
    ) -> "MarDiniModularPipeline":
        """Return `MarDiniBlocks` with the parts of a folder or of a repository on the Hub; runs no code from there.

        As in diffusers, `load_components` loads the weights. `kwargs` are those of the Hub (`revision`, `token` ...).
        """
        return cls(None, pretrained_model_name_or_path, components_manager, collection, workflow, **kwargs)

    @property
    def current_timestep(self) -> torch.Tensor | None:
        """Timestep of the present evaluation, for caches; `None` between calls."""
        return window_pipeline(self).current_timestep

    @torch.no_grad()
    @one_call_at_a_time
    def __call__(
        self, state: PipelineState | None = None, output: str | list[str] | None = None, **kwargs: Any
    ) -> Any:
        """Run the blocks, see [`~ModularPipeline.__call__`]; raises `ValueError` while another call runs."""
        return super().__call__(state, output, **kwargs)

    def load_components(
        self, names: list[str] | str | None = None, workflow: str | None = None, **kwargs: Any
    ) -> None:
        """Load the parts, see [`~ModularPipeline.load_components`].

        Raises:
            ValueError: if weights are no safetensors, or lack tensors. diffusers warns of other failures.
        """
        asked = kwargs.pop("use_safetensors", None)
        require_safetensors_argument({"use_safetensors": asked})
        for name, spec in self._component_specs.items():
            folder = Path(spec.pretrained_model_name_or_path or "") / (spec.subfolder or "")
            if (
                spec.pretrained_model_name_or_path
                and (names is None or name in names)
                and (folder / "config.json").exists()
            ):
                check_weight_files(folder, kwargs.get("variant", spec.variant))
        models = {name: True for name, kind in PARTS.items() if issubclass(kind, torch.nn.Module)}
        before = dict(self.components)
        super().load_components(names, workflow, use_safetensors=models, **kwargs)
        for name, part in self.components.items():
            if isinstance(part, torch.nn.Module) and part is not before.get(name):
                check_tensors(name, type(part).__name__, empty_tensors(part), [])
        if getattr(self, "transformer", None) is not None and getattr(self, "scheduler", None) is not None:
            window_pipeline(self)  # which remembers the noise levels that the transformer was trained with

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save all parts, see [`~ModularPipeline.save_pretrained`]; raises `ValueError` while LoRA adapters are
        loaded."""
        self._refuse_loaded_adapters()
        super().save_pretrained(str(save_directory), **{"overwrite_modular_index": True, **kwargs})

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write `modular_model_index.json`, and the files that let `ModularPipeline.from_pretrained` find our
        blocks."""
        super().to_json_file(json_file_path)
        index_file = Path(json_file_path)
        index = json.loads(index_file.read_text(encoding="utf-8"))
        for value in index.values():
            # No path means this folder, wherever it is moved to; a path of this machine is not published.
            if isinstance(value, list) and Path(value[2]["pretrained_model_name_or_path"] or "") == index_file.parent:
                value[2]["pretrained_model_name_or_path"] = None
        # diffusers looks for this name among its own classes, and our blocks run in its pipeline too.
        index["_class_name"] = ModularPipeline.__name__
        index[FORMAT_KEY] = FORMAT_VERSION
        _write(index_file, index)
        blocks = {
            "_class_name": "MarDiniBlocks",
            "_diffusers_version": diffusers_version,
            "auto_map": {"ModularPipelineBlocks": f"{BLOCKS_SHIM_NAME}.MarDiniBlocks"},
        }
        _write(index_file.parent / ModularPipelineBlocks.config_name, blocks)
        (index_file.parent / f"{BLOCKS_SHIM_NAME}.py").write_text(BLOCKS_SHIM, encoding="utf-8")
        node = MellonPipelineConfig.from_custom_block(
            MarDiniBlocks(), "MarDini", input_types=NODE_INPUTS, output_types={"videos": "video"}
        )
        node.save(index_file.parent)

    @classmethod
    def _load_pipeline_config(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> tuple[Any, Any]:
        modular_index, index = super()._load_pipeline_config(pretrained_model_name_or_path, **kwargs)
        check_format(modular_index or index, pretrained_model_name_or_path)
        for value in (modular_index or {}).values():
            if isinstance(value, list) and value[2]["pretrained_model_name_or_path"] is None:
                value[2]["pretrained_model_name_or_path"] = str(pretrained_model_name_or_path)
        return modular_index, index


def _init_pipeline(
    self: ModularPipelineBlocks,
    pretrained_model_name_or_path: str | None = None,
    components_manager: Any = None,
    collection: str | None = None,
) -> MarDiniModularPipeline:
    """Return a `MarDiniModularPipeline` of these blocks; its `load_components` loads the parts."""
    return MarDiniModularPipeline(deepcopy(self), pretrained_model_name_or_path, components_manager, collection)


# The method of diffusers finds pipelines among diffusers' classes only. Set here, because blocks do not import pipelines.
for _blocks in (MarDiniBlock, MarDiniAutoInputStep, MarDiniBlocks):
    _blocks.init_pipeline = _init_pipeline


def _write(file: Path, config: dict[str, Any]) -> None:
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
