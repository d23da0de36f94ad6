"""Share a saved pipeline or a folder of LoRA weights on the Hub.

`plan_upload` checks without a network that a folder is safe and complete, and lists the files to send; `push` sends
them in one commit. Cards are made in `cards.py`; the files of code in a pipeline's folder are defined in
`format_version.py`.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from . import components
from .cards import FACTS, SHARD_NUMBERS, card_metadata, card_of_folder, retarget_card
from .format_version import LIBRARY, check_format, shims
from .weights import check_tensors


CARD = "README.md"
ALLOWED = (
    ".safetensors", ".json", ".jsonl", ".yaml", ".md", ".txt", ".bib", ".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4",
)  # fmt: skip
ALLOWED_NAMES = ("LICENSE", "NOTICE")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack")
TEMPORARY = ("~", ".tmp", ".temp", ".part", ".partial", ".incomplete", ".lock", ".swp", ".bak")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_INDEX = re.compile(r"\.safetensors\.index(\.[^.]+)?\.json$")  # a variant's name stands before the suffix


@dataclass(frozen=True)
class Upload:
    """The files and the card of one upload.

    Attributes:
        folder: where the files are.
        repo_id: the repository, `owner/name`.
        files: size in bytes of each file but the card, by its path in the folder and in the repository.
        card: text of `README.md`.
        notes: sentences for the user about how the card differs from the folder's own.
    """

    folder: Path
    repo_id: str
    files: dict[str, int]
    card: str
    notes: tuple[str, ...] = ()


def plan_upload(folder: str | os.PathLike, repo_id: str, facts: Mapping[str, Any] | None = None) -> Upload:
    """Check a folder and return what would be sent; needs no network and changes nothing.

    Args:
        folder: a saved pipeline, or LoRA weights.
        repo_id: `owner/name`. Snippets of the card are changed to load from it.
        facts: for a card (`cards.FACTS`), beside those that the folder holds; only if the folder has no `README.md`.

    Raises:
        ValueError: naming every file that is unsafe to share, and everything that is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is not a folder; give the folder of a saved pipeline or of LoRA weights")
    check_repo_id(repo_id)
    index = _read_index(folder)
    # If the index is lost, our own files of code are not reported as well.
    parts = {path.parent.name: [LIBRARY] for path in folder.glob(f"*/{LIBRARY}.py")}
    files, problems = _look_through(folder, shims(parts if index is None else index))
    problems += _missing(folder, index)
    if problems:
        raise ValueError(
            f"'{folder}' is not sent, for {len(problems)} reason{'s' if len(problems) > 1 else ''}:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    has_card = files.pop(CARD, None) is not None
    if has_card and facts:
        raise ValueError(f"'{folder}' has a {CARD}, so the given facts would not be used; remove one of them")
    notes = []
    if has_card:
        card, loaded = retarget_card((folder / CARD).read_text(encoding="utf-8"), repo_id)
        if loaded is not None:
            notes.append(
                f"the snippets of {CARD} load from {repo_id} there, not from {loaded}; the file here stays as it is"
            )
        if card_metadata(card).get("library_name") != "diffusers":
            notes.append(f"{CARD} does not say `library_name: diffusers`, so the Hub will show no snippet of its own")
    else:
        card = card_of_folder(folder, {"name": repo_id.split("/")[1], "path": repo_id, **(facts or {})})
        notes.append(f"there is no {CARD}; one is made from the folder" + (" and the given facts" if facts else ""))
    return Upload(folder, repo_id, files, card, tuple(notes))


def read_facts_file(path: str | os.PathLike) -> dict[str, Any]:
    """Return facts for a card from a JSON file.

    Raises:
        ValueError: if it is not a JSON object. Unknown facts are refused later, when the card is made.
    """
    try:
        facts = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{path}' is not valid JSON ({error})") from error
    if not isinstance(facts, dict):
        raise ValueError(f"'{path}' holds a {type(facts).__name__}; write an object with keys of {', '.join(FACTS)}")
    return facts


def describe(upload: Upload) -> str:
    """Return a text for the user: the files with their sizes, then the card."""
    files = {**upload.files, CARD: len(upload.card.encode())}
    width = max(map(len, files))
    lines = [f"{len(files)} files of {upload.folder} for {upload.repo_id}, {_size(sum(files.values()))}:"]
    lines += [f"  {name:<{width}}  {_size(files[name]):>9}" for name in sorted(files)]
    lines += [f"Note: {note}." for note in upload.notes]
    return "\n".join([*lines, "", f"--- {CARD} ---", upload.card.rstrip(), f"--- end of {CARD} ---"])


def push(
    upload: Upload,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
) -> str:
    """Create the repository if needed, send everything in one commit and return the address of the commit.

    Files of the repository that the folder does not have stay there.

    Args:
        upload: from `plan_upload`.
        commit_message: by default "Upload" and the folder's name.
        private: for a new repository; by default the owner's setting.
        token: by default the one of `hf auth login` or of the environment variable HF_TOKEN.
        create_pr: propose the commit instead of making it.

    Raises:
        ValueError: if the Hub refuses the card, the token or the repository, or cannot be reached.
    """
    api = HfApi(token=token)
    operations = [CommitOperationAdd(name, upload.folder / name) for name in sorted(upload.files)]
    operations.append(CommitOperationAdd(CARD, upload.card.encode()))
    try:
        ModelCard(upload.card).validate()  # first, so that a bad card leaves no empty repository
        api.create_repo(upload.repo_id, private=private, exist_ok=True)
        commit = api.create_commit(
            upload.repo_id,
            operations,
            commit_message=commit_message or f"Upload {upload.folder.resolve().name}",
            create_pr=create_pr,
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = {
            401: "log in with `hf auth login`, or set HF_TOKEN to a token that may write",
            403: f"the token may not write to {upload.repo_id}; make one that may at https://huggingface.co/settings/tokens",
        }.get(status, "nothing was committed; the same command tries again")
        raise ValueError(f"the Hub answered {status} to sending {upload.repo_id}: {advice} ({error})") from error
    except HTTPError as error:
        raise ValueError(
            f"the Hub at {api.endpoint} was not reached ({error}); nothing was committed, try again"
        ) from error
    return str(commit.pr_url if create_pr else commit.commit_url)


def check_repo_id(repo_id: str) -> None:
    """Refuse a name that cannot be the `owner/name` of a repository, with a `ValueError`."""
    if repo_id.count("/") != 1:
        raise ValueError(f"the repository is {repo_id!r}; give owner and name, such as 'you/mardini-mine'")
    validate_repo_id(repo_id)  # its errors are ValueErrors that say which letters are allowed


def _read_index(folder: Path) -> dict[str, Any] | None:
    """Return the index; `None` if there is none, or a damaged one, which `_look_through` reports."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return index if isinstance(index, dict) else None


def _look_through(folder: Path, code: Mapping[str, str]) -> tuple[dict[str, int], list[str]]:
    """Return the sizes of the files that may be shared, and the reasons against the others.

    `code` holds the texts of the files of code that are allowed, by path.
    """
    files, problems = {}, []
    for name, path in _walk(folder):
        reason = _unsafe(folder, name, path, code)
        if reason:
            problems.append(f"{name}: {reason}")
        else:
            files[name] = path.stat().st_size
    return files, problems


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield all files, and the folders that are not entered: links, hidden and temporary ones."""
    for root, folders, names in os.walk(folder):
        stop = [
            name for name in folders
            if name.startswith(".") or name.endswith(TEMPORARY) or (Path(root) / name).is_symlink()
        ]  # fmt: skip
        folders[:] = sorted(set(folders) - set(stop))
        for name in sorted(names + stop):
            path = Path(root) / name
            yield path.relative_to(folder).as_posix(), path


def _unsafe(folder: Path, name: str, path: Path, code: Mapping[str, str]) -> str | None:
    """Return the reason why a file may not be shared; `None` if it may."""
    suffix = path.suffix.lower()
    if path.is_symlink():
        target = path.resolve()
        if not target.exists():
            return f"is a link to {os.readlink(path)}, which is not there"
        if not target.is_relative_to(folder.resolve()):
            return f"is a link that leaves the folder, to {target}; put a copy in its place"
        if target.is_dir():
            return "is a link to a folder; put a copy in its place"
    if path.name.startswith(".") or path.name.endswith(TEMPORARY):
        what = "temporary, left by something that was interrupted" if path.name.endswith(TEMPORARY) else "hidden"
        return f"is {what}; remove it or move it away"
    if suffix in PICKLES:
        return "can hold code that runs when it is loaded; save the weights as safetensors (save_pretrained does)"
    if suffix == ".py":
        if name not in code:
            return "is code; only the few lines that save_pretrained writes may be shared with weights"
        if path.read_text(encoding="utf-8", errors="replace") != code[name]:
            return "is not the file that this version writes; load the pipeline and save it again with save_pretrained"
        return None
    if suffix not in ALLOWED and name not in ALLOWED_NAMES:
        return f"is not of a kind that a checkpoint needs ({', '.join(ALLOWED)}); move it away"
    if suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"is not valid JSON ({error})"
        if name == "model_index.json" and not isinstance(content, dict):
            return f"holds a {type(content).__name__} instead of the parts of a pipeline"
    if suffix == ".safetensors":
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            return f"is not a whole safetensors file ({error}); save or copy it again"
    if name == CARD:
        try:
            card_metadata(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return str(error)
    return None


def _missing(folder: Path, index: Mapping[str, Any] | None) -> list[str]:
    """Return sentences about files that a complete folder has and this one lacks, without the damaged ones."""
    if index is not None:
        return _missing_of_pipeline(folder, index)
    if (folder / "model_index.json").exists() or (folder / LORA_WEIGHT_NAME_SAFE).exists():
        return []
    return [
        f"model_index.json: is missing, and so is {LORA_WEIGHT_NAME_SAFE}: neither a saved pipeline nor LoRA weights"
    ]


def _missing_of_pipeline(folder: Path, index: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{name}: is missing; without it diffusers' own class does not find us; load the pipeline and save it again "
        "with save_pretrained"
        for name in shims(index)
        if not (folder / name).exists()
    ]
    try:
        check_format(index, folder)
    except ValueError as error:
        problems.append(f"model_index.json: {error}")
    for component, value in index.items():
        if component.startswith("_") or not isinstance(value, list) or value[:1] in ([], [None]):
            continue
        wanted = "scheduler_config.json" if component == "scheduler" else "config.json"
        if not (folder / component / wanted).exists():
            problems.append(f"{component}/{wanted}: is missing, and model_index.json names {component}")
        elif component != "scheduler":
            found = _missing_weights(folder / component) or _wrong_tensors(folder / component, value)
            problems += [f"{component}/{problem}" for problem in found]
    return problems


def _missing_weights(folder: Path) -> list[str]:
    """Return sentences about weights, shards or their index that the folder of a model lacks."""
    there = sorted(path.name for path in folder.iterdir() if path.name.startswith("diffusion_pytorch_model"))
    indices = [name for name in there if _INDEX.search(name)]
    weights = [name for name in there if name.endswith(".safetensors")]
    if not weights and not indices:
        return [f"{SAFETENSORS_WEIGHTS_NAME}: is missing; there is a config and no weights"]
    problems, listed = [], set()
    for index in indices:
        try:
            weight_map = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError):
            problems.append(f"{index}: does not say which shard holds which tensor; save the pipeline again")
            continue
        listed |= set(weight_map.values())
        for shard in sorted(set(weight_map.values())):
            if shard not in there:
                problems.append(f"{shard}: is missing, and {index} names it")
                continue
            lost = {tensor for tensor, place in weight_map.items() if place == shard} - _shapes(folder / shard).keys()
            if lost:
                problems.append(f"{shard}: lacks {len(lost)} tensors that {index} says it holds, such as {min(lost)}")
    for name in weights:
        if _SHARD.search(name) and name not in listed:
            problems.append(f"{name}: is one of several shards, and no index names it; save the pipeline again")
    return problems


def _wrong_tensors(folder: Path, kind: list[str]) -> list[str]:
    """Return sentences about weights whose tensors differ, in name or shape, from those of the configured model.

    `kind` is the entry of `model_index.json`, library and class. Quantized weights have other names and are not
    checked.
    """
    model_class = getattr(components if kind[0] == LIBRARY else diffusers, kind[1], None)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("auto_map", None)  # for `AutoModel`, no argument
    if not (isinstance(model_class, type) and issubclass(model_class, ModelMixin)) or "quantization_config" in config:
        return []
    try:
        with torch.device("meta"):
            wanted = {
                name: tuple(tensor.shape) for name, tensor in model_class.from_config(config).state_dict().items()
            }
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        return [f"config.json: no {kind[1]} can be made from it ({error})"]
    # Shards of one set of weights differ in their numbers only; a variant has another name.
    there: dict[str, dict[str, tuple[int, ...]]] = {}
    for path in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
        shapes = _shapes(path)
        if not shapes:  # a damaged file, reported already
            return []
        there.setdefault(SHARD_NUMBERS.sub("", path.name), {}).update(shapes)
    problems = []
    for name, shapes in there.items():
        try:
            check_tensors(f"{name}:", kind[1], wanted.keys() - shapes.keys(), shapes.keys() - wanted.keys())
        except ValueError as error:
            problems.append(str(error))
        odd = sorted(tensor for tensor in wanted.keys() & shapes.keys() if shapes[tensor] != wanted[tensor])
        if odd:
            problems.append(f"{name}: `{odd[0]}` is shaped {shapes[odd[0]]}, and {wanted[odd[0]]} by config.json")
    return problems


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except SafetensorError:
        return {}


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
