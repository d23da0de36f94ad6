"""Load our models from safetensors alone, with exactly the tensors of the model.

diffusers only warns of missing tensors and leaves them empty, and falls back to pickles if there are no safetensors.
"""

import os
from typing import Any

import torch
from diffusers.loaders import FromOriginalModelMixin
from diffusers.models.modeling_utils import ModelMixin
from safetensors import safe_open

from ..weights import (
    SUFFIX,
    check_tensors,
    check_weight_files,
    empty_tensors,
    is_pickle,
    local_folder,
    pickle_refusal,
    require_safetensors_argument,
)


class WholeModelMixin(ModelMixin):
    """`ModelMixin` whose `from_pretrained` refuses pickles and incomplete weights."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load a model from a folder or from the Hub, see [`~ModelMixin.from_pretrained`].

        Raises:
            ValueError: if there is no such folder, if its weights are no safetensors, and if tensors are missing or
                unknown.
        """
        kwargs = require_safetensors_argument(kwargs)
        folder = local_folder(pretrained_model_name_or_path)
        if folder is not None:
            pretrained_model_name_or_path = str(folder)
            check_weight_files(folder / (kwargs.get("subfolder") or ""), kwargs.get("variant"))
        asked_for_report = kwargs.pop("output_loading_info", False)
        model, report = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)  # pyright: ignore[reportGeneralTypeIssues]
        # Files of quantized models have tensors of other names; FlashPack gives no report.
        unexpected = [] if getattr(model, "is_quantized", False) else report.get("unexpected_keys", [])
        check_tensors(pretrained_model_name_or_path, cls.__name__, report.get("missing_keys", []), unexpected)
        return (model, report) if asked_for_report else model

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a configuration, see [`~ConfigMixin.load_config`], without `auto_map`: it is for `AutoModel`, which has
        found this class, and no argument of it."""
        loaded = super().load_config(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config.pop("auto_map", None)
        return loaded

    @classmethod
    def _load_pretrained_model(cls, model: Any, state_dict: Any, resolved_model_file: list, *args: Any, **kwargs: Any):
        # An index of shards may name any file, and one from the Hub has not been checked before.
        for file in resolved_model_file:
            if not str(file).endswith(SUFFIX):
                raise ValueError(f"the index of shards names {file}, but weights are read from {SUFFIX} alone")
        return super()._load_pretrained_model(model, state_dict, resolved_model_file, *args, **kwargs)


class WholeSingleFileMixin(FromOriginalModelMixin):
    """`FromOriginalModelMixin` whose `from_single_file` refuses pickles and incomplete weights."""

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path_or_dict: Any = None, **kwargs: Any) -> Any:
        """Load a model from one file, safetensors or GGUF, see [`~FromOriginalModelMixin.from_single_file`].

        Raises:
            ValueError: if the file is a pickle, or lacks tensors of the model.
        """
        origin = pretrained_model_link_or_path_or_dict
        if isinstance(origin, (str, os.PathLike)):
            origin = str(origin)
            if is_pickle(origin.partition("?")[0]):
                raise ValueError(pickle_refusal(origin, f"model{SUFFIX}"))
        names = None  # of the tensors, if they can be listed without reading the tensors
        if isinstance(origin, dict):
            names = set(origin)
        elif str(origin).endswith(SUFFIX) and os.path.isfile(origin):
            with safe_open(origin, framework="numpy") as file:
                names = set(file.keys())
        label = "the dictionary of tensors" if isinstance(origin, dict) else origin
        try:
            model = super().from_single_file(origin, **kwargs)
        except NotImplementedError as error:  # tensors without values cannot be moved
            if names is None:
                raise ValueError(
                    f"{label} lacks tensors of {cls.__name__}; save or download it again ({error})"
                ) from error
            with torch.device("meta"):
                model = cls.from_config(cls.load_config(kwargs.get("config"), subfolder=kwargs.get("subfolder")))
        missing = empty_tensors(model)
        if names is not None and not getattr(model, "is_quantized", False):
            missing = model.state_dict().keys() - names
        check_tensors(label, cls.__name__, missing, [])
        return model
