"""Save, load and share the pipeline: `save_pretrained` leaves a folder that can be loaded and pushed without this
package.

`format_version.py` describes such a folder and the code in it; `hub.py` checks and uploads it.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..format_version import (
    COMPONENT_SHIM,
    COMPONENTS,
    FORMAT_KEY,
    FORMAT_VERSION,
    LIBRARY,
    SHIM_NAME,
    check_format,
    shims,
)
from ..hub import check_repo_id, describe, plan_upload, push
from ..schedulers import MarDiniScheduler
from ..weights import check_tensors, check_weight_files, empty_tensors, local_folder, require_safetensors_argument


def saved_noise_levels(path: str | os.PathLike, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return `alphas_cumprod` of the scheduler that a pipeline was saved with: the models were trained with them,
    whichever scheduler is passed instead. `None` if none was saved.

    Args:
        path: folder or Hub id of the pipeline.
        kwargs: of `from_pretrained`; those that say which files are meant are used.
    """
    of_hub = {
        key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only", "proxies") if key in kwargs
    }
    try:
        config = MarDiniScheduler.load_config(path, subfolder="scheduler", **of_hub)
        return MarDiniScheduler.from_config(config).alphas_cumprod
    except (OSError, ValueError):
        return None


class SavingMixin:
    """Complete methods of `DiffusionPipeline`, before which it stands in the bases."""

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write `model_index.json`, and the files that let `DiffusionPipeline.from_pretrained` find this class."""
        super().to_json_file(json_file_path)
        finish_saved_folder(Path(json_file_path))

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """Save all parts, see [`~DiffusionPipeline.save_pretrained`].

        Raises:
            ValueError: while LoRA adapters are loaded, and for `safe_serialization=False`.
        """
        self._refuse_loaded_adapters()
        if not safe_serialization:
            raise ValueError(
                "`safe_serialization` is False, but weights are written as safetensors alone; leave it out"
            )
        super().save_pretrained(save_directory, True, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Load a pipeline from a folder or from the Hub, see [`~DiffusionPipeline.from_pretrained`].

        Raises:
            ValueError: if there is no such folder, if weights in it are no safetensors, and if tensors are missing or
                unknown.
        """
        kwargs = require_safetensors_argument(kwargs)
        folder = local_folder(pretrained_model_name_or_path)
        if folder is not None:
            check_weights_of_parts(folder, kwargs)
        try:
            pipe = super().from_pretrained(str(folder or pretrained_model_name_or_path), **kwargs)
        except OSError as error:
            if folder is not None:
                raise
            raise OSError(
                f"there is no folder {pretrained_model_name_or_path}, and from the Hub it could not be loaded: {error}"
            ) from error
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module) and name not in kwargs:
                origin = f"{name} of {pretrained_model_name_or_path}"
                check_tensors(origin, type(part).__name__, empty_tensors(part), [])
        if kwargs.get("scheduler") is not None:
            pipe._noise_levels = saved_noise_levels(folder or pretrained_model_name_or_path, kwargs)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Make a pipeline of another one's parts, see [`~DiffusionPipeline.from_pipe`]; shares the scheduler too,
        unless one is given."""
        made = super().from_pipe(pipeline, **kwargs)
        # The noise levels belong to the transformer, which was trained with them.
        if made.transformer is getattr(pipeline, "transformer", None):
            made._noise_levels = getattr(pipeline, "_noise_levels", made._noise_levels)
        return made

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path) -> dict[str, Any]:
        index = super()._dict_from_json_file(json_file)
        check_format(index, Path(json_file).parent)
        return without_shims(index)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        *,
        facts: Mapping[str, Any] | None = None,
        dry_run: bool = True,
    ) -> str | None:
        """Show what would be sent to the Hub, files and card; send it with `dry_run=False`.

        Args:
            repo_id (`str`): Repository, `owner/name`; created if it does not exist.
            commit_message (`str`, *optional*): By default "Upload" and the name of the repository.
            private (`bool`, *optional*): Visibility of a new repository; by default the setting of its owner.
            token (`str`, *optional*): By default that of `hf auth login` or of the environment variable HF_TOKEN.
            create_pr (`bool`, defaults to `False`): Whether to open a pull request instead of committing.
            safe_serialization (`bool`, defaults to `True`): Weights are sent as safetensors alone.
            variant (`str`, *optional*): As in `save_pretrained`.
            facts (`dict`, *optional*): For the card, which claims nothing else; see `diffusers_mardini.cards.FACTS`.
            dry_run (`bool`, defaults to `True`): Whether to send nothing.

        Returns:
            The address of the commit, or `None` if nothing was sent.

        Raises:
            ValueError: if the name is no `owner/name`, `safe_serialization` is `False`, a fact is unknown, or the Hub
                refuses.
        """
        check_repo_id(repo_id)  # before large files are written
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / repo_id.rpartition("/")[2]
            self.save_pretrained(folder, safe_serialization, variant=variant)
            upload = plan_upload(folder, repo_id, facts)
            print(describe(upload))
            if dry_run:
                print(f"\nNothing was sent. `dry_run=False` sends this to {repo_id}.")
                return None
            return push(upload, commit_message, private, token, create_pr)


def check_weights_of_parts(folder: Path, loading: Mapping[str, Any]) -> None:
    """Raise `ValueError` if weights of a saved pipeline would be unpickled.

    Args:
        folder: of the pipeline.
        loading: arguments of `from_pretrained`; parts that it passes are not read, and not checked.
    """
    for part in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in loading):
        if (part / "config.json").exists():
            check_weight_files(part, loading.get("variant"))


def finish_saved_folder(index_file: Path) -> None:
    """Write the shims into the folder of the saved `index_file` (`model_index.json`), and into the file the shim's
    name and the version of the format.

    Configurations of our models name their shim, for `AutoModel.from_pretrained(..., trust_remote_code=True)`. All
    lose the path that the pipeline was loaded from, so that no path of this machine is published.
    """
    index = json.loads(index_file.read_text(encoding="utf-8"))
    code = shims(index)
    for name, text in code.items():
        if (index_file.parent / name).parent.is_dir():  # `save_config` alone makes no folders for the parts
            (index_file.parent / name).write_text(text, encoding="utf-8")
    # Shims of parts that were classes of ours in a pipeline saved here before, and no longer are.
    for shim in index_file.parent.glob(f"*/{LIBRARY}.py"):
        if f"{shim.parent.name}/{shim.name}" not in code and shim.read_text(encoding="utf-8") == COMPONENT_SHIM:
            shim.unlink()
    index["_class_name"] = [SHIM_NAME, "MarDiniPipeline"]
    index[FORMAT_KEY] = FORMAT_VERSION
    _write_without_origin(index_file, index)
    for name in index:
        config_file = index_file.parent / name / "config.json"
        if config_file.exists():
            config = json.loads(config_file.read_text(encoding="utf-8"))
            config.pop("auto_map", None)
            if f"{name}/{LIBRARY}.py" in code:
                config["auto_map"] = {"AutoModel": f"{LIBRARY}.{config['_class_name']}"}
            _write_without_origin(config_file, config)


def without_shims(index: dict) -> dict:
    """Return the index with the plain class name, and with our parts in a library that is no file of the folder: our
    own class needs no code from there."""
    name = index.get("_class_name")
    index = {**index, "_class_name": name[-1] if isinstance(name, list) else name}
    ours = {
        key: [COMPONENTS, value[1]]
        for key, value in index.items()
        if isinstance(value, list) and value[:1] == [LIBRARY]
    }
    return index | ours


def _write_without_origin(file: Path, config: dict) -> None:
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
