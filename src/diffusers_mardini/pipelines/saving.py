"""How the pipeline is saved, read and shared: `save_pretrained` leaves a folder that anybody may load and push.

What such a folder is, and the code in it, is told by `checkpoint_format.py`; checks and the upload by `hub.py`.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint_format import (
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


class SavingMixin:
    """Stands before `DiffusionPipeline`, whose methods it completes."""

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Writes `model_index.json`, and beside it what `DiffusionPipeline.from_pretrained` finds us through."""
        super().to_json_file(json_file_path)
        finish_saved_folder(Path(json_file_path))

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
