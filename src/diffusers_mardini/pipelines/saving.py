"""How the pipeline is saved, read and shared: `save_pretrained` leaves a folder that anybody may load and push.

What such a folder is, and the code in it, is told by `format_version.py`; checks and the upload by `hub.py`.
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
from ..weights import check_tensors, check_weight_files, empty_tensors, local_folder, require_safetensors_argument


class SavingMixin:
    """Stands before `DiffusionPipeline`, whose methods it completes."""

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Writes `model_index.json`, and beside it what `DiffusionPipeline.from_pretrained` finds us through."""
        super().to_json_file(json_file_path)
        finish_saved_folder(Path(json_file_path))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """Loads a pipeline from a folder or from the Hub, see [`~DiffusionPipeline.from_pretrained`].

        Raises:
            ValueError: if there is no such folder, if weights in it are no safetensors, and if they lack tensors or
                have others.
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
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """Makes a pipeline of another one's parts, see [`~DiffusionPipeline.from_pipe`]; the scheduler is shared, too,
        unless one is given."""
        made = super().from_pipe(pipeline, **kwargs)
        if made.transformer is getattr(
            pipeline, "transformer", None
        ):  # which knows noise by the timesteps that it was trained with
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
        variant: str | None = None,
        *,
        facts: Mapping[str, Any] | None = None,
        dry_run: bool = True,
    ) -> str | None:
        """Shows what would be sent to the Hub, files and card; sends it with `dry_run=False`.

        Args:
            repo_id (`str`): Where to, `owner/name`. It is made if it is not there.
            commit_message (`str`, *optional*): By default "Upload" and the name of the repository.
            private (`bool`, *optional*): For a new repository; by default as its owner has set it.
            token (`str`, *optional*): By default the one of `hf auth login` or of the environment variable HF_TOKEN.
            create_pr (`bool`, defaults to `False`): Propose the commit instead of making it.
            variant (`str`, *optional*): As in `save_pretrained`.
            facts (`dict`, *optional*): For the card, see `diffusers_mardini.cards.FACTS`; it claims nothing else.
            dry_run (`bool`, defaults to `True`): Whether to look only.

        Returns:
            The address of the commit, or `None` where nothing was sent.

        Raises:
            ValueError: if the name is no `owner/name`, a fact is unknown, or the Hub refuses.
        """
        check_repo_id(repo_id)  # before much is written
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / repo_id.rpartition("/")[2]
            self.save_pretrained(folder, variant=variant)
            upload = plan_upload(folder, repo_id, facts)
            print(describe(upload))
            if dry_run:
                print(f"\nNothing was sent. `dry_run=False` sends this to {repo_id}.")
                return None
            return push(upload, commit_message, private, token, create_pr)


def check_weights_of_parts(folder: Path, loading: Mapping[str, Any]) -> None:
    """Raises `ValueError` where weights of a saved pipeline would be unpickled; parts that `loading` hands in are not
    read."""
    for part in sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in loading):
        if (part / "config.json").exists():
            check_weight_files(part, loading.get("variant"))


def finish_saved_folder(index_file: Path) -> None:
    """Writes the shims into the folder of the saved `index_file` (`model_index.json`), and there the shim's name and the format's
    version.

    Where the pipeline had been loaded from is taken out of all configurations: a path on this machine is not
    published.
    """
    index = json.loads(index_file.read_text(encoding="utf-8"))
    code = shims(index)
    for name, text in code.items():
        if (index_file.parent / name).parent.is_dir():  # `save_config` alone makes none for the parts
            (index_file.parent / name).write_text(text, encoding="utf-8")
    # A part that was ours in a pipeline saved here before, and is not any more.
    for shim in index_file.parent.glob(f"*/{LIBRARY}.py"):
        if f"{shim.parent.name}/{shim.name}" not in code and shim.read_text(encoding="utf-8") == COMPONENT_SHIM:
            shim.unlink()
    index["_class_name"] = [SHIM_NAME, "MarDiniPipeline"]
    index[FORMAT_KEY] = FORMAT_VERSION
    _write_without_origin(index_file, index)
    for name in index:
        config_file = index_file.parent / name / "config.json"
        if config_file.exists():
            _write_without_origin(config_file, json.loads(config_file.read_text(encoding="utf-8")))


def without_shims(index: dict) -> dict:
    """The index with the plain class name, and parts in a library that is no file of the folder: our own class needs no code from it."""
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
